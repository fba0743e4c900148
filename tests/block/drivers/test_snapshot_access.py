"""block/drivers/snapshot_access.py."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest

from qsd_trio.block.abc import (
    BlockStatus,
    ChildRole,
    FilterDriver,
    Perm,
    StatusFlag,
)
from qsd_trio.block.drivers.snapshot_access import SnapshotAccess
from qsd_trio.qapi import BlockdevOptionsGenericFormat
from qsd_trio.testing.block_drivers import read, write
from qsd_trio.testing.memory import child_of, memory_node, node_over, opened

SIZE = 1 << 20
OPTIONS = BlockdevOptionsGenericFormat(file="file")


class Keeper(FilterDriver):
    """A filter that keeps the state of its child when it was opened."""

    format_name = "keeper"

    def __init__(self, past: bytes) -> None:
        self.file = child_of(memory_node(past))
        self.past = past
        self.forgotten: list[tuple[int, int]] = []

    @classmethod
    async def open(cls, opener: object, options: object) -> Keeper:
        raise NotImplementedError

    async def preadv_snapshot(self, offset: int, iov: Sequence[memoryview]) -> None:
        for piece in iov:
            piece[:] = self.past[offset : offset + len(piece)]
            offset += len(piece)

    async def snapshot_block_status(
        self, offset: int, length: int, *, want_zero: bool
    ) -> BlockStatus:
        return BlockStatus(StatusFlag.DATA, min(length, 4096))

    async def pdiscard_snapshot(self, offset: int, length: int) -> None:
        self.forgotten.append((offset, length))


async def test_it_shows_the_past() -> None:
    keeper = Keeper(bytes([1]) * SIZE)
    below = node_over(keeper)
    async with opened(SnapshotAccess, OPTIONS, {"file": below}) as node:
        await write(below, 0, bytes([2]) * 4096)
        assert await read(below, 0, 4096) == bytes([2]) * 4096
        assert await read(node, 0, 4096, pieces=3) == bytes([1]) * 4096
        assert (await node.block_status(0, SIZE)).length == 4096
        assert node.map_read(0, 512) is None
        await node.driver.pdiscard(512, 1024)
        assert keeper.forgotten == [(512, 1024)]


async def test_over_a_node_without_a_past_nothing_works() -> None:
    async with opened(SnapshotAccess, OPTIONS, {"file": memory_node(SIZE)}) as node:
        driver = node.driver
        for request in (
            read(node, 0, 512),
            node.block_status(0, 512),
            driver.pdiscard(0, 512),
            node.pwrite_zeroes(0, 512),
            write(node, 0, bytes(512)),
        ):
            with pytest.raises(OSError, match="not supported") as caught:
                await request
            assert caught.value.errno == errno.ENOTSUP


async def test_its_length_stays() -> None:
    below = memory_node(SIZE)
    async with opened(SnapshotAccess, OPTIONS, {"file": below}) as node:
        await below.truncate(2 * SIZE)
        node.refresh()
        assert node.getlength() == SIZE


async def test_it_needs_no_permissions() -> None:
    async with opened(SnapshotAccess, OPTIONS, {"file": memory_node(SIZE)}) as node:
        answer = node.driver.child_permissions(ChildRole.DATA, Perm.ALL, Perm.NONE, read_only=False)
        assert answer == (Perm.NONE, Perm.ALL)
