"""ioctls on block devices and on files: discard, zero out, sizes, file attributes. All may block."""

from __future__ import annotations

import fcntl
import struct
from typing import Final

_BLKROGET: Final = 0x125E
_BLKSSZGET: Final = 0x1268
_BLKDISCARD: Final = 0x1277
_BLKZEROOUT: Final = 0x127F
_BLKGETSIZE64: Final = 0x80081272

_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_NOCOW_FL: Final = 0x00800000
_FS_IOC_FSGETXATTR: Final = 0x801C581F
_FS_IOC_FSSETXATTR: Final = 0x401C5820
_FS_XFLAG_EXTSIZE: Final = 0x00000800

_CDROM_DRIVE_STATUS: Final = 0x5326
_CDSL_CURRENT: Final = 0x7FFFFFFF

_RANGE: Final = struct.Struct("QQ")
_FSXATTR: Final = struct.Struct("IIIII8x")


def _get_int(fd: int, request: int) -> int:
    (value,) = struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))
    return int(value)


def is_read_only(fd: int) -> bool:
    """Return whether the block device refuses writes."""
    return bool(_get_int(fd, _BLKROGET))


def sector_size(fd: int) -> int:
    """Return the logical block size: the alignment of direct I/O (bytes)."""
    return _get_int(fd, _BLKSSZGET)


def device_size(fd: int) -> int:
    """Return the block device's length (bytes)."""
    (size,) = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))
    return int(size)


def discard(fd: int, offset: int, length: int) -> None:
    """Tell the block device that the range is not needed any more."""
    fcntl.ioctl(fd, _BLKDISCARD, _RANGE.pack(offset, length))


def zero_out(fd: int, offset: int, length: int) -> None:
    """Make a range of the block device read as zeroes, by writing if it can't do better."""
    fcntl.ioctl(fd, _BLKZEROOUT, _RANGE.pack(offset, length))


def set_nocow(fd: int) -> None:
    """Turn copy on write off for a file (btrfs). OSError where there is nothing to turn off."""
    (flags,) = struct.unpack("l", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("l", flags | _FS_NOCOW_FL))


def set_extent_size_hint(fd: int, size: int) -> None:
    """Have the file system allocate the file in pieces of ``size`` bytes (XFS). OSError elsewhere."""
    flags, _, *rest = _FSXATTR.unpack(fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size)))
    attributes = _FSXATTR.pack(flags | _FS_XFLAG_EXTSIZE, size, *rest)
    fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, attributes)
