"""System calls that Python's os module lacks. All of them raise OSError with the path left out."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from typing import Final

FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
FALLOC_FL_ZERO_RANGE: Final = 16

_AT_EMPTY_PATH: Final = 0x1000
_STATX_DIOALIGN: Final = 0x2000
#: cachestat(2), Linux 6.5; the number is the same on all architectures since the unified tables.
_SYS_CACHESTAT: Final = 451


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if hasattr(libc, "fallocate64"):  # 32-bit glibc: off_t has 32 bits under the plain name
        libc.fallocate64.argtypes = libc.fallocate.argtypes
    return libc


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Call fallocate(2). Blocks."""
    libc = _libc()
    call = getattr(libc, "fallocate64", libc.fallocate)
    while True:
        if call(fd, mode, offset, length) == 0:
            return
        number = ctypes.get_errno()
        if number != 4:  # EINTR
            raise OSError(number, os.strerror(number))


def filesystem_magic(fd: int) -> int:
    """Return f_type of fstatfs(2): which kind of file system the file is on."""
    # The kernel's struct is 120 bytes at most; f_type is its first word.
    buffer = (ctypes.c_long * 64)()
    _check(_libc().fstatfs(fd, buffer))
    return int(buffer[0]) & 0xFFFFFFFF


def direct_io_alignment(fd: int) -> tuple[int, int] | None:
    """Return (memory, offset) alignment of direct I/O as statx(2) says, or None if it does not say."""
    libc = _libc()
    if not hasattr(libc, "statx"):
        return None
    buffer = (ctypes.c_uint32 * 64)()
    if libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, buffer) < 0:
        return None
    if not buffer[0] & _STATX_DIOALIGN:
        return None
    memory, offset = buffer[38], buffer[39]  # bytes 152 and 156
    return (memory, offset) if memory and offset else None


def cached_pages(fd: int, offset: int, length: int) -> int | None:
    """Return how many pages of the range are in the page cache, or None if the kernel won't say."""
    wanted = (ctypes.c_uint64 * 2)(offset, length)
    answer = (ctypes.c_uint64 * 5)()
    if _libc().syscall(_SYS_CACHESTAT, fd, wanted, answer, 0) < 0:
        return None
    return int(answer[0])
