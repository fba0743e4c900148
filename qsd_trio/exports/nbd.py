"""The NBD export: a node under a name on the daemon's NBD server."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio.block.abc import ChildRole, Perm
from qsd_trio.errors import QmpError
from qsd_trio.exports.abc import Export, export_type
from qsd_trio.protocol.nbd.constants import MAX_REQUEST, MAX_STRING, TransmissionFlag
from qsd_trio.protocol.nbd.negotiation import (
    ALLOCATION_DEPTH,
    BASE_ALLOCATION,
    DIRTY_BITMAP,
    ExportInfo,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator

    from qsd_trio.block.backend import BlockBackend
    from qsd_trio.block.dirty_bitmaps import DirtyBitmap
    from qsd_trio.block.io import Node
    from qsd_trio.exports.abc import ExportContext
    from qsd_trio.exports.nbd_server import NbdServer
    from qsd_trio.exports.nbd_transmission import Transmission
    from qsd_trio.protocol.nbd.negotiation import ExportChosen
    from qsd_trio.untyped import Options

#: Seconds that a stopping export waits for clients that do not read the replies they asked for.
CLIENT_GRACE: Final = 5.0

PREFERRED_BLOCK: Final = 4096


def check_string(what: str, text: str) -> None:
    """Raise QmpError if ``text`` is longer than an NBD string may be."""
    if len(text.encode("utf-8", "surrogateescape")) > MAX_STRING:
        raise QmpError(f"{what} '{text}' too long")


@export_type("nbd")
@final
class NbdExport(Export):
    """Serves the clients that chose its name. Their connections are tasks of the server."""

    # As the real server's: a client has no way to learn of a new length. block_resize goes by its own rule.
    shared_permissions = Perm.ALL & ~Perm.RESIZE

    def __init__(
        self, context: ExportContext, server: NbdServer, backend: BlockBackend, options: Options
    ) -> None:
        self.id = options.id
        self.backend = backend
        self.name: str = options.name if options.name is not None else backend.node.node_name
        self.description: str | None = options.description
        self.events = context.events
        self._server = server
        self._writable = bool(options.writable)
        self._writethrough = bool(options.writethrough)
        self._allocation_depth = bool(options.allocation_depth)
        self._bitmaps: list[DirtyBitmap] = []
        self._clients: set[Transmission] = set()
        self._stop = trio.Event()
        self._idle = trio.Event()

    @classmethod
    def create(cls, context: ExportContext, backend: BlockBackend, options: Options) -> NbdExport:
        """Check the options (BlockExportOptionsNbd)."""
        server = context.nbd_server
        if server is None:
            raise QmpError("NBD server not running")
        export = cls(context, server, backend, options)
        check_string("export name", export.name)
        if export.description is not None:
            check_string("description", export.description)
        if export.name in server.exports:
            raise QmpError(f"NBD server already has export named '{export.name}'")
        for wanted in options.bitmaps or ():
            if isinstance(wanted, str):
                bitmap = _find_below(backend.node, wanted, writable=bool(options.writable))
            else:
                bitmap = _find_anywhere(context, wanted)
            bitmap.check_usable()
            export._bitmaps.append(bitmap)
        return export

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        """Appear on the server and hold the bitmaps; disappear and give them and the node back."""
        self._server.exports[self.name] = self
        for bitmap in self._bitmaps:
            bitmap.busy = True
        try:
            yield
        finally:
            self._withdraw()
            for bitmap in self._bitmaps:
                bitmap.busy = False
            with trio.CancelScope(shield=True):
                await self.backend.aclose()

    async def serve(self) -> None:
        """Wait to be stopped, then for the clients' requests in flight."""
        await self._stop.wait()
        self._withdraw()
        for client in self._clients:
            client.stop()
        with trio.move_on_after(CLIENT_GRACE):
            await self._wait_idle()
        for client in self._clients:
            client.abort()
        await self._wait_idle()

    async def _wait_idle(self) -> None:
        while self._clients:
            self._idle = trio.Event()
            await self._idle.wait()

    def _withdraw(self) -> None:
        if self._server.exports.get(self.name) is self:
            del self._server.exports[self.name]

    def request_stop(self) -> bool:
        """Take no new clients, disconnect those there are once their requests are answered."""
        self.shutting_down = True
        self._stop.set()
        return True

    @property
    def in_use(self) -> bool:
        """Whether clients are in the transmission phase."""
        return bool(self._clients)

    # -- for the server ------------------------------------------------------------------------------

    def info(self) -> ExportInfo:
        """Return what a new client is told: the size is today's."""
        flags = (
            TransmissionFlag.HAS_FLAGS
            | TransmissionFlag.SEND_FLUSH
            | TransmissionFlag.SEND_FUA
            | TransmissionFlag.SEND_CACHE
        )
        if self._writable:
            flags |= (
                TransmissionFlag.SEND_TRIM
                | TransmissionFlag.SEND_WRITE_ZEROES
                | TransmissionFlag.SEND_FAST_ZERO
            )
        else:
            flags |= TransmissionFlag.READ_ONLY
        if self._server.max_connections != 1:
            flags |= TransmissionFlag.CAN_MULTI_CONN
        limits = self.backend.limits()
        contexts = [BASE_ALLOCATION]
        if self._allocation_depth:
            contexts.append(ALLOCATION_DEPTH)
        contexts += [DIRTY_BITMAP + bitmap.name for bitmap in self._bitmaps]
        return ExportInfo(
            name=self.name,
            size=self.backend.getlength(),
            flags=flags,
            description=self.description,
            block_sizes=(
                limits.request_alignment,
                max(PREFERRED_BLOCK, limits.request_alignment),
                min(limits.max_transfer, MAX_REQUEST),
            ),
            contexts=contexts,
        )

    async def serve_client(
        self, sock: socket.socket, chosen: ExportChosen, received: bytes
    ) -> None:
        """Serve one client until it leaves or the export stops."""
        from qsd_trio.exports.nbd_transmission import Transmission

        client = Transmission(
            sock,
            self.backend,
            chosen,
            spin=self._server.spin,
            writethrough=self._writethrough,
            received=received,
            bitmaps=self._bitmaps,
        )
        self._clients.add(client)
        try:
            await client.run()
        finally:
            self._clients.discard(client)
            self._idle.set()


def _find_anywhere(context: ExportContext, wanted: Options) -> DirtyBitmap:
    """Return the bitmap that a BlockDirtyBitmap names."""
    node = context.graph.nodes.get(wanted.node)
    if node is None:
        raise QmpError(f"Node '{wanted.node}' not found")
    return node.bitmaps.find(wanted.name)


def _find_below(top: Node, name: str, *, writable: bool) -> DirtyBitmap:
    """Return the bitmap ``name`` of the first node that has one, through filters and backing files."""
    node: Node | None = top
    while node is not None:
        bitmap = node.bitmaps.get(name)
        if bitmap is not None:
            if not writable and not node.read_only and bitmap.enabled:
                # The map would change under a client that was told of a read-only export.
                raise QmpError(f"Enabled bitmap '{name}' incompatible with readonly export")
            return bitmap
        # Not through "raw", which is a format: its file has a chain of its own.
        edge = node.child(ChildRole.FILTERED if node.driver.is_filter else ChildRole.COW)
        node = edge.node if edge is not None else None
    raise QmpError(f"Bitmap '{name}' is not found")
