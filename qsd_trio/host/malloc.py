"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import functools
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
#: Bytes at the end of the heap that stay ours when they are free.
_KEPT: Final = 32 << 20
#: Bytes of the largest buffer that comes from the heap.
_LARGEST: Final = 4 << 20


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep some freed memory for the next buffers, for the whole process.

    Otherwise it gives the kernel back what a request had, and each request pays for getting it again, page by
    page: a third of the time of one that copies 64 KiB a few times. Does nothing where the C library
    has no such settings.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_M_TRIM_THRESHOLD, _KEPT)
    mallopt(_M_MMAP_THRESHOLD, _LARGEST)
