"""Crashes at any moment: the image opens, what was flushed is there, and nothing worse than leaks is found.

Each case is a workload whose journal gives POINTS crashed images; `--crash-points=N` looks at N of each case.
"""

from __future__ import annotations

import random

import attrs
import pytest
import trio

from qsd_trio.block.abc import SECTOR
from qsd_trio.block.io import Node
from qsd_trio.testing.guest import Guest, stamp
from qsd_trio.testing.memory import memory_node
from qsd_trio.testing.recorder import Journal, RecordingDisk
from tests.block.drivers.qcow2.kit import check, make, opened, read, write
from tests.block.drivers.qcow2.workload import Workload

BELOW = 1 << 40  # the stamp of the backing file


@attrs.frozen
class Case:
    """A kind of image, and what is done to it."""

    id: str
    sectors: int
    bits: int
    version: int = 3
    order: int = 4
    backed: bool = False
    kinds: str = "wwwwwzZdf"
    tasks: int = 3


CASES = [
    Case("v3", 96, 12),
    Case("v2", 96, 12, version=2),
    Case("512-byte clusters", 400, 9, order=6),
    Case("512-byte clusters, v2", 400, 9, version=2),
    Case("64 KiB clusters", 512, 16),
    Case("1-bit refcounts", 96, 12, order=0),
    Case("backing file", 96, 12, backed=True),
    Case("backing file, v2", 96, 12, version=2, backed=True, kinds="wwwwwzZf"),
    Case("resize", 200, 9, kinds="wwwwwzZdfs", tasks=1),
    Case("resize, backing file", 200, 9, kinds="wwwwwzZdfs", tasks=1, backed=True),
]
POINTS = 150


def test_there_are_thousands_of_crash_points() -> None:
    assert len(CASES) * POINTS >= 1000


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
async def test_crashes(case: Case, request: pytest.FixtureRequest) -> None:
    wanted = request.config.getoption("--crash-points")
    points = 0
    seed = 0
    while points < wanted:
        count = min(wanted - points, POINTS // 3)
        points += await crash_a_workload(case, seed, count)
        seed += 1
    assert points >= wanted


async def crash_a_workload(case: Case, seed: int, count: int) -> int:
    """Make random requests, then look at ``count`` crashes; return how many they were."""
    rng = random.Random(f"{case.id} {seed}")
    journal = Journal()
    below = [BELOW] * (case.sectors // 2) if case.backed else []
    disk = RecordingDisk(
        await make(
            case.sectors * SECTOR,
            cluster_bits=case.bits,
            version=case.version,
            refcount_order=case.order,
        ),
        rng,
        journal,
    )
    guest = Guest(journal, case.sectors, below)
    work = Workload(rng, guest, 1 << case.bits, case.kinds)
    async with opened(disk, backing_of(case), l2_cache_size=1024) as node:
        async with trio.open_nursery() as nursery:
            for _ in range(case.tasks):
                nursery.start_soon(work.run, node, 60 // case.tasks)
    seen = 0
    for crash in journal.crashes(rng, count):
        seen += 1
        await look(case, crash.images[0], guest, crash.position)
    return seen


def backing_of(case: Case) -> Node | None:
    return memory_node(stamp(BELOW) * (case.sectors // 2)) if case.backed else None


async def look(case: Case, image: bytes, guest: Guest, position: int) -> None:
    """Open what a crash left, read it, write to it; check it before and after."""
    backing = stamp(BELOW) * (case.sectors // 2) if case.backed else b""
    found = check(image, backing)
    assert found.errors == []
    disk = RecordingDisk(image)
    async with opened(disk, backing_of(case)) as node:
        content = await read(node, 0, node.getlength())
        assert content == found.content
        guest.check_crash(position, content)
        await write(node, 0, stamp(1) * 2)
    after = check(bytes(disk.data), backing)
    assert after.errors == []
    assert after.content == stamp(1) * 2 + content[1024:]
