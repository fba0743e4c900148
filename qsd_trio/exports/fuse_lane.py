"""Answers the kernel's requests for one FUSE export: the data plane, and everything else.

One task reads the device. What the page cache can answer is answered at once (``_serve_ready``, no await);
the rest is a task of its own, bounded in number, on ``ExportedFile``, which holds the rules.

A buffer belongs to a request until its reply is written: data of a write that must wait keeps the receive
buffer it came in, and the lane goes on with another.

See DESIGN.md, section 5.
"""

from __future__ import annotations

import errno
import mmap
import os
from os import preadv
from time import perf_counter
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio.exports.extents import read_now, write_now
from qsd_trio.exports.fuse_semantics import NAME_MAX, STATFS_BLOCK
from qsd_trio.host.spin import SPIN, Spin
from qsd_trio.protocol import fuse
from qsd_trio.protocol.fuse import MAX_IO, OUT_HEADER, PAGE, RW_HEADER, UNANSWERED, Opcode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from typing_extensions import TypeVarTuple, Unpack

    from qsd_trio.exports.fuse_semantics import ExportedFile
    from qsd_trio.protocol.fuse import Buffer, Request

    Ts = TypeVarTuple("Ts")

#: Requests in tasks of their own. The kernel sends more only where many clients wait for one each.
MAX_IN_FLIGHT: Final = 64

#: Requests that the kernel sends ahead of their answers (readahead, asynchronous I/O); its default is 12.
MAX_BACKGROUND: Final = 64

#: Receive buffers kept for the next write that must wait.
MAX_SPARE: Final = 4

#: Seconds of serving without giving way to the other tasks of the loop (monitors must answer).
TIME_SLICE: Final = 0.0005

#: Seconds for which the kernel may answer stat(2) by itself.
ATTR_VALID: Final = 1

#: Views of a buffer that are kept.
MAX_PIECES: Final = 64

READ, WRITE = Opcode.READ, Opcode.WRITE

# Fields of a request and a reply, as indices of a header cast to 32 or 64 bit words.
_OPCODE, _UNIQUE = 1, 1
_OFFSET, _SIZE = 6, 14
_REPLY_LENGTH, _REPLY_UNIQUE, _REPLY_WRITTEN = 0, 1, 4

# What the descriptor says when nobody can be answered any more: unmounted, or aborted.
_GONE: Final = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.EPERM, errno.ENOTCONN})

# Why _serve_ready stopped.
_EMPTY = 0  # nothing to read
_REQUEST = 1  # a request in the buffer that needs more than it does
_SLICE = 2  # the time slice is over
_END = 3  # unmounted

_spin: trio.lowlevel.RunVar[Spin] = trio.lowlevel.RunVar("qsd_trio FUSE spin")


def _shared_spin() -> Spin:
    """Return what decides for all lanes of this loop which of them may spin."""
    try:
        return _spin.get()
    except LookupError:
        spin = Spin()
        _spin.set(spin)
        return spin


@final
class _Buffer:
    """Room for one message: a header that ends, and data that begins, at a page boundary.

    So the kernel's copy and ours are of whole pages. Private memory: a shared map is slower to touch.
    """

    __slots__ = ("data", "iov", "pieces", "view", "words", "words64")

    def __init__(self, header: int) -> None:
        area = mmap.mmap(-1, MAX_IO + PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = memoryview(area)
        self.view = whole[PAGE - header :]
        self.data = whole[PAGE:]
        front = whole[PAGE - header : PAGE]
        self.iov = (front, self.data)
        self.words = front.cast("I")
        self.words64 = front.cast("Q")
        #: By length: the data as an iov, and the whole message. Clients have few favourite lengths.
        self.pieces: dict[int, tuple[tuple[memoryview], memoryview]] = {}

    def cut(self, size: int) -> tuple[tuple[memoryview], memoryview]:
        """Return, and keep, the views for ``size`` bytes of data."""
        if len(self.pieces) >= MAX_PIECES:
            self.pieces.clear()
        made = self.pieces[size] = ((self.data[:size],), self.view[: len(self.iov[0]) + size])
        return made


@final
class Lane:
    """Serves the device ``fd``, which it owns, until it is unmounted or stopped."""

    def __init__(self, fd: int, file: ExportedFile) -> None:
        self._fd = fd
        self._file = file
        self._backend = file.backend
        self._receiving = trio.CancelScope()
        self._spin = _shared_spin()
        self._in_flight = 0
        self._slot_freed = trio.Event()
        self._slice_end = 0.0
        self._limit = 0
        self._buffer = _Buffer(RW_HEADER)
        self._spare: list[_Buffer] = []
        #: Of reads that are answered at once: nobody else uses it, and not beyond the reply.
        self._reply_buffer = _Buffer(OUT_HEADER.size)
        #: The reply to such writes, of which only the request's number and the length change.
        written = memoryview(bytearray(b"".join(fuse.reply(0, fuse.write_out(0)))))
        self._written = written, written.cast("I"), written.cast("Q")

    # -- life ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve. On return requests in flight are answered and the device is closed.

        Cancelled: those in flight are abandoned; their callers get ENOTCONN, as all later ones.
        """
        self._backend.on_resize.append(self._resized)
        self._resized()
        try:
            async with trio.open_nursery() as nursery:
                with self._receiving:
                    await self._receive(nursery)
        finally:
            self._backend.on_resize.remove(self._resized)
            self.close()

    def stop(self) -> None:
        """Take no more requests; ``run`` returns when those in flight are answered."""
        self._receiving.cancel()

    def close(self) -> None:
        """Close the device, which ends the connection. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _resized(self) -> None:
        self._limit = self._backend.getlength()

    # -- receiving -----------------------------------------------------------------------------------

    async def _receive(self, nursery: trio.Nursery) -> None:
        have = 0
        while True:
            reason, have = self._serve_ready(have)
            if reason == _EMPTY:
                have = self._look_again()
                if not have:
                    await trio.lowlevel.wait_readable(self._fd)
                    self._slice_end = perf_counter() + TIME_SLICE
            elif reason == _REQUEST:
                message = self._buffer.view[:have]
                have = 0
                self._dispatch(nursery, fuse.parse(message))
                while self._in_flight >= MAX_IN_FLIGHT:
                    self._slot_freed = trio.Event()
                    await self._slot_freed.wait()
            elif reason == _END:
                return
            if perf_counter() > self._slice_end:
                await trio.lowlevel.checkpoint()
                self._slice_end = perf_counter() + TIME_SLICE

    def _look_again(self) -> int:
        """Wait a moment for a client that may be back at once; return the length of its request, or 0."""
        if self._in_flight or not self._spin.may(self):
            return 0
        fd, iov = self._fd, self._buffer.iov
        end = perf_counter() + SPIN
        while perf_counter() < end:
            try:
                return os.readv(fd, iov)
            except BlockingIOError:
                pass
            except OSError:
                return 0  # met again, and told apart, by _serve_ready
        self._spin.missed()
        return 0

    def _serve_ready(self, have: int) -> tuple[int, int]:
        """Serve what needs no await; return why it stopped, and the length of a request it has not served.

        ``have`` is the length of a request that is already in the buffer. The rest of the room may be slow so
        that this can be quick: plain integers, local names, few calls.
        """
        fd, readv, write = self._fd, os.readv, os.write
        buffer = self._buffer
        iov, words, words64, pieces = buffer.iov, buffer.words, buffer.words64, buffer.pieces
        backend, limit, slice_end = self._backend, self._limit, self._slice_end
        map_read, map_write = backend.map_read, backend.map_write
        writable = self._file.writable
        reply = self._reply_buffer
        reply_words, reply_words64, replies = reply.words, reply.words64, reply.pieces
        written, written_words, written_words64 = self._written
        served = 0
        while True:
            if not have:
                try:
                    have = readv(fd, iov)
                except BlockingIOError:
                    return _EMPTY, 0
                except OSError as exc:
                    if exc.errno == errno.ENOENT:  # its caller was interrupted
                        continue
                    if exc.errno in _GONE:
                        return _END, 0
                    raise
            served += 1
            if not served & 15 and perf_counter() > slice_end:
                return _SLICE, have
            opcode = words[_OPCODE]
            # The arguments of READ and WRITE are alike up to the size.
            offset, size = words64[_OFFSET], words[_SIZE]
            if not 0 < size <= MAX_IO or offset + size > limit:
                return _REQUEST, have
            if opcode == READ and have == RW_HEADER:
                extents = map_read(offset, size)
                if extents is None:
                    return _REQUEST, have
                piece, whole = replies.get(size) or reply.cut(size)
                file, at, _ = extents[0]
                if file is not None and len(extents) == 1 and file.fd >= 0:
                    try:
                        done = (
                            file.can_read_now
                            and preadv(file.fd, piece, at, file.read_flags) == size
                        )
                    except OSError:
                        done = False  # not cached, or the slow path meets it again and reports it
                else:
                    done = read_now(extents, piece)
                if not done:
                    return _REQUEST, have
                reply_words[_REPLY_LENGTH] = len(whole)
                reply_words64[_REPLY_UNIQUE] = words64[_UNIQUE]
            elif opcode == WRITE and writable and have == RW_HEADER + size:
                extents = map_write(offset, size)
                if extents is None:
                    return _REQUEST, have
                piece, _ = pieces.get(size) or buffer.cut(size)
                if not write_now(extents, piece):
                    return _REQUEST, have
                written_words64[_REPLY_UNIQUE] = words64[_UNIQUE]
                written_words[_REPLY_WRITTEN] = size
                whole = written
            else:
                return _REQUEST, have
            have = 0
            try:
                write(fd, whole)
            except OSError as exc:
                _ignore_unwanted(exc)

    # -- replies -------------------------------------------------------------------------------------

    def _send(self, pieces: Sequence[Buffer]) -> None:
        try:
            os.writev(self._fd, pieces)
        except OSError as exc:
            _ignore_unwanted(exc)

    def _reply(self, request: Request, *payload: Buffer) -> None:
        self._send(fuse.reply(request.unique, *payload))

    def _fail(self, request: Request, number: int) -> None:
        self._send(fuse.error_reply(request.unique, number))

    # -- everything else -----------------------------------------------------------------------------

    def _dispatch(self, nursery: trio.Nursery, request: Request) -> None:
        """Answer a request, or start the task that will."""
        start = self._start
        match request.opcode:
            case Opcode.READ:
                start(nursery, request, self._read, fuse.parse_read(request))
            case Opcode.WRITE:
                # The task has the buffer from now on.
                start(nursery, request, self._write, fuse.parse_write(request), self._buffer)
                self._buffer = self._spare.pop() if self._spare else _Buffer(RW_HEADER)
            case Opcode.GETATTR:
                self._reply(request, self._attributes())
            case Opcode.SETATTR:
                start(nursery, request, self._set_attributes, fuse.parse_setattr(request))
            case Opcode.OPEN:
                self._reply(request, fuse.open_out())
            case Opcode.FLUSH | Opcode.FSYNC:
                start(nursery, request, self._flush)
            case Opcode.RELEASE | Opcode.DESTROY:
                self._reply(request)
            case Opcode.FALLOCATE:
                start(nursery, request, self._fallocate, fuse.parse_fallocate(request))
            case Opcode.LSEEK:
                start(nursery, request, self._seek, fuse.parse_lseek(request))
            case Opcode.STATFS:
                self._reply(request, fuse.statfs_out(block_size=STATFS_BLOCK, name_max=NAME_MAX))
            case Opcode.LOOKUP:
                self._fail(request, errno.ENOENT)
            case Opcode.INIT:
                init = fuse.parse_init(request)
                self._reply(request, fuse.init_out(init, max_background=MAX_BACKGROUND))
            case opcode if opcode not in UNANSWERED:
                # Extended attributes, ioctls, directories ...: the kernel remembers that, and has its own answers.
                self._fail(request, errno.ENOSYS)

    def _start(
        self,
        nursery: trio.Nursery,
        request: Request,
        answer: Callable[[Unpack[Ts]], Awaitable[Sequence[Buffer]]],
        *args: *Ts,
    ) -> None:
        self._in_flight += 1
        nursery.start_soon(self._answer, request.unique, answer, args)

    async def _answer(
        self,
        unique: int,
        answer: Callable[[Unpack[Ts]], Awaitable[Sequence[Buffer]]],
        args: tuple[*Ts],
    ) -> None:
        """Carry out a request and send what came of it."""
        try:
            try:
                payload = await answer(*args)
            except OSError as exc:
                self._send(fuse.error_reply(unique, exc.errno or errno.EIO))
            else:
                self._send(fuse.reply(unique, *payload))
        finally:
            self._in_flight -= 1
            self._slot_freed.set()

    def _attributes(self) -> bytes:
        return fuse.attr_out(self._file.attributes(), ATTR_VALID)

    async def _read(self, wanted: fuse.ReadWrite) -> Sequence[Buffer]:
        size = self._file.readable(wanted.offset, wanted.size)
        if not size:
            return ()
        data = memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        await self._file.read(wanted.offset, [data])
        return (data,)

    async def _write(self, wanted: fuse.ReadWrite, buffer: _Buffer) -> Sequence[Buffer]:
        try:
            written = await self._file.write(wanted.offset, wanted.data)
        finally:
            if len(self._spare) < MAX_SPARE:
                self._spare.append(buffer)
        return (fuse.write_out(written),)

    async def _set_attributes(self, wanted: fuse.SetAttrRequest) -> Sequence[Buffer]:
        await self._file.set_attributes(wanted)
        return (self._attributes(),)

    async def _flush(self) -> Sequence[Buffer]:
        await self._file.flush()
        return ()

    async def _fallocate(self, wanted: fuse.Fallocate) -> Sequence[Buffer]:
        await self._file.fallocate(wanted.offset, wanted.length, wanted.mode)
        return ()

    async def _seek(self, wanted: fuse.Seek) -> Sequence[Buffer]:
        return (fuse.lseek_out(await self._file.seek(wanted.offset, wanted.whence)),)


def _ignore_unwanted(error: OSError) -> None:
    """Let pass that nobody wants the reply: its caller was interrupted, or the mount is gone."""
    if error.errno != errno.ENOENT and error.errno not in _GONE:
        raise error
