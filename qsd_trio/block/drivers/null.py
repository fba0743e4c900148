"""``null-co`` and ``null-aio``: images that keep nothing, to measure everything else."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, final

import trio

from qsd_trio.block.abc import BlockStatus, ProtocolDriver, ReqFlag, StatusFlag, block_driver
from qsd_trio.errors import QmpError, os_error, with_errno

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from qsd_trio.block.abc import Extents, Iov, Opener
    from qsd_trio.untyped import Json, Options

_DEFAULT_SIZE = 1 << 30
_LONGEST = 2**63 - 2**30  # QEMU's BDRV_MAX_LENGTH


class _Null(ProtocolDriver):
    def __init__(self, options: Options) -> None:
        self._given_size: int | None = options.size
        self._read_zeroes: bool | None = options.read_zeroes
        self._latency = (options.latency_ns or 0) / 1e9  # seconds

    @classmethod
    async def open(cls, opener: Opener, options: Options) -> Self:
        """Make the node; nothing is opened."""
        if options.size is not None and options.size < 0:
            raise QmpError("Parameter 'size' expects a non-negative number below 2^64")
        if options.size is not None and options.size > _LONGEST:
            raise with_errno("Could not refresh total sector count", os_error(errno.EFBIG))
        return cls(options)

    async def aclose(self) -> None:
        """Hold nothing, release nothing."""

    def getlength(self) -> int:
        """Return the size that was asked for."""
        return _DEFAULT_SIZE if self._given_size is None else self._given_size

    def filename(self) -> str:
        """Return the short name, where that says all."""
        return "" if self.full_options() else f"{self.format_name}://"

    def full_options(self) -> Mapping[str, Json]:
        """Return the options that decide what one reads."""
        given = {"size": self._given_size, "read-zeroes": self._read_zeroes}
        return {name: value for name, value in given.items() if value is not None}

    def allocated_size(self) -> int | None:
        """Take no storage."""
        return 0

    def map_read(self, offset: int, length: int) -> Extents | None:
        """Say zeroes: what is read is undefined without ``read-zeroes``, and this leaks nothing."""
        return None if self._latency else ((None, 0, length),)

    async def preadv(self, offset: int, iov: Iov) -> None:
        """Wait as long as told, and give zeroes: buffers may hold what is not the reader's."""
        await trio.sleep(self._latency)
        for piece in iov:
            piece[:] = bytes(len(piece))

    async def pwritev(self, offset: int, iov: Iov, flags: ReqFlag) -> None:
        """Wait as long as told."""
        await trio.sleep(self._latency)

    async def flush(self) -> None:
        """Wait as long as told."""
        await trio.sleep(self._latency)

    async def block_status(self, offset: int, length: int, *, want_zero: bool) -> BlockStatus:
        """Say zero if that is what one reads; else nothing is known."""
        flags = StatusFlag.OFFSET_VALID
        if self._read_zeroes:
            flags |= StatusFlag.ZERO | StatusFlag.ALLOCATED
        return BlockStatus(flags, length, None, offset)


@block_driver("null-co")
@final
class NullCo(_Null):
    """The null image; the difference to ``null-aio`` is QEMU's inner business."""


@block_driver("null-aio")
@final
class NullAio(_Null):
    """The null image under its other name."""
