"""block/drivers/raw.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from qsd_trio.block.abc import ChildRole, Perm, ReqFlag, StatusFlag
from qsd_trio.block.drivers.file import File
from qsd_trio.block.drivers.raw import Raw
from qsd_trio.block.io import Node
from qsd_trio.errors import QmpError
from qsd_trio.qapi import BlockdevOptionsFile, BlockdevOptionsRaw
from qsd_trio.testing.block_drivers import check_block_driver, read, write
from qsd_trio.testing.memory import FakeOpener, MemoryDriver, memory_node, opened, pattern
from tests.texts import refused

MIB = 1 << 20


def options(**window: int) -> BlockdevOptionsRaw:
    return BlockdevOptionsRaw(file="file", **window)


async def raw_over(node: Node, **window: int) -> Raw:
    return await Raw.open(FakeOpener({"file": node}), options(**window))


@pytest.mark.parametrize(
    "window",
    [{}, {"offset": 0}, {"offset": 4096}, {"offset": 1000}, {"offset": 512, "size": MIB // 2}],
    ids=str,
)
@pytest.mark.parametrize("alignment", [1, 512])
async def test_keeps_the_contract(window: dict[str, int], alignment: int) -> None:
    await check_block_driver(
        lambda: opened(Raw, options(**window), {"file": memory_node(MIB, alignment=alignment)}),
        steps=25,
    )


async def test_keeps_the_contract_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(pattern(1 << 19))
    async with opened(File, BlockdevOptionsFile(filename=str(path))) as file:
        await check_block_driver(lambda: opened(Raw, options(offset=4096), {"file": file}))
        await check_block_driver(lambda: opened(Raw, options(), {"file": file}))


async def test_without_a_window_it_asks_the_child_itself(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(8192))
    async with opened(File, BlockdevOptionsFile(filename=str(path))) as file:
        plain, shifted = await raw_over(file), await raw_over(file, offset=512)
        assert plain.map_read(100, 50) == file.map_read(100, 50)
        assert plain.map_write(100, 50) == file.map_write(100, 50)
        assert shifted.map_read(100, 50) == file.map_read(612, 50)
        assert shifted.map_write(100, 50) == file.map_write(612, 50)


@pytest.mark.parametrize(
    ("window", "text"),
    [
        (
            {"offset": MIB + 512},
            f"Offset ({MIB + 512}) cannot be greater than size of the containing file ({MIB})",
        ),
        ({"offset": -1}, "Parameter 'offset' expects a non-negative number below 2^64"),
        ({"size": -512}, "Parameter 'size' expects a non-negative number below 2^64"),
        ({"size": 1000}, "Specified size is not multiple of 512"),
        (
            {"offset": 1024, "size": MIB},
            f"The sum of offset (1024) and size ({MIB}) has to be smaller or equal to the "
            f" actual size of the containing file ({MIB})",
        ),
    ],
    ids=str,
)
async def test_refuses_windows_outside_the_file(window: dict[str, int], text: str) -> None:
    with pytest.raises(QmpError) as caught:
        await raw_over(memory_node(MIB), **window)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("window", "length"),
    [
        ({}, MIB),
        ({"offset": 1000}, MIB - 1000),
        ({"offset": MIB}, 0),
        ({"size": 0}, 0),
        ({"offset": 1, "size": 512}, 512),
    ],
    ids=str,
)
async def test_lengths(window: dict[str, int], length: int) -> None:
    raw = await raw_over(memory_node(MIB), **window)
    assert raw.getlength() == length
    assert raw.full_options() == window


async def test_role_of_the_child_says_whether_it_is_shown_whole() -> None:
    assert (await raw_over(memory_node(MIB))).file.role == ChildRole.FILTERED | ChildRole.PRIMARY
    shifted = await raw_over(memory_node(MIB), offset=0)
    assert shifted.file.role == ChildRole.DATA | ChildRole.PRIMARY


@pytest.mark.parametrize("role", [ChildRole.FILTERED, ChildRole.DATA])
async def test_needs_no_more_than_its_parents(role: ChildRole) -> None:
    raw = await raw_over(memory_node(MIB))
    for needed in (Perm.NONE, Perm.CONSISTENT_READ, Perm.CONSISTENT_READ | Perm.WRITE):
        got, _ = raw.child_permissions(role | ChildRole.PRIMARY, needed, Perm.ALL, read_only=False)
        assert got == needed


async def test_nothing_goes_beyond_the_window() -> None:
    file = memory_node(MIB)
    raw = await raw_over(file, offset=512, size=512)
    with pytest.raises(OSError, match="No space"):
        await raw.pwritev(512, [memoryview(b"x")], ReqFlag.NONE)
    assert isinstance(file.driver, MemoryDriver)
    assert not any(file.driver.data)


async def test_truncating_keeps_the_offset() -> None:
    file = memory_node(MIB)
    async with opened(Raw, options(offset=1024), {"file": file}) as node:
        await node.truncate(4096)
        assert file.getlength() == 5120
        with refused("Disk size too large for the chosen offset"):
            await node.driver.truncate(2**63 - 512, exact=False, prealloc="off", flags=ReqFlag.NONE)
    async with opened(Raw, options(size=1024), {"file": file}) as node:
        with refused("Cannot resize fixed-size raw disks"):
            await node.truncate(2048)


async def test_status_points_at_the_file() -> None:
    file = memory_node(MIB)
    await write(file, 8192, b"data")
    raw = await raw_over(file, offset=4096)
    status = await raw.block_status(4096, 512, want_zero=True)
    assert (status.flags, status.length, status.file, status.offset) == (
        StatusFlag.RAW | StatusFlag.OFFSET_VALID,
        512,
        file,
        8192,
    )


async def test_reopening_moves_the_window_or_changes_nothing() -> None:
    file = memory_node(pattern(MIB))
    raw = await raw_over(file, offset=512, size=512)
    with refused(f"Offset ({2 * MIB}) cannot be greater than size of the containing file ({MIB})"):
        await raw.reopen(FakeOpener(), options(offset=2 * MIB))
    assert (raw._offset, raw.getlength()) == (512, 512)
    commit = await raw.reopen(FakeOpener(), options(offset=1024))
    assert raw._offset == 512
    await commit()
    assert raw.getlength() == MIB - 1024
    buffer = bytearray(100)
    await raw.preadv(0, [memoryview(buffer)])
    assert buffer == pattern(MIB)[1024:1124]


class RawOverFile(RuleBasedStateMachine):
    """raw with a window over a real file, request by request against a bytearray."""

    length = 40_960
    offset = 1536

    def __init__(self) -> None:
        super().__init__()
        self.model = bytearray()
        self.node: Node | None = None

    @initialize(direct=st.booleans())
    def open(self, direct: bool) -> None:
        self.path.write_bytes(pattern(self.length + self.offset))
        self.model = bytearray(pattern(self.length + self.offset)[self.offset :])
        self.direct = direct

    def run(self, verb: Any, *args: Any) -> Any:
        async def once() -> Any:
            file_options = BlockdevOptionsFile(filename=str(self.path))
            async with (
                opened(File, file_options, cache_direct=self.direct) as file,
                opened(Raw, options(offset=self.offset), {"file": file}) as node,
            ):
                return await verb(node, *args)

        return trio.run(once)

    ranges = st.tuples(
        st.one_of(st.integers(0, length - 1), st.sampled_from([0, 512, 2560, 4096, length - 1])),
        st.one_of(st.integers(1, 9000), st.sampled_from([1, 512, 4096])),
    )

    def clip(self, where: tuple[int, int]) -> tuple[int, int]:
        offset = min(where[0], len(self.model) - 1)
        return offset, min(where[1], len(self.model) - offset)

    @rule(where=ranges, seed=st.integers(1, 99), pieces=st.integers(1, 4))
    def write(self, where: tuple[int, int], seed: int, pieces: int) -> None:
        offset, length = self.clip(where)
        data = pattern(length, seed)
        self.run(write, offset, data, pieces)
        self.model[offset : offset + length] = data

    @rule(where=ranges, unmap=st.booleans())
    def zero(self, where: tuple[int, int], unmap: bool) -> None:
        offset, length = self.clip(where)
        flags = ReqFlag.MAY_UNMAP if unmap else ReqFlag.NONE
        self.run(Node.pwrite_zeroes, offset, length, flags)
        self.model[offset : offset + length] = bytes(length)

    @rule(sectors=st.integers(8, length // 512))
    def truncate(self, sectors: int) -> None:
        new = sectors * 512
        self.run(Node.truncate, new)
        del self.model[new:]
        self.model += bytes(new - len(self.model))

    @rule(where=ranges)
    def read(self, where: tuple[int, int]) -> None:
        offset, length = self.clip(where)
        assert self.run(read, offset, length) == self.model[offset : offset + length]

    @invariant()
    def equal(self) -> None:
        if self.model:
            # An image in direct mode grows to whole blocks: zeroes behind the end don't count.
            content = self.path.read_bytes()[self.offset :]
            assert content[: len(self.model)].ljust(len(self.model), b"\0") == self.model
            assert not any(content[len(self.model) :])


def test_any_requests_leave_what_a_bytearray_would_hold(tmp_path: Path) -> None:
    machine = type("Machine", (RawOverFile,), {"path": tmp_path / "image"})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    machine.TestCase.settings = settings(
        max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=checks
    )
    machine.TestCase().runTest()
