"""QMP commands of block nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd_trio.block import query
from qsd_trio.commands.abc import command
from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from qsd_trio.block.io import Node
    from qsd_trio.daemon import Daemon
    from qsd_trio.qapi import (
        BlockdevDelArg,
        BlockdevOptions,
        BlockdevReopenArg,
        BlockResizeArg,
        BlockSetWriteThresholdArg,
        QueryBlockArg,
        QueryBlockstatsArg,
        QueryNamedBlockNodesArg,
    )
    from qsd_trio.untyped import Json


def lookup(daemon: Daemon, device: str | None, node_name: str | None) -> Node:
    """Return the node for commands that take ``device`` or ``node-name``.

    A storage daemon has no devices: a device name is accepted, and never found.
    """
    node = daemon.graph.nodes.get(node_name) if node_name is not None else None
    if node is None:
        raise QmpError(f"Cannot find device='{device or ''}' nor node-name='{node_name or ''}'")
    return node


@command("blockdev-add")
async def blockdev_add(daemon: Daemon, arg: BlockdevOptions) -> None:
    """Open a node, with its inline children."""
    await daemon.graph.add_node(arg)


@command("blockdev-del")
async def blockdev_del(daemon: Daemon, arg: BlockdevDelArg) -> None:
    """Close a node that nobody uses."""
    await daemon.graph.del_node(arg.node_name)


@command("blockdev-reopen")
async def blockdev_reopen(daemon: Daemon, arg: BlockdevReopenArg) -> None:
    """Change options of nodes, all or none."""
    from qsd_trio.block.reopen import reopen

    await reopen(daemon.graph, arg.options)


@command("block_resize")
async def block_resize(daemon: Daemon, arg: BlockResizeArg) -> None:
    """Change a node's length."""
    node = lookup(daemon, arg.device, arg.node_name)
    if arg.size < 0:
        raise QmpError("Parameter 'size' expects a >0 size")
    await daemon.graph.resize(node, arg.size)


@command("block-set-write-threshold")
async def block_set_write_threshold(daemon: Daemon, arg: BlockSetWriteThresholdArg) -> None:
    """Ask for an event when a node is written beyond an offset."""
    node = daemon.graph.nodes.get(arg.node_name)
    if node is None:
        raise QmpError(f"Device '{arg.node_name}' not found")
    node.set_write_threshold(arg.write_threshold)


@command("query-block")
async def query_block(daemon: Daemon, arg: QueryBlockArg) -> list[Json]:
    """Tell of devices: a storage daemon has none."""
    return []


@command("query-named-block-nodes")
async def query_named_block_nodes(daemon: Daemon, arg: QueryNamedBlockNodesArg) -> list[Json]:
    """Tell of every node, the youngest first."""
    return [
        await query.device_info(node, flat=bool(arg.flat)) for node in reversed(tuple(daemon.graph))
    ]


@command("query-blockstats")
async def query_blockstats(daemon: Daemon, arg: QueryBlockstatsArg) -> list[Json]:
    """Tell the statistics of devices (none), or of every node."""
    if not arg.query_nodes:
        return []
    return [query.node_stats(node) for node in daemon.graph]


@command("x-debug-query-block-graph")
async def x_debug_query_block_graph(daemon: Daemon) -> Json:
    """Tell nodes, users and edges with their permissions."""
    return query.debug_graph(daemon.graph)
