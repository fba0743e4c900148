"""Recorded disks: what a flush covers, and what crashes may leave."""

from __future__ import annotations

import errno
import random

import pytest
import trio

from qsd_trio.block.abc import SECTOR
from qsd_trio.testing.memory import node_over
from qsd_trio.testing.recorder import Journal, RecordingDisk, Truncate

A, B, C = (letter * SECTOR for letter in (b"a", b"b", b"c"))
ZERO = bytes(SECTOR)


def images(disk: RecordingDisk, position: int | None = None) -> set[bytes]:
    """Return what crashes may leave, of many tries; at one position, or at the end."""
    if position is None:
        position = 1 + max(at for at, entry in enumerate(disk.journal.entries) if entry)
    crashes = disk.journal.crashes(random.Random(1), 2000)
    return {crash.images[0] for crash in crashes if crash.position == position}


async def test_a_crash_leaves_any_part_of_what_was_not_flushed() -> None:
    disk = RecordingDisk(ZERO * 3)
    node = node_over(disk)
    await node.pwritev(0, [memoryview(A + B)])
    await node.pwritev(SECTOR, [memoryview(C)])
    first = {ZERO, A}
    second = {ZERO, B, C}
    assert images(disk) == {one + two + ZERO for one in first for two in second}
    assert images(disk, 1) == {one + two + ZERO for one in first for two in second - {C}}
    await node.flush()
    assert images(disk) == {A + C + ZERO}
    await node.pdiscard(0, 2 * SECTOR)
    assert images(disk) == {one + two + ZERO for one in (A, ZERO) for two in (C, ZERO)}


async def test_a_flush_covers_what_had_returned_when_it_began() -> None:
    disk = RecordingDisk(ZERO, random.Random(3))
    node = node_over(disk)
    async with trio.open_nursery() as nursery:
        disk.on_write = lambda: nursery.start_soon(disk.flush)  # the write has not returned yet
        await node.pwritev(0, [memoryview(A)])
        disk.on_write = None
    assert disk.flushes == 1
    change = disk.journal.changes[0]
    assert change.ended is not None
    assert images(disk) == {ZERO, A}
    await node.flush()
    assert images(disk) == {A}


async def test_what_was_overwritten_does_not_come_back() -> None:
    """A write that has not returned cannot undo a later one that a flush covered."""
    disk = RecordingDisk(ZERO * 2)
    disk.store(0, A + A)
    slow = disk.journal.changes[0]
    disk.store(0, B)
    await disk.flush()
    slow.ended = disk.journal.now()  # only now
    assert images(disk) == {B + A}
    disk.store(SECTOR, C)
    assert images(disk) == {B + A, B + C}


async def test_lengths_may_be_lost_as_well() -> None:
    disk = RecordingDisk(A)
    node = node_over(disk)
    await node.truncate(0)
    await node.pwritev(SECTOR, [memoryview(B)])
    assert images(disk) == {b"", A, ZERO + B, A + B}
    await node.pwrite_zeroes(2 * SECTOR, SECTOR)
    assert isinstance(disk.journal.changes[-2], Truncate)
    await node.flush()
    assert images(disk) == {ZERO + B + ZERO}


async def test_disks_of_a_journal_are_flushed_apart() -> None:
    journal = Journal()
    one, two = (RecordingDisk(ZERO, journal=journal) for _ in range(2))
    node = node_over(two)
    await node_over(one).pwritev(0, [memoryview(A)])
    await node.pwritev(0, [memoryview(B)])
    await node.flush()
    last = [crash.images for crash in journal.crashes(random.Random(1), 300)][-80:]
    assert set(last) == {(ZERO, B), (A, B)}


async def test_extents_are_recorded_too() -> None:
    disk = RecordingDisk(ZERO)
    extents = node_over(disk).map_write(0, SECTOR)
    assert extents is not None
    file, at, _ = extents[0]
    assert file is not None
    assert file.write_now([memoryview(A)], at)
    assert images(disk) == {ZERO, A}
    disk.fast_writes = False
    assert not file.write_now([memoryview(B)], at)
    buffer = bytearray(SECTOR)
    assert file.read_now([memoryview(buffer)], 0) == SECTOR
    assert buffer == A


async def test_a_full_disk() -> None:
    disk = RecordingDisk(max_length=SECTOR)
    with pytest.raises(OSError, match="File too large") as caught:
        await node_over(disk).pwritev(1, [memoryview(A)])
    assert caught.value.errno == errno.EFBIG
    assert disk.journal.changes == []


async def test_as_many_crashes_as_wanted_in_the_order_of_time() -> None:
    disk = RecordingDisk(ZERO)
    for _ in range(5):
        disk.store(0, A)
    journal = disk.journal
    assert [crash.position for crash in journal.crashes(random.Random(1))] == [1, 3, 5, 7, 9]
    for count in (0, 1, 5, 13):
        positions = [crash.position for crash in journal.crashes(random.Random(1), count)]
        assert len(positions) == count
        assert positions == sorted(positions)
    assert list(Journal().crashes(random.Random(1), 7)) == []
