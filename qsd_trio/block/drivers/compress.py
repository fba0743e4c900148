"""``compress``: a filter that makes every write to an image a compressed one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

import attrs

from qsd_trio.block.abc import ChildRole, FilterDriver, ReqFlag, block_driver
from qsd_trio.errors import QmpError
from qsd_trio.iov import iov_size, iov_slice

if TYPE_CHECKING:
    from typing import Self

    from qsd_trio.block.abc import Child, Extents, Iov, Limits, Opener
    from qsd_trio.untyped import Options


@block_driver("compress")
@final
class Compress(FilterDriver):
    """Shows ``file``; what is written goes there by whole clusters, to be compressed."""

    supports_reopen: ClassVar[bool] = False

    def __init__(self, file: Child, cluster_size: int) -> None:
        """Filter ``file``, whose format compresses by ``cluster_size`` bytes."""
        self.file = file
        self._cluster_size = cluster_size

    @classmethod
    async def open(cls, opener: Opener, options: Options) -> Self:
        """Open the child, which must be able to compress."""
        file = await opener.child("file", options.file, ChildRole.FILTERED | ChildRole.PRIMARY)
        driver = file.node.driver
        if not driver.can_compress:
            raise QmpError(
                f"Compression is not supported for underlying format: {driver.format_name}"
            )
        size = (await driver.image_info())["cluster-size"]
        assert isinstance(size, int)
        return cls(file, size)

    def limits(self) -> Limits:
        """Have the gate read, modify and write whole clusters."""
        return attrs.evolve(self.file.node.limits(), request_alignment=self._cluster_size)

    def map_read(self, offset: int, length: int) -> Extents | None:
        """Ask the child: reading changes nothing."""
        return self.file.map_read(offset, length)

    async def pwritev(self, offset: int, iov: Iov, flags: ReqFlag) -> None:
        """Forward as a compressed write; the gate's padding of the last cluster ends here."""
        inside = self.file.getlength() - offset
        if iov_size(iov) > inside:
            iov = iov_slice(iov, 0, inside)
        await self.file.pwritev(offset, iov, flags | ReqFlag.WRITE_COMPRESSED)
