"""What drivers open their children with, and blockdev-create its nodes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar, final

import attrs

from qsd_trio.block.abc import ChildRole, Perm
from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd_trio.block.abc import BlockNode, Child
    from qsd_trio.block.backend import BlockBackend
    from qsd_trio.block.dirty_bitmaps import DirtyBitmaps
    from qsd_trio.block.graph import BlockGraph
    from qsd_trio.block.io import Node
    from qsd_trio.untyped import Json, Options

T = TypeVar("T")


@final
class NodeOpener:
    """Implements block/abc.py's Opener for one node that is being opened."""

    def __init__(self, graph: BlockGraph, node: Node, depth: int) -> None:
        self._graph = graph
        self._node = node
        self._depth = depth

    @property
    def node_name(self) -> str:
        """The node's name (known once its ``file`` child is open)."""
        return self._node.node_name

    @property
    def read_only(self) -> bool:
        """Whether the node is opened read-only."""
        return self._node.flags.read_only

    @property
    def auto_read_only(self) -> bool:
        """Whether it may fall back to read-only."""
        return self._node.flags.auto_read_only

    @property
    def force_share(self) -> bool:
        """Whether locks are not to be taken."""
        return self._node.flags.force_share

    @property
    def cache_direct(self) -> bool:
        """Whether the host's page cache is to be avoided."""
        return self._node.flags.cache_direct

    @property
    def cache_no_flush(self) -> bool:
        """Whether flushes are ignored."""
        return self._node.flags.cache_no_flush

    @property
    def discard_unmap(self) -> bool:
        """Whether discards reach the driver."""
        return self._node.flags.discard_unmap

    @property
    def bitmaps(self) -> DirtyBitmaps:
        """The node's dirty bitmaps."""
        return self._node.bitmaps

    def make_read_only(self, message: str) -> None:
        """Become read-only if ``auto-read-only`` allows it, else QmpError(message)."""
        if self.read_only:
            return
        if not self.auto_read_only:
            raise QmpError(message)
        self._node.flags = attrs.evolve(self._node.flags, read_only=True)

    async def child(self, name: str, reference: Options, role: ChildRole) -> Child:
        """Attach the child that ``reference`` names or describes."""
        graph = self._graph
        if isinstance(reference, str):
            child = graph.find(reference)
        else:
            child = await graph.open_node(
                reference, parent=self._node, role=role, depth=self._depth + 1
            )
        edge = graph.attach(self._node, name, role, child)
        if name == "file":
            graph.name_node(self._node)
        # Permissions and locks come before the first look at the content.
        await graph.refresh_permissions([self._node])
        return edge

    async def backing(
        self, reference: Options, filename: str | None, format_: str | None
    ) -> Child | None:
        """Attach the backing child: by option, by the image's header, or none."""
        from qsd_trio.qapi import NULL

        if reference is NULL or (reference is None and not filename):
            return None
        if reference is None:
            assert filename is not None
            reference = self._implicit_backing(filename, format_)
        try:
            return await self.child("backing", reference, ChildRole.COW)
        except QmpError as exc:
            raise QmpError(f"Could not open backing file: {exc}") from exc

    def _implicit_backing(self, filename: str, format_: str | None) -> Options:
        if format_ is None:
            # Guessing would let a guest that writes a header choose how the host opens its image.
            raise QmpError(
                f"The image names backing file '{filename}' without its format;"
                " give the backing file with the option 'backing'"
            )
        path = self._resolve(filename)
        self._check_loop(path)
        if format_ not in _known_drivers():
            raise QmpError(f"Could not open backing file: Unknown driver '{format_}'")
        if format_ in ("file", "host_device"):
            return _options_of({"driver": format_, "filename": path})
        file: Json = {"driver": self._protocol_of(path), "filename": path}
        return _options_of({"driver": format_, "file": file})

    def _check_loop(self, path: str) -> None:
        """Refuse a backing file that is one of the images being opened on top of it.

        Loops through links have other names each time round: MAX_DEPTH ends them.
        """
        path = os.path.abspath(path)
        node: Node | None = self._node
        while node is not None:
            file = node.child(ChildRole.PRIMARY)
            name = file.node.driver.filename() if file is not None else ""
            if name and os.path.abspath(name) == path:
                raise QmpError(f"Image '{path}' is its own backing file, or that of others above")
            node = node.inherits_from

    def _resolve(self, filename: str) -> str:
        """Return the path of a file that the image names."""
        file = self._node.child(ChildRole.PRIMARY)
        image = file.node.driver.filename() if file is not None else ""
        return self._graph.policy.resolve(filename, image)

    def _protocol_of(self, path: str) -> str:
        from qsd_trio.host.files import is_block_device

        return "host_device" if is_block_device(path) else "file"

    async def data_file(self, reference: Options, filename: str | None) -> Child | None:
        """Attach the child ``data-file``: by option, or by the name in the image; or none."""
        if reference is None:
            if not filename:
                return None
            # Not beside the image, as a backing file would be: QEMU sees it from where it runs.
            path = self._graph.policy.resolve(filename, "")
            reference = _options_of({"driver": self._protocol_of(path), "filename": path})
        for edge in self._node.children:
            if edge.name == "file":
                edge.role &= ~ChildRole.DATA
        return await self.child("data-file", reference, ChildRole.DATA)

    def object(self, id_: str, type_: type[T]) -> T:
        """Return a user-creatable object."""
        return self._graph.objects.lookup(id_, type_)

    def freeze_chain(self, top: BlockNode, bottom: str) -> tuple[BlockNode, Callable[[], None]]:
        """Keep the links from ``top`` down to node ``bottom`` from being changed."""
        node = self._graph.nodes.get(bottom)
        if node is None:
            raise QmpError(f"Bottom node '{bottom}' not found")
        if node.driver.is_filter:
            raise QmpError(f"Bottom node '{bottom}' is a filter")
        return node, self._graph.freeze_chain(self._graph.nodes[top.node_name], node)

    def every(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        """Call ``function`` every ``seconds`` until what is returned is called."""
        return self._graph.timers.every(seconds, function)

    def emit(self, event: str, **data: Json) -> None:
        """Emit a QMP event."""
        self._graph.events.emit(event, **data)


def _known_drivers() -> frozenset[str]:
    from qsd_trio.qapi import BlockdevDriver

    return frozenset(driver.value for driver in BlockdevDriver)


def _options_of(members: Json) -> Options:
    """Make typed options of what an image says."""
    from qsd_trio.qapi import BlockdevOptions
    from qsd_trio.qapi.converter import from_qmp

    return from_qmp(BlockdevOptions, members)


@final
class GraphCreateOpener:
    """Implements block/abc.py's CreateOpener; ``aclose`` releases what was opened."""

    def __init__(self, graph: BlockGraph) -> None:
        self._graph = graph
        self._backends: list[BlockBackend] = []

    async def node(self, reference: Options) -> Child:
        """Return an edge to the node with permission to read, write and resize it."""
        graph = self._graph
        async with graph.changing():
            if isinstance(reference, str):
                node = graph.find(reference)
            else:
                node = await graph.open_node(reference, parent=None, role=ChildRole.NONE, depth=0)
            needed = Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE
            try:
                backend = await graph.attach_backend(node, needed, Perm.ALL, "")
            except BaseException:
                await graph.close_unused(node)
                raise
        self._backends.append(backend)
        return backend.edge

    def object(self, id_: str, type_: type[T]) -> T:
        """Return a user-creatable object."""
        return self._graph.objects.lookup(id_, type_)

    async def aclose(self) -> None:
        """Flush and release every node."""
        for backend in reversed(self._backends):
            await backend.aclose()
        self._backends.clear()
