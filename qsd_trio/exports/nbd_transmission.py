"""One NBD client in the transmission phase: the data plane.

Requests are read many at a time into one buffer. What the page cache can answer is answered at once
(``_serve_buffered``, no await): replies gather in an arena and leave by one ``send``. Large reads go by ``sendfile``, large
writes piece by piece from the receive buffer. Everything else is a task of its own, bounded in number and bytes.

Order: the fast path writes into the page cache before it goes on, so a later flush or FUA covers it. Replies never
interleave: whoever must wait in the middle of one holds ``_send_lock``.

See DESIGN.md, section 5.
"""

from __future__ import annotations

import mmap
import socket
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio.block.abc import ReqFlag, StatusFlag
from qsd_trio.errors import RemoteProtocolError
from qsd_trio.exports.nbd_requests import (
    Refusal,
    Rules,
    failure,
    segments,
    too_long,
    trace_request,
    tracing,
)
from qsd_trio.exports.nbd_status import collect
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
    from collections.abc import Sequence

    from qsd_trio.block.abc import Extents
    from qsd_trio.block.backend import BlockBackend
    from qsd_trio.protocol.nbd.negotiation import ExportChosen

    Buffer = bytes | bytearray | memoryview

KiB = 1024
MiB = 1024 * KiB

RECEIVE_BUFFER: Final = 256 * KiB
ARENA: Final = 256 * KiB  # replies gathered before they are sent
SMALL: Final = 64 * KiB  # reads of at most that are copied into the arena
WHOLE_WRITE: Final = 128 * KiB  # writes of at most that wait for their data in the receive buffer
PIECE: Final = 256 * KiB  # of a large read that cannot be sent by sendfile
PAGE: Final = 4 * KiB
MAX_EXTENTS: Final = 64  # of a read or write on the fast path

MAX_REQUESTS_IN_FLIGHT: Final = 64  # on the slow path, per client
MAX_BYTES_IN_FLIGHT: Final = 64 * MiB  # of their buffers
STATUS_LOOK_AHEAD: Final = 1 << 30  # bytes a sparse read asks about beyond its own

#: Seconds of serving without giving way to the other tasks of the loop (monitors must answer).
TIME_SLICE: Final = 0.0015

_ZEROES = memoryview(bytes(PIECE))

READ, WRITE = Cmd.READ, Cmd.WRITE
DF, FUA, PAYLOAD_LEN = CmdFlag.DF, CmdFlag.FUA, CmdFlag.PAYLOAD_LEN
EXTENDED = Mode.EXTENDED
ZERO = StatusFlag.ZERO

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
        writethrough: Every write is on stable storage when it is answered.
        received: What the client sent beyond the negotiation.
    """

    def __init__(
        self,
        sock: socket.socket,
        backend: BlockBackend,
        chosen: ExportChosen,
        *,
        writethrough: bool = False,
        received: bytes = b"",
    ) -> None:
        self._sock = sock
        self._backend = backend
        self._mode = chosen.mode
        self._contexts = chosen.contexts
        self._size = chosen.info.size
        self._read_only = bool(chosen.flags & TransmissionFlag.READ_ONLY)
        self._rules = Rules(self._mode, self._size, self._read_only, bool(self._contexts))
        self._writethrough = writethrough
        self._writable = not self._read_only and not writethrough  # on the fast path
        self._replies = Replies(chosen.mode)
        self._extended = chosen.mode == Mode.EXTENDED
        self._header = EXTENDED_REQUEST if self._extended else REQUEST
        # On loopback TCP, sendfile is slower than a copy; on unix sockets the pages move by reference.
        self._by_sendfile = sock.family == socket.AF_UNIX
        # Anonymous maps: a client that only sends little costs only the pages it has touched.
        self._buffer = mmap.mmap(-1, max(RECEIVE_BUFFER, len(received)))
        self._view = memoryview(self._buffer)
        self._view[: len(received)] = received
        self._start, self._end = 0, len(received)
        self._arena = mmap.mmap(-1, ARENA)
        self._arena_view = memoryview(self._arena)
        self._used = 0
        self._request = Request(0, 0, 0, 0, 0)
        self._slice_end = 0.0
        self._send_lock = trio.Lock()
        self._in_flight = 0
        self._bytes_in_flight = 0
        self._slot_freed = trio.Event()
        self._stopping = False
        self._known_data = (0, 0)  # offsets between which no hole was found
        self._limit = 0

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
        self._stopping = True
        self._shutdown(socket.SHUT_RD)  # wakes whoever waits for a request

    def abort(self) -> None:
        """Disconnect: nobody waits any more for a client that does not read its replies."""
        self._stopping = True
        self._shutdown(socket.SHUT_RDWR)

    def _shutdown(self, how: int) -> None:
        try:
            self._sock.shutdown(how)
        except OSError:
            pass  # the client was quicker

    def _resized(self) -> None:
        # The client knows the size at its start; a node that shrank since cannot serve all of it.
        self._limit = min(self._size, self._backend.getlength())

    # -- receiving ---------------------------------------------------------------------------------

    async def _receive(self, nursery: trio.Nursery) -> None:
        sock = self._sock
        recv_into = sock.recv_into
        self._slice_end = perf_counter() + TIME_SLICE
        while not self._stopping:
            reason = self._serve_buffered()
            if self._used:
                await self._flush_arena()
            if reason == _MORE:
                self._compact()
                try:
                    received = recv_into(self._view[self._end :])
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(sock)
                    self._slice_end = perf_counter() + TIME_SLICE
                    continue
                if not received:
                    return
                self._end += received
            elif reason == _REQUEST and not await self._dispatch(nursery, self._request):
                return
            if perf_counter() > self._slice_end:
                await trio.lowlevel.checkpoint()
                self._slice_end = perf_counter() + TIME_SLICE

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
        buffer, view = self._buffer, self._view
        arena, arena_view = self._arena, self._arena_view
        start, end, used = self._start, self._end, self._used
        unpack, header_size = self._header.unpack_from, self._header.size
        limit, slice_end = self._limit, self._slice_end
        map_read, map_write = self._backend.map_read, self._backend.map_write
        mode, writable = self._mode, self._writable
        magic_wanted = EXTENDED_REQUEST_MAGIC if mode == EXTENDED else REQUEST_MAGIC
        read_flags = DF if mode else 0
        write_flags = PAYLOAD_LEN if mode == EXTENDED else 0
        data_header, pack_data = DATA_PACKERS[mode]
        ok_size, pack_ok = OK_PACKERS[mode]
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
                        if len(extents) == 1 and (file := extents[0][0]) is not None:
                            try:
                                done = (
                                    file.read_now((arena_view[data:stop],), extents[0][1]) == length
                                )
                            except OSError:
                                done = False  # the slow path meets it again, and reports it
                        else:
                            done = _read_extents_now(extents, arena_view[data:stop])
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
                    if extents is not None:
                        try:
                            done = _write_extents_now(extents, view[data:stop])
                        except OSError:
                            done = False  # as above
                        if done:
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
        self._start, self._used = start, used
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
            kind == READ and length > SMALL and not flags & FUA and await self._large_read(request)
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
        await self._send([self._replies.error(request, refusal.error, refusal.text)])

    async def _take_payload(self, length: int) -> memoryview | None:
        """Return the next ``length`` bytes from the client in a buffer of their own; None: it left."""
        payload = memoryview(bytearray(length))
        at = min(self._end - self._start, length)
        payload[:at] = self._view[self._start : self._start + at]
        self._start += at
        while at < length:
            received = await self._receive_into(payload[at:])
            if not received:
                return None
            at += received
        return payload

    async def _receive_into(self, view: memoryview) -> int:
        while not self._stopping:
            try:
                return self._sock.recv_into(view)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                self._slice_end = perf_counter() + TIME_SLICE
        return 0

    async def _take_slot(self, need: int) -> None:
        while self._in_flight and (
            self._in_flight >= MAX_REQUESTS_IN_FLIGHT
            or self._bytes_in_flight + need > MAX_BYTES_IN_FLIGHT
        ):
            self._slot_freed = trio.Event()
            await self._slot_freed.wait()
            self._slice_end = perf_counter() + TIME_SLICE
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
            except _ClientGone:
                self.stop()
            except OSError as exc:
                await self._refuse(request, failure(request.type, exc))
        except _ClientGone:
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
                await self._sparse_read(request)
                return
            if not length and self._mode:  # a chunk of data must hold some
                await self._send([self._replies.done(request)])
                return
            data = memoryview(bytearray(length))
            if length:
                await backend.preadv(offset, [data])
            await self._send([self._replies.data_header(request, offset, length), data])
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
        await self._send([self._replies.ok(request)])

    # -- reads -------------------------------------------------------------------------------------

    async def _large_read(self, request: Request) -> bool:
        """Answer a large read from the page cache. False: nothing was sent, take the slow path."""
        flags, _, _, offset, length = request
        if offset + length > self._limit:
            return False
        sparse = self._mode and not flags & DF
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
        if self._send_lock.locked():
            await self._send_lock.acquire()
        else:
            self._send_lock.acquire_nowait()
        try:
            if not sparse:
                await self._send_locked([self._replies.data_header(request, offset, length)])
                await self._send_content(offset, length)
                return True
            parts = segments(extents)
            at = offset
            for index, (is_data, size) in enumerate(parts):
                last = index == len(parts) - 1
                if is_data:
                    header = self._replies.data_header(request, at, size, done=last)
                    await self._send_locked([header])
                    await self._send_content(at, size)
                else:
                    await self._send_locked([self._replies.hole(request, at, size, done=last)])
                at += size
        finally:
            self._send_lock.release()
        return True

    async def _send_content(self, offset: int, length: int) -> None:
        """Send the bytes of a range, whose header has been sent. The caller holds the send lock.

        The range is mapped anew after each wait. It is too late to report an error: it ends the
        connection, as the protocol demands.
        """
        end = offset + length
        map_read = self._backend.map_read
        out = self._sock.fileno()
        while offset < end:
            extents = map_read(offset, end - offset)
            for file, at, size in extents or ():
                if file is None:
                    await self._send_locked([_ZEROES[: min(size, PIECE)]])
                    offset += min(size, PIECE)
                    if size > PIECE:
                        break
                elif self._by_sendfile and file.cached_now(at, size):
                    try:
                        sent = file.sendfile_now(out, at, size)
                    except OSError as exc:  # the client's end, or the file's
                        raise _ClientGone from exc
                    if sent < 0:
                        await self._wait_writable()
                        break
                    if not sent:  # beyond the end of the file: a node's length is rounded up
                        await self._send_locked([_ZEROES[: min(size, PIECE)]])
                        sent = min(size, PIECE)
                    offset += sent
                    if sent < size:
                        break
                else:
                    offset += await self._send_piece(offset, min(size, PIECE))
                    break  # there was an await: what was mapped is stale
            if extents is None:
                offset += await self._send_piece(offset, min(end - offset, PIECE))

    async def _send_piece(self, offset: int, length: int) -> int:
        # The arena is empty here: it was sent before this request was begun.
        piece = self._arena_view[:length]
        extents = self._backend.map_read(offset, length)
        if extents is None or not _read_extents_now(extents, piece):
            try:
                await self._backend.preadv(offset, [piece])
            except OSError as exc:
                raise _ClientGone from exc
        await self._send_locked([piece])
        return length

    async def _sparse_read(self, request: Request) -> None:
        """Answer a large structured read in chunks, holes by name."""
        offset, end = request.offset, request.offset + request.length
        size = min(self._limit, end + STATUS_LOOK_AHEAD)
        pieces: list[tuple[bool, int, int]] = []
        at = offset
        while at < end:
            status = await self._backend.block_status_above(at, max(size, end) - at)
            if (
                not status.flags & ZERO
                and status.length > self._known_data[1] - self._known_data[0]
            ):
                self._known_data = (at, at + status.length)
            length = min(status.length, end - at)
            is_data = not status.flags & ZERO
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
                await self._send([header, data])
            else:
                await self._send([self._replies.hole(request, at, length, done=done)])

    async def _block_status(self, request: Request, payload: Buffer) -> None:
        length = request.length
        contexts = list(self._contexts)
        if payload:
            parsed = parse_status_payload(payload)
            refusal: Refusal | None
            if parsed is None or not self._contexts.keys() >= set(parsed[1]):
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
                self._backend,
                self._contexts[id_],
                request.offset,
                length,
                only_one=bool(request.flags & CmdFlag.REQ_ONE),
                extended=self._extended,
            )
            done = id_ == contexts[-1]
            chunks.append(self._replies.block_status(request, id_, extents, done=done))
        await self._send(chunks or [self._replies.done(request)])

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
            received = await self._receive_into(view[self._end : self._end + room])
            if not received:
                return False
            self._end += received
            if perf_counter() > self._slice_end:
                await trio.lowlevel.checkpoint()
                self._slice_end = perf_counter() + TIME_SLICE
        if error is not None:
            await self._refuse(request, failure(WRITE, error))
        else:
            await self._send([self._replies.ok(request)])
        return True

    async def _write_piece(self, offset: int, piece: memoryview) -> None:
        if offset + len(piece) <= self._limit:
            extents = self._backend.map_write(offset, len(piece))
            if extents is not None and _write_extents_now(extents, piece):
                return
        await self._backend.pwritev(offset, [piece])

    # -- sending -----------------------------------------------------------------------------------

    async def _flush_arena(self) -> None:
        used, self._used = self._used, 0
        if self._send_lock.locked():
            await self._send([self._arena_view[:used]])
            return
        try:
            sent = self._sock.send(self._arena_view[:used])
        except BlockingIOError:
            sent = 0
        if sent < used:
            await self._send([self._arena_view[sent:used]])

    async def _send(self, buffers: Sequence[Buffer]) -> None:
        """Send the buffers as one reply; they may be used again on return."""
        if self._send_lock.locked():
            await self._send_lock.acquire()
        else:
            self._send_lock.acquire_nowait()
        try:
            await self._send_locked(buffers)
        finally:
            self._send_lock.release()

    async def _send_locked(self, buffers: Sequence[Buffer]) -> None:
        left: deque[memoryview] | None = None
        while True:
            try:
                sent = self._sock.sendmsg(left or buffers)
            except BlockingIOError:
                sent = 0
            except ConnectionError as exc:
                raise _ClientGone from exc
            if left is None:
                if sent == sum(map(len, buffers)):
                    return
                left = deque([memoryview(buffer) for buffer in buffers])
            while left and sent >= len(left[0]):
                sent -= len(left.popleft())
            if not left:
                return
            left[0] = left[0][sent:]
            await self._wait_writable()

    async def _wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self._sock)
        self._slice_end = perf_counter() + TIME_SLICE


class _ClientGone(ConnectionError):
    """The connection broke while a reply was sent, or must be broken in the middle of one."""


def _read_extents_now(extents: Extents, data: memoryview) -> bool:
    """Fill ``data`` from the extents without waiting; False: it could not be done."""
    if len(extents) > MAX_EXTENTS:
        return False
    at = 0
    for file, offset, length in extents:
        piece = data[at : at + length]
        if file is None:
            piece[:] = _ZEROES[:length]
        else:
            try:
                done = file.read_now((piece,), offset)
            except OSError:
                return False
            if done < 0:
                return False
            if done < length:
                piece[done:] = _ZEROES[: length - done]
        at += length
    return True


def _write_extents_now(extents: Extents, data: memoryview) -> bool:
    """Write ``data`` to the extents without waiting; False: not all of it was written."""
    if len(extents) == 1:
        file, offset, _ = extents[0]
        return file is not None and file.write_now((data,), offset)
    if len(extents) > MAX_EXTENTS:
        return False
    at = 0
    for file, offset, length in extents:
        assert file is not None
        if not file.write_now((data[at : at + length],), offset):
            return False
        at += length
    return True
