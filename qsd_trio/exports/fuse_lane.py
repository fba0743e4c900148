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

    from qsd_trio.exports.fuse_semantics import ExportedFile
    from qsd_trio.protocol.fuse import Buffer, Request

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

READ, WRITE = Opcode.READ, Opcode.WRITE

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
    """Room for one request: the header of a READ or WRITE ends, and its data begins, at a page.

    So the kernel's copy and ours are of whole pages. Private memory: a shared map is slower to touch.
    """

    __slots__ = ("data", "iov", "view", "words", "words64")

    def __init__(self) -> None:
        area = mmap.mmap(-1, MAX_IO + PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = memoryview(area)
        self.view = whole[PAGE - RW_HEADER :]
        self.data = whole[PAGE:]
        header = whole[PAGE - RW_HEADER : PAGE]
        self.iov = (header, self.data)
        self.words = header.cast("I")
        self.words64 = header.cast("Q")


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
        self._buffer = _Buffer()
        self._spare: list[_Buffer] = []
        reply = memoryview(mmap.mmap(-1, MAX_IO + PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._read_reply = reply[PAGE - OUT_HEADER.size :]
        self._read_data = reply[PAGE:]
        self._write_reply = memoryview(bytearray(OUT_HEADER.size + 8))

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

        ``have`` is the length of a request that is already in the buffer. The rest of the room may be slow so that this
        can be quick: plain integers, local names, few calls.
        """
        fd, readv, write = self._fd, os.readv, os.write
        buffer = self._buffer
        iov, words, words64, data = buffer.iov, buffer.words, buffer.words64, buffer.data
        read_reply, read_data = self._read_reply, self._read_data
        write_reply = self._write_reply
        backend = self._backend
        map_read, map_write = backend.map_read, backend.map_write
        writable = self._file.writable
        pack_header = OUT_HEADER.pack_into
        out_size = OUT_HEADER.size
        slice_end = self._slice_end
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
            opcode = words[1]
            served += 1
            # The header of READ and WRITE: fuse_read_in and fuse_write_in are alike up to the size.
            if opcode == READ and have == RW_HEADER:
                offset, size = words64[6], words[14]
                if 0 < size <= MAX_IO and offset + size <= self._limit:
                    extents = map_read(offset, size)
                    if extents is not None:
                        file, at, _ = extents[0]
                        piece = read_data[:size]
                        if file is not None and len(extents) == 1:
                            try:
                                done = (
                                    file.can_read_now
                                    and preadv(file.fd, (piece,), at, file.read_flags) == size
                                )
                            except OSError:
                                done = False  # not cached, or the slow path meets it again and reports it
                        else:
                            done = read_now(extents, (piece,))
                        if done:
                            size += out_size
                            pack_header(read_reply, 0, size, 0, words64[1])
                            have = 0
                            try:
                                write(fd, read_reply[:size])
                            except OSError as exc:
                                _ignore_unwanted(exc)
                            if not served & 15 and perf_counter() > slice_end:
                                return _SLICE, 0
                            continue
            elif opcode == WRITE and writable:
                offset, size = words64[6], words[14]
                if 0 < size == have - RW_HEADER and offset + size <= self._limit:
                    extents = map_write(offset, size)
                    if extents is not None and write_now(extents, (data[:size],)):
                        pack_header(write_reply, 0, len(write_reply), 0, words64[1])
                        write_reply[out_size:] = fuse.write_out(size)
                        have = 0
                        try:
                            write(fd, write_reply)
                        except OSError as exc:
                            _ignore_unwanted(exc)
                        if not served & 15 and perf_counter() > slice_end:
                            return _SLICE, 0
                        continue
            return _REQUEST, have

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
                self._buffer = self._spare.pop() if self._spare else _Buffer()
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
        answer: Callable[..., Awaitable[Sequence[Buffer]]],  # type: ignore[explicit-any]  # of ``args``
        *args: object,
    ) -> None:
        self._in_flight += 1
        nursery.start_soon(self._answer, request.unique, answer, args)

    async def _answer(
        self,
        unique: int,
        answer: Callable[..., Awaitable[Sequence[Buffer]]],  # type: ignore[explicit-any]  # of ``args``
        args: tuple[object, ...],
    ) -> None:
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
