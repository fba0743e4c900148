"""Ask whether a range of a file is in the page cache, without touching it.

``sendfile`` of pages that are not there blocks the event loop on the disk. cachestat(2), Linux 6.5, answers in about a
microsecond; older kernels get a sample of the pages by ``preadv(RWF_NOWAIT)``.
"""

from __future__ import annotations

import errno
import os
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SYS_CACHESTAT: Final = 451  # the same on every architecture
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
SAMPLE_EVERY: Final = 64 * 1024


def cached_now(fd: int, offset: int, length: int) -> bool:
    """Return whether reading the range would, in all likelihood, not wait for the disk."""
    return _implementation()(fd, offset, length)


@cache
def _implementation() -> Callable[[int, int, int], bool]:
    import ctypes  # 5 ms that a daemon without large reads does not pay

    libc = ctypes.CDLL(None, use_errno=True)
    syscall = libc.syscall
    range_ = (ctypes.c_uint64 * 2)()
    counts = (ctypes.c_uint64 * 5)()
    no_flags = ctypes.c_uint(0)
    number = ctypes.c_long(SYS_CACHESTAT)

    def ask(fd: int, offset: int, length: int) -> bool:
        range_[0] = offset
        range_[1] = length
        if syscall(number, fd, range_, counts, no_flags):
            return _sample(fd, offset, length)  # EPERM: neither owned nor writable by us
        first = offset // PAGE
        last = -(-(offset + length) // PAGE)
        return int(counts[0]) >= last - first

    range_[1] = PAGE
    if syscall(number, -1, range_, counts, no_flags) and ctypes.get_errno() == errno.EBADF:
        return ask
    return _sample


def _sample(fd: int, offset: int, length: int) -> bool:
    byte = (bytearray(1),)
    end = offset + length
    try:
        for at in (*range(offset, end, SAMPLE_EVERY), end - 1):
            os.preadv(fd, byte, at, os.RWF_NOWAIT)
    except OSError:
        return False
    return True
