"""``aio=io_uring``: reads and writes through a ring of the kernel's, where the kernel allows one.

One ring serves a trio run. Requests of one turn of the loop go to the kernel in one system call; completions
wake the loop through an eventfd. The system calls are made here, not through the package liburing: its published
wheel holds AVX-512 instructions and kills the process on processors without them.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import platform
import struct
from collections import deque
from typing import TYPE_CHECKING, Final, final

import outcome
import trio

from qsd_trio.errors import os_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    Iov = Sequence[memoryview]

log = logging.getLogger("qsd_trio.host.uring")

#: Entries of the submission queue; as many requests are in the kernel at once, so that completions
#: (twice as many fit) cannot overflow. The rest waits.
ENTRIES: Final = 256

# The numbers are the same on every architecture.
_SYS_SETUP: Final = 425
_SYS_ENTER: Final = 426
_SYS_REGISTER: Final = 427
_REGISTER_EVENTFD: Final = 4
_OFF_SQ_RING: Final = 0
_OFF_SQES: Final = 0x10000000
_FEAT_SINGLE_MMAP: Final = 1
_OP_READV: Final = 1
_OP_WRITEV: Final = 2

#: Processors on which a store is seen in order by the kernel that the next system call enters, and a load
#: after reading an eventfd sees what was stored before it was signalled. (On all, as both are full barriers in
#: practice; only these were tried.)
_TRIED: Final = {"x86_64", "aarch64"}

#: io_uring_sqe: opcode flags ioprio fd off addr len rw_flags user_data, and 24 bytes of no concern here.
_SQE: Final = struct.Struct("BBHiQQIIQ24x")
#: io_uring_cqe: user_data res flags
_CQE: Final = struct.Struct("QiI")
_PARAMS: Final = struct.Struct("IIIIIII12x10I10I")


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


@final
class _Request:
    """One request: what the kernel points at must live until it has completed."""

    __slots__ = ("count", "fd", "flags", "kept", "offset", "opcode", "task", "vector")

    def __init__(self, fd: int, iov: Iov, offset: int, flags: int, opcode: int) -> None:
        self.fd = fd
        self.offset = offset
        self.flags = flags
        self.opcode = opcode
        self.count = len(iov)
        self.vector = (_IoVec * len(iov))()
        # A ctypes view of each buffer: pins it and tells its address. Read-only ones are copied.
        self.kept = [
            (ctypes.c_char * len(piece)).from_buffer(
                bytearray(piece) if memoryview(piece).readonly else piece
            )
            for piece in iov
        ]
        for entry, piece in zip(self.vector, self.kept, strict=True):
            entry.base = ctypes.addressof(piece)
            entry.length = len(piece)
        self.task = trio.lowlevel.current_task()


def _syscall(number: int, *args: int | ctypes.Array[ctypes.c_char] | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(number, *args))
    if result < 0:
        raise os_error(ctypes.get_errno())
    return result


@final
class Uring:
    """A ring of one trio run. Get it by ``uring()``."""

    def __init__(self) -> None:
        """Make the ring; raises OSError if the kernel refuses."""
        if platform.machine() not in _TRIED:
            raise OSError("not tried on this processor")
        params = ctypes.create_string_buffer(_PARAMS.size)
        self._fd = _syscall(_SYS_SETUP, ENTRIES, params)
        try:
            os.set_inheritable(self._fd, False)
            self._map(_PARAMS.unpack(params.raw))
            self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except BaseException:
            os.close(self._fd)
            raise
        try:
            number = (ctypes.c_char * 4).from_buffer(bytearray(struct.pack("i", self._eventfd)))
            _syscall(_SYS_REGISTER, self._fd, _REGISTER_EVENTFD, number, 1)
        except BaseException:
            self.close()
            raise
        self._token = trio.lowlevel.current_trio_token()
        self._enter = ctypes.CDLL(None, use_errno=True).syscall
        self._queued: deque[_Request] = deque()
        self._flying: dict[int, _Request] = {}
        self._number = 0
        self.submissions = 0

    def _map(self, params: tuple[int, ...]) -> None:
        sq_entries, cq_entries, *_ = params
        features = params[5]
        if not features & _FEAT_SINGLE_MMAP:
            raise OSError("the kernel is too old")  # before 5.4
        sq, cq = params[7:17], params[17:27]
        size = max(sq[6] + sq_entries * 4, cq[5] + cq_entries * _CQE.size)
        self._ring = mmap.mmap(self._fd, size, offset=_OFF_SQ_RING)
        self._sqes = mmap.mmap(self._fd, sq_entries * _SQE.size, offset=_OFF_SQES)
        self._words = memoryview(self._ring)[: size // 4 * 4].cast("I")
        # Word numbers of the shared indices.
        self._sq_tail, self._sq_mask = sq[1] // 4, self._words[sq[2] // 4]
        self._sq_array = sq[6] // 4
        self._cq_head, self._cq_tail = cq[0] // 4, cq[1] // 4
        self._cq_mask, self._cqes = self._words[cq[2] // 4], cq[5]

    def close(self) -> None:
        """Give the ring back to the kernel, which ends what is still in it."""
        self._words.release()
        self._ring.close()
        self._sqes.close()
        os.close(self._fd)
        os.close(self._eventfd)

    async def preadv(self, fd: int, iov: Iov, offset: int) -> int:
        """Read; return the bytes read. Cancelled: only while still queued, else it is waited for."""
        return await self._run(_Request(fd, iov, offset, 0, _OP_READV))

    async def pwritev(self, fd: int, iov: Iov, offset: int, flags: int = 0) -> int:
        """Write with RWF_* ``flags``; return the bytes written. Cancelled: as ``preadv``."""
        return await self._run(_Request(fd, iov, offset, flags, _OP_WRITEV))

    async def _run(self, request: _Request) -> int:
        if not self._queued:
            self._token.run_sync_soon(self._submit, idempotent=True)
        self._queued.append(request)

        def abort(_: object) -> trio.lowlevel.Abort:
            if request not in self._queued:
                return trio.lowlevel.Abort.FAILED
            self._queued.remove(request)
            return trio.lowlevel.Abort.SUCCEEDED

        result: int = await trio.lowlevel.wait_task_rescheduled(abort)
        if result < 0:
            raise os_error(-result)
        return result

    def _submit(self) -> None:
        words, queued, flying = self._words, self._queued, self._flying
        tail = words[self._sq_tail]
        count = 0
        while queued and len(flying) < ENTRIES:
            request = queued.popleft()
            self._number += 1
            flying[self._number] = request
            slot = tail & self._sq_mask
            _SQE.pack_into(
                self._sqes,
                slot * _SQE.size,
                request.opcode,
                0,
                0,
                request.fd,
                request.offset,
                ctypes.addressof(request.vector),
                request.count,
                request.flags,
                self._number,
            )
            words[self._sq_array + slot] = slot
            tail = (tail + 1) & 0xFFFFFFFF
            count += 1
        if not count:
            return
        words[self._sq_tail] = tail
        self.submissions += 1
        # Entries that the kernel leaves (it is out of memory) are taken by the next call, so ask again.
        if self._enter(_SYS_ENTER, self._fd, count, 0, 0, None, 0) != count:
            self._token.run_sync_soon(self._submit_rest, count)

    def _submit_rest(self, count: int) -> None:
        taken = self._enter(_SYS_ENTER, self._fd, count, 0, 0, None, 0)
        count -= max(taken, 0)
        if count > 0:
            self._token.run_sync_soon(self._submit_rest, count)

    async def reap(self) -> None:
        """Hand completions to who waits for them, for ever. A system task of the trio run."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._eventfd)
                os.eventfd_read(self._eventfd)
                self._reap_now()
        finally:
            self.close()

    def _reap_now(self) -> None:
        words = self._words
        head, tail = words[self._cq_head], words[self._cq_tail]
        while head != tail:
            at = self._cqes + (head & self._cq_mask) * _CQE.size
            number, result, _ = _CQE.unpack_from(self._ring, at)
            head = (head + 1) & 0xFFFFFFFF
            request = self._flying.pop(number)
            trio.lowlevel.reschedule(request.task, outcome.Value(result))
        words[self._cq_head] = head
        if self._queued:
            self._submit()


_ring: trio.lowlevel.RunVar[Uring | None] = trio.lowlevel.RunVar("qsd_trio ring")


def uring() -> Uring | None:
    """Return the ring of the current trio run, or None: worker threads do the work then."""
    try:
        return _ring.get()
    except LookupError:
        pass
    ring: Uring | None = None
    try:
        ring = Uring()
    except OSError as exc:
        log.debug("aio=io_uring uses worker threads: %s", exc)
    else:
        trio.lowlevel.spawn_system_task(ring.reap, name="qsd_trio ring")
    _ring.set(ring)
    return ring
