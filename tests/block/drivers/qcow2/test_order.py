"""Many requests at once, and crashes at any time: what may be on the disk then."""

from __future__ import annotations

import random

import attrs
import pytest
import trio

from qsd_trio.block.abc import ReqFlag
from qsd_trio.block.io import Node
from qsd_trio.testing.memory import memory_node
from tests.block.drivers.qcow2.kit import Disk, check, make, opened, read, write

SECTOR = 512


def stamp(number: int) -> bytes:
    """Return a sector that tells which write it is of; 0: zeroes."""
    return number.to_bytes(8, "little") * (SECTOR // 8)


def stamps(data: bytes) -> list[int]:
    """Return the number of each sector; a mixed sector is -1."""
    answer = []
    for at in range(0, len(data), SECTOR):
        sector = data[at : at + SECTOR]
        number = int.from_bytes(sector[:8], "little")
        answer.append(number if sector == stamp(number) else -1)
    return answer


@attrs.define
class Done:
    """A write (or zeroing) of a sector: when it was under way, and what it wrote."""

    number: int
    start: int
    end: int | None = None


class Workload:
    """Random requests on an image, from several tasks, and what may be read afterwards."""

    def __init__(self, seed: int, sectors: int, unit: int) -> None:
        self.rng = random.Random(seed)
        self.sectors = sectors
        self.unit = unit // SECTOR
        self.clock = 0
        self.number = 0
        self.readers: list[tuple[int, list[set[int]]]] = []  # what reads under way may see
        self.history: list[list[Done]] = [[Done(0, -1, -1)] for _ in range(sectors)]

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    async def run(self, node: Node, steps: int) -> None:
        rng = self.rng
        for _ in range(steps):
            first = rng.randrange(self.sectors)
            if rng.random() < 0.5:
                first = first // self.unit * self.unit
            count = min(rng.choice([1, 1, 2, self.unit, 3 * self.unit]), self.sectors - first)
            kind = rng.choice("wwwwzZdrf")
            if kind == "f":
                await node.flush()
            elif kind == "r":
                await self.check(node, first, count)
            else:
                await self.change(node, kind, first, count)

    async def change(self, node: Node, kind: str, first: int, count: int) -> None:
        if kind == "d":  # only whole units are sure to go
            last = (first + count) // self.unit * self.unit
            first = -(-first // self.unit) * self.unit
            count = last - first
            if count <= 0:
                return
        self.number += 1
        number = self.number if kind == "w" else 0
        mine = []
        start = self.tick()
        for sector in range(first, first + count):
            done = Done(number, start)
            self.history[sector].append(done)
            mine.append(done)
            for start_, seen in self.readers:
                if start_ <= sector < start_ + len(seen):
                    seen[sector - start_].add(number)
        offset, length = first * SECTOR, count * SECTOR
        if kind == "w":
            await write(node, offset, stamp(number) * count, fast=self.rng.random() < 0.4)
        elif kind == "d":
            await node.pdiscard(offset, length)
        else:
            flags = ReqFlag.MAY_UNMAP if kind == "Z" else ReqFlag.NONE
            await node.pwrite_zeroes(offset, length, flags)
        end = self.tick()
        for done in mine:
            done.end = end
        for sector in range(first, first + count):
            self.forget(sector)

    def forget(self, sector: int) -> None:
        """Drop what a later, finished request is sure to have overwritten."""
        entries = self.history[sector]
        newest = max((done.start for done in entries if done.end is not None), default=-1)
        self.history[sector] = [done for done in entries if done.end is None or done.end >= newest]

    def allowed(self, sector: int) -> set[int]:
        return {done.number for done in self.history[sector]}

    async def check(self, node: Node, first: int, count: int) -> None:
        seen = [self.allowed(sector) for sector in range(first, first + count)]
        reader = (first, seen)
        self.readers.append(reader)
        got = stamps(await read(node, first * SECTOR, count * SECTOR))
        self.readers = [other for other in self.readers if other is not reader]
        for at, number in enumerate(got):
            assert number in seen[at], (first + at, number, seen[at])


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("bits", [9, 12, 16])
@pytest.mark.parametrize("seed", range(6))
async def test_overlapping_requests_in_random_order(seed: int, bits: int, backed: bool) -> None:
    """Writes, zeroes and discards of the same clusters, allocating and not (QEMU b8bfb1478d)."""
    sectors = 200 if bits == 9 else 12 << (bits - 9)
    rng = random.Random(seed)
    disk = Disk(await make(sectors * SECTOR, cluster_bits=bits), rng)
    work = Workload(seed, sectors, 1 << bits)
    backing = None
    if backed:
        backing = memory_node(stamp(1 << 40) * (sectors // 2))
        for sector in range(sectors // 2):
            work.history[sector][0].number = 1 << 40
    # Room for two L2 tables: they come and go meanwhile.
    async with opened(disk, backing, l2_cache_size=1024) as node:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(work.run, node, 15)
            await work.check(node, 0, sectors)
        final = stamps(await read(node, 0, sectors * SECTOR))
    below = stamp(1 << 40) * (sectors // 2) if backed else b""
    report = check(bytes(disk.data), below)
    assert (report.errors, report.leaks) == ([], [])
    assert stamps(report.content) == final


@pytest.mark.parametrize("seed", range(6))
async def test_cancelled_requests_leave_a_sound_image(seed: int) -> None:
    rng = random.Random(seed)
    sectors = 96
    disk = Disk(await make(sectors * SECTOR, cluster_bits=12), rng)
    work = Workload(seed, sectors, 4096)

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
            for entries in work.history:  # cancelled ones may have come to anything
                for done in entries:
                    done.end = done.end or work.tick()
            await work.check(node, 0, sectors)
        assert node.driver.image.in_flight == []
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])


@pytest.mark.parametrize(
    ("version", "bits", "order", "sectors"),
    [(3, 12, 4, 96), (2, 12, 4, 96), (3, 9, 6, 500), (2, 9, 4, 500)],
)
async def test_crashes_between_any_two_writes(
    version: int, bits: int, order: int, sectors: int
) -> None:
    """Whatever subset of unflushed writes is lost or torn: no errors, and what was flushed is there."""
    rng = random.Random(bits)
    points = 0
    image = await make(sectors * SECTOR, cluster_bits=bits, version=version, refcount_order=order)
    for seed in range(4):
        disk = Disk(image)
        allowed = [{0} for _ in range(sectors)]

        def crash(disk: Disk = disk, allowed: list[set[int]] = allowed, seed: int = seed) -> None:
            nonlocal points
            if rng.random() < 0.5:
                return
            points += 1
            report = check(disk.crash(rng))
            assert report.errors == []
            for sector, number in enumerate(stamps(report.content)):
                assert number in allowed[sector], (seed, sector, number, allowed[sector])

        disk.on_write = crash
        async with opened(disk, l2_cache_size=1024) as node:
            for number in range(1, 80):
                first = rng.randrange(sectors)
                count = min(rng.choice([1, 2, 8, 17, 40]), sectors - first)
                kind = rng.choice("wwwwzdf")
                if kind == "f":
                    await node.flush()
                    now = stamps(await read(node, 0, sectors * SECTOR))
                    for sector in range(sectors):
                        allowed[sector].clear()
                        allowed[sector].add(now[sector])
                    continue
                for sector in range(first, first + count):
                    allowed[sector].add(number if kind == "w" else 0)
                if kind == "w":
                    await write(
                        node, first * SECTOR, stamp(number) * count, fast=rng.random() < 0.5
                    )
                elif kind == "z":
                    await node.pwrite_zeroes(first * SECTOR, count * SECTOR, ReqFlag.MAY_UNMAP)
                else:
                    await node.pdiscard(first * SECTOR, count * SECTOR)
        disk.on_write = None
        assert check(bytes(disk.data)).leaks == []
    assert points > 100


async def test_a_new_l2_table_is_there_before_the_l1_table_names_it() -> None:
    rng = random.Random(1)
    disk = Disk(await make(1 << 20, cluster_bits=9))
    points = 0

    def crash() -> None:
        nonlocal points
        for _ in range(20):
            points += 1
            assert check(disk.crash(rng)).errors == []

    async with opened(disk, pass_discard_request=False) as node:
        # Leave free clusters with something in them that would make a bad L2 table.
        await write(node, 0, stamp(0x77777777777777) * 40)
        await node.flush()
        await node.pdiscard(0, 40 * SECTOR)
        await node.flush()
        disk.on_write = crash
        for at in range(8):
            await write(node, (at + 1) << 15, stamp(1))
        await node.flush()
    assert points > 100


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
