"""One NBD client in the transmission phase: the data plane.

Requests are read many at a time into one buffer. What the page cache can answer is answered at once
(``_serve_buffered``, no await): replies gather in an arena and leave by one ``send``. Large reads go by ``sendfile``, large
writes piece by piece from the receive buffer. Everything else is a task of its own, bounded in number and bytes.

Order: the fast path writes into the page cache before it goes on, so a later flush or FUA covers it. Replies never
interleave: whoever must wait in the middle of one holds the wire's lock.

See DESIGN.md, section 5.
"""

from __future__ import annotations

import mmap
from os import preadv
from time import perf_counter
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio.block.abc import ReqFlag
from qsd_trio.errors import RemoteProtocolError
from qsd_trio.exports.extents import read_now, write_now
from qsd_trio.exports.nbd_reads import PIECE, LargeReads
from qsd_trio.exports.nbd_requests import (
    Refusal,
    Rules,
    failure,
    too_long,
    trace_request,
    tracing,
)
from qsd_trio.exports.nbd_status import collect, look_for
from qsd_trio.exports.nbd_wire import ClientGone, Wire
from qsd_trio.host.spin import SPIN, Spin
from qsd_trio.protocol.nbd.constants import (
    EXTENDED_REQUEST_MAGIC,
    MAX_REQUEST,
    REQUEST_MAGIC,
    Cmd,
    CmdFlag,
    Error,
    Mode,
    TransmissionFlag,
)
from qsd_trio.protocol.nbd.transmission import (
    DATA_PACKERS,
    EXTENDED_REQUEST,
    OK_PACKERS,
    REQUEST,
    Replies,
    Request,
    parse_status_payload,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from qsd_trio.block.backend import BlockBackend
    from qsd_trio.block.dirty_bitmaps import DirtyBitmap
    from qsd_trio.protocol.nbd.negotiation import ExportChosen

    Buffer = bytes | bytearray | memoryview

KiB = 1024
MiB = 1024 * KiB

RECEIVE_BUFFER: Final = 256 * KiB
ARENA: Final = 256 * KiB  # replies gathered before they are sent
GATHER_FROM: Final = (
    8 * KiB
)  # bytes of replies at once that make it worth to look for more requests
GATHER_TO: Final = 64 * KiB  # bytes of replies that are sent without looking for more requests
SMALL: Final = 64 * KiB  # reads of at most that are copied into the arena
WHOLE_WRITE: Final = 128 * KiB  # writes of at most that wait for their data in the receive buffer
PAGE: Final = 4 * KiB

MAX_REQUESTS_IN_FLIGHT: Final = 64  # on the slow path, per client
MAX_BYTES_IN_FLIGHT: Final = 64 * MiB  # of their buffers

READ, WRITE = Cmd.READ, Cmd.WRITE
DF, FUA, PAYLOAD_LEN = CmdFlag.DF, CmdFlag.FUA, CmdFlag.PAYLOAD_LEN

# What _serve_buffered stopped at.
_MORE = 0  # needs more data
_REQUEST = 1  # the request in self._request needs an await
_FULL = 2  # the arena must be sent first
_SLICE = 3  # the time slice is over


@final
class Transmission:
    """Serves one client until it leaves, breaks the rules, or is stopped.

    Args:
        sock: The connection, non-blocking; owned by the caller.
        backend: The node.
        chosen: What was negotiated.
        spin: Shared by all clients of the server.
        writethrough: Every write is on stable storage when it is answered.
        received: What the client sent beyond the negotiation.
        bitmaps: Those of the export: its last metadata contexts.
    """

    def __init__(
        self,
        sock: socket.socket,
        backend: BlockBackend,
        chosen: ExportChosen,
        *,
        spin: Spin,
        writethrough: bool = False,
        received: bytes = b"",
        bitmaps: Sequence[DirtyBitmap] = (),
    ) -> None:
        self._spin = spin
        self._stalled = False  # the client once let us wait in the middle of a request
        self._wire = Wire(sock)
        self._backend = backend
        self._mode = chosen.mode
        shown = (*[None] * (len(chosen.info.contexts) - len(bitmaps)), *bitmaps)
        self._looks = {
            id_: look_for(backend, name, shown[id_]) for id_, name in chosen.contexts.items()
        }
        self._size = chosen.info.size
        self._read_only = bool(chosen.flags & TransmissionFlag.READ_ONLY)
        self._rules = Rules(self._mode, self._size, self._read_only, bool(self._looks))
        self._writethrough = writethrough
        self._replies = Replies(chosen.mode)
        self._extended = chosen.mode == Mode.EXTENDED
        self._header = EXTENDED_REQUEST if self._extended else REQUEST
        # Anonymous maps: a client that only sends little costs only the pages it has touched.
        self._buffer = mmap.mmap(-1, max(RECEIVE_BUFFER, len(received)))
        self._view = memoryview(self._buffer)
        self._view[: len(received)] = received
        self._start, self._end = 0, len(received)
        self._arena = mmap.mmap(-1, ARENA)
        self._arena_view = memoryview(self._arena)
        self._used = 0
        self._served = 0
        self._request = Request(0, 0, 0, 0, 0)
        self._reads = LargeReads(
            self._wire, backend, self._replies, self._mode, self._arena_view[:PIECE]
        )
        self._in_flight = 0
        self._bytes_in_flight = 0
        self._slot_freed = trio.Event()
        self._limit = 0
        self._hot = (
            self._buffer,
            self._view,
            self._arena,
            self._arena_view,
            self._header.unpack_from,
            self._header.size,
            backend.map_read,
            backend.map_write,
            EXTENDED_REQUEST_MAGIC if self._extended else REQUEST_MAGIC,
            DF if self._mode else 0,
            PAYLOAD_LEN if self._extended else 0,
            *DATA_PACKERS[self._mode],
            *OK_PACKERS[self._mode],
            not self._read_only and not writethrough,
        )

    # -- life --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the client. Requests in flight finish first, also when the client has left.

        Cancelled: requests in flight are abandoned, none is answered.
        """
        self._backend.on_resize.append(self._resized)
        self._resized()
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await self._receive(nursery)
                except ConnectionError:
                    self.stop()
        finally:
            self._backend.on_resize.remove(self._resized)

    def stop(self) -> None:
        """Take no more requests; ``run`` returns when those in flight are answered."""
        self._wire.stop()

    def abort(self) -> None:
        """Disconnect: nobody waits any more for a client that does not read its replies."""
        self._wire.abort()

    def _resized(self) -> None:
        # The client knows the size at its start; a node that shrank since cannot serve all of it.
        self._limit = min(self._size, self._backend.getlength())

    # -- receiving ---------------------------------------------------------------------------------

    async def _receive(self, nursery: trio.Nursery) -> None:
        wire = self._wire
        recv_into = wire.sock.recv_into
        wire.begin_slice()
        while not wire.stopping:
            reason = self._serve_buffered()
            if reason == _MORE:
                self._compact()
                # A client that keeps many requests in flight has sent more by now: one reply for all
                # is cheaper. One that waits for its only reply must get it first.
                if self._served < GATHER_FROM or self._used > GATHER_TO:
                    await self._flush_arena()
                try:
                    received = recv_into(self._view[self._end :])
                except BlockingIOError:
                    if self._used:
                        await self._flush_arena()
                        continue
                    received = self._look_again()
                    if received < 0:
                        await wire.wait_readable()
                        continue
                if not received:
                    await self._flush_arena()
                    return
                self._end += received
            else:
                await self._flush_arena()
                if reason == _REQUEST and not await self._dispatch(nursery, self._request):
                    return
            await wire.give_way()

    def _look_again(self) -> int:
        """Wait a moment for a client that may be back at once; return what it sent, or -1."""
        if self._in_flight:
            return -1
        # The rest of a request is on its way, for a client that means well.
        partial = self._end > self._start
        if self._stalled if partial else not self._spin.may(self):
            return -1
        recv_into, view = self._wire.sock.recv_into, self._view[self._end :]
        end = perf_counter() + SPIN
        while True:
            try:
                received = recv_into(view)
            except BlockingIOError:
                if perf_counter() > end:
                    if partial:
                        self._stalled = True
                    else:
                        self._spin.missed()
                    return -1
            else:
                self._stalled = False
                return received

    async def _flush_arena(self) -> None:
        used, self._used = self._used, 0
        if not used:
            return
        wire = self._wire
        sent = 0
        if not wire.lock.locked():
            try:
                sent = wire.sock.send(self._arena_view[:used])
            except BlockingIOError:
                pass
        if sent < used:
            await wire.send([self._arena_view[sent:used]])

    def _compact(self) -> None:
        start, end = self._start, self._end
        if start:
            if start < end:
                self._view[: end - start] = self._view[start:end]
            self._start, self._end = 0, end - start

    def _serve_buffered(self) -> int:
        """Serve what needs no await; say why it stopped.

        The rest of the room may be slow so that this can be quick: plain integers, local names, few calls.
        """
        (
            buffer,
            view,
            arena,
            arena_view,
            unpack,
            header_size,
            map_read,
            map_write,
            magic_wanted,
            read_flags,
            write_flags,
            data_header,
            pack_data,
            ok_size,
            pack_ok,
            writable,
        ) = self._hot
        start, end, used = self._start, self._end, self._used
        limit, slice_end = self._limit, self._wire.slice_end
        known_file = None  # whose ``fd`` and ``flags`` are at hand
        fd = preadv_flags = 0
        reason = _MORE
        traced = tracing()
        served = 0
        while end - start >= header_size:
            magic, flags, kind, cookie, offset, length = unpack(buffer, start)
            if magic != magic_wanted:
                raise RemoteProtocolError(f"invalid magic (got 0x{magic:x})")
            served += 1
            if not served & 15 and perf_counter() > slice_end:
                reason = _SLICE
                break
            if kind == READ:
                if 0 < length <= SMALL and not flags & ~read_flags and offset + length <= limit:
                    data = used + data_header
                    stop = data + length
                    if stop > ARENA:
                        reason = _FULL
                        break
                    extents = map_read(offset, length)
                    if extents is not None:
                        file, at, _ = extents[0]
                        if file is not None and len(extents) == 1:
                            if file is not known_file:
                                known_file = file
                                fd = file.fd if file.can_read_now else -1
                                preadv_flags = file.read_flags
                            if fd < 0:
                                done = read_now(extents, (arena_view[data:stop],))
                            else:
                                try:
                                    done = (
                                        preadv(fd, (arena_view[data:stop],), at, preadv_flags)
                                        == length
                                    )
                                except OSError:
                                    done = False  # the slow path meets it again and reports it
                        else:
                            done = read_now(extents, (arena_view[data:stop],))
                        if done:
                            if traced:
                                trace_request(magic, flags, kind, cookie, offset, length)
                            pack_data(arena, used, cookie, offset, length)
                            used = stop
                            start += header_size
                            continue
            elif kind == WRITE and length <= WHOLE_WRITE and not flags & ~write_flags:
                data = start + header_size
                stop = data + length
                if stop > end:
                    break  # not all here yet
                if used + ok_size > ARENA:
                    reason = _FULL
                    break
                if writable and length and offset + length <= limit:
                    extents = map_write(offset, length)
                    if extents is not None and write_now(extents, (view[data:stop],)):
                        if traced:
                            trace_request(magic, flags, kind, cookie, offset, length)
                        pack_ok(arena, used, cookie, offset)
                        used += ok_size
                        start = stop
                        continue
            if traced:
                trace_request(magic, flags, kind, cookie, offset, length)
            self._request = Request(flags, kind, cookie, offset, length)
            start += header_size
            reason = _REQUEST
            break
        self._start, self._used, self._served = start, used, served
        return reason

    # -- requests that need an await ---------------------------------------------------------------

    async def _dispatch(self, nursery: trio.Nursery, request: Request) -> bool:
        """Carry out or spawn a request whose header has just been taken. False: disconnect."""
        flags, kind, _, _, length = request
        if kind == Cmd.DISC:
            return False
        if kind == WRITE or (self._extended and flags & CmdFlag.PAYLOAD_LEN):
            return await self._dispatch_with_payload(nursery, request)
        refusal = self._rules.refusal(request)
        if refusal is not None:
            await self._refuse(request, refusal)
        elif not (
            kind == READ
            and length > SMALL
            and not flags & FUA
            and request.offset + length <= self._limit
            and await self._reads.fast(request)
        ):
            need = length if kind == READ else 0
            await self._take_slot(need)
            nursery.start_soon(self._carry_out, request, b"", need)
        return True

    async def _dispatch_with_payload(self, nursery: trio.Nursery, request: Request) -> bool:
        flags, kind, _, offset, length = request
        if length > MAX_REQUEST:
            # Its data cannot be skipped within reason: the connection ends with the answer.
            await self._refuse(request, too_long(length))
            return False
        if kind == WRITE:
            refusal = self._rules.refusal(request)
        elif kind == Cmd.BLOCK_STATUS:
            refusal = None  # the effect length to be checked stands in the payload
        else:
            refusal = Refusal(Error.EINVAL, "payload not supported")
        if (
            kind == WRITE
            and refusal is None
            and length > WHOLE_WRITE
            and not (flags & FUA or self._writethrough)
            and offset + length <= self._limit
            and self._backend.map_write(offset, length) is not None
        ):
            return await self._stream_write(request)
        await self._take_slot(length)
        # The request's own copy: the receive buffer goes on to other requests.
        payload = await self._take_payload(length)
        if payload is None:
            self._give_slot(length)
            return False
        if refusal is not None:
            self._give_slot(length)
            await self._refuse(request, refusal)
        else:
            nursery.start_soon(self._carry_out, request, payload, length)
        return True

    async def _refuse(self, request: Request, refusal: Refusal) -> None:
        await self._wire.send([self._replies.error(request, refusal.error, refusal.text)])

    async def _take_payload(self, length: int) -> memoryview | None:
        """Return the next ``length`` bytes from the client in a buffer of their own; None: it left."""
        payload = memoryview(bytearray(length))
        at = min(self._end - self._start, length)
        payload[:at] = self._view[self._start : self._start + at]
        self._start += at
        while at < length:
            received = await self._wire.receive_into(payload[at:])
            if not received:
                return None
            at += received
        return payload

    async def _take_slot(self, need: int) -> None:
        while self._in_flight and (
            self._in_flight >= MAX_REQUESTS_IN_FLIGHT
            or self._bytes_in_flight + need > MAX_BYTES_IN_FLIGHT
        ):
            self._slot_freed = trio.Event()
            await self._slot_freed.wait()
            self._wire.begin_slice()
        self._in_flight += 1
        self._bytes_in_flight += need

    def _give_slot(self, need: int) -> None:
        self._in_flight -= 1
        self._bytes_in_flight -= need
        self._slot_freed.set()

    async def _carry_out(self, request: Request, payload: Buffer, need: int) -> None:
        """Do one request on the slow path and answer it."""
        try:
            try:
                await self._do(request, payload)
            except ClientGone:
                self.stop()
            except OSError as exc:
                await self._refuse(request, failure(request.type, exc))
        except ClientGone:
            self.stop()
        finally:
            self._give_slot(need)

    async def _do(self, request: Request, payload: Buffer) -> None:
        flags, kind, _, offset, length = request
        backend = self._backend
        durable = ReqFlag.FUA if flags & FUA or self._writethrough else ReqFlag.NONE
        if kind == READ:
            if flags & FUA:
                await backend.flush()
            if self._mode and not flags & DF and length > SMALL:
                await self._reads.sparse(request, self._limit)
                return
            if not length and self._mode:  # a chunk of data must hold some
                await self._wire.send([self._replies.done(request)])
                return
            data = memoryview(bytearray(length))
            if length:
                await backend.preadv(offset, [data])
            await self._wire.send([self._replies.data_header(request, offset, length), data])
            return
        if kind == WRITE:
            await backend.pwritev(offset, [memoryview(payload)], durable)
        elif kind == Cmd.WRITE_ZEROES:
            how = durable
            if not flags & CmdFlag.NO_HOLE:
                how |= ReqFlag.MAY_UNMAP
            if flags & CmdFlag.FAST_ZERO:
                how |= ReqFlag.NO_FALLBACK
            await backend.pwrite_zeroes(offset, length, how)
        elif kind == Cmd.TRIM:
            await backend.pdiscard(offset, length)
            if durable:
                await backend.flush()
        elif kind == Cmd.FLUSH:
            await backend.flush()
        elif kind == Cmd.CACHE:
            await backend.prefetch(offset, length)
        elif kind == Cmd.BLOCK_STATUS:
            await self._block_status(request, payload)
            return
        await self._wire.send([self._replies.ok(request)])

    async def _block_status(self, request: Request, payload: Buffer) -> None:
        length = request.length
        contexts = list(self._looks)
        if payload:
            parsed = parse_status_payload(payload)
            refusal: Refusal | None
            if parsed is None or not self._looks.keys() >= set(parsed[1]):
                refusal = Refusal(Error.EINVAL, "invalid payload of block status")
            else:
                length, contexts = parsed[0], sorted(set(parsed[1]))
                refusal = self._rules.refusal(request._replace(length=length))
            if refusal is not None:
                await self._refuse(request, refusal)
                return
        chunks: list[bytes] = []
        for id_ in contexts:
            extents = await collect(
                self._looks[id_],
                request.offset,
                length,
                only_one=bool(request.flags & CmdFlag.REQ_ONE),
                extended=self._extended,
            )
            done = id_ == contexts[-1]
            chunks.append(self._replies.block_status(request, id_, extents, done=done))
        await self._wire.send(chunks or [self._replies.done(request)])

    # -- writes ------------------------------------------------------------------------------------

    async def _stream_write(self, request: Request) -> bool:
        """Write a large request piece by piece as its data arrives.

        Pieces end at page boundaries: a part of a page that is not cached would be read from disk
        first, by the event loop.
        """
        offset, end = request.offset, request.offset + request.length
        view = self._view
        error: OSError | None = None
        while True:
            have = min(self._end - self._start, end - offset)
            usable = have if offset + have == end else (offset + have) // PAGE * PAGE - offset
            if usable > 0:
                if error is None:
                    try:
                        await self._write_piece(offset, view[self._start : self._start + usable])
                    except OSError as exc:
                        error = exc
                offset += usable
                self._start += usable
                if offset == end:
                    break
            self._compact()
            # Not far beyond this request: what follows would have to be moved.
            room = min(len(view) - self._end, end - offset + PAGE)
            received = await self._wire.receive_into(view[self._end : self._end + room])
            if not received:
                return False
            self._end += received
            await self._wire.give_way()
        if error is not None:
            await self._refuse(request, failure(WRITE, error))
        else:
            await self._wire.send([self._replies.ok(request)])
        return True

    async def _write_piece(self, offset: int, piece: memoryview) -> None:
        if offset + len(piece) <= self._limit:
            extents = self._backend.map_write(offset, len(piece))
            if extents is not None and write_now(extents, (piece,)):
                return
        await self._backend.pwritev(offset, [piece])
