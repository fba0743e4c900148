"""Commands of block exports and the NBD server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import qsd_trio.exports  # noqa: F401  # the index of export types
from qsd_trio import trace
from qsd_trio.block.abc import Perm
from qsd_trio.commands.abc import command
from qsd_trio.errors import QmpError
from qsd_trio.exports.abc import ExportContext
from qsd_trio.identifiers import is_well_formed
from qsd_trio.registry import export_types

if TYPE_CHECKING:
    from qsd_trio.daemon import Daemon
    from qsd_trio.exports.abc import Export
    from qsd_trio.untyped import Json, Options

_trace_add = trace.point("export_add")


# -- exports -----------------------------------------------------------------------------------------


@command("block-export-add")
async def block_export_add(daemon: Daemon, arg: Options) -> None:
    """Make a node visible to clients (BlockExportOptions)."""
    if not is_well_formed(arg.id):
        raise QmpError("Invalid block export id")
    if arg.id in daemon.exports:
        raise QmpError(f"Block export id '{arg.id}' is already in use")
    export_class: type[Export] | None = export_types.get(arg.type.value)
    if export_class is None:
        raise QmpError("No driver found for the requested export type")
    node = daemon.graph.nodes.get(arg.node_name)
    if node is None:
        raise QmpError(f"Cannot find device='' nor node-name='{arg.node_name}'")
    if arg.writable and node.read_only:
        raise QmpError("Cannot export read-only node as writable")
    _check_iothread(daemon, arg)
    needed = Perm.CONSISTENT_READ | (Perm.WRITE if arg.writable else Perm.NONE)
    backend = await daemon.graph.open_backend(arg.node_name, needed, Perm.ALL)
    backend.follows_resize = True
    try:
        await backend.set_shared(export_class.shared_permissions)
        export = export_class.create(
            ExportContext(events=daemon.events, graph=daemon.graph, nbd_server=daemon.nbd_server),
            backend,
            arg,
        )
    except BaseException:
        await backend.aclose()
        raise
    _trace_add(arg.id, arg.type.value, arg.node_name)
    _trace_add(arg.id, arg.type.value, arg.node_name)
    await daemon.exports.start(export)


def _check_iothread(daemon: Daemon, arg: Options) -> None:
    # There is one event loop, and no reason to move: a named iothread only has to exist.
    if arg.iothread is None:
        return
    names = [arg.iothread] if isinstance(arg.iothread, str) else arg.iothread
    if len(names) != 1:
        raise QmpError(f"Export type '{arg.type.value}' does not support several iothreads")
    for name in names:
        found = daemon.objects.get(name)
        if found is None or found.type_name != "iothread":
            raise QmpError(f'iothread "{name}" not found')


@command("block-export-del")
async def block_export_del(daemon: Daemon, arg: Options) -> None:
    """Begin to stop an export; BLOCK_EXPORT_DELETED says when it is gone."""
    export = daemon.exports.get(arg.id)
    if export is None:
        raise QmpError(f"Export '{arg.id}' is not found")
    if export.shutting_down:
        raise QmpError(f"Export '{arg.id}' is already shutting down")
    hard = arg.mode is not None and arg.mode.value == "hard"
    if export.in_use and not hard:
        error = QmpError(f"export '{arg.id}' still in use")
        error.add_note("Use mode='hard' to force client disconnect")
        raise error
    idle = not export.in_use
    daemon.exports.request_stop(arg.id)
    if idle:  # then the real daemon's event comes before the reply, too
        await daemon.exports.wait_gone(arg.id)


@command("query-block-exports")
async def query_block_exports(daemon: Daemon) -> Json:
    """Return the exports, the youngest first."""
    return [
        {
            "id": export.id,
            "type": export.type_name,
            "node-name": export.backend.node.node_name,
            "shutting-down": export.shutting_down,
        }
        for export in reversed(tuple(daemon.exports))
    ]


# -- the NBD server ----------------------------------------------------------------------------------


@command("nbd-server-start")
async def nbd_server_start(daemon: Daemon, arg: Options) -> None:
    """Listen for NBD clients (NbdServerOptionsLegacy; NbdServerOptions from the command line)."""
    from qsd_trio.exports.nbd_server import NbdServer

    if daemon.nbd_server is not None:
        raise QmpError("NBD server already running")
    if arg.tls_creds is not None:
        if arg.tls_creds not in daemon.objects:
            raise QmpError(f"No TLS credentials with id '{arg.tls_creds}'")
        raise QmpError(f"Object with id '{arg.tls_creds}' is not TLS credentials")
    limits = {
        name: value
        for name, value in (
            ("max_connections", arg.max_connections),
            ("handshake_max_seconds", arg.handshake_max_seconds),
        )
        if value is not None
    }
    await daemon.servers.start(NbdServer(arg.addr, **limits))


@command("nbd-server-stop")
async def nbd_server_stop(daemon: Daemon) -> None:
    """Stop listening and remove all NBD exports."""
    server = daemon.nbd_server
    if server is None:
        raise QmpError("NBD server not running")
    await daemon.exports.stop_all(lambda export: export.type_name == "nbd")
    daemon.servers.request_stop(server.id)
    await daemon.servers.wait_gone(server.id)


@command("nbd-server-add")
async def nbd_server_add(daemon: Daemon, arg: Options) -> None:
    """Export a node over NBD under the export id that is its name (deprecated)."""
    from qsd_trio.qapi import BlockExportOptions
    from qsd_trio.qapi.converter import from_qmp

    name = arg.name if arg.name is not None else arg.device
    node = daemon.graph.find(arg.device)
    options = {
        "type": "nbd",
        "id": name,
        "node-name": node.node_name,
        "name": name,
        # A read-only node is exported all the same: that is what this command has always done.
        "writable": bool(arg.writable) and not node.read_only,
    }
    if arg.description is not None:
        options["description"] = arg.description
    if arg.bitmap is not None:
        options["bitmaps"] = [arg.bitmap]
    await block_export_add(daemon, from_qmp(BlockExportOptions, options))


@command("nbd-server-remove")
async def nbd_server_remove(daemon: Daemon, arg: Options) -> None:
    """Begin to stop an NBD export (deprecated)."""
    export = daemon.exports.get(arg.name)
    if export is not None and export.type_name != "nbd":
        raise QmpError(f"Block export '{arg.name}' is not an NBD export")
    from qsd_trio.qapi import BlockExportDelArg

    await block_export_del(daemon, BlockExportDelArg(id=arg.name, mode=arg.mode))
