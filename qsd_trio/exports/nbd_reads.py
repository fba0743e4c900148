"""Reads that are too large for the NBD export's reply arena: by sendfile, and with holes by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from qsd_trio.block.abc import StatusFlag
from qsd_trio.exports.extents import MAX_EXTENTS, read_now
from qsd_trio.exports.nbd_requests import segments
from qsd_trio.exports.nbd_wire import ClientGone
from qsd_trio.protocol.nbd.constants import CmdFlag, Mode

if TYPE_CHECKING:
    from qsd_trio.block.backend import BlockBackend
    from qsd_trio.exports.nbd_wire import Wire
    from qsd_trio.protocol.nbd.transmission import Replies, Request

PIECE: Final = 256 * 1024  # bytes copied at a time where sendfile does not serve
LOOK_AHEAD: Final = 1 << 30  # bytes that a sparse read asks about beyond its own

_ZEROES = memoryview(bytes(PIECE))


@final
class LargeReads:
    """Answers one client's large reads.

    ``scratch`` is a buffer of PIECE bytes that is free while a read runs on the fast path.
    """

    def __init__(
        self, wire: Wire, backend: BlockBackend, replies: Replies, mode: int, scratch: memoryview
    ) -> None:
        self._wire = wire
        self._backend = backend
        self._replies = replies
        self._structured = mode >= Mode.STRUCTURED
        self._scratch = scratch
        self._known_data = (0, 0)  # offsets between which no hole was found

    async def fast(self, request: Request) -> bool:
        """Answer from the page cache. False: nothing was sent, take the slow path."""
        flags, _, _, offset, length = request
        sparse = self._structured and not flags & CmdFlag.DF
        if sparse and not (
            self._known_data[0] <= offset and offset + length <= self._known_data[1]
        ):
            return False  # the slow path looks for holes, and remembers where there are none
        extents = self._backend.map_read(offset, length)
        if extents is None or len(extents) > MAX_EXTENTS:
            return False
        for file, at, size in extents:
            if file is not None and not (file.can_read_now and file.cached_now(at, size)):
                return False
        await self._wire.acquire()
        try:
            if sparse:
                await self._send_chunks(request, segments(extents))
            else:
                await self._wire.send_locked([self._replies.data_header(request, offset, length)])
                await self._send_content(offset, length)
        finally:
            self._wire.lock.release()
        return True

    async def _send_chunks(self, request: Request, parts: list[tuple[bool, int]]) -> None:
        at = request.offset
        for index, (is_data, size) in enumerate(parts):
            last = index == len(parts) - 1
            if is_data:
                header = self._replies.data_header(request, at, size, done=last)
                await self._wire.send_locked([header])
                await self._send_content(at, size)
            else:
                await self._wire.send_locked([self._replies.hole(request, at, size, done=last)])
            at += size

    async def _send_content(self, offset: int, length: int) -> None:
        """Send the bytes of a range, whose header has been sent. The caller holds the send lock.

        The range is mapped anew after each wait. It is too late to report an error: it ends the
        connection, as the protocol demands.
        """
        end = offset + length
        while offset < end:
            extents = self._backend.map_read(offset, end - offset)
            if extents is None:
                offset += await self._copy(offset, min(end - offset, PIECE))
                continue
            for file, at, size in extents:
                if file is None:
                    sent = min(size, PIECE)
                    await self._wire.send_locked([_ZEROES[:sent]])
                elif self._wire.by_sendfile and file.cached_now(at, size):
                    try:
                        sent = file.sendfile_now(self._wire.sock.fileno(), at, size)
                    except OSError as exc:  # the client's end, or the file's
                        raise ClientGone from exc
                    if sent < 0:
                        await self._wire.wait_writable()
                        break
                    if not sent:  # beyond the end of the file: a node's length is rounded up
                        sent = min(size, PIECE)
                        await self._wire.send_locked([_ZEROES[:sent]])
                else:
                    offset += await self._copy(offset, min(size, PIECE))
                    break  # there may have been an await: what was mapped is stale
                offset += sent
                if sent < size:
                    break

    async def _copy(self, offset: int, length: int) -> int:
        piece = self._scratch[:length]
        extents = self._backend.map_read(offset, length)
        if extents is None or not read_now(extents, (piece,)):
            try:
                await self._backend.preadv(offset, [piece])
            except OSError as exc:
                raise ClientGone from exc
        await self._wire.send_locked([piece])
        return length

    async def sparse(self, request: Request, limit: int) -> None:
        """Answer a structured read on the slow path, in chunks, holes by name.

        ``limit`` is the node's length. Raises OSError; chunks may have been sent by then.
        """
        offset, end = request.offset, request.offset + request.length
        look_end = max(min(limit, end + LOOK_AHEAD), end)
        pieces: list[tuple[bool, int, int]] = []
        at = offset
        while at < end:
            status = await self._backend.block_status_above(at, look_end - at)
            is_data = not status.flags & StatusFlag.ZERO
            if is_data and status.length > self._known_data[1] - self._known_data[0]:
                self._known_data = (at, at + status.length)
            length = min(status.length, end - at)
            if pieces and pieces[-1][0] == is_data:
                _, before, so_far = pieces[-1]
                pieces[-1] = (is_data, before, so_far + length)
            else:
                pieces.append((is_data, at, length))
            at += length
        for index, (is_data, at, length) in enumerate(pieces):
            done = index == len(pieces) - 1
            if is_data:
                data = memoryview(bytearray(length))
                await self._backend.preadv(at, [data])
                header = self._replies.data_header(request, at, length, done=done)
                await self._wire.send([header, data])
            else:
                await self._wire.send([self._replies.hole(request, at, length, done=done)])
