"""The vhost-user-blk export: a node as the disk of a virtual machine, over a unix socket and shared memory."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio.errors import QmpError
from qsd_trio.exports.abc import Export, export_type
from qsd_trio.exports.vhost_user_connection import Connection
from qsd_trio.exports.virtio_blk import VirtioBlk
from qsd_trio.protocol.vhost_user import PROTOCOL_FEATURES
from qsd_trio.protocol.virtio.blk import SECTOR, Feature
from qsd_trio.services import run_isolated

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qsd_trio.block.backend import BlockBackend
    from qsd_trio.exports.abc import ExportContext
    from qsd_trio.net.listen import Listener
    from qsd_trio.untyped import Options


MAX_BLOCK_SIZE: Final = 2 * 1024 * 1024
SERIAL: Final = "vhost_user_blk"

#: Descriptors of data in a request: a ring of the usual 128, less header and status.
SEG_MAX: Final = 126


def check_block_size(id_: str, size: int) -> None:
    """Raise QmpError if ``size`` is no logical block size. 0 is one, as for the real daemon."""
    if size and not SECTOR <= size <= MAX_BLOCK_SIZE:
        raise QmpError(
            f"Property {id_}.logical-block-size doesn't take value {size} "
            f"(minimum: {SECTOR}, maximum: {MAX_BLOCK_SIZE})"
        )
    if size & (size - 1):
        raise QmpError(
            f"Property {id_}.logical-block-size doesn't take value '{size}', it's not a power of 2"
        )


@export_type("vhost-user-blk")
@final
class VhostUserBlkExport(Export):
    """Serves one front-end at a time; others wait to be accepted."""

    def __init__(self, context: ExportContext, backend: BlockBackend, options: Options) -> None:
        self.id = options.id
        self.backend = backend
        self.events = context.events
        self._address = options.addr
        size = options.logical_block_size
        self._num_queues = options.num_queues if options.num_queues is not None else 1
        self._device = VirtioBlk(
            backend,
            writable=bool(options.writable),
            block_size=size if size is not None else SECTOR,
            num_queues=self._num_queues,
            seg_max=SEG_MAX,
            serial=SERIAL,
            write_cache=not options.writethrough,
        )
        self._listeners: list[Listener] = []
        self._connection: Connection | None = None
        self._scope = trio.CancelScope()

    @classmethod
    def create(
        cls, context: ExportContext, backend: BlockBackend, options: Options
    ) -> VhostUserBlkExport:
        """Check the options (BlockExportOptionsVhostUserBlk)."""
        if options.logical_block_size is not None:
            check_block_size(options.id, options.logical_block_size)
        if options.num_queues == 0:
            raise QmpError("num-queues must be greater than 0")
        if options.addr.type.value not in ("unix", "fd"):
            raise QmpError("Only socket address types 'unix' and 'fd' are supported")
        return cls(context, backend, options)

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        """Listen; QmpError says why that is impossible."""
        from qsd_trio.net.address import from_qapi
        from qsd_trio.net.listen import open_listeners

        try:
            self._listeners = await open_listeners(from_qapi(self._address))
            self.backend.on_resize.append(self._resized)
            try:
                yield
            finally:
                self.backend.on_resize.remove(self._resized)
                for listener in self._listeners:
                    listener.close()
        finally:
            with trio.CancelScope(shield=True):
                await self.backend.aclose()

    async def serve(self) -> None:
        """Serve front-ends until asked to stop; then the requests in flight are finished.

        Cancelled: those on the slow path are abandoned.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._abandon_when_cancelled)
            with self._scope:
                while True:
                    await self._serve_next()
            nursery.cancel_scope.cancel()

    async def _abandon_when_cancelled(self) -> None:
        # A task of its own: the others wait for their requests, whatever happens.
        try:
            await trio.sleep_forever()
        finally:
            self._device.abandon()

    async def _serve_next(self) -> None:
        from qsd_trio.net.listen import accept_any

        stream = await accept_any(self._listeners)
        with socket.socket(fileno=stream.socket.detach()) as sock:
            sock.setblocking(False)
            features = self._device.features | Feature.CONFIG_WCE | Feature.MQ | PROTOCOL_FEATURES
            self._connection = Connection(sock, self._device, features, self._num_queues)
            try:
                await run_isolated("vhost-user front-end", self._connection.run)
            finally:
                self._connection = None

    def request_stop(self) -> bool:
        """Take no new requests and no new front-ends."""
        self.shutting_down = True
        self._scope.cancel()
        return True

    @property
    def in_use(self) -> bool:
        """Always False: a front-end does not keep the export, as in the real daemon."""
        return False

    def _resized(self) -> None:
        self._device.resized()
        if self._connection is not None:
            self._connection.config_changed()
