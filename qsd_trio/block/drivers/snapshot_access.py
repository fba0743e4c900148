"""``snapshot-access``: the point in time that a copy-before-write filter keeps, as a node to read."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, final

from qsd_trio.block.abc import BlockDriver, ChildRole, Perm, block_driver
from qsd_trio.errors import os_error

if TYPE_CHECKING:
    from typing import Self

    from qsd_trio.block.abc import BlockStatus, Child, Iov, Opener, ReqFlag
    from qsd_trio.untyped import Options


@block_driver("snapshot-access")
@final
class SnapshotAccess(BlockDriver):
    """Shows what ``file`` was; over a node that keeps no point in time every request is refused.

    Its length is that of the child at open.
    """

    named_like_child: ClassVar[bool] = True
    supports_reopen: ClassVar[bool] = False

    def __init__(self, file: Child) -> None:
        """Read the past of ``file``."""
        self._file = file
        self._length = file.getlength()

    @classmethod
    async def open(cls, opener: Opener, options: Options) -> Self:
        """Open the child."""
        role = ChildRole.DATA | ChildRole.PRIMARY
        return cls(await opener.child("file", options.file, role))

    async def aclose(self) -> None:
        """Hold nothing, release nothing."""

    def getlength(self) -> int:
        """Return the length that the child had."""
        return self._length

    def child_permissions(
        self, role: ChildRole, needed: Perm, shared: Perm, *, read_only: bool
    ) -> tuple[Perm, Perm]:
        """Need nothing: whoever keeps the point in time has what that takes."""
        return Perm.NONE, Perm.ALL

    async def preadv(self, offset: int, iov: Iov) -> None:
        """Read the past."""
        await self._file.node.driver.preadv_snapshot(offset, iov)

    async def pwrite_zeroes(self, offset: int, length: int, flags: ReqFlag) -> None:
        """Refuse: the past does not change."""
        raise os_error(errno.ENOTSUP)

    async def pdiscard(self, offset: int, length: int) -> None:
        """Let the child forget a piece of the past."""
        await self._file.node.driver.pdiscard_snapshot(offset, length)

    async def block_status(self, offset: int, length: int, *, want_zero: bool) -> BlockStatus:
        """Describe the past."""
        return await self._file.node.driver.snapshot_block_status(
            offset, length, want_zero=want_zero
        )
