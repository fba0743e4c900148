"""Images that were not closed: what is repaired at open, what cannot be, and crashes in the middle."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Callable

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd_trio.block.drivers.qcow2 import check as census
from qsd_trio.block.drivers.qcow2.freed import runs
from qsd_trio.block.drivers.qcow2.metadata import Metadata
from qsd_trio.block.drivers.qcow2.refblock import pack, unpack
from qsd_trio.errors import QmpError
from qsd_trio.testing.memory import FakeOpener, MemoryDriver, pattern
from qsd_trio.testing.recorder import Journal
from tests.block.drivers.qcow2.kit import OFFSET, Disk, Report, check, make, opened, read, write

COPIED = 1 << 63
INCOMPATIBLE = 72
DIRTY, CORRUPT = 1, 2
SIZE = 1 << 20


def word(image: bytes | bytearray, at: int) -> int:
    return int.from_bytes(image[at : at + 8], "big")


def put(image: bytearray, at: int, value: int, form: str = ">Q") -> None:
    struct.pack_into(form, image, at, value)


@attrs.frozen
class Layout:
    """Where an image has its structures."""

    image: bytes
    cluster: int
    l1: int
    l2: int
    reftable: int
    refblock: int

    @classmethod
    def of(cls, image: bytes) -> Layout:
        l1, reftable = word(image, 40), word(image, 48)
        cluster = 1 << int.from_bytes(image[20:24], "big")
        return cls(
            image, cluster, l1, word(image, l1) & OFFSET, reftable, word(image, reftable) & OFFSET
        )

    def dirty(self) -> bytearray:
        data = bytearray(self.image)
        data[INCOMPATIBLE + 7] |= DIRTY
        return data


_filled: dict[tuple[int, int], Layout] = {}


async def filled(bits: int = 12, order: int = 4) -> Layout:
    """Return a sound image with data in several places, and free clusters in between."""
    if (bits, order) not in _filled:
        disk = Disk(await make(SIZE, cluster_bits=bits, refcount_order=order))
        async with opened(disk) as node:
            for at in range(0, SIZE, SIZE // 8):
                await write(node, at, pattern(3 << bits))
            await node.pdiscard(SIZE // 4, SIZE // 8)
        _filled[bits, order] = Layout.of(bytes(disk.data))
    return _filled[bits, order]


async def reopened(image: bytes | bytearray, **options: object) -> tuple[bytes, Report]:
    """Open an image for writing and close it; return it and what a check says then."""
    disk = Disk(bytes(image))
    async with opened(disk, **options):
        pass
    return bytes(disk.data), check(bytes(disk.data))


def assert_repaired(report: Report, like: Report) -> None:
    assert report.errors == []
    assert report.leaks == []
    assert not report.dirty
    assert report.content == like.content


def no_refcounts(data: bytearray, at: Layout) -> None:
    data[at.refblock : at.refblock + at.cluster] = bytes(at.cluster)


def all_ones(data: bytearray, at: Layout) -> None:
    data[at.refblock : at.refblock + at.cluster] = b"\xff" * at.cluster


def no_block(data: bytearray, at: Layout) -> None:
    put(data, at.reftable, 0)


def unaligned_block(data: bytearray, at: Layout) -> None:
    put(data, at.reftable, at.refblock + 512)


def block_off_the_end(data: bytearray, at: Layout) -> None:
    put(data, at.reftable, 1 << 50)


def block_in_data(data: bytearray, at: Layout) -> None:
    put(data, at.reftable, word(at.image, at.l2) & OFFSET)


def block_in_the_table(data: bytearray, at: Layout) -> None:
    put(data, at.reftable, at.reftable)


def block_twice(data: bytearray, at: Layout) -> None:
    put(data, at.reftable + 8, at.refblock)


def block_in_the_header(data: bytearray, at: Layout) -> None:
    put(data, at.reftable, 0)
    put(data, at.reftable + 8, 0)


def table_in_l2(data: bytearray, at: Layout) -> None:
    put(data, 48, at.l2)


def table_in_data(data: bytearray, at: Layout) -> None:
    put(data, 48, word(at.image, at.l2) & OFFSET)


def table_off_the_end(data: bytearray, at: Layout) -> None:
    put(data, 48, 1 << 40)


def no_copied_flags(data: bytearray, at: Layout) -> None:
    put(data, at.l1, at.l2)
    for entry in range(at.l2, at.l2 + at.cluster, 8):
        put(data, entry, word(data, entry) & ~COPIED)


FAULTS: list[Callable[[bytearray, Layout], None]] = [
    no_refcounts,
    all_ones,
    no_block,
    unaligned_block,
    block_off_the_end,
    block_in_data,
    block_in_the_table,
    block_twice,
    block_in_the_header,
    table_in_l2,
    table_in_data,
    table_off_the_end,
    no_copied_flags,
]


@pytest.mark.parametrize("order", [0, 4, 6])
@pytest.mark.parametrize("fault", FAULTS)
async def test_faults_of_the_refcounts_are_repaired(
    fault: Callable[[bytearray, Layout], None], order: int
) -> None:
    good = await filled(order=order)
    data = good.dirty()
    fault(data, good)
    _, report = await reopened(data)
    assert_repaired(report, check(good.image))


async def test_a_sound_image_is_only_marked_clean() -> None:
    good = await filled()
    image, _ = await reopened(good.dirty())
    assert image == good.image


async def test_nothing_is_repaired_if_nothing_is_written() -> None:
    data = (await filled()).dirty()
    no_refcounts(data, (await filled()))
    disk = Disk(bytes(data))
    async with opened(disk, read_only=True) as node:
        assert await read(node, 0, SIZE) == check((await filled()).image).content
        assert (await node.driver.image_info())["dirty-flag"] is True
    assert disk.data == data


async def test_what_a_clean_image_says_is_believed() -> None:
    data = bytearray((await filled()).image)
    put(data, (await filled()).refblock + 2 * 200, 1, ">H")
    image, report = await reopened(data)
    assert image == data
    assert report.leaks == [200]


@pytest.mark.parametrize("order", range(7))
@given(data=st.data())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_refcounts_are_repaired(order: int, data: st.DataObject) -> None:
    good = trio.run(filled, 9, order)
    image = good.dirty()
    where = st.integers(0, good.cluster - 1)
    for at in data.draw(st.lists(where, min_size=1, max_size=20)):
        image[good.refblock + at] = data.draw(st.integers(0, 255))
    for at in data.draw(st.lists(where, max_size=3)):
        image[good.reftable + at] = data.draw(st.sampled_from([0, 1, 2, 0x80, 0xFF]))

    async def repair() -> Report:
        return (await reopened(image))[1]

    assert_repaired(trio.run(repair), check(good.image))


async def test_clusters_used_twice_are_shared() -> None:
    good = await filled()
    data = good.dirty()
    put(data, good.l2, word(data, good.l2 + 8))
    disk = Disk(bytes(data))
    async with opened(disk) as node:
        before = await read(node, 0, 2 * good.cluster)
        await write(node, 0, b"x" * 512)  # into a copy: the other one stays
        after = await read(node, 0, 2 * good.cluster)
    assert after == b"x" * 512 + before[512:]
    report = check(bytes(disk.data))
    assert not report.dirty
    # The copy's other half is alone now, and its flag does not say so: that costs a copy, no more.
    assert all("twice" in error or "COPIED" in error for error in report.errors)
    assert report.leaks == []


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        ("data unaligned", 0x200),
        ("data off the end", 1 << 50),
        ("L2 unaligned", 0x200),
        ("L2 off the end", 1 << 50),
        ("too wide", 0),
    ],
)
async def test_what_cannot_be_repaired_leaves_the_dirty_bit(fault: str, wrong: int) -> None:
    good = await filled(order=0 if fault == "too wide" else 4)
    data = good.dirty()
    no_refcounts(data, good)
    at = good.l1 if fault.startswith("L2") else good.l2
    put(data, at, word(data, at) | wrong)
    if fault == "too wide":
        put(data, good.l2, word(data, good.l2 + 8))
    disk = Disk(bytes(data))
    async with opened(disk):
        assert word(disk.data, INCOMPATIBLE) == DIRTY
    # The real daemon clears it when it closes an image, whatever it found.
    assert word(disk.data, INCOMPATIBLE) == 0


async def test_a_zero_cluster_with_an_unaligned_place_gives_it_up() -> None:
    good = await filled()
    data = good.dirty()
    put(data, good.l2, word(data, good.l2) | 0x200 | 1)
    disk = Disk(bytes(data))
    async with opened(disk) as node:
        assert word(disk.data, INCOMPATIBLE) == 0
        assert word(disk.data, good.l2) == 1
        assert await read(node, 0, good.cluster) == bytes(good.cluster)
    assert check(bytes(disk.data)).leaks == []


async def test_leaked_clusters_are_discarded() -> None:
    good = await filled()
    data = good.dirty()
    end = len(data)
    put(data, good.refblock + 2 * (end // good.cluster), 1, ">H")
    data += b"?" * good.cluster
    image, report = await reopened(data)
    assert_repaired(report, check(good.image))
    assert image[end:] == bytes(good.cluster)


@pytest.mark.parametrize("fault", [no_refcounts, no_block, table_in_data, no_copied_flags])
async def test_crashes_during_a_repair(fault: Callable[[bytearray, Layout], None]) -> None:
    """It is repaired by the next open, whatever of the first repair is lost."""
    good = await filled()
    data = good.dirty()
    fault(data, good)
    journal = Journal()
    disk = Disk(bytes(data), random.Random(1), journal)
    async with opened(disk):
        pass
    points = 0
    for crash in journal.crashes(random.Random(2), 40):
        points += 1
        _, report = await reopened(crash.images[0])
        assert_repaired(report, check(good.image))
    assert points > 10


@pytest.mark.parametrize(
    ("request_", "number", "text"),
    [
        ("pwritev", errno.EIO, "Could not repair dirty image: Input/output error"),
        ("flush", errno.ENOSPC, "Could not repair dirty image: No space left on device"),
    ],
)
async def test_a_repair_that_fails(request_: str, number: int, text: str) -> None:
    data = (await filled()).dirty()
    no_refcounts(data, (await filled()))
    driver = MemoryDriver(bytes(data))
    driver.fail[request_] = number
    with pytest.raises(QmpError) as caught:
        async with opened(driver):
            pass
    assert str(caught.value) == text
    assert word(driver.data, INCOMPATIBLE) == DIRTY


async def test_reopening_for_writing_repairs() -> None:
    good = await filled()
    data = good.dirty()
    no_refcounts(data, good)
    disk = Disk(bytes(data))
    async with opened(disk, read_only=True) as node:
        await read(node, 0, SIZE)
        assert word(disk.data, INCOMPATIBLE) == DIRTY
        driver = node.driver
        commit = await driver.reopen(FakeOpener(), node_options())
        await commit()
        assert word(disk.data, INCOMPATIBLE) == 0
        await driver.pwritev(SIZE // 2 + 4 * good.cluster, [memoryview(b"y" * 512)], 0)
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])


def node_options() -> object:
    from qsd_trio.qapi import BlockdevOptionsQcow2

    return BlockdevOptionsQcow2(file="file")


async def test_a_table_is_read_once_however_often_it_is_referred_to() -> None:
    """A crafted L1 table of thousands of entries cannot make a repair take its time."""
    good = Layout.of(await make(1 << 40, cluster_bits=16))
    data = good.dirty()
    put(data, good.l1, len(data) | COPIED)
    for entry in range(good.l1, good.l1 + 8 * 2048, 8):
        put(data, entry, len(data))
    data += struct.pack(">Q", COPIED | (len(data) + 65536)) * 8192 + bytes(65536)
    driver = MemoryDriver(bytes(data))
    async with opened(driver):
        pass
    reads = [request for request in driver.requests if request[0] == "preadv"]
    assert len(reads) < 50
    assert word(driver.data, INCOMPATIBLE) == 0


async def test_a_file_of_too_many_clusters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "MAX_CLUSTERS", 10)
    with pytest.raises(QmpError, match="Could not repair dirty image: File too large"):
        await reopened((await filled()).dirty())


async def test_the_loop_goes_on_during_a_repair() -> None:
    """A checkpoint at least every STEP entries."""
    disk = Disk(await make(1 << 30, cluster_bits=9))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with opened(disk) as node, trio.open_nursery() as nursery:
        metadata: Metadata = node.driver.image.metadata
        nursery.start_soon(count)
        await census.take(metadata)
        nursery.cancel_scope.cancel()
        assert turns >= len(metadata.l1) // census.STEP


@pytest.mark.parametrize("order", range(7))
def test_counters_are_packed_as_on_disk(order: int) -> None:
    rng = random.Random(order)
    data = rng.randbytes(512)
    counters = unpack(data, order)
    assert len(counters) == 4096 >> order
    assert pack(counters, order) == data
    if order == 0:
        assert counters[:8].tolist() == [data[0] >> bit & 1 for bit in range(8)]


def test_runs() -> None:
    assert list(runs([])) == []
    assert list(runs([3, 4, 5, 9, 11, 12])) == [(3, 3), (9, 1), (11, 2)]
