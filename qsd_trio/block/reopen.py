"""blockdev-reopen: change the options of open nodes, all or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import attrs
import trio

from qsd_trio.block.abc import ChildRole, Perm
from qsd_trio.block.graph import topological
from qsd_trio.block.io import Edge
from qsd_trio.block.opener import NodeOpener
from qsd_trio.block.options import NodeFlags, explicit_generic, inherit_generic, node_flags
from qsd_trio.errors import QmpError
from qsd_trio.protocol.qmp.serialise import members_in_order
from qsd_trio.qapi import NULL
from qsd_trio.qapi.converter import to_qmp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from qsd_trio.block.graph import BlockGraph
    from qsd_trio.block.io import Node
    from qsd_trio.untyped import Json, Options

#: Generic options: blockdev-reopen may change them on every node.
GENERIC = frozenset(
    {
        "read-only",
        "auto-read-only",
        "force-share",
        "discard",
        "detect-zeroes",
        "cache.direct",
        "cache.no-flush",
        "active",
    }
)
REPLACEABLE = ("file", "backing")


@final
@attrs.define(eq=False)
class _Change:
    """One node's new options, and what is needed to take them back."""

    node: Node
    options: Options  # None: an inheriting child, whose own options stay
    generic: dict[str, Json]
    old_flags: NodeFlags
    commit: Callable[[], Awaitable[None]] | None = None
    undo: list[Callable[[], None]] = attrs.field(factory=list)
    released: list[Edge] = attrs.field(factory=list)


async def reopen(graph: BlockGraph, wanted: Sequence[Options]) -> None:
    """Give each node in ``wanted`` the options named there, its unnamed options their defaults.

    Raises QmpError with nothing changed. Requests wait meanwhile.
    """
    async with graph.changing():
        changes: dict[Node, _Change] = {}
        for options in wanted:
            if options.node_name is None:
                raise QmpError("node-name not specified")
            node = graph.find_node(options.node_name)
            _queue(changes, node, options, explicit_generic(options))
        async with graph.drained(changes):
            with trio.CancelScope(shield=True):
                await _apply(graph, list(changes.values()))


def _queue(
    changes: dict[Node, _Change], node: Node, options: Options, generic: dict[str, Json]
) -> None:
    changes[node] = _Change(node, options, generic, node.flags)
    for edge in node.children:
        child = edge.node
        if child.inherits_from is not node:
            continue
        reference = getattr(options, edge.name, None) if options is not None else child.node_name
        if reference is NULL or (isinstance(reference, str) and reference != child.node_name):
            continue  # replaced by another node: this one keeps its options
        nested = None if reference is None or isinstance(reference, str) else reference
        own = explicit_generic(nested if nested is not None else child.options)
        merged = inherit_generic(own, generic, edge.role)
        if nested is None:
            merged = {**child.generic, **merged}
        _queue(changes, child, nested, merged)


async def _apply(graph: BlockGraph, changes: list[_Change]) -> None:
    done: list[_Change] = []
    try:
        for change in changes:
            done.append(change)
            await _prepare(graph, change)
        await graph.refresh_permissions([change.node for change in changes])
    except BaseException:
        for change in reversed(done):
            change.node.flags = change.old_flags
            for undo in reversed(change.undo):
                undo()
            await change.node.driver.abort_reopen()
        raise
    order = {node: place for place, node in enumerate(topological(each.node for each in changes))}
    # Children first: a parent that becomes writable may have to write at once.
    for change in sorted(changes, key=lambda change: order[change.node], reverse=True):
        if change.commit is not None:
            await change.commit()
        node = change.node
        node.generic = change.generic
        if change.options is not None:
            node.options = change.options
        node.refresh()
    for change in changes:
        for edge in change.released:
            await graph.detach(edge)


async def _prepare(graph: BlockGraph, change: _Change) -> None:
    node = change.node
    flags = node_flags(change.generic)
    options = change.options
    if not node.driver.supports_reopen:
        raise QmpError(
            f"Block format '{node.driver_name}' used by node '{node.node_name}'"
            " does not support reopening files"
        )
    if options is not None:
        _check_unchanged(node, options)
        _check_backing_named(node, options)
    if flags.read_only and not node.read_only:
        await node.flush()
    node.flags = flags
    change.commit = await node.driver.reopen(
        NodeOpener(graph, node, 0), options if options is not None else node.options
    )
    if options is not None:
        for name in REPLACEABLE:
            if hasattr(options, name):
                _replace_child(graph, change, name, getattr(options, name))


def _flatten(options: Options) -> dict[str, Json]:
    flat: dict[str, Json] = {}

    def walk(prefix: str, value: Json) -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                walk(f"{prefix}{key}.", below)
        elif isinstance(value, list):
            for index, below in enumerate(value):
                walk(f"{prefix}{index}.", below)
        else:
            flat[prefix[:-1]] = value

    walk("", to_qmp(options))
    return flat


def _check_unchanged(node: Node, options: Options) -> None:
    """Raise QmpError for an option that may not differ from what it was."""
    if options.driver is not node.options.driver:
        raise QmpError("Cannot change the option 'driver'")
    mutable = GENERIC | node.driver.mutable_options
    edges = {edge.name: edge for edge in node.children}
    new, old = _flatten(options), _flatten(node.options)

    def is_free(key: str) -> bool:
        first = key.partition(".")[0]
        if first in REPLACEABLE and ("." not in key or _inherits(edges.get(first), node)):
            return True
        return key in mutable or key.partition(".")[0] in mutable or key == "node-name"

    for key in old:
        first = key.partition(".")[0]
        if key not in new and not is_free(key) and first not in edges:
            raise QmpError(f"Option '{key}' cannot be reset to its default value")
    for key in members_in_order(new):
        value = new[key]
        if is_free(key):
            continue
        if key in edges and value == edges[key].node.node_name:
            continue
        if old.get(key) != value:
            raise QmpError(f"Cannot change the option '{key}'")


def _inherits(edge: Edge | None, node: Node) -> bool:
    return edge is not None and edge.node.inherits_from is node


def _check_backing_named(node: Node, options: Options) -> None:
    if not node.driver.supports_backing or options.backing is not None:
        return
    if node.child(ChildRole.COW) is not None or node.driver.backing_file() is not None:
        raise QmpError(f"backing is missing for '{node.node_name}'")


def _replace_child(graph: BlockGraph, change: _Change, name: str, reference: Options) -> None:
    """Let edge ``name`` point to the node that ``reference`` names; or take it away (NULL)."""
    node = change.node
    edge = next((each for each in node.children if each.name == name), None)
    if reference is None or not (reference is NULL or isinstance(reference, str)):
        return  # unchanged: options of an inheriting child
    if reference is NULL:
        if edge is not None:
            _check_not_frozen(edge)
            _remove_edge(change, edge)
        return
    target = graph.nodes.get(reference)
    if target is None:
        raise QmpError(f"Cannot find device='' nor node-name='{reference}'")
    if edge is not None:
        if edge.node is target:
            return
        _check_not_frozen(edge)
    if _reaches(target, node):
        raise QmpError(
            f"Making '{target.node_name}' a {name} child of '{node.node_name}' would create a cycle"
        )
    if edge is None:
        edge = graph.attach(node, name, ChildRole.COW, target)
        added = edge
        node.driver.backing = added

        def undo_add() -> None:
            node.children.remove(added)
            target.parents.remove(added)
            node.driver.backing = None

        change.undo.append(undo_add)
        return
    old = edge.node
    moved = edge

    def point(at: Node, away: Node) -> None:
        away.parents.remove(moved)
        at.parents.append(moved)
        moved.node = at
        moved.bind()

    point(target, old)
    change.undo.append(lambda: point(old, target))
    leaving = Edge(name, moved.role, old, None, moved.parent_desc)
    old.parents.append(leaving)  # holds the old child until the change is sure
    change.undo.append(lambda: old.parents.remove(leaving))
    change.released.append(leaving)


def _remove_edge(change: _Change, edge: Edge) -> None:
    node, old = change.node, edge.node
    index = node.children.index(edge)
    node.children.remove(edge)
    edge.parent = None
    node.driver.backing = None
    kept = edge.perm, edge.shared
    edge.perm, edge.shared = Perm.NONE, Perm.ALL

    def undo() -> None:
        node.children.insert(index, edge)
        edge.parent = node
        node.driver.backing = edge
        edge.perm, edge.shared = kept

    assert edge in old.parents
    change.undo.append(undo)
    change.released.append(edge)


def _check_not_frozen(edge: Edge) -> None:
    if edge.frozen:
        raise QmpError(f"Cannot change frozen {edge.link}")


def _reaches(start: Node, goal: Node) -> bool:
    return start is goal or any(_reaches(edge.node, goal) for edge in start.children)
