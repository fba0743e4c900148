"""The refcount table and its blocks: growth, crashes in the middle of it, corrupt tables."""

from __future__ import annotations

import random
import struct

import pytest
import trio

from qsd_trio.block.drivers.qcow2 import layout
from qsd_trio.block.drivers.qcow2.refcounts import Refcounts
from qsd_trio.testing.memory import MemoryDriver, pattern
from qsd_trio.testing.recorder import Journal
from tests.block.drivers.qcow2.kit import Disk, check, make, opened, read, write

BITS = 9
#: What a refcount table of one such cluster describes, with counters of 64 bits: 64 blocks of 64 clusters.
DESCRIBED = 64 * 64 << BITS


_made: list[bytes] = []


async def nearly_full() -> bytes:
    """Return an image whose next clusters need a larger refcount table."""
    if not _made:
        disk = Disk(await make(DESCRIBED + (1 << 20), cluster_bits=BITS, refcount_order=6))
        async with opened(disk) as node:
            refcounts: Refcounts = node.driver.image.metadata.refcounts
            at = 0
            while refcounts.free_index < 64 * 64 - 40:
                await write(node, at, pattern(8 << BITS))
                at += 8 << BITS
        _made.append(bytes(disk.data))
    return _made[0]


@pytest.mark.parametrize("lazy", [False, True])
async def test_crashes_while_the_table_grows(lazy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsd_trio.block.drivers.qcow2.metadata.LAZY_AHEAD", 1 << 16)
    image = await nearly_full()
    before = check(image)
    rng = random.Random(1)
    journal = Journal()
    disk = Disk(image, rng, journal)
    end = DESCRIBED

    async def some(node: object, number: int) -> None:
        for turn in range(6):
            await write(node, end + (number * 6 + turn) * 4096, pattern(4096))
            if turn % 3 == 2:
                await node.flush()

    async with opened(disk, lazy_refcounts=lazy) as node:
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(some, node, number)
        assert len(node.driver.image.metadata.refcounts.table) > 64
    points = 0
    for crash in journal.crashes(rng, 25):
        points += 1
        report = check(crash.images[0])
        assert report.errors == []
        assert report.content[:DESCRIBED] == before.content[:DESCRIBED]
    assert points == 25
    after = check(bytes(disk.data))
    assert (after.errors, after.leaks, after.dirty) == ([], [], False)


async def test_growth_that_is_cancelled_leaves_a_sound_image() -> None:
    image = await nearly_full()
    for turns in range(0, 60, 4):
        disk = Disk(image, random.Random(turns))
        async with opened(disk) as node:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(write, node, DESCRIBED, pattern(64 << BITS))
                    for _ in range(turns):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            await write(node, DESCRIBED + (1 << 19), pattern(100 << BITS))
            assert await read(node, DESCRIBED + (1 << 19), 100 << BITS) == pattern(100 << BITS)
        report = check(bytes(disk.data))
        assert report.errors == []


async def test_a_table_cannot_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(await nearly_full())
    monkeypatch.setattr("qsd_trio.block.drivers.qcow2.refcounts.MAX_REFTABLE_BYTES", 512)
    async with opened(disk) as node:
        with pytest.raises(OSError, match="File too large"):
            await write(node, DESCRIBED, pattern(64 << BITS))
    assert check(bytes(disk.data)).errors == []


async def test_many_entries_that_name_one_block_take_no_memory() -> None:
    """A crafted table of a million entries cannot make us keep a million blocks."""
    image = bytearray(await make(1 << 30, cluster_bits=9))
    (reftable,) = struct.unpack_from(">Q", image, 48)
    block = bytes(image[reftable : reftable + 8])
    clusters = 64
    struct.pack_into(">QI", image, 48, len(image), clusters)
    image += block * (clusters * 64)
    assert clusters << 9 <= layout.MAX_REFTABLE_BYTES
    disk = MemoryDriver(bytes(image))
    async with opened(disk, read_only=True) as node:
        refcounts: Refcounts = node.driver.image.metadata.refcounts
        assert await refcounts.count_used(1 << 40) > 0
        assert await refcounts.end_of_used() > 0
        assert len(refcounts.blocks) <= refcounts.limit
