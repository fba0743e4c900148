"""What discards do to the image file: discard-no-unref and pass-discard-request."""

from __future__ import annotations

import random

import pytest
import trio

from qsd_trio.block.abc import SECTOR, ReqFlag
from qsd_trio.errors import QmpError
from qsd_trio.testing.guest import Guest
from qsd_trio.testing.memory import memory_node, pattern
from qsd_trio.testing.recorder import Journal
from tests.block.drivers.qcow2.kit import OFFSET, Disk, check, make, opened, read, write
from tests.block.drivers.qcow2.workload import Workload

COPIED = 1 << 63
CLUSTER = 4096


def hosts(disk: Disk) -> dict[int, int]:
    """Return the host offset of each guest cluster that has one."""
    entries = check(bytes(disk.data)).entries
    return {number: entry & OFFSET for number, entry in entries.items() if entry & OFFSET}


async def test_version_2_has_no_zero_clusters_to_keep_a_place_with() -> None:
    disk = Disk(await make(1 << 20, version=2))
    with pytest.raises(QmpError) as caught:
        async with opened(disk, discard_no_unref=True):
            pass
    assert str(caught.value) == "discard-no-unref is only supported since qcow2 version 3"


@pytest.mark.parametrize("how", ["discard", "zeroes"])
@pytest.mark.parametrize("passed", [False, True])
@pytest.mark.parametrize("extended", [False, True])
async def test_clusters_keep_their_place(how: str, passed: bool, extended: bool) -> None:
    bits = 14 if extended else 12
    size = 1 << bits
    disk = Disk(await make(1 << 20, cluster_bits=bits, extended=extended))
    options = {"discard_no_unref": True, "pass_discard_request": passed}
    async with opened(disk, **options) as node:
        await write(node, 0, pattern(8 * size))
        await node.flush()
        before = hosts(disk)
        if how == "discard":
            await node.pdiscard(2 * size, 4 * size)
        else:
            await node.pwrite_zeroes(2 * size, 4 * size, ReqFlag.MAY_UNMAP)
        await node.flush()
        assert hosts(disk) == before
        expected = pattern(8 * size)[: 2 * size] + bytes(4 * size) + pattern(8 * size)[6 * size :]
        assert await read(node, 0, 8 * size) == expected
        in_file = bytes(disk.data[before[2] : before[2] + 4 * size])
        assert any(in_file) is not passed
        # Writing finds the place again, and all of a cluster reads right.
        await write(node, 3 * size, b"w" * 512, fast=True)
        await node.flush()
        assert hosts(disk) == before
        assert await read(node, 3 * size, size) == b"w" * 512 + bytes(size - 512)
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])


async def test_zeroes_that_must_not_unmap_leave_the_data_in_the_file() -> None:
    disk = Disk(await make(1 << 20, cluster_bits=12))
    async with opened(disk, discard_no_unref=True, pass_discard_request=True) as node:
        await write(node, 0, pattern(CLUSTER))
        await node.pwrite_zeroes(0, CLUSTER, ReqFlag.NONE)
        host = (await node.block_status(0, CLUSTER)).offset
        assert disk.data[host : host + CLUSTER] == pattern(CLUSTER)
        assert await read(node, 0, CLUSTER) == bytes(CLUSTER)


async def test_a_cluster_without_a_place_gets_none() -> None:
    disk = Disk(await make(1 << 20, cluster_bits=12))
    async with opened(disk, memory_node(pattern(1 << 20)), discard_no_unref=True) as node:
        await node.pdiscard(0, CLUSTER)
        assert await read(node, 0, CLUSTER) == bytes(CLUSTER)
    assert check(bytes(disk.data)).entries == {0: 1}


async def test_shrinking_frees_all_the_same() -> None:
    disk = Disk(await make(1 << 20, cluster_bits=12))
    async with opened(disk, discard_no_unref=True) as node:
        await write(node, 0, pattern(1 << 20))
        await node.truncate(CLUSTER)
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])
    assert list(hosts(disk)) == [0]


@pytest.mark.parametrize("seed", range(4))
async def test_a_write_never_meets_the_discard_of_its_place(seed: int) -> None:
    """Overlapping requests in random order, on clusters that are discarded in the file."""
    rng = random.Random(seed)
    journal = Journal()
    sectors = 96
    disk = Disk(await make(sectors * SECTOR, cluster_bits=12), rng, journal)
    work = Workload(rng, Guest(journal, sectors), CLUSTER, "wwwdZr")
    async with opened(disk, discard_no_unref=True, pass_discard_request=True) as node:
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(work.run, node, 25)
        await work.check(node, 0, sectors)
        final = await read(node, 0, sectors * SECTOR)
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])
    assert report.content == final
