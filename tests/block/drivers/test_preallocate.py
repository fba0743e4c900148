"""block/drivers/preallocate.py."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from qsd_trio.block.abc import ChildRole, Perm, ReqFlag
from qsd_trio.block.drivers.file import File
from qsd_trio.block.drivers.preallocate import Preallocate, Steps
from qsd_trio.block.io import Node
from qsd_trio.errors import QmpError
from qsd_trio.qapi import BlockdevOptionsFile, BlockdevOptionsPreallocate
from qsd_trio.testing.block_drivers import check_block_driver, read, write
from qsd_trio.testing.memory import FakeOpener, MemoryDriver, memory_node, node_over, opened

MIB = 1 << 20
GROW = Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE


def options(**given: int) -> BlockdevOptionsPreallocate:
    return BlockdevOptionsPreallocate(file="file", **given)


@asynccontextmanager
async def growing(
    length: int = MIB, **given: int
) -> AsyncGenerator[tuple[Node, Preallocate, MemoryDriver]]:
    """Open the filter over memory, with a parent that may write and resize."""
    memory = MemoryDriver(bytes([1]) * length)
    given = {"prealloc_align": 4096, "prealloc_size": 8192} | given
    async with opened(Preallocate, options(**given), {"file": node_over(memory)}) as node:
        driver = node.driver
        assert isinstance(driver, Preallocate)
        await driver.set_permissions(GROW, Perm.ALL)
        node.refresh()
        yield node, driver, memory
    assert driver.getlength() == -(-len(memory.data) // 512) * 512


def zeroings(memory: MemoryDriver) -> list[tuple[int, int]]:
    return [(at, length) for name, at, length in memory.requests if name == "pwrite_zeroes"]


async def test_conformance() -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[Node]:
        async with growing() as (node, _, _):
            yield node

    await check_block_driver(factory, steps=40)
    await check_block_driver(
        lambda: opened(Preallocate, options(), {"file": memory_node(MIB)}), steps=20
    )


async def test_a_write_beyond_the_end_makes_the_file_longer_than_needed() -> None:
    async with growing() as (node, _, memory):
        await write(node, MIB, bytes([2]) * 100)
        assert len(memory.data) == MIB + 12288  # 100 and 8192, up to the next 4096
        assert zeroings(memory) == [(MIB, 12288)]
        assert node.getlength() == MIB + 512
        await write(node, MIB + 100, bytes([3]) * 5000)
        assert len(memory.data) == MIB + 12288
        assert node.driver.getlength() == MIB + 5100
        assert await read(node, MIB, 5100) == bytes([2]) * 100 + bytes([3]) * 5000
    assert bytes(memory.data[MIB:]) == bytes([2]) * 100 + bytes([3]) * 5000


async def test_the_fast_path_ends_with_what_is_preallocated(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    async with opened(File, BlockdevOptionsFile(filename=str(path))) as file:
        async with opened(
            Preallocate, options(prealloc_align=4096, prealloc_size=0), {"file": file}
        ) as node:
            await node.driver.set_permissions(GROW, Perm.ALL)
            assert node.map_write(4096, 512) is None
            await write(node, 4096, b"x" * 512)
            assert path.stat().st_size == 8192
            assert node.map_write(4608, 512) == file.map_write(4608, 512)
            assert node.driver.getlength() == 5120
            assert node.map_write(8192 - 512, 1024) is None
            assert node.map_read(0, 512) == file.map_read(0, 512)
        assert path.stat().st_size == 5120


async def test_zeroes_that_are_there_are_not_written() -> None:
    async with growing() as (node, _, memory):
        await node.pwrite_zeroes(MIB, 4096)
        assert zeroings(memory) == [(MIB, 12288)]
        await node.pwrite_zeroes(MIB + 4096, 4096)
        assert zeroings(memory) == [(MIB, 12288)]
        assert node.getlength() == MIB + 8192
        await write(node, MIB + 8192, b"x" * 512)
        await node.pwrite_zeroes(MIB + 8192, 512)
        assert zeroings(memory)[1:] == [(MIB + 8192, 512)]
        await node.pwrite_zeroes(MIB + 8704, 512, ReqFlag.FUA)
        assert await read(node, MIB, 9216) == bytes(9216)


async def test_without_resize_nothing_is_preallocated_and_what_was_goes() -> None:
    async with growing() as (node, driver, memory):
        await write(node, MIB, b"x" * 512)
        assert len(memory.data) > MIB + 512
        await driver.set_permissions(Perm.CONSISTENT_READ, Perm.ALL)
        assert len(memory.data) == MIB + 512
        assert driver.getlength() == MIB + 512
        await driver.set_permissions(Perm.WRITE, Perm.ALL)
        await write(node, MIB + 512, b"x" * 512)
        assert len(memory.data) == MIB + 1024


async def test_a_failure_to_drop_is_told() -> None:
    async with growing() as (node, driver, memory):
        await write(node, MIB, b"x" * 512)
        memory.fail["truncate"] = errno.EIO
        with pytest.raises(QmpError, match="Failed to drop preallocation: Input/output error"):
            await driver.set_permissions(Perm.NONE, Perm.ALL)
        del memory.fail["truncate"]


@pytest.mark.parametrize("error", [errno.ENOTSUP, errno.ENOSPC])
async def test_a_file_that_cannot_preallocate_is_written_to_all_the_same(error: int) -> None:
    async with growing() as (node, _, memory):
        memory.fail["pwrite_zeroes"] = error
        await write(node, MIB, b"x" * 512)
        assert len(memory.data) == MIB + 512
        del memory.fail["pwrite_zeroes"]
        await write(node, MIB + 512, b"y" * 512)
        assert len(memory.data) > MIB + 1024
        assert await read(node, MIB, 1024) == b"x" * 512 + b"y" * 512


async def test_writes_at_once_are_not_zeroed() -> None:
    async with growing(prealloc_size=0) as (node, _, memory):
        memory.fail["pwrite_zeroes"] = errno.ENOSPC
        async with trio.open_nursery() as nursery:
            for turn in range(40):
                if turn == 20:
                    memory.fail.clear()
                nursery.start_soon(write, node, MIB + 700 * turn, bytes([turn + 1]) * 700)
                await trio.lowlevel.checkpoint()
        want = b"".join(bytes([turn + 1]) * 700 for turn in range(40))
        assert await read(node, MIB, len(want)) == want


async def test_truncate() -> None:
    async with growing() as (node, driver, memory):
        await write(node, MIB, b"x" * 512)
        await node.truncate(MIB + 4096, prealloc="falloc")
        assert driver.getlength() == MIB + 4096
        assert len(memory.data) > MIB + 4096
        await node.truncate(MIB + 8192)
        assert driver.getlength() == len(memory.data) == MIB + 8192
        await write(node, MIB + 8192, b"y" * 512)
        await node.truncate(MIB)
        assert driver.getlength() == len(memory.data) == MIB
        await write(node, MIB, b"z" * 512)
        assert await read(node, MIB, 512) == b"z" * 512


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"prealloc_align": 513},
            "prealloc-align parameter of preallocate filter is not aligned to 512",
        ),
        (
            {"prealloc_align": 512},
            "prealloc-align parameter of preallocate filter is not aligned to underlying node"
            " request alignment (4096)",
        ),
        ({"prealloc_align": -1}, "Parameter 'prealloc-align' expects a non-negative number below"),
        ({"prealloc_size": -1}, "Parameter 'prealloc-size' expects a non-negative number below"),
    ],
)
async def test_bad_steps(given: dict[str, int], text: str) -> None:
    opener = FakeOpener({"file": memory_node(MIB, alignment=4096)})
    with pytest.raises(QmpError) as caught:
        await Preallocate.open(opener, options(**given))
    assert str(caught.value).startswith(text)


async def test_reopen_takes_other_steps() -> None:
    async with growing() as (node, driver, memory):
        with pytest.raises(QmpError, match="aligned"):
            await driver.reopen(FakeOpener(), options(prealloc_align=100))
        commit = await driver.reopen(FakeOpener(), options(prealloc_align=65536, prealloc_size=0))
        await commit()
        await write(node, MIB, b"x")
        assert len(memory.data) == MIB + 65536


def test_steps() -> None:
    assert Steps(align=4096, size=0).end_for(4096) == 4096
    assert Steps(align=4096, size=1).end_for(4096) == 8192


async def test_permissions() -> None:
    async with growing() as (_, driver, _):
        role = ChildRole.FILTERED | ChildRole.PRIMARY

        def given(needed: Perm) -> tuple[Perm, Perm]:
            return driver.child_permissions(role, needed, Perm.ALL, read_only=False)

        assert given(GROW) == (GROW, Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED)
        assert given(Perm.WRITE) == (Perm.WRITE, Perm.ALL)
