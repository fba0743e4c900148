"""block/drivers/null.py."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from qsd_trio.block.abc import StatusFlag
from qsd_trio.block.drivers.null import NullAio, NullCo
from qsd_trio.qapi import BlockdevOptionsNull
from qsd_trio.testing.block_drivers import check_block_driver, read
from qsd_trio.testing.memory import FakeOpener, opened
from tests.texts import refused


async def test_reads_keep_the_contract() -> None:
    null = BlockdevOptionsNull(size=1 << 20, read_zeroes=True)
    await check_block_driver(lambda: opened(NullCo, null), writable=False)


async def test_never_shows_what_a_buffer_held() -> None:
    async with opened(NullCo, BlockdevOptionsNull(size=4096, latency_ns=1)) as node:
        assert await read(node, 0, 100) == bytes(100)


async def test_writes_go_nowhere() -> None:
    async with opened(NullAio, BlockdevOptionsNull(size=4096)) as node:
        await node.pwritev(0, [memoryview(b"data")])
        await node.pwrite_zeroes(0, 512)
        await node.flush()
        assert node.map_write(0, 512) is None
        with refused("Image format driver does not support resize"):
            await node.truncate(8192)


@pytest.mark.parametrize("driver", [NullCo, NullAio])
async def test_takes_the_time_it_is_told(
    autojump_clock: MockClock, driver: type[NullCo | NullAio]
) -> None:
    async with opened(driver, BlockdevOptionsNull(latency_ns=2_000_000_000)) as node:
        assert node.map_read(0, 512) is None, "the fast path would be too fast"
        start = trio.current_time()
        await read(node, 0, 512)
        await node.pwritev(0, [memoryview(b"data")])
        await node.flush()
        assert trio.current_time() - start == pytest.approx(6)


@pytest.mark.parametrize("read_zeroes", [True, False])
async def test_status_says_zero_only_if_that_was_asked_for(read_zeroes: bool) -> None:
    async with opened(NullCo, BlockdevOptionsNull(read_zeroes=read_zeroes)) as node:
        status = await node.block_status(0, 1 << 20)
        assert status.length == 1 << 20
        assert bool(status.flags & StatusFlag.ZERO) == read_zeroes
        assert not status.flags & StatusFlag.DATA


@pytest.mark.parametrize(
    ("given", "name", "full", "length"),
    [
        ({}, "null-co://", {}, 1 << 30),
        ({"latency_ns": 5}, "null-co://", {}, 1 << 30),
        ({"size": 1000}, "", {"size": 1000}, 1000),
        ({"read_zeroes": True}, "", {"read-zeroes": True}, 1 << 30),
    ],
    ids=str,
)
async def test_names_and_lengths(
    given: dict[str, int], name: str, full: dict[str, object], length: int
) -> None:
    null = await NullCo.open(FakeOpener(), BlockdevOptionsNull(**given))
    assert (null.filename(), null.full_options(), null.getlength()) == (name, full, length)
    assert null.allocated_size() == 0


async def test_a_negative_size_is_refused() -> None:
    with refused("Parameter 'size' expects a non-negative number below 2^64"):
        await NullCo.open(FakeOpener(), BlockdevOptionsNull(size=-1))
