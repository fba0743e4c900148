"""block/drivers/copy_on_read.py."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from qsd_trio.block.abc import ChildRole, Perm, StatusFlag
from qsd_trio.block.drivers.copy_on_read import CopyOnRead
from qsd_trio.block.io import Node
from qsd_trio.errors import QmpError
from qsd_trio.qapi import BlockdevOptionsCor
from qsd_trio.testing.block_drivers import check_block_driver, read, write
from qsd_trio.testing.memory import MemoryDriver, memory_node, node_over, opened, pattern
from tests.block.drivers.qcow2.kit import Disk, check, make
from tests.block.drivers.qcow2.kit import opened as opened_qcow2

CLUSTER = 4096
SIZE = 64 * CLUSTER
BASE = pattern(SIZE)


@attrs.frozen
class Chain:
    """A copy-on-read node over top -> mid -> base; the base is in memory."""

    node: Node
    top: Node
    mid: Node
    base: MemoryDriver

    async def allocated(self) -> set[int]:
        """Return the clusters that the top has."""
        numbers = set()
        for number in range(SIZE // CLUSTER):
            status = await self.top.block_status(number * CLUSTER, CLUSTER, want_zero=False)
            if status.flags & StatusFlag.ALLOCATED:
                numbers.add(number)
        return numbers


@asynccontextmanager
async def chain(
    *,
    bottom: str | None = None,
    version: int = 3,
    extended: bool = False,
    base: bytes = BASE,
    disk_type: type[Disk | MemoryDriver] = Disk,
) -> AsyncGenerator[Chain]:
    bits = 16 if extended else 12
    image = await make(SIZE, cluster_bits=bits, version=version, extended=extended)
    driver = MemoryDriver(base)
    below = node_over(driver, node_name="base")
    async with (
        opened_qcow2(disk_type(image), below) as mid,
        opened_qcow2(disk := disk_type(image), mid) as top,
    ):
        mid.node_name, top.node_name = "mid", "top"
        options = BlockdevOptionsCor(file="file", bottom=bottom)
        async with opened(CopyOnRead, options, {"file": top}) as node:
            yield Chain(node, top, mid, driver)
    assert check(bytes(disk.data)).errors == []


async def test_conformance() -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[Node]:
        async with chain(disk_type=MemoryDriver) as nodes:
            yield nodes.node

    await check_block_driver(factory, steps=40)


@pytest.mark.parametrize("version", [2, 3])
async def test_what_is_read_is_copied_by_whole_clusters(version: int) -> None:
    async with chain(version=version) as nodes:
        assert await read(nodes.node, CLUSTER + 100, CLUSTER) == BASE[CLUSTER + 100 :][:CLUSTER]
        assert await nodes.allocated() == {1, 2}
        nodes.base.data[:] = bytes(SIZE)  # from now on the copy counts
        assert await read(nodes.node, CLUSTER, 2 * CLUSTER) == BASE[CLUSTER : 3 * CLUSTER]


async def test_subclusters() -> None:
    async with chain(extended=True) as nodes:
        await write(nodes.node, 2048, bytes(2048))  # one of the cluster's 32 subclusters
        content = await read(nodes.node, 0, 65536)
        assert content == BASE[:2048] + bytes(2048) + BASE[4096:65536]
        nodes.base.data[:] = bytes(SIZE)
        assert await read(nodes.node, 0, 65536) == content
        assert not nodes.node.driver.allocated_now(65536, 512)


async def test_zeroes_are_copied_as_zeroes() -> None:
    async with chain(base=bytes(SIZE)) as nodes:
        assert await read(nodes.node, 0, CLUSTER) == bytes(CLUSTER)
        status = await nodes.top.block_status(0, CLUSTER)
        assert status.flags & StatusFlag.ZERO
        assert not status.flags & StatusFlag.OFFSET_VALID


async def test_with_a_bottom_only_what_is_above_is_copied() -> None:
    async with chain(bottom="mid") as nodes:
        await write(nodes.mid, 5 * CLUSTER, bytes([7]) * CLUSTER)
        assert await read(nodes.node, 0, 10 * CLUSTER) == (
            BASE[: 5 * CLUSTER] + bytes([7]) * CLUSTER + BASE[6 * CLUSTER : 10 * CLUSTER]
        )
        assert await nodes.allocated() == {5}


async def test_a_bottom_that_is_not_below_is_refused() -> None:
    with pytest.raises(QmpError, match="Bottom node 'nobody' not found"):
        async with chain(bottom="nobody"):
            pass


async def test_the_fast_path_is_for_what_need_not_be_copied() -> None:
    async with chain() as nodes:
        assert nodes.node.map_read(0, CLUSTER) is None
        await write(nodes.node, 0, bytes([1]) * CLUSTER)
        assert nodes.node.map_read(0, CLUSTER) == nodes.top.map_read(0, CLUSTER)
        assert nodes.node.map_read(0, CLUSTER) is not None
        assert nodes.node.map_read(0, CLUSTER + 1) is None
        await read(nodes.node, CLUSTER, 1)
        assert nodes.node.map_read(0, 2 * CLUSTER) is not None


async def test_without_a_backing_file_there_is_nothing_to_copy() -> None:
    memory = memory_node(SIZE)
    async with opened(CopyOnRead, BlockdevOptionsCor(file="file"), {"file": memory}) as node:
        assert await read(node, 0, SIZE) == bytes(SIZE)
        assert isinstance(memory.driver, MemoryDriver)
        assert [name for name, _, _ in memory.driver.requests if name != "preadv"] == [
            "block_status"
        ]


@pytest.mark.parametrize("fast", [False, True])
async def test_a_write_that_overtakes_the_copy_is_not_undone(fast: bool) -> None:
    """The old data are on their way from the backing file when the guest overwrites the cluster."""
    async with chain() as nodes:
        await write(nodes.node, 9 * CLUSTER, bytes(CLUSTER))  # the L2 table is in memory
        old_data_are_read, go_on = trio.Event(), trio.Event()
        preadv = nodes.base.preadv

        async def slow_preadv(offset: int, iov: Sequence[memoryview]) -> None:
            await preadv(offset, iov)
            old_data_are_read.set()
            await go_on.wait()

        nodes.base.preadv = slow_preadv  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, nodes.node, 0, 4 * CLUSTER)
            await old_data_are_read.wait()
            if fast:
                extents = nodes.node.map_write(CLUSTER, CLUSTER)
                assert extents is not None
                for file, host, length in extents:
                    assert file is not None
                    file.write_now([memoryview(bytes([5]) * length)], host)
            else:
                await write(nodes.top, CLUSTER, bytes([5]) * CLUSTER)
            go_on.set()
        content = await read(nodes.node, 0, 4 * CLUSTER)
        assert content == BASE[:CLUSTER] + bytes([5]) * CLUSTER + BASE[2 * CLUSTER : 4 * CLUSTER]
        assert {0, 1, 2, 3} <= await nodes.allocated()


async def test_readers_and_writers_at_once() -> None:
    """Each sector is the base's or the last write's, at any time and in the end."""
    rng = random.Random(5)
    async with chain() as nodes:
        model = bytearray(BASE)

        async def write_one(sector: int, value: int) -> None:
            data = bytes([value]) * 512
            await write(rng.choice([nodes.node, nodes.top]), sector * 512, data)
            model[sector * 512 : sector * 512 + 512] = data

        async def read_one(at: int, length: int) -> None:
            await read(nodes.node, at, length)

        async with trio.open_nursery() as nursery:
            for sector in rng.sample(range(SIZE // 512), 200):
                nursery.start_soon(write_one, sector, rng.randrange(256))
                at = rng.randrange(SIZE)
                nursery.start_soon(read_one, at, min(rng.randrange(1, 20000), SIZE - at))
        assert await read(nodes.node, 0, SIZE) == model
        assert await nodes.allocated() == set(range(SIZE // CLUSTER))


def test_permissions() -> None:
    driver = CopyOnRead.__new__(CopyOnRead)
    role = ChildRole.FILTERED | ChildRole.PRIMARY
    for needed, shared, want in [
        (Perm.NONE, Perm.ALL, (Perm.WRITE_UNCHANGED, Perm.ALL)),
        (Perm.CONSISTENT_READ, Perm.NONE, (Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED, Perm(4))),
    ]:
        assert driver.child_permissions(role, needed, shared, read_only=True) == want
