"""Tables in memory: which stay, which go (cache-clean-interval, refcount-cache-size)."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from qsd_trio.block.drivers.qcow2.metadata import Metadata
from qsd_trio.block.graph import open_block_graph
from qsd_trio.events import EventBus
from qsd_trio.objects.abc import open_object_table
from qsd_trio.qapi import BlockdevOptionsQcow2
from qsd_trio.testing.memory import FakeOpener, MemoryDriver, memory_node, node_over, pattern
from tests.block.drivers.qcow2.kit import Disk, check, make, opened, read, read_fast, write

CLUSTER = 4096
TABLE = 512 * CLUSTER  # what an L2 table of such clusters describes


async def test_tables_nobody_uses_go_after_two_turns() -> None:
    disk = MemoryDriver(await make(8 * TABLE, cluster_bits=12))
    async with opened(disk) as node:
        metadata: Metadata = node.driver.image.metadata
        for at in range(3):
            await write(node, at * TABLE, pattern(CLUSTER))
        await node.flush()
        assert set(metadata.l2) == {0, 1, 2}
        metadata.clean_caches()
        assert set(metadata.l2) == set()
        disk.requests.clear()
        # Asking for one brings it back without I/O, and the fast path has it again.
        assert (await node.block_status(TABLE, CLUSTER)).length
        assert disk.requests == []
        assert set(metadata.l2) == {1}
        metadata.clean_caches()
        await node.block_status(TABLE, CLUSTER)
        await node.block_status(2 * TABLE, CLUSTER)
        assert [name for name, _, _ in disk.requests] == ["preadv"]
        assert await read(node, 0, CLUSTER) == pattern(CLUSTER)


async def test_what_is_dirty_stays() -> None:
    disk = MemoryDriver(await make(8 * TABLE, cluster_bits=12))
    async with opened(disk) as node:
        metadata: Metadata = node.driver.image.metadata
        await write(node, 0, pattern(CLUSTER))
        await write(node, TABLE, pattern(CLUSTER))
        for _ in range(3):
            metadata.clean_caches()
        assert set(metadata.l2) == {0, 1}
        assert metadata.refcounts.blocks
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])


async def test_places_are_known_while_tables_are() -> None:
    disk = Disk(await make(8 * TABLE, cluster_bits=12))
    async with opened(disk, overlap_check=None) as node:
        metadata: Metadata = node.driver.image.metadata
        await write(node, 0, pattern(CLUSTER))
        await node.flush()
        table = metadata.l2_offset(0)
        metadata.clean_caches()
        assert table in metadata.locations


async def test_a_table_that_moved_is_not_taken_from_the_attic() -> None:
    disk = Disk(await make(8 * TABLE, cluster_bits=12))
    async with opened(disk) as node:
        await write(node, 0, pattern(CLUSTER))
        await node.flush()
        metadata: Metadata = node.driver.image.metadata
        metadata.clean_caches()
        await node.truncate(0)
        await node.truncate(TABLE)
        assert await read(node, 0, CLUSTER) == bytes(CLUSTER)
        await write(node, CLUSTER, b"n" * CLUSTER)
        assert await read(node, 0, CLUSTER) == bytes(CLUSTER)


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("seed", range(3))
async def test_cleaning_at_any_time_changes_nothing(seed: int, extended: bool) -> None:
    rng = random.Random(seed)
    bits = 14 if extended else 9
    size = 64 << bits
    disk = Disk(await make(size, cluster_bits=bits, extended=extended), rng)
    model = bytearray(size)
    async with opened(disk, l2_cache_size=2048, l2_cache_entry_size=512) as node:

        async def clean() -> None:
            while True:
                for _ in range(rng.randrange(1, 30)):
                    await trio.lowlevel.checkpoint()
                node.driver.image.metadata.clean_caches()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(clean)
            for number in range(1, 150):
                offset = rng.randrange(size // 512) * 512
                length = min(rng.choice([512, 1 << bits, 5 << bits]), size - offset)
                if rng.random() < 0.5:
                    data = number.to_bytes(2, "little") * (length // 2)
                    await write(node, offset, data, fast=rng.random() < 0.5)
                    model[offset : offset + length] = data
                elif rng.random() < 0.2:
                    await node.flush()
                else:
                    expected = bytes(model[offset : offset + length])
                    assert await read(node, offset, length) == expected
                    assert read_fast(node, offset, length) in (None, expected)
            nursery.cancel_scope.cancel()
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])
    assert report.content == model


async def test_the_graph_cleans(autojump_clock: MockClock) -> None:
    """By the option, 600 seconds without it, never with 0; another after a reopen, none when closed."""
    image = await make(8 * TABLE, cluster_bits=12)
    async with open_object_table() as objects, open_block_graph(EventBus(), objects) as graph:
        for name, interval in [("a", 5), ("b", None), ("c", 0)]:
            opener = FakeOpener({"file": node_over(MemoryDriver(image))})
            options = BlockdevOptionsQcow2(file="file", cache_clean_interval=interval)
            opener.every = graph.timers.every
            driver = await driver_of(opener, options)
            await driver.pwritev(0, [memoryview(pattern(CLUSTER))], 0)
            await driver.flush()
            tables = driver.image.metadata.l2
            await trio.sleep(4)
            assert tables
            await trio.sleep(2)
            assert bool(tables) is (name != "a")
            await trio.sleep(600)
            assert bool(tables) is (name == "c")
            await driver.aclose()
        assert graph.timers.count == 0


async def driver_of(opener: FakeOpener, options: object) -> object:
    from qsd_trio.block.drivers.qcow2 import Qcow2

    return await Qcow2.open(opener, options)


async def test_reopening_changes_the_interval() -> None:
    opener = FakeOpener({"file": memory_node(await make(1 << 20))})
    driver = await driver_of(opener, BlockdevOptionsQcow2(file="file", cache_clean_interval=5))
    assert [seconds for seconds, _ in opener.timers] == [5]
    commit = await driver.reopen(opener, BlockdevOptionsQcow2(file="file", cache_clean_interval=7))
    await commit()
    assert [seconds for seconds, _ in opener.timers] == [7]
    await driver.aclose()
    assert opener.timers == []


async def test_looking_for_free_space_keeps_few_refcount_blocks() -> None:
    """A full image's blocks are passed by, not collected."""
    disk = Disk(await make(2 << 20, cluster_bits=9, refcount_order=6))
    async with opened(disk) as node:
        await write(node, 0, pattern(1 << 20))
    async with opened(disk) as node:
        refcounts = node.driver.image.metadata.refcounts
        await write(node, 1 << 20, pattern(512))
        assert len(refcounts.blocks) <= refcounts.limit + 2
        assert await refcounts.count_used(1 << 30) > (1 << 20) // 512
        assert await refcounts.end_of_used() <= len(disk.data) // 512 + 1
        assert len(refcounts.blocks) <= refcounts.limit + 2
