"""``raw``: no format; optionally a window of its file."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, final

from qsd_trio.block.abc import (
    SECTOR,
    BlockStatus,
    ChildRole,
    FormatDriver,
    Limits,
    Perm,
    ReqFlag,
    StatusFlag,
    block_driver,
)
from qsd_trio.errors import QmpError, os_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import Self

    from qsd_trio.block.abc import Child, Extents, Iov, Opener
    from qsd_trio.untyped import Json, Options

_RAW = StatusFlag.RAW | StatusFlag.OFFSET_VALID


@block_driver("raw")
@final
class Raw(FormatDriver):
    """The bytes of ``file``, from ``offset`` on and ``size`` of them."""

    mutable_options = frozenset({"offset", "size"})

    def __init__(self, file: Child, offset: int | None, size: int | None) -> None:
        """Show ``size`` bytes (None: all) of ``file`` from ``offset``."""
        self.file = file
        self._set_window(offset, size)

    @classmethod
    async def open(cls, opener: Opener, options: Options) -> Self:
        """Open the child and check that the window lies in it."""
        window = options.offset is not None or options.size is not None
        role = ChildRole.DATA if window else ChildRole.FILTERED
        _check_numbers(options)
        file = await opener.child("file", options.file, role | ChildRole.PRIMARY)
        _check_window(options, file.getlength())
        return cls(file, options.offset, options.size)

    def _set_window(self, offset: int | None, size: int | None) -> None:
        self._given_offset = offset
        self._size = size
        self._offset = offset or 0
        if not self._offset:
            # Nothing to shift. (Not so for map_write: the edge rebinds it when its node changes.)
            self.map_read = self.file.map_read  # type: ignore[method-assign]  # saves a call each
        else:
            self.__dict__.pop("map_read", None)

    async def aclose(self) -> None:
        """Hold nothing, release nothing."""

    def getlength(self) -> int:
        """Return the window's length."""
        if self._size is not None:
            return self._size
        return max(0, self.file.getlength() - self._offset)

    def limits(self) -> Limits:
        """Return the child's limits, as far as they survive the shift."""
        limits = self.file.node.limits()
        align = limits.request_alignment
        if not self._offset or not self._offset % align:
            return limits
        # The child's blocks lie across ours: let its gate cut and pad.
        return Limits(
            write_flags=limits.write_flags,
            zero_flags=limits.zero_flags,
            can_write_zeroes=limits.can_write_zeroes,
            can_discard=limits.can_discard,
        )

    def has_zero_init(self) -> bool:
        """Follow the child."""
        return self.file.node.driver.has_zero_init()

    def full_options(self) -> Mapping[str, Json]:
        """Return the window, if there is one."""
        given = {"offset": self._given_offset, "size": self._size}
        return {name: value for name, value in given.items() if value is not None}

    async def image_info(self) -> Mapping[str, Json]:
        """Show what of the child's is not about its format."""
        info = await self.file.node.driver.image_info()
        return {name: info[name] for name in ("cluster-size", "dirty-flag") if name in info}

    def driver_stats(self) -> Mapping[str, Json] | None:
        """Have none of its own."""
        return None

    def child_permissions(
        self, role: ChildRole, needed: Perm, shared: Perm, *, read_only: bool
    ) -> tuple[Perm, Perm]:
        """Need no more than the parents do: there is no metadata that would have to be written."""
        child_needed, child_shared = super().child_permissions(
            role, needed, shared, read_only=read_only
        )
        changing = Perm.WRITE | Perm.RESIZE
        return child_needed & ~changing | needed & changing, child_shared

    # -- requests ------------------------------------------------------------------------------------

    def map_read(self, offset: int, length: int) -> Extents | None:
        """Shift the question."""
        return self.file.map_read(offset + self._offset, length)

    def map_write(self, offset: int, length: int) -> Extents | None:
        """Shift the question."""
        return self.file.map_write(offset + self._offset, length)

    def allocated_now(self, offset: int, length: int) -> bool:
        """Shift the question."""
        return self.file.node.driver.allocated_now(offset + self._offset, length)

    async def preadv(self, offset: int, iov: Iov) -> None:
        """Forward."""
        await self.file.preadv(offset + self._offset, iov)

    async def pwritev(self, offset: int, iov: Iov, flags: ReqFlag) -> None:
        """Forward."""
        if self._size is not None and offset + sum(map(len, iov)) > self._size:
            raise os_error(errno.ENOSPC)  # what is behind the window is not ours
        await self.file.pwritev(offset + self._offset, iov, flags)

    async def pwrite_zeroes(self, offset: int, length: int, flags: ReqFlag) -> None:
        """Forward."""
        await self.file.pwrite_zeroes(offset + self._offset, length, flags)

    async def pdiscard(self, offset: int, length: int) -> None:
        """Forward."""
        await self.file.pdiscard(offset + self._offset, length)

    async def flush(self) -> None:
        """Forward."""
        await self.file.flush()

    async def block_status(self, offset: int, length: int, *, want_zero: bool) -> BlockStatus:
        """Point at the child; a last sector that it does not fill reads as zeroes."""
        inside = self.file.getlength() - offset - self._offset
        if inside <= 0:
            return BlockStatus(StatusFlag.ZERO | StatusFlag.ALLOCATED, length)
        length = min(length, inside)
        return BlockStatus(_RAW, length, self.file.node, offset + self._offset)

    async def truncate(self, size: int, *, exact: bool, prealloc: str, flags: ReqFlag) -> None:
        """Resize the child so that it ends with the window."""
        if self._size is not None:
            raise QmpError("Cannot resize fixed-size raw disks")
        if size + self._offset >= 2**63:
            raise QmpError("Disk size too large for the chosen offset")
        await self.file.truncate(size + self._offset, exact=exact, prealloc=prealloc, flags=flags)

    async def reopen(self, opener: Opener, options: Options) -> Callable[[], Awaitable[None]]:
        """Prepare another window."""
        _check_numbers(options)
        _check_window(options, self.file.getlength())

        async def commit() -> None:
            self._set_window(options.offset, options.size)

        return commit


def _check_numbers(options: Options) -> None:
    for name in ("offset", "size"):
        value = getattr(options, name)
        if value is not None and value < 0:
            raise QmpError(f"Parameter '{name}' expects a non-negative number below 2^64")


def _check_window(options: Options, length: int) -> None:
    offset: int = options.offset or 0
    if offset > length:
        raise QmpError(
            f"Offset ({offset}) cannot be greater than size of the containing file ({length})"
        )
    size: int | None = options.size
    if size is None:
        return
    if length - offset < size:
        raise QmpError(
            f"The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the "
            f" actual size of the containing file ({length})"
        )
    if size % SECTOR:
        raise QmpError(f"Specified size is not multiple of {SECTOR}")
