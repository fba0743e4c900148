"""What the query commands tell of nodes, in QMP form. Pure but for asking drivers."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from qsd_trio.block.abc import ChildRole, ProtocolDriver
from qsd_trio.block.names import beside, is_protocol_name, json_filename
from qsd_trio.block.permissions import perm_names
from qsd_trio.block.snapshots import snapshot_store

if TYPE_CHECKING:
    from qsd_trio.block.graph import BlockGraph
    from qsd_trio.block.io import Edge, Node
    from qsd_trio.untyped import Json

COUNTERS = ("rd", "wr", "flush", "unmap")


def primary_child(node: Node) -> Edge | None:
    """Return the edge to the child that stands for the node's content, or None."""
    return node.child(ChildRole.PRIMARY)


def backing_child(node: Node) -> Edge | None:
    """Return the edge to the backing node, or None."""
    return node.child(ChildRole.COW)


def layer_below(node: Node) -> Edge | None:
    """Return the edge to the backing node, or to the node that a filter filters, or None."""
    return node.child(ChildRole.FILTERED) if node.driver.is_filter else backing_child(node)


def _backing_overridden(node: Node) -> bool:
    """Return whether the backing node is another than the one that the image's header names."""
    if not node.driver.supports_backing:
        return False
    recorded = node.driver.backing_file()
    backing = backing_child(node)
    if backing is None or recorded is None:
        return (backing is None) != (recorded is None)
    return filename(backing.node) != full_backing_name(node)


def full_backing_name(node: Node) -> str:
    """Return the recorded backing file's name, seen from where the daemon runs."""
    recorded = node.driver.backing_file()
    if recorded is None:
        return ""
    name = recorded[0]
    file = primary_child(node)
    image = filename(file.node) if file is not None else ""
    return name if is_protocol_name(name) else beside(name, image)


def full_options(node: Node) -> dict[str, Json]:
    """Return the options that would open the same content again."""
    options: dict[str, Json] = {"driver": node.driver_name, **node.driver.full_options()}
    overridden = _backing_overridden(node)
    for edge in node.children:
        if not edge.role & ChildRole.COW or overridden:
            options[edge.name] = full_options(edge.node)
    if overridden and backing_child(node) is None:
        options["backing"] = None
    return options


def filename(node: Node) -> str:
    """Return the name QEMU shows for the node: a path, or ``json:{...}``."""
    exact = node.driver.filename()
    if exact:
        return exact
    primary = primary_child(node)
    if primary is not None and node.driver.named_like_child:
        return filename(primary.node)
    if (
        primary is not None
        and not node.driver.is_filter
        and isinstance(primary.node.driver, ProtocolDriver)
        and not node.driver.full_options()
        and not _backing_overridden(node)
    ):
        name = filename(primary.node)
        if not name.startswith("json:"):
            return name
    return json_filename(full_options(node))


def allocated_size(node: Node) -> int | None:
    """Return the bytes that the node's own storage takes on the host, without its backing chain."""
    own = node.driver.allocated_size()
    if own is not None:
        return own
    sizes = [allocated_size(edge.node) for edge in node.children if not edge.role & ChildRole.COW]
    known = [size for size in sizes if size is not None]
    return sum(known) if known else None


async def image_info(node: Node, *, with_backing: bool) -> dict[str, Json]:
    """Return ImageInfo of a node; ``with_backing``: its backing images nested in it."""
    info: dict[str, Json] = {
        "virtual-size": node.getlength(),
        "filename": filename(node),
        "format": node.driver_name,
    }
    size = allocated_size(node)
    if size is not None:
        info["actual-size"] = size
    if node.driver.encrypted:
        info["encrypted"] = True
    info.update(await node.driver.image_info())
    snapshots = _snapshots(node)
    if snapshots:
        info["snapshots"] = snapshots
    recorded = node.driver.backing_file()
    if recorded is not None:
        name, format_ = recorded
        info["backing-filename"] = name
        info["full-backing-filename"] = full_backing_name(node)
        if format_ is not None:
            info["backing-filename-format"] = format_
    below = layer_below(node)
    if with_backing and below is not None:
        info["backing-image"] = await image_info(below.node, with_backing=True)
    return info


def _snapshots(node: Node) -> list[Json]:
    store = snapshot_store(node)
    try:
        return [snapshot.to_qmp() for snapshot in store.all()] if store is not None else []
    except OSError:
        return []  # an image that cannot have any


async def device_info(node: Node, *, flat: bool) -> dict[str, Json]:
    """Return BlockDeviceInfo of a node."""
    flags = node.flags
    name = filename(node)
    info: dict[str, Json] = {
        "file": name,
        "node-name": node.node_name,
        "ro": flags.read_only,
        "drv": node.driver_name,
        "encrypted": node.driver.encrypted,
        "detect_zeroes": flags.detect_zeroes,
        "cache": {
            "writeback": True,
            "direct": flags.cache_direct,
            "no-flush": flags.cache_no_flush,
        },
        "write_threshold": _signed(node.write_threshold),
        "backing_file_depth": 0 if flat else _depth(node),
        **dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0),
        "image": await image_info(node, with_backing=not flat),
    }
    if len(node.bitmaps):
        info["dirty-bitmaps"] = [bitmap.info() for bitmap in node.bitmaps]
    backing = backing_child(node)
    if backing is not None:
        info["backing_file"] = filename(backing.node)
    return info


def _signed(value: int) -> int:
    """Return an unsigned 64-bit number as QEMU's schema types it here: signed."""
    return value - (1 << 64) if value >> 63 else value


def _depth(node: Node) -> int:
    below = layer_below(node)
    return 0 if below is None else 1 + _depth(below.node)


def node_stats(node: Node) -> dict[str, Json]:
    """Return BlockStats of a node, its main child's as ``parent``.

    As in QEMU the counters of requests belong to devices, which a storage daemon has none of: a node
    only knows the highest offset written.
    """
    counters: dict[str, Json] = {
        "wr_highest_offset": node.wr_highest_offset,
        "rd_merged": 0,
        "wr_merged": 0,
        "unmap_merged": 0,
        "rd_bytes": 0,
        "wr_bytes": 0,
        "unmap_bytes": 0,
        "account_invalid": False,
        "account_failed": False,
        "timed_stats": [],
    }
    for kind in COUNTERS:
        counters[f"{kind}_operations"] = 0
        counters[f"{kind}_total_time_ns"] = 0
        counters[f"failed_{kind}_operations"] = 0
        counters[f"invalid_{kind}_operations"] = 0
    stats: dict[str, Json] = {"node-name": node.node_name, "stats": counters}
    specific = node.driver.driver_stats()
    if specific is not None:
        stats["driver-specific"] = dict(specific)
    primary = primary_child(node)
    if primary is None or not primary.role & (ChildRole.DATA | ChildRole.FILTERED):
        primary = node.child(ChildRole.DATA)
    if primary is not None:
        stats["parent"] = node_stats(primary.node)
    return stats


def debug_graph(graph: BlockGraph) -> dict[str, Json]:
    """Return XDbgBlockGraph: users first, newest last in memory and first on the wire, as QEMU."""
    numbers: dict[object, int] = {}
    counter = itertools.count(1)
    nodes: list[Json] = []
    edges: list[Json] = []

    def number(thing: object) -> int:
        if thing not in numbers:
            numbers[thing] = next(counter)
        return numbers[thing]

    def add_edge(parent: object, edge: Edge) -> None:
        edges.append(
            {
                "parent": number(parent),
                "child": number(edge.node),
                "name": edge.name,
                "perm": perm_names(edge.perm)[::-1],
                "shared-perm": perm_names(edge.shared)[::-1],
            }
        )

    for backend in graph.backends:
        nodes.append({"id": number(backend), "type": "block-backend", "name": backend.name})
        add_edge(backend, backend.edge)
    for node in graph:
        nodes.append({"id": number(node), "type": "block-driver", "name": node.node_name})
        for edge in reversed(node.children):
            add_edge(node, edge)
    return {"nodes": nodes[::-1], "edges": edges[::-1]}
