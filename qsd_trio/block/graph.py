"""The graph of block nodes: opening, closing, permissions, draining.

Nodes are resources, not tasks: they close in reverse order of dependence when ``open_block_graph`` is left.
Changes to the graph run one at a time under ``BlockGraph.lock``.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar, final

import trio

import qsd_trio.block.drivers  # noqa: F401  # the index of the drivers
from qsd_trio import trace
from qsd_trio.block.abc import ChildRole, Perm
from qsd_trio.block.backend import BlockBackend
from qsd_trio.block.io import Edge, Node
from qsd_trio.block.names import NODE_NAME_MAX, FilenamePolicy, NodeNames, check_node_name
from qsd_trio.block.opener import GraphCreateOpener, NodeOpener
from qsd_trio.block.options import NodeFlags, explicit_generic, inherit_generic, node_flags
from qsd_trio.block.permissions import check_conflicts, cumulative, default_child_permissions
from qsd_trio.block.timers import Timers
from qsd_trio.errors import QmpError
from qsd_trio.registry import block_drivers
from qsd_trio.services import running_beside

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Iterator

    from qsd_trio.block.abc import BlockDriver
    from qsd_trio.events import EventBus
    from qsd_trio.objects.abc import ObjectTable
    from qsd_trio.untyped import Options

log = logging.getLogger("qsd_trio.block")

_trace_open = trace.point("bdrv_open_common")
_trace_close = trace.point("bdrv_close")
_trace_attach = trace.point("blk_root_attach")
_trace_detach = trace.point("blk_root_detach")

T = TypeVar("T")

MAX_DEPTH = 200  # nested opens: a chain of backing files longer than that is a loop or an attack


@final
class BlockGraph:
    """The nodes of one daemon, by name, in the order in which they were named."""

    def __init__(self, events: EventBus, objects: ObjectTable) -> None:
        self.events = events
        self.objects = objects
        self.policy = FilenamePolicy()
        self.nodes: dict[str, Node] = {}
        self.backends: list[BlockBackend] = []
        self.timers = Timers()
        self._names = NodeNames()
        self._lock = trio.Lock()
        self._idle = trio.Event()

    def __iter__(self) -> Iterator[Node]:
        return iter(tuple(self.nodes.values()))

    # -- looking up ----------------------------------------------------------------------------------

    def find(self, name: str) -> Node:
        """Return the node ``name``, for commands that also take a device name."""
        node = self.nodes.get(name)
        if node is None:
            raise QmpError(f"Cannot find device='{name}' nor node-name='{name}'")
        return node

    def find_node(self, name: str) -> Node:
        """Return the node ``name``, for commands that take nothing else."""
        node = self.nodes.get(name)
        if node is None:
            raise QmpError(f"Failed to find node with node-name='{name}'")
        return node

    # -- opening -------------------------------------------------------------------------------------

    async def add_node(self, options: Options) -> Node:
        """Open a node for the user (blockdev-add). Raises QmpError with nothing left behind."""
        async with self._lock:
            if not options.node_name and options.node_name is None:
                raise QmpError("'node-name' must be specified for the root node")
            node = await self.open_node(options, parent=None, role=ChildRole.NONE, depth=0)
            node.monitor_owned = True
            return node

    async def open_node(
        self, options: Options, *, parent: Node | None, role: ChildRole, depth: int
    ) -> Node:
        """Open a node from options, with its inline children. The caller owns it or attaches it."""
        if depth > MAX_DEPTH:
            raise QmpError(f"More than {MAX_DEPTH} nested block nodes")
        driver_name: str = options.driver.value
        generic = explicit_generic(options)
        if parent is not None:
            generic = inherit_generic(generic, parent.generic, role)
        else:
            for name in ("cache.direct", "cache.no-flush", "read-only"):
                generic.setdefault(name, False)
        node = Node("", driver_name, NodeFlags(), self.events)
        node.options = options
        node.generic = generic
        node.inherits_from = parent
        driver_class: type[BlockDriver] | None = block_drivers.get(driver_name)
        try:
            if driver_class is None:
                raise QmpError(
                    f"Driver '{driver_name}' is not supported by this version of qsd-trio"
                )
            node.flags = node_flags(generic)
            opener = NodeOpener(self, node, depth)
            if getattr(options, "file", None) is None:
                self.name_node(node)
            node.attach_driver(await driver_class.open(opener, options))
            self.name_node(node)
            if _trace_open.on:
                _trace_open(node.node_name, getattr(options, "filename", ""), 0, driver_name)
            await self.refresh_permissions([node])
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._close_node(node)
            raise
        return node

    def name_node(self, node: Node) -> None:
        """Give the node its name and its place in the table, once."""
        if node.node_name:
            return
        name = node.options.node_name
        if name is None:
            name = self._names.generate()
        else:
            check_node_name(name)
            if name in self.nodes:
                raise QmpError(f"Duplicate nodes with node-name='{name}'")
            if len(name) > NODE_NAME_MAX:
                raise QmpError("Node name too long")
        node.node_name = name
        self.nodes[name] = node

    def attach(self, parent: Node, name: str, role: ChildRole, child: Node) -> Edge:
        """Make an edge. Permissions follow with ``refresh_permissions``."""
        edge = Edge(name, role, child, parent, lambda: f"node '{parent.node_name}'")
        parent.children.append(edge)
        child.parents.append(edge)
        return edge

    async def detach(self, edge: Edge) -> None:
        """Remove an edge; the child closes if nobody else holds it."""
        if edge.parent is not None:
            edge.parent.children.remove(edge)
        child = edge.node
        child.parents.remove(edge)
        if not child.parents and not child.monitor_owned:
            await self._close_node(child)
        else:
            await self.refresh_permissions([child])

    def freeze_chain(self, top: Node, bottom: Node) -> Callable[[], None]:
        """Keep the links from ``top`` down to ``bottom`` as they are until the answer is called."""
        links: list[Edge] = []
        node = top
        while node is not bottom:
            edge = node.child(ChildRole.COW) or node.child(ChildRole.FILTERED)
            if edge is None:
                raise QmpError(
                    f"Node '{bottom.node_name}' is not in the backing chain of '{top.node_name}'"
                )
            links.append(edge)
            node = edge.node
        for edge in links:
            if edge.frozen:
                raise QmpError(f"Cannot change {edge.link}")
        for edge in links:
            edge.frozen = True

        def thaw() -> None:
            for edge in links:
                edge.frozen = False

        return thaw

    # -- closing -------------------------------------------------------------------------------------

    async def del_node(self, name: str) -> None:
        """Close a node of the user's (blockdev-del)."""
        async with self._lock:
            node = self.find_node(name)
            if any(edge.parent is None for edge in node.parents):
                raise QmpError(f"Node {name} is in use")
            for edge in node.parents:
                if edge.role & ChildRole.COW and edge.parent is not None:
                    raise QmpError(
                        f"Node '{name}' is busy:"
                        f" node is used as backing hd of '{edge.parent.node_name}'"
                    )
            if not node.monitor_owned:
                raise QmpError(f"Node {name} is not owned by the monitor")
            if node.parents:
                raise QmpError(f"Block device {name} is in use")
            node.monitor_owned = False
            with trio.CancelScope(shield=True):
                await self._close_node(node)

    async def _close_node(self, node: Node) -> None:
        """Flush and close a node without parents, then its children that nobody else holds."""
        if self.nodes.get(node.node_name) is node:
            del self.nodes[node.node_name]
        if node.is_open:
            _trace_close(node.node_name)
            driver = node.driver
            try:
                await node.flush()
            except OSError as exc:
                log.error("%s: flush at close failed: %s", node.node_name, exc.strerror)
            try:
                await driver.aclose()
            except OSError as exc:
                log.error("%s: close failed: %s", node.node_name, exc.strerror)
            node.detach_driver()
        for edge in tuple(reversed(node.children)):
            await self.detach(edge)

    async def close_unused(self, node: Node) -> None:
        """Close a node that was opened for a user who then could not have it."""
        if not node.parents and not node.monitor_owned:
            with trio.CancelScope(shield=True):
                await self._close_node(node)

    async def close_all(self) -> None:
        """Close every node, users before what they use."""
        async with self._lock:
            for backend in tuple(self.backends):  # of users that did not come to close theirs
                await self._release(backend)
            while self.nodes:
                roots = [node for node in self.nodes.values() if not node.parents]
                assert roots, "block nodes form a cycle"
                for node in reversed(roots):
                    node.monitor_owned = False
                    await self._close_node(node)

    # -- permissions ---------------------------------------------------------------------------------

    async def refresh_permissions(self, roots: Iterable[Node]) -> None:
        """Compute permissions anew below ``roots`` and put them in force, or change nothing.

        Raises QmpError on a conflict or if a driver cannot get a lock.
        """
        roots = set(roots)
        planned: dict[Edge, tuple[Perm, Perm]] = {}
        changed: list[tuple[Node, tuple[Perm, Perm]]] = []
        for node in topological(roots):
            if node not in roots and not any(
                planned.get(edge, (edge.perm, edge.shared)) != (edge.perm, edge.shared)
                for edge in node.parents
            ):
                continue  # nothing new comes down to it: long chains are opened node by node
            edges = [
                (edge, *planned.get(edge, (edge.perm, edge.shared)))
                for edge in reversed(node.parents)
            ]
            check_conflicts(node.node_name, edges)
            total = cumulative((needed, shared) for _, needed, shared in edges)
            self._check_node(node, total[0])
            changed.append((node, total))
            plan = node.driver.child_permissions if node.is_open else default_child_permissions
            for edge in node.children:
                planned[edge] = plan(edge.role, *total, read_only=node.read_only)
        done: list[Node] = []
        try:
            for node, total in changed:
                if node.is_open and total != node.cumulative:
                    await node.driver.set_permissions(*total)
                    done.append(node)
        except QmpError:
            for node in done:
                await node.driver.set_permissions(*node.cumulative)
            raise
        for edge, (needed, shared) in planned.items():
            edge.perm, edge.shared = needed, shared
        for node, total in changed:
            node.cumulative = total

    def _check_node(self, node: Node, needed: Perm) -> None:
        if needed & (Perm.WRITE | Perm.WRITE_UNCHANGED) and node.read_only:
            raise QmpError("Block node is read-only")
        if (
            needed & Perm.WRITE
            and not needed & Perm.RESIZE
            and node.is_open
            and node.getlength() % node.limits().request_alignment
        ):
            raise QmpError(
                "Cannot get 'write' permission without 'resize': "
                "Image size is not a multiple of request alignment"
            )

    # -- users ---------------------------------------------------------------------------------------

    async def open_backend(
        self, node_name: str, perm: Perm, shared: Perm, *, name: str = ""
    ) -> BlockBackend:
        """Take permissions on a node. ``name`` is how texts call the user ('' : unnamed)."""
        async with self._lock:
            return await self.attach_backend(self.find(node_name), perm, shared, name)

    async def attach_backend(self, node: Node, perm: Perm, shared: Perm, name: str) -> BlockBackend:
        """Take permissions on ``node``, under the lock that the caller holds."""
        desc = name or "an unnamed block device"
        edge = Edge("root", ChildRole.FILTERED | ChildRole.PRIMARY, node, None, lambda: desc)
        edge.perm, edge.shared = perm, shared
        node.parents.append(edge)
        try:
            await self.refresh_permissions([node])
        except BaseException:
            node.parents.remove(edge)
            raise
        backend = BlockBackend(self, edge, name)
        self.backends.append(backend)
        _trace_attach("root", name, node.node_name)
        return backend

    async def add_backend_permissions(self, backend: BlockBackend, perm: Perm) -> None:
        """Take more permissions for a backend, or raise QmpError and change nothing."""
        async with self._lock:
            edge = backend.edge
            before, edge.perm = edge.perm, edge.perm | perm
            try:
                await self.refresh_permissions([edge.node])
            except BaseException:
                edge.perm = before
                raise

    async def set_backend_shared(self, backend: BlockBackend, shared: Perm) -> None:
        """Change what a backend shares, or raise QmpError and change nothing."""
        async with self._lock:
            edge = backend.edge
            before, edge.shared = edge.shared, shared
            try:
                await self.refresh_permissions([edge.node])
            except BaseException:
                edge.shared = before
                raise

    async def close_backend(self, backend: BlockBackend) -> None:
        """Give a backend's permissions back (called by BlockBackend.aclose)."""
        with trio.CancelScope(shield=True):
            async with self._lock:
                await self._release(backend)

    async def _release(self, backend: BlockBackend) -> None:
        self.backends.remove(backend)
        _trace_detach("root", backend.name, backend.node.node_name)
        backend.detached()
        if backend.node.is_open:
            try:
                await backend.node.flush()
            except OSError as exc:
                log.error("%s: flush failed: %s", backend.node.node_name, exc.strerror)
        await self.detach(backend.edge)

    # -- draining ------------------------------------------------------------------------------------

    def backend_idle(self) -> None:
        """Note that a draining backend has nothing in flight any more."""
        self._idle.set()

    @asynccontextmanager
    async def drained(self, nodes: Iterable[Node]) -> AsyncGenerator[None]:
        """Hold off and wait for every request that reaches ``nodes``, while the context is open."""
        above = _ancestors(nodes)
        backends = [backend for backend in self.backends if backend.node in above]
        for backend in backends:
            backend.begin_drain()
        try:
            while any(backend.in_flight for backend in backends):
                self._idle = trio.Event()
                await self._idle.wait()
            yield
        finally:
            for backend in backends:
                backend.end_drain()

    async def resize(self, node: Node, size: int) -> None:
        """Change a node's length for the user (block_resize)."""
        async with self._lock:
            async with self._resizable(node):
                backend = await self.attach_backend(node, Perm.RESIZE, Perm.ALL, "")
                try:
                    async with self.drained([node]):
                        await node.truncate(size)
                finally:
                    with trio.CancelScope(shield=True):
                        await self._release(backend)

    @asynccontextmanager
    async def _resizable(self, node: Node) -> AsyncGenerator[None]:
        """Let users that follow a resize share that permission for a moment."""
        above = _ancestors([node])
        willing = [
            backend
            for backend in self.backends
            if backend.node in above
            and backend.follows_resize
            and not backend.edge.shared & Perm.RESIZE
        ]
        for backend in willing:
            backend.edge.shared |= Perm.RESIZE
        try:
            await self.refresh_permissions([backend.node for backend in willing])
            yield
        finally:
            for backend in willing:
                backend.edge.shared &= ~Perm.RESIZE
            with trio.CancelScope(shield=True):
                await self.refresh_permissions([backend.node for backend in willing])

    @asynccontextmanager
    async def changing(self) -> AsyncGenerator[None]:
        """Keep other changes of the graph out while the context is open."""
        async with self._lock:
            yield

    def create_opener(self) -> GraphCreateOpener:
        """Return what a blockdev-create job opens its nodes with."""
        return GraphCreateOpener(self)


def topological(roots: Iterable[Node]) -> list[Node]:
    """Return the nodes reachable from ``roots``, parents before children."""
    order: list[Node] = []
    seen: set[Node] = set()

    def visit(node: Node) -> None:
        if node not in seen:
            seen.add(node)
            for edge in node.children:
                visit(edge.node)
            order.append(node)

    for root in roots:
        visit(root)
    order.reverse()
    return order


def _ancestors(nodes: Iterable[Node]) -> set[Node]:
    """Return ``nodes`` and every node above them."""
    seen: set[Node] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo.extend(edge.parent for edge in node.parents if edge.parent is not None)
    return seen


@asynccontextmanager
async def open_block_graph(events: EventBus, objects: ObjectTable) -> AsyncGenerator[BlockGraph]:
    """Open an empty graph; leaving flushes and closes every node, also under cancellation."""
    graph = BlockGraph(events, objects)
    async with running_beside(graph.timers.run):
        try:
            yield graph
        finally:
            with trio.CancelScope(shield=True):
                await graph.close_all()
