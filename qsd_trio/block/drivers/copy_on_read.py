"""``copy-on-read``: a filter that lets an image take over what is read from its backing chain.

What was read is written to the image by WRITE_UNCHANGED, which fills in only what still comes from the
backing file: a guest's write that overtakes the copy is never undone.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, ClassVar, Final, final

from qsd_trio.block.abc import ChildRole, FilterDriver, Perm, ReqFlag, StatusFlag, block_driver
from qsd_trio.iov import iov_fill, iov_is_zero, iov_size, iov_slice

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from qsd_trio.block.abc import BlockNode, Child, Extents, Iov, Opener
    from qsd_trio.untyped import Options

#: Bytes copied at a time.
CHUNK: Final = 1 << 20

_PASSED: Final = Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE


@block_driver("copy-on-read")
@final
class CopyOnRead(FilterDriver):
    """Shows ``file``; what is read comes to be in it."""

    supports_reopen: ClassVar[bool] = False

    def __init__(self, file: Child, cluster_size: int) -> None:
        """Fill ``file`` by whole clusters."""
        self.file = file
        self._cluster_size = cluster_size
        self._bottom: BlockNode | None = None
        self._thaw: Callable[[], None] | None = None

    @classmethod
    async def open(cls, opener: Opener, options: Options) -> Self:
        """Open the child; with ``bottom`` hold on to the chain from there to that node."""
        file = await opener.child("file", options.file, ChildRole.FILTERED | ChildRole.PRIMARY)
        size = (await file.node.driver.image_info()).get("cluster-size", 1)
        assert isinstance(size, int)
        self = cls(file, size)
        if options.bottom is not None:
            self._bottom, self._thaw = opener.freeze_chain(file.node, options.bottom)
        return self

    async def aclose(self) -> None:
        """Let the chain go."""
        if self._thaw is not None:
            self._thaw()
            self._thaw = None

    def child_permissions(
        self, role: ChildRole, needed: Perm, shared: Perm, *, read_only: bool
    ) -> tuple[Perm, Perm]:
        """Always be able to fill the child in, even if nobody above may write."""
        return needed & _PASSED | Perm.WRITE_UNCHANGED, shared & _PASSED | Perm.WRITE_UNCHANGED

    # -- requests ------------------------------------------------------------------------------------

    def map_read(self, offset: int, length: int) -> Extents | None:
        """Ask the child where nothing is to be copied."""
        if not self.file.node.driver.allocated_now(offset, length):
            return None
        return self.file.map_read(offset, length)

    def map_write(self, offset: int, length: int) -> Extents | None:
        """Ask the child: what is written need not be copied."""
        return self.file.map_write(offset, length)

    async def preadv(self, offset: int, iov: Iov) -> None:
        """Read, and write to the child what it has not got. Cancelled: some of it may be copied."""
        end = offset + iov_size(iov)
        while offset < end:
            copy, length = await self._look(offset, end - offset)
            part = iov_slice(iov, 0, length)
            if copy:
                await self._copy(offset, part, length)
            else:
                await self.file.preadv(offset, part)
            offset += length
            iov = iov_slice(iov, length, end - offset)

    async def _look(self, offset: int, length: int) -> tuple[bool, int]:
        """Say whether the first bytes of a range are to be copied, and how many they are."""
        top = self.file.node
        status = await top.block_status(offset, length, want_zero=False)
        length = status.length or length
        if status.flags & StatusFlag.ALLOCATED:
            return False, length
        # Who fills in regardless of what was written meanwhile is no place to copy to.
        if not top.limits().write_flags & ReqFlag.WRITE_UNCHANGED:
            return False, length
        if self._bottom is None:
            return True, length
        node = top
        while node is not self._bottom:
            below = node.below()
            if below is None:
                break
            node = below
            status = await node.block_status(offset, length, want_zero=False)
            if not status.length:  # beyond the end of this one
                continue
            length = status.length
            if status.flags & StatusFlag.ALLOCATED:
                return True, length
        return False, length

    async def _copy(self, offset: int, iov: Iov, length: int) -> None:
        """Read a range by whole clusters, fill it into the child, and fill ``iov``."""
        size = self._cluster_size
        start = offset // size * size
        end = min(-(-(offset + length) // size) * size, self.file.getlength())
        step = max(CHUNK // size * size, size)
        for at in range(start, end, step):
            buffer = memoryview(mmap.mmap(-1, min(step, end - at)))
            await self.file.preadv(at, [buffer])
            if iov_is_zero([buffer]):
                await self.file.pwrite_zeroes(at, len(buffer), ReqFlag.WRITE_UNCHANGED)
            else:
                await self.file.pwritev(at, [buffer], ReqFlag.WRITE_UNCHANGED)
            low, high = max(at, offset), min(at + len(buffer), offset + length)
            iov_fill(iov_slice(iov, low - offset, high - low), buffer[low - at : high - at])
