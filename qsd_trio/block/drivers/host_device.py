"""``host_device`` and ``host_cdrom``: an image that is a device of the host."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, final

from qsd_trio.block.abc import ReqFlag, block_driver
from qsd_trio.block.drivers._posix import UNSUPPORTED, PosixDriver, punch_hole
from qsd_trio.errors import QmpError, os_error, with_errno
from qsd_trio.host import blockdev

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qsd_trio.host.files import HostFile
    from qsd_trio.untyped import Json


class _Device(PosixDriver):
    @classmethod
    def check_kind(cls, file: HostFile, path: str) -> None:
        """Refuse what is no device, and a write-protected one that is to be written."""
        if not (file.is_block or file.is_char):
            raise QmpError(
                f"'{cls.format_name}' driver requires '{path}' to be either "
                "a character or block device"
            )
        if file.is_block and file.writable and blockdev.is_read_only(file.fd):
            raise with_errno("The device is not writable", os_error(errno.EACCES))

    def _write_zeroes(self, offset: int, length: int, flags: ReqFlag) -> None:
        if flags & ReqFlag.MAY_UNMAP and self._can_punch:
            try:
                punch_hole(self._file, offset, length)
            except OSError as exc:
                if exc.errno not in UNSUPPORTED:
                    raise
                self._can_punch = False
            else:
                return
        # Without help of the device the ioctl writes zeroes itself: not fast.
        if flags & ReqFlag.NO_FALLBACK or not self._can_zero_range:
            raise os_error(errno.ENOTSUP)
        try:
            blockdev.zero_out(self._file.fd, offset, length)
        except OSError as exc:
            if exc.errno not in UNSUPPORTED:
                raise
            self._can_zero_range = False
            raise os_error(errno.ENOTSUP) from exc

    def _discard(self, offset: int, length: int) -> None:
        blockdev.discard(self._file.fd, offset, length)

    async def truncate(self, size: int, *, exact: bool, prealloc: str, flags: ReqFlag) -> None:
        """Take notice of a device's new length; only the device itself can change it."""
        if prealloc != "off":
            raise QmpError(f"Preallocation mode '{prealloc}' unsupported for this non-regular file")
        length = self._file.size()
        if size != length and exact:
            raise QmpError("Cannot resize device files")
        if size > length:
            raise QmpError("Cannot grow device files")
        self._length = length


@block_driver("host_device")
@final
class HostDevice(_Device):
    """A block or character device."""


@block_driver("host_cdrom")
@final
class HostCdrom(_Device):
    """A CD-ROM drive, which opens without a disc too."""

    open_flags = os.O_NONBLOCK

    async def image_info(self) -> Mapping[str, Json]:
        """Know nothing beyond what every image has."""
        return {}

    def driver_stats(self) -> Mapping[str, Json] | None:
        """Count nothing."""
        return None
