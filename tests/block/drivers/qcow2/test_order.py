"""Many requests at once, also cancelled ones: what is read, and what may be on the disk then."""

from __future__ import annotations

import random

import pytest
import trio

from qsd_trio.block.abc import SECTOR, ReqFlag
from qsd_trio.block.io import Node
from qsd_trio.testing.guest import Guest, stamp, stamps
from qsd_trio.testing.memory import memory_node
from tests.block.drivers.qcow2.kit import Disk, check, make, opened, read, write
from tests.block.drivers.qcow2.workload import Workload


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("bits", [9, 12, 16])
@pytest.mark.parametrize("seed", range(6))
async def test_overlapping_requests_in_random_order(seed: int, bits: int, backed: bool) -> None:
    """Writes, zeroes and discards of the same clusters, allocating and not (QEMU b8bfb1478d)."""
    sectors = 200 if bits == 9 else 12 << (bits - 9)
    rng = random.Random(seed)
    disk = Disk(await make(sectors * SECTOR, cluster_bits=bits), rng)
    below = stamp(1 << 40) * (sectors // 2) if backed else b""
    work = Workload(rng, Guest(disk.journal, sectors, stamps(below)), 1 << bits)
    backing = memory_node(below) if backed else None
    # Room for two L2 tables: they come and go meanwhile.
    async with opened(disk, backing, l2_cache_size=1024) as node:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(work.run, node, 15)
            await work.check(node, 0, sectors)
        final = stamps(await read(node, 0, sectors * SECTOR))
    report = check(bytes(disk.data), below)
    assert (report.errors, report.leaks) == ([], [])
    assert stamps(report.content) == final


@pytest.mark.parametrize("seed", range(6))
async def test_cancelled_requests_leave_a_sound_image(seed: int) -> None:
    rng = random.Random(seed)
    sectors = 96
    disk = Disk(await make(sectors * SECTOR, cluster_bits=12), rng)
    work = Workload(rng, Guest(disk.journal, sectors), 4096)

    async def until_cancelled(node: Node, turns: int) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work.run, node, 200)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

    async with opened(disk) as node:
        for _ in range(5):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(until_cancelled, node, rng.randrange(60))
            await work.check(node, 0, sectors)
        assert node.driver.image.in_flight == []
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])


async def test_a_new_l2_table_is_there_before_the_l1_table_names_it() -> None:
    rng = random.Random(1)
    disk = Disk(await make(1 << 20, cluster_bits=9))
    async with opened(disk, pass_discard_request=False) as node:
        # Leave free clusters with something in them that would make a bad L2 table.
        await write(node, 0, stamp(0x77777777777777) * 40)
        await node.flush()
        await node.pdiscard(0, 40 * SECTOR)
        await node.flush()
        for at in range(8):
            await write(node, (at + 1) << 15, stamp(1))
        await node.flush()
    points = 0
    for crash in disk.journal.crashes(rng, 200):
        points += 1
        assert check(crash.images[0]).errors == []
    assert points == 200


async def test_a_cluster_that_is_still_written_to_is_not_used_again() -> None:
    """A discard during a write must not let another guest cluster have the host cluster meanwhile."""
    disk = Disk(await make(1 << 20, cluster_bits=12))
    go = trio.Event()
    real = Disk.pwritev

    async def held(self: Disk, offset: int, iov: list[memoryview], flags: ReqFlag) -> None:
        if bytes(iov[0][:1]) == b"H":
            await go.wait()
        await real(self, offset, iov, flags)

    Disk.pwritev = held
    try:
        async with opened(disk) as node, trio.open_nursery() as nursery:
            await write(node, 0, b"a" * 8192)
            nursery.start_soon(write, node, 0, b"H" * 4096)
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            await node.pdiscard(0, 8192)
            await node.flush()
            for at in range(4):
                await write(node, 65536 + at * 4096, b"b" * 4096)
            go.set()
            for _ in range(5):
                await trio.lowlevel.checkpoint()
            assert await read(node, 65536, 4 * 4096) == b"b" * 4 * 4096
    finally:
        Disk.pwritev = real
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])


async def test_a_flush_serves_all_who_wait_for_it() -> None:
    disk = Disk(await make(1 << 20), random.Random(1))
    async with opened(disk) as node:
        for at in range(8):
            await write(node, at << 16, stamp(1))
        disk.flushes = 0
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(node.driver.image.metadata.write_back)
        assert disk.flushes <= 4
