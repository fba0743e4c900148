"""``file``: an image in a regular file of the host."""

from __future__ import annotations

import errno
import fcntl  # noqa: F401  # loaded here, not by the first request
import os
from typing import TYPE_CHECKING, final

from qsd_trio.block.abc import SECTOR, Perm, ReqFlag, block_driver, create_driver
from qsd_trio.block.drivers._posix import UNSUPPORTED, PosixDriver, punch_hole
from qsd_trio.errors import QmpError, os_error, with_errno
from qsd_trio.host import blockdev, libc
from qsd_trio.host.locks import ImageLocks, LockConflictError, supported
from qsd_trio.host.workers import worker_pool

if TYPE_CHECKING:
    from qsd_trio.block.abc import CreateOpener
    from qsd_trio.host.files import HostFile
    from qsd_trio.untyped import Options

#: Bytes written at a time by preallocation ``full``.
_CHUNK = 1 << 20

_FIRST_BLOCK = 4096

#: What an image is allocated in on file systems with extent size hints, unless told otherwise.
_EXTENT_SIZE_HINT = 1 << 20


@block_driver("file")
@final
class File(PosixDriver):
    """A regular file."""

    @classmethod
    def check_kind(cls, file: HostFile, path: str) -> None:
        """Refuse devices, directories and the like."""
        if not file.is_regular:
            raise QmpError(f"'{cls.format_name}' driver requires '{path}' to be a regular file")

    def has_zero_init(self) -> bool:
        """A new file is one hole."""
        return True

    def _write_zeroes(self, offset: int, length: int, flags: ReqFlag) -> None:
        fd = self._file.fd
        if flags & ReqFlag.MAY_UNMAP and self._can_punch and self._try_punch(offset, length):
            _grow(fd, offset + length)
            return
        if self._can_zero_range:
            try:
                libc.fallocate(fd, libc.FALLOC_FL_ZERO_RANGE, offset, length)
            except OSError as exc:
                if exc.errno not in UNSUPPORTED:
                    raise
                self._can_zero_range = False
            else:
                return
        # A hole with storage behind it, as one asked for zeroes without MAY_UNMAP.
        if self._can_punch and self._try_punch(offset, length):
            try:
                libc.fallocate(fd, 0, offset, length)
            except OSError as exc:
                if exc.errno not in UNSUPPORTED:
                    raise
            else:
                return
        raise os_error(errno.ENOTSUP)

    def _try_punch(self, offset: int, length: int) -> bool:
        try:
            punch_hole(self._file, offset, length)
        except OSError as exc:
            if exc.errno not in UNSUPPORTED:
                raise
            self._can_punch = False
            return False
        return True

    def _discard(self, offset: int, length: int) -> None:
        punch_hole(self._file, offset, length)

    async def truncate(self, size: int, *, exact: bool, prealloc: str, flags: ReqFlag) -> None:
        """Change the file's length, giving what grows storage if ``prealloc`` says so."""
        try:
            await self._file.call(_truncate, self._file.fd, size, prealloc)
        finally:
            self._length = self._file.size()


def _grow(fd: int, end: int) -> None:
    """Make the file at least ``end`` long; never shorter, whoever else is making it longer."""
    if os.fstat(fd).st_size < end:
        libc.fallocate(fd, 0, end - 1, 1)


def _truncate(fd: int, size: int, prealloc: str) -> None:
    """Set the length to ``size``. Raises QmpError with the old length restored. Blocks."""
    if not 0 <= size < 2**63:  # beyond off_t
        raise with_errno("Could not resize file", os_error(errno.EINVAL))
    old = os.fstat(fd).st_size
    if prealloc not in ("off", "falloc", "full"):
        raise QmpError(f"Unsupported preallocation mode: {prealloc}")
    if size < old and prealloc != "off":
        raise QmpError("Cannot use preallocation for shrinking files")
    try:
        if prealloc == "falloc" and size > old:
            what = "Could not preallocate new data"
            os.posix_fallocate(fd, old, size - old)
            return
        what = "Could not resize file"
        os.ftruncate(fd, size)
        if prealloc == "off" and size > old == 0:
            _allocate_first_block(fd, size)
        if prealloc == "full":
            what = "Could not write zeros for preallocation"
            zeroes = bytes(_CHUNK)
            at = old
            while at < size:
                at += os.pwrite(fd, zeroes[: min(_CHUNK, size - at)], at)
            what = "Could not flush file to disk"
            os.fsync(fd)
    except OSError as exc:
        if os.fstat(fd).st_size > old:
            os.ftruncate(fd, old)
        raise with_errno(what, exc) from exc


def _allocate_first_block(fd: int, size: int) -> None:
    """Give a new file its first block, as QEMU does: in a hole any alignment would seem to do."""
    try:
        os.pwrite(fd, bytes(_FIRST_BLOCK if size >= _FIRST_BLOCK else SECTOR), 0)
        if size < SECTOR:
            os.ftruncate(fd, size)
    except OSError:
        pass  # it only makes guessing easier


@create_driver("file")
async def create(opener: CreateOpener, options: Options) -> None:
    """Create an image file (BlockdevCreateOptionsFile), or empty and resize an existing one.

    Cancelled: the file may be there, with any length.
    """
    hint = options.extent_size_hint
    if hint is not None and not 0 <= hint < 2**32:
        raise QmpError("Extent size hint is too large")
    await worker_pool().run(
        _create,
        options.filename,
        options.size,
        options.preallocation.value if options.preallocation is not None else "off",
        bool(options.nocow),
        _EXTENT_SIZE_HINT if hint is None else hint,
        slow=True,
    )


def _create(path: str, size: int, prealloc: str, nocow: bool, hint: int) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise with_errno(f"Could not create '{path}'", exc) from exc
    try:
        _lock_for_creation(fd, path)
        try:
            os.ftruncate(fd, 0)
        except OSError as exc:
            raise with_errno("Could not resize file", exc) from exc
        try:
            if nocow:
                blockdev.set_nocow(fd)
        except OSError:
            pass  # a wish: only btrfs has something to turn off
        try:
            if hint:
                blockdev.set_extent_size_hint(fd, hint)
        except OSError:
            pass  # a wish: only XFS takes hints
        _truncate(fd, size, prealloc)
    finally:
        os.close(fd)


def _lock_for_creation(fd: int, path: str) -> None:
    if not supported():
        return
    try:
        ImageLocks().change(fd, Perm.WRITE | Perm.RESIZE, Perm.ALL & ~Perm.RESIZE)
    except LockConflictError as exc:
        error = QmpError(str(exc))
        error.add_note(f"Is another process using the image [{path}]?")
        raise error from exc
    except OSError:
        pass  # a file system without locks
