"""Numbers of the qcow2 format (docs/interop/qcow2 of QEMU) and the limits we put on images."""

from __future__ import annotations

import errno
import os
from typing import Final

MAGIC: Final = b"QFI\xfb"

MIN_CLUSTER_BITS: Final = 9
MAX_CLUSTER_BITS: Final = 21
DEFAULT_CLUSTER_SIZE: Final = 65536

# Of L1 and L2 entries.
COPIED: Final = 1 << 63  # refcount is exactly one
COMPRESSED: Final = 1 << 62
ZERO: Final = 1  # reads as zeroes (version 3)
OFFSET_MASK: Final = 0x00FFFFFFFFFFFE00

REFTABLE_OFFSET_MASK: Final = 0xFFFFFFFFFFFFFE00

# Of the header.
INCOMPAT_DIRTY: Final = 1
INCOMPAT_CORRUPT: Final = 2
INCOMPAT_DATA_FILE: Final = 4
INCOMPAT_COMPRESSION: Final = 8
INCOMPAT_EXTENDED_L2: Final = 16
INCOMPAT_KNOWN: Final = 31
COMPAT_LAZY_REFCOUNTS: Final = 1
AUTOCLEAR_BITMAPS: Final = 1
AUTOCLEAR_DATA_FILE_RAW: Final = 2
AUTOCLEAR_KNOWN: Final = 3

# Memory that opening an image may take: these are QEMU's limits too.
MAX_L1_BYTES: Final = 32 << 20
MAX_REFTABLE_BYTES: Final = 8 << 20
MAX_SNAPSHOTS: Final = 65536
SNAPSHOT_HEADER_SIZE: Final = 40

MAX_HOST_OFFSET: Final = 1 << 56  # what an L1 or L2 entry can name


class CorruptImageError(OSError):
    """The image's metadata contradict themselves or the format; an EIO to whoever asked.

    Attributes:
        fatal: whether going on would do harm, so that the node stops working.
        where: offset and size in the image file, if the harm has a place.
    """

    def __init__(self, message: str, *, fatal: bool, where: tuple[int, int] | None = None) -> None:
        super().__init__(errno.EIO, os.strerror(errno.EIO))
        self.message = message
        self.fatal = fatal
        self.where = where


def c_hex(value: int) -> str:
    """Return a number as C's ``%#x`` prints it: a zero has no prefix."""
    return f"{value:#x}" if value else "0"
