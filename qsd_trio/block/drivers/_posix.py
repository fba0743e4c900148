"""What ``file``, ``host_device`` and ``host_cdrom`` share: an image that is an open file of the host."""

from __future__ import annotations

import errno
import logging
import os
from abc import abstractmethod
from time import perf_counter
from typing import TYPE_CHECKING, ClassVar, final

from qsd_trio.block.abc import (
    BlockStatus,
    Limits,
    Perm,
    ProtocolDriver,
    ReqFlag,
    StatusFlag,
)
from qsd_trio.errors import QmpError, os_error, with_errno
from qsd_trio.host import blockdev, libc
from qsd_trio.host.files import HostFile
from qsd_trio.host.inline import InlinePolicy
from qsd_trio.host.locks import ImageLocks, LockConflictError, supported

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import Self

    from qsd_trio.block.abc import Extents, Iov, Opener
    from qsd_trio.untyped import Json, Options

log = logging.getLogger("qsd_trio.block.file")

#: errno values by which kernels and file systems say "I can't do that at all".
UNSUPPORTED = {errno.ENODEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY}

_WRITERS = Perm.WRITE | Perm.WRITE_UNCHANGED | Perm.RESIZE
_ALLOCATED_DATA = StatusFlag.DATA | StatusFlag.OFFSET_VALID | StatusFlag.ALLOCATED
_ALLOCATED_ZERO = StatusFlag.ZERO | StatusFlag.OFFSET_VALID | StatusFlag.ALLOCATED


@final
class _SpareFd:
    """A descriptor for a reopen that may never be committed: closed when forgotten."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def take(self) -> int:
        fd, self.fd = self.fd, -1
        return fd

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class PosixDriver(ProtocolDriver):
    """An image in a file or device of the host."""

    mutable_options = frozenset({"drop-cache", "x-check-cache-dropped"})
    #: More os.O_* flags for opening.
    open_flags: ClassVar[int] = 0

    def __init__(self, file: HostFile, alignment: tuple[int, int], options: Options) -> None:
        """Take over an open ``file`` with its (memory, offset) alignment."""
        self._file = file
        self._alignment = alignment
        self._path: str = options.filename
        self._native = _value(options.aio) == "native"
        self._length = file.size()
        self._locking = _value(options.locking)
        self._locks = ImageLocks() if self._locking != "off" and supported() else None
        self._follow_writers = False  # auto-read-only: open for writing only while someone writes
        # Block devices zero and discard whole blocks; file systems find out what they can.
        self._unit = blockdev.sector_size(file.fd) if file.is_block else 1
        self._can_punch = True
        self._can_zero_range = True
        self._seek_policy = InlinePolicy()
        self._discards_ok = 0
        self._discards_failed = 0
        self._discarded = 0

    @classmethod
    async def open(cls, opener: Opener, options: Options) -> Self:
        """Open the file that ``options`` (BlockdevOptionsFile) name."""
        path: str = options.filename
        if not path:
            raise QmpError(f"The '{cls.format_name}' block driver requires a file name")
        if options.pr_manager is not None:
            raise QmpError(f"No persistent reservation manager with id '{options.pr_manager}'")
        _check_aio(options, opener)
        flags = _open_flags(opener, writers=False) | cls.open_flags
        try:
            file = await HostFile.open(path, flags)
        except OSError as exc:
            raise _open_error(path, flags, exc) from exc
        try:
            cls.check_kind(file, path)
            driver = cls(file, await _alignment(file), options)
        except OSError as exc:
            await file.aclose()
            raise with_errno("Could not refresh total sector count", exc) from exc
        except BaseException:
            await file.aclose()
            raise
        driver._follow_writers = opener.auto_read_only
        if _value(options.aio) == "io_uring":
            from qsd_trio.host.uring import uring

            file.uring = uring()
        return driver

    @classmethod
    @abstractmethod
    def check_kind(cls, file: HostFile, path: str) -> None:
        """Raise QmpError unless the driver is for this kind of file."""

    async def aclose(self) -> None:
        """Close the file; the locks go with it."""
        await self._file.aclose()

    def getlength(self) -> int:
        """Return the length as of opening, plus what was written or truncated since."""
        return self._length

    def limits(self) -> Limits:
        """Return byte granularity, or that of direct I/O."""
        memory, offset = self._alignment
        return Limits(
            request_alignment=offset,
            memory_alignment=memory,
            pwrite_zeroes_alignment=self._unit,
            pdiscard_alignment=self._unit,
            write_flags=ReqFlag.FUA,
            zero_flags=ReqFlag.MAY_UNMAP | ReqFlag.NO_FALLBACK,
            can_write_zeroes=not self._file.is_char,
            can_discard=not self._file.is_char,
        )

    def filename(self) -> str:
        """Return the path as it was given."""
        return self._path

    def full_options(self) -> Mapping[str, Json]:
        """Return the file's name: nothing else decides what one reads."""
        return {"filename": self._path}

    def allocated_size(self) -> int | None:
        """Return the storage that the file takes."""
        return self._file.allocated_bytes()

    async def image_info(self) -> Mapping[str, Json]:
        """Return what a file knows: that it is never dirty."""
        return {"dirty-flag": False}

    def driver_stats(self) -> Mapping[str, Json] | None:
        """Return the counts of discards."""
        return {
            "driver": self.format_name,
            "discard-nb-ok": self._discards_ok,
            "discard-nb-failed": self._discards_failed,
            "discard-bytes-ok": self._discarded,
        }

    # -- the fast path -------------------------------------------------------------------------------

    def map_read(self, offset: int, length: int) -> Extents | None:
        """Answer itself, unless the page cache is to be avoided."""
        file = self._file
        if file.direct:
            return None
        return ((file, offset, length),)

    def map_write(self, offset: int, length: int) -> Extents | None:
        """Answer itself; a write beyond the end makes a regular file longer."""
        file = self._file
        if file.direct or not file.writable:
            return None
        if offset + length > self._length:
            if not file.is_regular:
                return None
            self._length = offset + length
        return ((file, offset, length),)

    # -- the slow path -------------------------------------------------------------------------------

    async def preadv(self, offset: int, iov: Iov) -> None:
        """Read; beyond the end are zeroes."""
        await self._file.preadv(iov, offset)

    async def pwritev(self, offset: int, iov: Iov, flags: ReqFlag) -> None:
        """Write; FUA costs less here than a flush, as it waits for these bytes alone."""
        await self._file.pwritev(iov, offset, dsync=bool(flags & ReqFlag.FUA))
        end = offset + sum(map(len, iov))
        if end > self._length:
            self._length = end

    async def flush(self) -> None:
        """Call fdatasync, once for all who ask at the same time."""
        await self._file.fdatasync()

    async def pwrite_zeroes(self, offset: int, length: int, flags: ReqFlag) -> None:
        """Have the file system make zeroes; ENOTSUP where it can't."""
        await self._file.call(self._write_zeroes, offset, length, flags)
        self._length = max(self._length, offset + length)

    async def pdiscard(self, offset: int, length: int) -> None:
        """Give the storage of the range back."""
        try:
            if not self._can_punch:
                raise os_error(errno.ENOTSUP)
            await self._file.call(self._discard, offset, length)
        except OSError as exc:
            self._discards_failed += 1
            if exc.errno in UNSUPPORTED:
                self._can_punch = False
                raise os_error(errno.ENOTSUP) from exc
            raise
        self._discards_ok += 1
        self._discarded += length

    @abstractmethod
    def _write_zeroes(self, offset: int, length: int, flags: ReqFlag) -> None:
        """Make zeroes, in a worker."""

    @abstractmethod
    def _discard(self, offset: int, length: int) -> None:
        """Deallocate, in a worker. Raises with an errno of UNSUPPORTED if that never works here."""

    async def block_status(self, offset: int, length: int, *, want_zero: bool) -> BlockStatus:
        """Ask the file system where holes are; a hole reads as zeroes."""
        if not want_zero:
            return BlockStatus(_ALLOCATED_DATA, length, None, offset)
        start = perf_counter()
        if self._seek_policy.inline:
            data, end = self._file.data_or_hole(offset, offset + length)
        else:
            data, end = await self._file.call(self._file.data_or_hole, offset, offset + length)
        self._seek_policy.observe(0, start, perf_counter())
        flags = _ALLOCATED_DATA if data else _ALLOCATED_ZERO
        return BlockStatus(flags, end - offset, None, offset)

    # -- permissions and reopening -------------------------------------------------------------------

    async def set_permissions(self, needed: Perm, shared: Perm) -> None:
        """Take and drop image locks; with auto-read-only also open the file for writing or not."""
        writers = bool(needed & _WRITERS)
        spare = None
        if self._follow_writers and writers != self._file.writable:
            spare = await self._open_again(
                os.O_RDWR if writers else os.O_RDONLY, direct=self._file.direct
            )
        if self._locks is not None:
            await self._lock(self._locks, needed, shared)
        if spare is not None:
            self._swap(spare)

    async def _lock(self, locks: ImageLocks, needed: Perm, shared: Perm) -> None:
        args = (self._file.fd, int(needed), int(shared))
        try:
            if self._file.is_network:
                await self._file.call(locks.change, *args)
            else:
                locks.change(*args)
        except LockConflictError as exc:
            error = QmpError(str(exc))
            error.add_note(f"Is another process using the image [{self._path}]?")
            raise error from exc
        except OSError as exc:
            if self._locking == "on":
                raise with_errno(f"Failed to lock '{self._path}'", exc) from exc
            log.debug("%s: no locks on this file system: %s", self._path, exc.strerror)
            self._locks = None

    async def _open_again(self, access: int, *, direct: bool) -> _SpareFd:
        """Open the same file in another mode, whatever its name means by now."""
        flags = access | self.open_flags | (os.O_DIRECT if direct else 0) | os.O_CLOEXEC
        again = f"/proc/self/fd/{self._file.fd}"
        try:
            return _SpareFd(await self._file.call(os.open, again, flags))
        except OSError as exc:
            raise _open_error(self._path, flags, exc) from exc

    def _swap(self, spare: _SpareFd) -> None:
        fd = spare.take()
        if self._locks is not None:
            self._locks.hold_on(fd)
        self._file.replace(fd)

    async def reopen(self, opener: Opener, options: Options) -> Callable[[], Awaitable[None]]:
        """Prepare another access mode or way round the page cache."""
        if self._native and not opener.cache_direct:
            raise QmpError(_NATIVE_NEEDS_DIRECT)
        flags = _open_flags(opener, writers=self._file.writable)
        follow = opener.auto_read_only
        access, direct = flags & os.O_ACCMODE, bool(flags & os.O_DIRECT)
        spare: _SpareFd | None = None
        alignment = self._alignment
        if (access != os.O_RDONLY) != self._file.writable or direct != self._file.direct:
            spare = await self._open_again(access, direct=direct)
            alignment = await _alignment(await self._file.call(HostFile, spare.fd))

        async def commit() -> None:
            self._follow_writers = follow
            if spare is not None:
                self._swap(spare)
                self._alignment = alignment

        return commit


_NATIVE_NEEDS_DIRECT = (
    "aio=native was specified, but it requires cache.direct=on, which was not specified."
)


def _value(option: Options) -> str | None:
    """Return the QAPI value of an optional enum member."""
    return None if option is None else option.value


def _check_aio(options: Options, opener: Opener) -> None:
    if _value(options.aio) == "native" and not opener.cache_direct:
        raise QmpError(_NATIVE_NEEDS_DIRECT)


def _open_flags(opener: Opener, *, writers: bool) -> int:
    """Return the access mode and O_DIRECT for an image with ``writers`` or none yet."""
    write = writers if opener.auto_read_only else True
    flags = os.O_RDWR if write and not opener.read_only else os.O_RDONLY
    return flags | (os.O_DIRECT if opener.cache_direct else 0)


def _open_error(path: str, flags: int, exc: OSError) -> QmpError:
    if exc.errno == errno.EINVAL and flags & os.O_DIRECT:
        return QmpError(f"Could not open '{path}': filesystem does not support O_DIRECT")
    return with_errno(f"Could not open '{path}'", exc)


async def _alignment(file: HostFile) -> tuple[int, int]:
    if not file.direct or file.is_char:
        return 1, 1
    try:
        return await file.call(file.direct_alignment)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        raise QmpError("Could not find working O_DIRECT alignment") from exc


def punch_hole(file: HostFile, offset: int, length: int) -> None:
    """Deallocate a range; it reads as zeroes then."""
    libc.fallocate(file.fd, libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE, offset, length)
