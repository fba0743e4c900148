"""What the NBD tests share: a backend with switches over a memfd, and connections to a live Transmission."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from qsd_trio.block.abc import BlockStatus, Limits, ReqFlag, StatusFlag
from qsd_trio.exports.nbd_transmission import Transmission
from qsd_trio.host.files import HostFile
from qsd_trio.host.spin import Spin
from qsd_trio.protocol.nbd.client import Negotiated
from qsd_trio.protocol.nbd.constants import Mode
from qsd_trio.protocol.nbd.negotiation import ExportChosen, ExportInfo
from qsd_trio.testing.nbd_client import NbdClient

if TYPE_CHECKING:
    from qsd_trio.block.abc import Extents, Iov

READ_WRITE = 0xD6D  # all that a writable export offers
CONTEXTS = {0: "base:allocation", 1: "qemu:allocation-depth"}


class FakeBackend:
    """A BlockBackend over a memfd whose first ``size`` bytes are the node.

    ``fast``: whether the fast path answers. ``holes``: sectors of 4096 that read as zeroes. ``before`` runs
    at the start of each request on the slow path. ``calls`` lists those.
    """

    def __init__(self, size: int = 1 << 20) -> None:
        self.file = HostFile(os.memfd_create("nbd-test"))
        os.ftruncate(self.file.fd, size)
        self.size = size
        self.fast = True
        self.holes: set[int] = set()
        self.on_resize: list[Callable[[], None]] = []
        self.calls: list[tuple[object, ...]] = []
        self.before: Callable[[str, int], object] | None = None

    def close(self) -> None:
        os.close(self.file.fd)

    @property
    def content(self) -> bytes:
        return os.pread(self.file.fd, self.size, 0)

    def fill(self, data: bytes, offset: int = 0) -> None:
        os.pwrite(self.file.fd, data, offset)

    def resize(self, size: int) -> None:
        os.ftruncate(self.file.fd, size)
        self.size = size
        for callback in self.on_resize:
            callback()

    def getlength(self) -> int:
        return self.size

    def limits(self) -> Limits:
        return Limits()

    def map_read(self, offset: int, length: int) -> Extents | None:
        if not self.fast:
            return None
        extents = []
        end = offset + length
        while offset < end:
            stop = min(end, (offset // 4096 + 1) * 4096)
            hole = offset // 4096 in self.holes
            extents.append((None if hole else self.file, offset, stop - offset))
            offset = stop
        return extents if self.holes else [(self.file, end - length, length)]

    def map_write(self, offset: int, length: int) -> Extents | None:
        if not self.fast or self.holes:
            return None
        assert offset + length <= self.size
        return [(self.file, offset, length)]

    async def _begin(self, name: str, offset: int, *rest: object) -> None:
        self.calls.append((name, offset, *rest))
        if self.before is not None:
            result = self.before(name, offset)
            if result is not None:
                await result  # type: ignore[misc]
        await trio.lowlevel.checkpoint()

    async def preadv(self, offset: int, iov: Iov) -> None:
        await self._begin("preadv", offset)
        os.preadv(self.file.fd, iov, offset)

    async def pwritev(self, offset: int, iov: Iov, flags: ReqFlag = ReqFlag.NONE) -> None:
        data = b"".join(iov)
        await self._begin("pwritev", offset, len(data), flags)
        os.pwrite(self.file.fd, b"".join(iov), offset)

    async def pwrite_zeroes(self, offset: int, length: int, flags: ReqFlag = ReqFlag.NONE) -> None:
        await self._begin("pwrite_zeroes", offset, length, flags)
        os.pwrite(self.file.fd, bytes(length), offset)

    async def pdiscard(self, offset: int, length: int) -> None:
        await self._begin("pdiscard", offset, length)

    async def flush(self) -> None:
        await self._begin("flush", 0)

    async def prefetch(self, offset: int, length: int) -> None:
        await self._begin("prefetch", offset, length)

    async def block_status_above(self, offset: int, length: int) -> BlockStatus:
        await self._begin("block_status_above", offset, length)
        hole = offset // 4096 in self.holes
        end = offset
        while end < offset + length and (end // 4096 in self.holes) == hole:
            end = (end // 4096 + 1) * 4096
        size = min(end, offset + length) - offset
        return BlockStatus(StatusFlag.ZERO if hole else StatusFlag.DATA, size)

    async def allocation_depth(self, offset: int, length: int) -> tuple[int, int]:
        await self._begin("allocation_depth", offset, length)
        hole = offset // 4096 in self.holes
        return (2 if hole else 1), min(length, 4096 - offset % 4096)


class Live:
    """A Transmission in its task, with the client's end of the connection."""

    def __init__(self, backend: FakeBackend, server: Transmission, raw: socket.socket) -> None:
        self.backend = backend
        self.server = server
        self.raw = raw
        self.over = trio.Event()
        self.error: BaseException | None = None

    async def run(self) -> None:
        try:
            await self.server.run()
        except Exception as exc:
            self.error = exc
        finally:
            self.server._wire.sock.close()
            self.over.set()


@asynccontextmanager
async def live(
    backend: FakeBackend | None = None,
    *,
    mode: int = Mode.STRUCTURED,
    flags: int = READ_WRITE,
    writethrough: bool = False,
    received: bytes = b"",
    tcp: bool = False,
) -> AsyncIterator[Live]:
    """Serve ``backend`` to one client."""
    backend = backend or FakeBackend()
    if tcp:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
    else:
        ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    info = ExportInfo("x", backend.size, flags, contexts=tuple(CONTEXTS.values()))
    chosen = ExportChosen(info, mode, flags, CONTEXTS if mode else {}, True)
    server = Transmission(
        ours,
        backend,  # type: ignore[arg-type]
        chosen,
        spin=Spin(),
        writethrough=writethrough,
        received=received,
    )
    connection = Live(backend, server, theirs)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            yield connection
            nursery.cancel_scope.cancel()
    finally:
        theirs.close()
        backend.close()


@asynccontextmanager
async def client_of(connection: Live, mode: int = Mode.STRUCTURED) -> AsyncIterator[NbdClient]:
    """Talk to a live Transmission through the test kit's client."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection.raw))
    export = Negotiated(
        mode, connection.backend.size, READ_WRITE, None, None, CONTEXTS if mode else {}
    )
    client = NbdClient(stream, export, b"")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        yield client
        nursery.cancel_scope.cancel()
