"""What the file of a FUSE export does: the rules of each operation, whoever carries the messages.

Errors are OSError with the errno that the caller of the system call gets. Like the real daemon's, with
these differences on purpose: a punched hole reads as zeroes always, and a request's buffer is its own.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio.block.abc import ReqFlag, StatusFlag
from qsd_trio.block.io import MAX_LENGTH
from qsd_trio.block.query import allocated_size
from qsd_trio.errors import QmpError, os_error
from qsd_trio.host.libc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from qsd_trio.protocol.fuse import ATTRIBUTES, Attributes, SetAttr, SetAttrRequest

if TYPE_CHECKING:
    from qsd_trio.block.abc import Iov
    from qsd_trio.block.backend import BlockBackend

SECTOR: Final = 512

#: What statfs tells: a block size, and the longest name.
STATFS_BLOCK: Final = 512
NAME_MAX: Final = 255

_ANY_WRITE: Final = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


@final
class ExportedFile:
    """A node as a regular file.

    ``allow_other``: users other than the daemon's may be let in, so ownership and mode can say who.
    """

    def __init__(
        self, backend: BlockBackend, *, writable: bool, growable: bool, allow_other: bool
    ) -> None:
        self.backend = backend
        self.writable = writable
        self.growable = growable
        self.allow_other = allow_other
        self._mode = stat.S_IFREG | stat.S_IRUSR | (stat.S_IWUSR if writable else 0)
        self._uid = os.getuid()
        self._gid = os.getgid()
        self._growing = trio.Lock()  # a size that was looked at must still be the size

    # -- attributes ----------------------------------------------------------------------------------

    def attributes(self) -> Attributes:
        """Return what stat(2) tells. All times are now: the content may have changed by other ways."""
        size = self.backend.getlength()
        allocated = allocated_size(self.backend.node) or size
        return Attributes(
            size=size,
            blocks=-(-allocated // SECTOR),
            block_size=self.backend.limits().request_alignment,
            mode=self._mode,
            uid=self._uid,
            gid=self._gid,
            now=int(time.time()),
        )

    async def set_attributes(self, wanted: SetAttrRequest) -> None:
        """Change the length, mode or owner; nothing, if any of it is refused."""
        valid = wanted.valid & ATTRIBUTES
        known = SetAttr.MODE | SetAttr.SIZE
        if self.allow_other:
            known |= SetAttr.UID | SetAttr.GID
        if valid & ~known:
            raise os_error(errno.ENOTSUP)
        if valid & SetAttr.MODE:
            if not self.allow_other and wanted.mode & _OTHERS:
                raise os_error(errno.EPERM)
            if not self.writable and wanted.mode & _ANY_WRITE:
                raise os_error(errno.EROFS)
        if valid & SetAttr.SIZE:
            if not self.writable:
                raise os_error(errno.EACCES)
            async with self._growing:
                await self._truncate(wanted.size)
        if valid & SetAttr.MODE:
            self._mode = stat.S_IFREG | stat.S_IMODE(wanted.mode)
        if valid & SetAttr.UID:
            self._uid = wanted.uid
        if valid & SetAttr.GID:
            self._gid = wanted.gid

    async def _truncate(self, size: int, prealloc: str = "off") -> None:
        if size > MAX_LENGTH:
            raise os_error(errno.EFBIG)
        try:
            await self.backend.truncate(size, exact=True, prealloc=prealloc)
        except QmpError as exc:
            # The block layer explains itself to monitors; a system call has only a number.
            cause = exc.__cause__ or exc.__context__
            number = cause.errno if isinstance(cause, OSError) else None
            raise os_error(number or errno.EINVAL) from exc

    # -- data ----------------------------------------------------------------------------------------

    def readable(self, offset: int, size: int) -> int:
        """Return how many bytes a read gets: it is short at the end of the file, 0 beyond."""
        return max(0, min(size, self.backend.getlength() - offset))

    async def read(self, offset: int, iov: Iov) -> None:
        """Fill ``iov``, which is no longer than ``readable`` says."""
        await self.backend.preadv(offset, iov)

    async def write(self, offset: int, data: memoryview) -> int:
        """Write ``data``; return how many bytes were taken: beyond the end only a growable file has room."""
        if not self.writable:
            raise os_error(errno.EACCES)
        end = offset + len(data)
        if end > self.backend.getlength():
            if self.growable:
                async with self._growing:
                    if end > self.backend.getlength():
                        await self._truncate(end)
            else:
                data = data[: self.readable(offset, len(data))]
        if data:
            await self.backend.pwritev(offset, [data])
        return len(data)

    async def flush(self) -> None:
        """Put what was written on stable storage: at fsync, and at each close."""
        await self.backend.flush()

    # -- space ---------------------------------------------------------------------------------------

    async def fallocate(self, offset: int, length: int, mode: int) -> None:
        """Append space (0), zero or punch a range (FALLOC_FL_*). Nothing else is there."""
        if not self.writable:
            raise os_error(errno.EACCES)
        if offset + length > MAX_LENGTH:
            raise os_error(errno.EFBIG)
        size = self.backend.getlength()
        if mode & FALLOC_FL_KEEP_SIZE:
            length = min(length, size - offset)
        if not mode:
            async with self._growing:
                await self._append(offset, length)
        elif mode & FALLOC_FL_PUNCH_HOLE:
            if not mode & FALLOC_FL_KEEP_SIZE:
                raise os_error(errno.EINVAL)
            await self._zero(offset, length, punch=True)
        elif mode & FALLOC_FL_ZERO_RANGE:
            if not mode & FALLOC_FL_KEEP_SIZE:
                async with self._growing:
                    if offset + length > self.backend.getlength():
                        await self._truncate(offset + length)
            await self._zero(offset, length, punch=False)
        else:
            raise os_error(errno.EOPNOTSUPP)

    async def _append(self, offset: int, length: int) -> None:
        size = self.backend.getlength()
        if offset < size:
            raise os_error(errno.EOPNOTSUPP)
        if offset > size:  # the gap stays a hole
            await self._truncate(offset)
        await self._truncate(offset + length, "falloc")

    async def _zero(self, offset: int, length: int, *, punch: bool) -> None:
        if length < 0:
            raise os_error(errno.EIO)
        # A node that ignores discards keeps its space; what is promised here is that zeroes are read.
        unmap = punch and self.backend.node.flags.discard_unmap
        if length:
            flags = ReqFlag.MAY_UNMAP if unmap else ReqFlag.NONE
            await self.backend.pwrite_zeroes(offset, length, flags)

    async def seek(self, offset: int, whence: int) -> int:
        """Return where the next data or hole begins (SEEK_DATA, SEEK_HOLE), ENXIO if nowhere."""
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise os_error(errno.EINVAL)
        size = self.backend.getlength()
        while offset < size:
            status = await self.backend.block_status_above(offset, size - offset)
            if bool(status.flags & StatusFlag.DATA) == (whence == os.SEEK_DATA):
                return offset
            if not status.length:  # cut short meanwhile
                break
            offset += status.length
        if whence == os.SEEK_DATA or offset > size:
            raise os_error(errno.ENXIO)
        return offset  # the end of the file is a hole
