"""Lazy refcounts: fewer writes and flushes under the dirty bit, and what a crash leaves then."""

from __future__ import annotations

import errno
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio

from qsd_trio.block.abc import SECTOR
from qsd_trio.block.drivers.qcow2 import metadata
from qsd_trio.block.io import Node
from qsd_trio.qapi import BlockdevOptionsQcow2
from qsd_trio.testing.guest import Guest, stamp
from qsd_trio.testing.memory import FakeOpener, MemoryDriver, memory_node, pattern
from qsd_trio.testing.recorder import Journal
from tests.block.drivers.qcow2.kit import Disk, check, make, opened, read, write
from tests.block.drivers.qcow2.workload import Workload
from tests.peers import requires

DIRTY_AT = 79
BELOW = 1 << 40
AHEAD = 64 << 10


@pytest.fixture(autouse=True)
def _short_reach(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(metadata, "LAZY_AHEAD", AHEAD)
    return


async def write_and_flush(node: Node, count: int) -> None:
    for at in range(count):
        await write(node, at << 12, pattern(4096), fast=at > 0)
        await node.flush()


async def test_refcounts_wait_for_the_close() -> None:
    disk = Disk(await make(1 << 20, cluster_bits=12))
    async with opened(disk, lazy_refcounts=True) as node:
        await node.flush()
        assert disk.data[DIRTY_AT] == 0
        await write_and_flush(node, 10)
        assert disk.data[DIRTY_AT] == 1
        before = check(bytes(disk.data))
        assert before.dirty
        assert (await node.driver.image_info())["dirty-flag"] is True
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks, report.dirty) == ([], [], False)
    assert report.content[: 10 << 12] == pattern(4096) * 10
    # And the same by what qemu-img calls a check: wrong refcounts while it was open.
    assert any(before.entries)


async def test_what_is_not_written_yet_makes_the_image_dirty_already() -> None:
    """As the real daemon shows it, which sets the bit when it allocates."""
    async with opened(Disk(await make(1 << 20)), lazy_refcounts=True) as node:
        assert (await node.driver.image_info())["dirty-flag"] is False
        await write(node, 0, b"x" * 512)
        assert (await node.driver.image_info())["dirty-flag"] is True


async def flushes(lazy: bool) -> int:
    disk = MemoryDriver(await make(1 << 22, cluster_bits=12))
    async with opened(disk, lazy_refcounts=lazy) as node:
        await write_and_flush(node, 2)
        before = sum(name == "flush" for name, _, _ in disk.requests)
        await write_and_flush(node, 40)
        return sum(name == "flush" for name, _, _ in disk.requests) - before


async def test_allocating_writes_cost_fewer_flushes() -> None:
    strict, lazy = await flushes(lazy=False), await flushes(lazy=True)
    assert strict >= 78
    assert lazy <= 45  # one each, and one when the file is made longer


async def test_the_file_is_as_long_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    for lazy in (False, True):
        disk = Disk(await make(1 << 20, cluster_bits=12))
        async with opened(disk, lazy_refcounts=lazy) as node:
            await write_and_flush(node, 10)
        lengths.append(len(disk.data))
    assert lengths[0] == lengths[1]


async def test_a_file_that_cannot_be_made_longer() -> None:
    disk = MemoryDriver(await make(1 << 20, cluster_bits=12))
    async with opened(disk, lazy_refcounts=True) as node:
        disk.fail["truncate"] = errno.EFBIG
        await write_and_flush(node, 10)
        del disk.fail["truncate"]
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks, report.dirty) == ([], [], False)


@pytest.mark.parametrize("how", ["read-only", "lazy off"])
async def test_reopening_makes_the_image_clean(how: str) -> None:
    disk = Disk(await make(1 << 20, cluster_bits=12))
    async with opened(disk, lazy_refcounts=True) as node:
        await write_and_flush(node, 10)
        options = BlockdevOptionsQcow2(file="file", lazy_refcounts=how == "read-only")
        opener = FakeOpener(read_only=how == "read-only")
        commit = await node.driver.reopen(opener, options)
        await commit()
        report = check(bytes(disk.data))
        assert (report.errors, report.leaks, report.dirty) == ([], [], False)
        if how == "lazy off":
            await write(node, 1 << 19, b"x" * 4096)
            await node.flush()
            report = check(bytes(disk.data))
            assert (report.errors, report.leaks, report.dirty) == ([], [], False)


async def test_more_refcount_blocks_than_the_cache_holds() -> None:
    disk = Disk(await make(1 << 22, cluster_bits=9, refcount_order=6))
    async with opened(disk, lazy_refcounts=True, l2_cache_size=1024) as node:
        for at in range(0, 1 << 21, 4096):
            await write(node, at, pattern(4096), fast=True)
            assert len(node.driver.image.metadata.refcounts.blocks) <= 20
        assert disk.data[DIRTY_AT] == 1
        assert await read(node, 0, 1 << 21) == pattern(4096) * 512
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks, report.dirty) == ([], [], False)


@attrs.frozen
class Case:
    """A kind of image, and what is done to it."""

    id: str
    sectors: int
    bits: int
    order: int = 4
    backed: bool = False
    kinds: str = "wwwwwzZdf"


CASES = [
    Case("4 KiB clusters", 96, 12),
    Case("512-byte clusters", 400, 9, order=6),
    Case("64 KiB clusters", 512, 16),
    Case("1-bit refcounts", 96, 12, order=0),
    Case("backing file", 96, 12, backed=True),
    Case("appended", 200, 12, kinds="wf"),
]


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
@pytest.mark.parametrize("seed", range(2))
async def test_crashes(case: Case, seed: int) -> None:
    """The next open repairs: no error and no leak is left, and what was flushed is there."""
    rng = random.Random(f"{case.id} {seed}")
    journal = Journal()
    image = await make(case.sectors * SECTOR, cluster_bits=case.bits, refcount_order=case.order)
    disk = Disk(image, rng, journal)
    guest = Guest(journal, case.sectors, [BELOW] * (case.sectors // 2) if case.backed else [])
    work = Workload(rng, guest, 1 << case.bits, case.kinds)
    below = stamp(BELOW) * (case.sectors // 2) if case.backed else b""

    def backing() -> Node | None:
        return memory_node(below) if case.backed else None

    async with opened(disk, backing(), l2_cache_size=1024, lazy_refcounts=True) as node:
        # From here on the image is dirty, whatever trio does first of what follows.
        await work.change(node, "w", 0, 1)
        await node.flush()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(work.run, node, 20)
    dirty = 0
    for crash in journal.crashes(rng, 25):
        left = crash.images[0]
        dirty += left[DIRTY_AT]
        assert check(left, below).errors == []
        again = Disk(left)
        async with opened(again, backing()) as node:
            guest.check_crash(crash.position, await read(node, 0, node.getlength()))
        report = check(bytes(again.data), below)
        assert (report.errors, report.dirty) == ([], False)
        if left[DIRTY_AT]:
            assert report.leaks == []
    assert dirty > 10


@requires("qemu-img")
def test_qemu_img_repairs_what_a_crash_left(tmp_path: Path) -> None:
    journal = Journal()
    rng = random.Random(1)

    async def work() -> None:
        disk = Disk(await make(1 << 20, cluster_bits=12), rng, journal)
        async with opened(disk, lazy_refcounts=True) as node:
            await write_and_flush(node, 40)

    trio.run(work)
    path = tmp_path / "image"
    dirty = 0
    for crash in journal.crashes(rng, 12):
        path.write_bytes(crash.images[0])
        dirty += crash.images[0][DIRTY_AT]
        done = subprocess.run(
            ["qemu-img", "check", "-q", "-r", "all", path], timeout=30, check=False
        )
        assert done.returncode == 0
        ours = check(crash.images[0])
        assert check(path.read_bytes()).content == ours.content
    assert dirty > 5
