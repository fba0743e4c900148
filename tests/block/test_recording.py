"""What the gate notes in dirty bitmaps, on every way that a request can take."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing

from qsd_trio.block.abc import Perm, ReqFlag
from qsd_trio.block.dirty_bitmaps import DirtyBitmap
from qsd_trio.block.io import Node
from qsd_trio.testing.memory import MemoryDriver, node_over

SIZE = 64 * 512


class Mapped(MemoryDriver):
    """Memory whose fast path says yes."""

    def map_write(self, offset: int, length: int) -> object:
        return [(None, offset, length)]  # where does not matter: nobody writes there


def recorded(alignment: int = 1) -> tuple[Node, MemoryDriver, DirtyBitmap]:
    driver = Mapped(SIZE, alignment=alignment)
    node = node_over(driver)
    return node, driver, node.bitmaps.create("b", 512, SIZE)


def dirty(bitmap: DirtyBitmap) -> list[tuple[int, int]]:
    """Return (start, end) of the dirty parts, in pieces of 512 bytes."""
    found = []
    at = bitmap.next_dirty(0, bitmap.size)
    while at < bitmap.size:
        end = bitmap.next_clean(at, bitmap.size)
        found.append((at // 512, -(-end // 512)))
        at = bitmap.next_dirty(end, bitmap.size)
    return found


async def test_each_kind_of_write_is_noted() -> None:
    node, _, bitmap = recorded()
    await node.pwritev(511, [memoryview(b"xx")])
    await node.pwrite_zeroes(5 * 512, 1024)
    await node.pdiscard(10 * 512, 512)
    assert node.map_write(20 * 512 + 1, 512) is not None
    assert node.map_write(20 * 512 + 1, 512) is not None
    assert dirty(bitmap) == [(0, 2), (5, 7), (10, 11), (20, 22)]


async def test_each_of_several_bitmaps_is_marked_if_it_records() -> None:
    node, _, bitmap = recorded()
    coarse = node.bitmaps.create("coarse", 4096, SIZE)
    bitmap.enabled = False
    await node.pwritev(512, [memoryview(b"x")])
    node.map_write(5000, 1)
    bitmap.enabled = True
    node.map_write(0, 1)
    node.bitmaps.remove(coarse)
    node.map_write(SIZE - 1, 1)
    assert dirty(bitmap) == [(0, 1), (63, 64)]
    assert coarse.count() == 2 * 4096


async def test_reads_and_what_does_not_change_the_content_are_not_noted() -> None:
    node, _, bitmap = recorded()
    await node.preadv(0, [memoryview(bytearray(512))])
    await node.pwritev(0, [memoryview(b"x")], ReqFlag.WRITE_UNCHANGED)
    await node.pwrite_zeroes(0, 512, ReqFlag.WRITE_UNCHANGED)
    await node.flush()
    assert dirty(bitmap) == []


async def test_a_discard_that_is_ignored_is_not_noted() -> None:
    node, _, bitmap = recorded()
    ignoring = Node("n", "memory", node.flags.__class__(discard_unmap=False), node._events)
    ignoring.attach_driver(node.driver)
    ignoring.bitmaps.create("b", 512, SIZE)
    await ignoring.pdiscard(0, 512)
    assert dirty(ignoring.bitmaps.find("b")) == dirty(bitmap) == []


@pytest.mark.parametrize("verb", ["pwritev", "pwrite_zeroes", "pdiscard"])
async def test_a_failed_request_may_have_written(verb: str) -> None:
    node, driver, bitmap = recorded()
    driver.fail[verb] = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        if verb == "pwritev":
            await node.pwritev(512, [memoryview(b"x")])
        else:
            await getattr(node, verb)(512, 512)
    assert dirty(bitmap) == [(1, 2)]


async def test_what_is_cleared_while_a_write_runs_is_marked_by_its_end() -> None:
    node, driver, bitmap = recorded()
    driver.hold = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.pwritev, 0, [memoryview(b"x")])
        await trio.testing.wait_all_tasks_blocked()
        bitmap.take()
        driver.hold.set()
    assert dirty(bitmap) == [(0, 1)]


async def test_padding_is_written_too() -> None:
    node, _, bitmap = recorded(alignment=4096)
    await node.pwritev(5000, [memoryview(b"x")])
    assert dirty(bitmap) == [(8, 16)]


async def test_a_write_beyond_the_end_is_noted_in_the_longer_bitmap() -> None:
    node, _, bitmap = recorded()
    assert node.cumulative[0] & Perm.RESIZE
    await node.pwritev(SIZE, [memoryview(b"x")])
    assert node.map_write(SIZE + 1024, 1) is not None
    assert bitmap.size == SIZE + 3 * 512
    assert dirty(bitmap) == [(64, 65), (66, 67)]


async def test_truncation_changes_the_size_and_marks_nothing() -> None:
    node, _, bitmap = recorded()
    await node.truncate(2 * SIZE)
    assert (bitmap.size, dirty(bitmap)) == (2 * SIZE, [])
    node.map_write(2 * SIZE - 1, 1)
    await node.truncate(SIZE)
    assert (bitmap.size, dirty(bitmap)) == (SIZE, [])


async def test_a_readonly_bitmap_keeps_writes_off() -> None:
    node, driver, _ = recorded()
    node.bitmaps.set_readonly(["b"], True)
    assert node.map_write(0, 512) is None
    for write in (
        node.pwritev(0, [memoryview(b"x")]),
        node.pwrite_zeroes(0, 512),
        node.pdiscard(0, 512),
    ):
        with pytest.raises(OSError, match="not permitted"):
            await write
    assert not driver.requests
    node.bitmaps.set_readonly(["b"], False)
    assert node.map_write(0, 512) is not None


async def test_the_highest_offset_is_still_known() -> None:
    node, _, bitmap = recorded()
    node.map_write(0, 4096)
    node.map_write(0, 512)
    assert node.wr_highest_offset == 4096
    bitmap.enabled = False
    node.map_write(0, 8192)
    assert node.wr_highest_offset == 8192
