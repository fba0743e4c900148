"""Open files of the host, read and written at once where that does not block, else by worker threads.

Data calls come in three kinds: ``*_now`` methods do it at once or not at all and never block for long;
async methods try that, then queue for a worker; the rest is for the control plane.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar, final

import outcome
import trio

from qsd_trio.errors import os_error
from qsd_trio.host import libc
from qsd_trio.host.inline import SLOW_PER_UNIT, InlinePolicy, sleeps
from qsd_trio.host.workers import worker_pool
from qsd_trio.iov import iov_skip, iov_zero

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import TypeVarTuple, Unpack

    from qsd_trio.host.uring import Uring

    Iov = Sequence[memoryview]
    Ts = TypeVarTuple("Ts")

T = TypeVar("T")

#: The kernel's UIO_MAXIOV: more buffers are refused in one call.
MAX_BUFFERS = 1024

#: Bytes that are at most copied inline. More than this holds the loop for a millisecond.
MAX_INLINE = 4 << 20

#: Free bounce buffers kept for direct I/O, and the longest worth keeping (bytes).
SPARE_BOUNCES = 8
LONGEST_SPARE = 1 << 20

_TMPFS = {0x01021994, 0x858458F6}  # tmpfs, ramfs: memory, reads never wait for a device
_NETWORK = {
    0x6969,  # nfs
    0xFF534D42,  # cifs
    0xFE534D42,  # smb2
    0x517B,  # smb
    0x00C36400,  # ceph
    0x01021997,  # 9p
    0x65735546,  # fuse
    0x5346414F,  # afs
    0x0BD00BD0,  # lustre
    0x01161970,  # gfs2
    0x7461636F,  # ocfs2
    0x47504653,  # gpfs
}


@final
class HostFile:
    """A file descriptor and what is known of how fast it answers.

    ``fd`` keeps its number for life: ``replace`` puts another open file behind it.
    ``read_flags`` are the RWF_ flags with which ``os.preadv`` does not wait for a device.
    ``can_read_now`` and ``can_write_now`` are hints: False means the ``*_now`` methods will not even try.
    """

    __slots__ = (
        "_bounces",
        "_closed",
        "_direct_align",
        "_may_write_inline",
        "_sync_error",
        "_sync_idle",
        "_sync_running",
        "_sync_waiting",
        "_write_policy",
        "can_read_now",
        "can_write_now",
        "direct",
        "fd",
        "is_block",
        "is_char",
        "is_network",
        "is_regular",
        "path",
        "read_flags",
        "uring",
        "writable",
    )

    def __init__(self, fd: int, path: str = "") -> None:
        """Wrap ``fd``, which belongs to the new object. Looks at it, so it may block."""
        self.path = path
        self.fd = fd
        self.uring: Uring | None = None
        self._closed = False
        self._write_policy = InlinePolicy()
        self._sync_running: list[trio.lowlevel.Task] | None = None
        self._sync_waiting: list[trio.lowlevel.Task] = []
        self._sync_idle: trio.Event | None = None
        self._sync_error: OSError | None = None
        self._bounces: list[mmap.mmap] = []
        self._look()

    @classmethod
    async def open(cls, path: str, flags: int, mode: int = 0o644) -> HostFile:
        """Open ``path`` with os.O_* ``flags``, in a worker: network file systems may take their time."""
        return await worker_pool().run(cls._open, path, flags, mode, slow=True)

    @classmethod
    def _open(cls, path: str, flags: int, mode: int) -> HostFile:
        return cls(os.open(path, flags | os.O_CLOEXEC, mode), path)

    def _look(self) -> None:
        import fcntl

        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        self.direct = bool(flags & os.O_DIRECT)
        self.writable = flags & os.O_ACCMODE != os.O_RDONLY
        mode = os.fstat(self.fd).st_mode
        self.is_regular = stat.S_ISREG(mode)
        self.is_block = stat.S_ISBLK(mode)
        self.is_char = stat.S_ISCHR(mode)
        magic = libc.filesystem_magic(self.fd)
        self.is_network = magic in _NETWORK
        self._direct_align = 1
        self.read_flags = 0 if magic in _TMPFS and self.is_regular else os.RWF_NOWAIT
        self.can_read_now = not self.direct
        self._may_write_inline = self.writable and not self.direct and not self.is_network
        self.can_write_now = self._may_write_inline and self._write_policy.inline

    # -- at once or not at all -----------------------------------------------------------------------

    def read_now(self, iov: Iov, offset: int) -> int:
        """Read into ``iov`` what is in the page cache; return the bytes read, or -1: it would block.

        Less than ``iov`` takes means that the file ends there.
        """
        if not self.can_read_now:
            return -1
        try:
            count = os.preadv(self.fd, iov, offset, self.read_flags)
        except BlockingIOError:
            return -1
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            self.can_read_now = False
            return -1
        length = len(iov[0]) if len(iov) == 1 else sum(map(len, iov))
        if count < length and (not self.is_regular or offset + count < os.fstat(self.fd).st_size):
            return -1  # a part is not cached. (Of a device st_size says nothing: let a worker see.)
        return count

    def write_now(self, iov: Iov, offset: int) -> bool:
        """Write ``iov`` into the page cache; False: not now, and nothing was written."""
        if not self.can_write_now or len(iov) > MAX_BUFFERS:
            return False
        length = len(iov[0]) if len(iov) == 1 else sum(map(len, iov))
        if length > MAX_INLINE:
            return False
        policy = self._write_policy
        before = sleeps() if policy.suspicious else -1
        start = perf_counter()
        count = os.pwritev(self.fd, iov, offset)
        if count < length:
            _write_all(self.fd, iov_skip(iov, count), offset + count, 0)
        end = perf_counter()
        if before >= 0 or end - start > SLOW_PER_UNIT:  # else there is nothing to learn
            slept = None if before < 0 else sleeps() > before
            self.can_write_now = policy.observe(length, start, end, slept)
        return True

    def cached_now(self, offset: int, length: int) -> bool:
        """Return whether the range is in the page cache, so that e.g. sendfile will not block.

        An answer for this moment only. Beyond the end of the file nothing is cached.
        """
        if self.direct:
            return False
        first, last = offset // mmap.PAGESIZE, (offset + length - 1) // mmap.PAGESIZE
        pages = libc.cached_pages(
            self.fd, first * mmap.PAGESIZE, (last - first + 1) * mmap.PAGESIZE
        )
        if pages is not None:
            return pages == last - first + 1
        # An old kernel, or a file that is not ours: a byte of each page tells the same, slower.
        byte = [memoryview(bytearray(1))]
        return all(
            self.read_now(byte, max(offset, page * mmap.PAGESIZE)) == 1
            for page in range(first, last + 1)
        )

    def sendfile_now(self, socket_fd: int, offset: int, length: int) -> int:
        """Send a range to a non-blocking socket from the page cache; return the bytes sent.

        -1: the socket is full. 0: the file ends there. Check ``cached_now`` first, or the disk is waited for.
        """
        try:
            return os.sendfile(socket_fd, self.fd, offset, length)
        except BlockingIOError:
            return -1

    # -- data, async ---------------------------------------------------------------------------------

    async def preadv(self, iov: Iov, offset: int) -> None:
        """Fill ``iov``; what is beyond the end of the file reads as zeroes."""
        pool = worker_pool()
        if self.can_read_now and len(iov) <= MAX_BUFFERS:
            await pool.take_turn()
            length = sum(map(len, iov))
            if length <= MAX_INLINE:
                count = self.read_now(iov, offset)
                if count >= 0:
                    if count < length:
                        iov_zero(iov_skip(iov, count))
                    return
        if self.direct:
            await pool.run(self._direct_read, iov, offset)
        elif self.uring is not None and len(iov) <= MAX_BUFFERS:
            count = await self.uring.preadv(self.fd, iov, offset)
            if count < sum(map(len, iov)):
                await pool.run(_read_all, self.fd, iov_skip(iov, count), offset + count)
        else:
            await pool.run(_read_all, self.fd, iov, offset)

    async def pwritev(self, iov: Iov, offset: int, *, dsync: bool = False) -> None:
        """Write all of ``iov``; with ``dsync`` it is on stable storage on return (RWF_DSYNC)."""
        pool = worker_pool()
        flags = os.RWF_DSYNC if dsync else 0
        if not dsync and self.can_write_now:
            await pool.take_turn()
            if self.write_now(iov, offset):
                return
        if self.direct:
            await pool.run(self._direct_write, iov, offset, flags)
        elif self.uring is not None and len(iov) <= MAX_BUFFERS:
            count = await self.uring.pwritev(self.fd, iov, offset, flags)
            if count < sum(map(len, iov)):
                await pool.run(_write_all, self.fd, iov_skip(iov, count), offset + count, flags)
        else:
            start, end = await pool.run(_write_all, self.fd, iov, offset, flags)
            if not dsync:
                fine = self._write_policy.observe(sum(map(len, iov)), start, end)
                self.can_write_now = fine and self._may_write_inline

    async def fdatasync(self) -> None:
        """Put what was written before this call on stable storage.

        Calls that wait for a running sync share the next one. After a failed sync of the page cache every later
        one fails too: the kernel may have dropped what it could not write.
        Cancelled: the sync may still happen.
        """
        if self._sync_error is not None:
            await trio.lowlevel.checkpoint()
            raise _copy(self._sync_error)
        task = trio.lowlevel.current_task()
        self._sync_waiting.append(task)
        if self._sync_running is None:
            self._start_sync()

        def abort(_: object) -> trio.lowlevel.Abort:
            waiting = self._sync_waiting if task in self._sync_waiting else self._sync_running
            if waiting is None or task not in waiting:
                return trio.lowlevel.Abort.FAILED
            waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _start_sync(self) -> None:
        self._sync_running, self._sync_waiting = self._sync_waiting, []
        worker_pool().submit(os.fdatasync, self.fd, done=self._sync_done, slow=True)

    def _sync_done(self, result: outcome.Outcome[None]) -> None:
        waiting, self._sync_running = self._sync_running, None
        for task in waiting or ():
            if not isinstance(result, outcome.Error):
                trio.lowlevel.reschedule(task)
            elif isinstance(result.error, OSError):
                trio.lowlevel.reschedule(task, outcome.Error(_copy(result.error)))
            else:
                trio.lowlevel.reschedule(task, outcome.Error(result.error))
        if isinstance(result, outcome.Error) and isinstance(result.error, OSError):
            self._sync_error = None if self.direct else result.error
        if self._sync_waiting:
            self._start_sync()
        elif self._sync_idle is not None:
            self._sync_idle.set()

    async def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Call fallocate(2) with libc.FALLOC_FL_*."""
        await worker_pool().run(libc.fallocate, self.fd, mode, offset, length, slow=True)

    async def ftruncate(self, length: int) -> None:
        """Set the file's length."""
        await worker_pool().run(os.ftruncate, self.fd, length, slow=True)

    async def call(self, fn: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Run a slow ``fn(*args)`` on this file (ioctls, preallocation, locks) in a worker."""
        return await worker_pool().run(fn, *args, slow=True)

    async def prefetch(self, offset: int, length: int) -> None:
        """Have the kernel read the range into the page cache, if it likes."""
        await worker_pool().run(os.posix_fadvise, self.fd, offset, length, os.POSIX_FADV_WILLNEED)

    # -- the control plane ---------------------------------------------------------------------------

    def size(self) -> int:
        """Return the length in bytes; of devices too."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def data_or_hole(self, offset: int, end: int) -> tuple[bool, int]:
        """Return (whether data is at ``offset``, where that ends, at most ``end``).

        File systems that can't tell say data. OSError is for real failures.
        """
        try:
            data = os.lseek(self.fd, offset, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # a hole up to the end of the file
                return False, end
            return True, end
        if data > offset:
            return False, min(data, end)
        try:
            hole = os.lseek(self.fd, offset, os.SEEK_HOLE)
        except OSError:  # cut short meanwhile
            return True, end
        return True, max(min(hole, end), offset + 1)

    def allocated_bytes(self) -> int:
        """Return how much storage the file takes."""
        return os.fstat(self.fd).st_blocks * 512

    def replace(self, fd: int) -> None:
        """Put the open file of ``fd`` (consumed) behind this object's descriptor: another mode, same bytes.

        Calls in flight finish on the open file they began with.
        """
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        self._look()
        self.direct_alignment()

    async def aclose(self) -> None:
        """Close. Requests must be over; a sync whose caller was cancelled is waited for."""
        if self._closed:
            return
        self._closed = True
        with trio.CancelScope(shield=True):
            while self._sync_running is not None:
                self._sync_idle = trio.Event()
                await self._sync_idle.wait()
            for bounce in self._bounces:
                bounce.close()
            self._bounces.clear()
            await worker_pool().run(os.close, self.fd, slow=True)

    # -- direct I/O: in worker threads ---------------------------------------------------------------

    def direct_alignment(self) -> tuple[int, int]:
        """Return (memory, offset) alignment that direct I/O needs here; (1, 1) if the file is not direct.

        Raises OSError(EINVAL) if none works. Blocks.
        """
        if not self.direct:
            return 1, 1
        told = libc.direct_io_alignment(self.fd)
        if told is None:
            told = self._probe_alignment()
        self._direct_align = told[1]
        return told

    def _probe_alignment(self) -> tuple[int, int]:
        with mmap.mmap(-1, 65536) as area, memoryview(area) as view:
            for align in (1, 512, 1024, 2048, 4096, 8192):
                try:
                    os.preadv(self.fd, [view[:align]], 0)
                except OSError as exc:
                    if exc.errno != errno.EINVAL:
                        raise
                    continue
                # A file system that takes single bytes does not really do direct I/O.
                return mmap.PAGESIZE, align
        raise os_error(errno.EINVAL)

    def _bounce(self, length: int) -> mmap.mmap:
        try:
            bounce = self._bounces.pop()
        except IndexError:
            pass
        else:
            if len(bounce) >= length:
                return bounce
            bounce.close()
        return mmap.mmap(-1, max(length, 65536))

    def _give_back(self, bounce: mmap.mmap) -> None:
        if len(self._bounces) < SPARE_BOUNCES and len(bounce) <= LONGEST_SPARE:
            self._bounces.append(bounce)
        else:
            bounce.close()

    def _direct_read(self, iov: Iov, offset: int) -> None:
        """Read through an aligned buffer: ``iov`` may lie anywhere. Offset and length are aligned."""
        length = sum(map(len, iov))
        bounce = self._bounce(length)
        with memoryview(bounce) as view:
            done = 0
            while done < length:
                count = os.preadv(self.fd, [view[done:length]], offset + done)
                done += count
                if count == 0 or done % self._direct_align:
                    break  # the end of the file
            position = 0
            for buffer in iov:
                part = max(0, min(len(buffer), done - position))
                buffer[:part] = view[position : position + part]
                if part < len(buffer):
                    buffer[part:] = bytes(len(buffer) - part)
                position += len(buffer)
        self._give_back(bounce)

    def _direct_write(self, iov: Iov, offset: int, flags: int) -> None:
        length = sum(map(len, iov))
        bounce = self._bounce(length)
        with memoryview(bounce) as view:
            position = 0
            for buffer in iov:
                view[position : position + len(buffer)] = buffer
                position += len(buffer)
            _write_all(self.fd, [view[:length]], offset, flags)
        self._give_back(bounce)


def is_block_device(path: str) -> bool:
    """Return whether ``path`` names a block device. A look at the file system: may block."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


# -- blocking helpers, for worker threads ------------------------------------------------------------


def _read_all(fd: int, iov: Iov, offset: int) -> None:
    while iov:
        part = iov[:MAX_BUFFERS]
        count = os.preadv(fd, part, offset)
        if count == 0 and any(map(len, part)):
            iov_zero(iov)
            return
        offset += count
        iov = iov_skip(iov, count)


def _write_all(fd: int, iov: Iov, offset: int, flags: int) -> tuple[float, float]:
    """Write everything; return when that began and ended (``perf_counter``)."""
    start = perf_counter()
    while iov:
        count = os.pwritev(fd, iov[:MAX_BUFFERS], offset, flags)
        if count == 0 and any(map(len, iov)):
            raise os_error(errno.ENOSPC)
        offset += count
        iov = iov_skip(iov, count)
    return start, perf_counter()


def _copy(error: OSError) -> OSError:
    """Return a fresh exception: one object raised in several tasks would collect all their tracebacks."""
    return OSError(error.errno, error.strerror)
