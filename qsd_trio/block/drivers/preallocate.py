"""``preallocate``: a filter that makes a growing file longer by large steps, ahead of its writers.

Between a format driver and its file: there, growing by every cluster would cost the file system an
extent each. The filter works while a parent may write and resize, shows the length without what it has
added, and takes that away again when no parent may any more.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar, Final, final

import attrs
import trio

from qsd_trio.block.abc import SECTOR, ChildRole, FilterDriver, Perm, ReqFlag, block_driver
from qsd_trio.errors import QmpError, with_errno
from qsd_trio.iov import iov_size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Self

    from qsd_trio.block.abc import Child, Extents, Iov, Opener
    from qsd_trio.untyped import Options

log = logging.getLogger(__name__)

DEFAULT_ALIGN: Final = 1 << 20
DEFAULT_SIZE: Final = 128 << 20

_GROWING: Final = Perm.WRITE | Perm.RESIZE


@final
@attrs.frozen(kw_only=True)
class Steps:
    """How far ahead to go: ``size`` bytes, then up to a multiple of ``align``."""

    align: int
    size: int

    def end_for(self, end: int) -> int:
        """Return how long to make a file in which ``end`` bytes are needed."""
        return -(-(end + self.size) // self.align) * self.align


@final
@attrs.define(eq=False)
class _Growth:
    """The file while a parent may make it longer."""

    data_end: int  # the length that we show
    file_end: int  # the length of the file, as far as it is known to be allocated
    zero_start: int  # from here to ``file_end`` are zeroes


@block_driver("preallocate")
@final
class Preallocate(FilterDriver):
    """Shows ``file``, and keeps allocated space behind its end."""

    mutable_options: ClassVar[frozenset[str]] = frozenset({"prealloc-align", "prealloc-size"})

    def __init__(self, file: Child, steps: Steps) -> None:
        """Filter ``file``."""
        self.file = file
        self._steps = steps
        self._growth: _Growth | None = None
        self._growing = trio.Lock()

    @classmethod
    async def open(cls, opener: Opener, options: Options) -> Self:
        """Open the child and check that the steps fit it."""
        file = await opener.child("file", options.file, ChildRole.FILTERED | ChildRole.PRIMARY)
        return cls(file, _steps(options, file))

    async def aclose(self) -> None:
        """Take back what was preallocated."""
        await self._drop()

    def getlength(self) -> int:
        """Return where the data end."""
        return self.file.getlength() if self._growth is None else self._growth.data_end

    # -- permissions and reopening -------------------------------------------------------------------

    def child_permissions(
        self, role: ChildRole, needed: Perm, shared: Perm, *, read_only: bool
    ) -> tuple[Perm, Perm]:
        """While we grow the child nobody else may change its length or content."""
        if needed & _GROWING == _GROWING:
            shared &= ~_GROWING
        return needed, shared

    async def set_permissions(self, needed: Perm, shared: Perm) -> None:
        """Begin to preallocate when a parent may resize, and take it back when none may."""
        if needed & _GROWING == _GROWING:
            if self._growth is None:
                end = self.file.getlength()
                self._growth = _Growth(data_end=end, file_end=end, zero_start=end)
            return
        try:
            await self._drop()
        except OSError as exc:
            raise with_errno("Failed to drop preallocation", exc) from exc

    async def _drop(self) -> None:
        growth = self._growth
        if growth is None:
            return
        if self.file.getlength() > growth.data_end:
            await self.file.truncate(growth.data_end, exact=True)
        self._growth = None

    async def reopen(self, opener: Opener, options: Options) -> Callable[[], Awaitable[None]]:
        """Prepare other steps."""
        steps = _steps(options, self.file)

        async def commit() -> None:
            self._steps = steps

        return commit

    # -- requests ------------------------------------------------------------------------------------

    def map_read(self, offset: int, length: int) -> Extents | None:
        """Ask the child."""
        return self.file.map_read(offset, length)

    def map_write(self, offset: int, length: int) -> Extents | None:
        """Ask the child about what need not be preallocated first."""
        growth = self._growth
        if growth is not None:
            end = offset + length
            if end > growth.file_end:
                return None
            if end > growth.zero_start:
                growth.zero_start = end
            if end > growth.data_end:
                growth.data_end = end
        return self.file.map_write(offset, length)

    async def pwritev(self, offset: int, iov: Iov, flags: ReqFlag) -> None:
        """Forward, into preallocated space if it may be."""
        growth = self._growth
        if growth is not None:
            end = offset + iov_size(iov)
            if end > growth.file_end:
                await self._grow(growth, end)
            growth.zero_start = max(growth.zero_start, end)
            growth.data_end = max(growth.data_end, end)
        await self.file.pwritev(offset, iov, flags)

    async def pwrite_zeroes(self, offset: int, length: int, flags: ReqFlag) -> None:
        """Forward, unless what was preallocated serves."""
        growth = self._growth
        if growth is not None:
            end = offset + length
            if end > growth.file_end:
                await self._grow(growth, end)
            growth.data_end = max(growth.data_end, end)
            if growth.zero_start <= offset and end <= growth.file_end and not flags & ReqFlag.FUA:
                await trio.lowlevel.checkpoint()
                return
        await self.file.pwrite_zeroes(offset, length, flags)

    async def _grow(self, growth: _Growth, end: int) -> None:
        """Allocate zeroes behind everything that was written or is being written.

        A file that cannot do so quickly, or a full one, is left to the write itself.
        """
        async with self._growing:
            if end <= growth.file_end:
                return
            # Writes that a failure left to themselves are on their way, up to data_end.
            start = max(growth.file_end, growth.data_end, self.file.getlength())
            stop = self._steps.end_for(end)
            try:
                await self.file.pwrite_zeroes(start, stop - start, ReqFlag.NO_FALLBACK)
            except OSError as exc:
                log.debug("preallocate: %#x+%#x: %s", start, stop - start, exc.strerror)
                return
            growth.zero_start = max(growth.zero_start, start)
            growth.file_end = stop

    async def truncate(self, size: int, *, exact: bool, prealloc: str, flags: ReqFlag) -> None:
        """Move the end of the data; the space behind goes, unless it is what was asked for."""
        growth = self._growth
        if growth is None:
            await self.file.truncate(size, exact=exact, prealloc=prealloc, flags=flags)
            return
        if size > growth.data_end:
            if prealloc == "falloc" and size <= growth.file_end:
                growth.data_end = size
                return
            # From where the user's data end the file grows just as asked.
            if self.file.getlength() > growth.data_end and prealloc != "falloc":
                await self.file.truncate(growth.data_end, exact=True)
                growth.file_end = growth.data_end
        await self.file.truncate(size, exact=exact, prealloc=prealloc, flags=flags)
        growth.data_end = growth.file_end = growth.zero_start = size


def _steps(options: Options, file: Child) -> Steps:
    """Check the options; the error texts are QEMU's."""
    align = DEFAULT_ALIGN if options.prealloc_align is None else options.prealloc_align
    size = DEFAULT_SIZE if options.prealloc_size is None else options.prealloc_size
    for name, value in (("prealloc-align", align), ("prealloc-size", size)):
        if value < 0:
            raise QmpError(f"Parameter '{name}' expects a non-negative number below 2^64")
    if align % SECTOR:
        raise QmpError(f"prealloc-align parameter of preallocate filter is not aligned to {SECTOR}")
    request = file.node.limits().request_alignment
    if align % request:
        raise QmpError(
            "prealloc-align parameter of preallocate filter is not aligned to underlying node"
            f" request alignment ({request})"
        )
    return Steps(align=align or SECTOR, size=size)
