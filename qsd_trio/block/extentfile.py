"""What the extents of the fast path point to."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from qsd_trio.errors import os_error

if TYPE_CHECKING:
    from qsd_trio.block.abc import Iov


class ExtentFile(Protocol):
    """A HostFile, or something that reads and writes as one does.

    ``fd`` is -1 if no descriptor has the bytes, ``read_flags`` are for os.preadv on it.
    """

    @property
    def fd(self) -> int: ...
    @property
    def read_flags(self) -> int: ...
    @property
    def can_read_now(self) -> bool: ...
    @property
    def can_write_now(self) -> bool: ...
    def read_now(self, iov: Iov, offset: int) -> int: ...
    def write_now(self, iov: Iov, offset: int) -> bool: ...
    def cached_now(self, offset: int, length: int) -> bool: ...
    def sendfile_now(self, socket_fd: int, offset: int, length: int) -> int: ...


class BufferedFile(ABC):
    """An ExtentFile whose bytes no descriptor has: they pass through our memory."""

    fd = -1
    read_flags = 0
    can_read_now = True

    @property
    def can_write_now(self) -> bool:
        """Whether ``write_now`` is worth a try."""
        return True

    @abstractmethod
    def read_now(self, iov: Iov, offset: int) -> int:
        """Fill ``iov`` without waiting; return the bytes read, less at the end, or -1: not now."""

    @abstractmethod
    def write_now(self, iov: Iov, offset: int) -> bool:
        """Write ``iov`` without waiting; False: not now, and nothing was written."""

    def cached_now(self, offset: int, length: int) -> bool:
        """Say no: the kernel has nothing that it could send."""
        return False

    def sendfile_now(self, socket_fd: int, offset: int, length: int) -> int:
        """Refuse."""
        raise os_error(errno.ENOTSUP)
