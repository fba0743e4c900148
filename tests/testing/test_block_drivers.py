"""testing/: the conformance suite accepts the image in memory, and finds each kind of bug in a driver."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from qsd_trio.block.abc import BlockStatus, ReqFlag, StatusFlag
from qsd_trio.block.io import Node
from qsd_trio.testing.block_drivers import check_block_driver
from qsd_trio.testing.memory import MemoryDriver, memory_node, node_over, pattern

SIZE = 1 << 18


@pytest.mark.parametrize("alignment", [1, 512, 4096])
async def test_the_memory_image_keeps_the_contract(alignment: int) -> None:
    @asynccontextmanager
    async def factory() -> AsyncIterator[Node]:
        yield memory_node(pattern(SIZE), alignment=alignment)

    await check_block_driver(factory)


async def loses_the_last_byte(self: Any, offset: int, iov: Any, flags: ReqFlag) -> None:
    length = sum(map(len, iov))
    last = self.data[offset + length - 1 : offset + length]
    await MemoryDriver.pwritev(self, offset, iov, flags)
    self.data[offset + length - 1 : offset + length] = last


async def forgets_pieces(self: Any, offset: int, iov: Any) -> None:
    await MemoryDriver.preadv(self, offset, iov[:2])


async def zeroes_too_much(self: Any, offset: int, length: int, flags: ReqFlag) -> None:
    await MemoryDriver.pwrite_zeroes(self, offset, min(length + 1, SIZE - offset), flags)


async def says_zero(self: Any, offset: int, length: int, *, want_zero: bool) -> BlockStatus:
    await trio.lowlevel.checkpoint()
    return BlockStatus(StatusFlag.ZERO | StatusFlag.ALLOCATED, length)


async def says_nothing(self: Any, offset: int, length: int, *, want_zero: bool) -> BlockStatus:
    await trio.lowlevel.checkpoint()
    return BlockStatus(StatusFlag.DATA, 0)


async def uses_one_buffer(self: Any, offset: int, iov: Any, flags: ReqFlag) -> None:
    self.shared = b"".join(iov)
    await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()
    await MemoryDriver.pwritev(self, offset, [memoryview(self.shared)], flags)


async def breaks_when_cancelled(self: Any, offset: int, iov: Any, flags: ReqFlag) -> None:
    try:
        await MemoryDriver.pwritev(self, offset, iov, flags)
    except trio.Cancelled:
        self.data[offset] = 0x5B
        raise


async def keeps_what_it_cuts(self: Any, size: int, **_: Any) -> None:
    await trio.lowlevel.checkpoint()
    self.data += b"\x5b" * (size - len(self.data))
    del self.data[size:]


def maps_wrongly(self: Any, offset: int, length: int) -> Any:
    return ((None, 0, length),)


@pytest.mark.parametrize(
    ("verb", "bug"),
    [
        ("pwritev", loses_the_last_byte),
        ("preadv", forgets_pieces),
        ("pwrite_zeroes", zeroes_too_much),
        ("block_status", says_zero),
        ("block_status", says_nothing),
        ("pwritev", uses_one_buffer),
        ("pwritev", breaks_when_cancelled),
        ("truncate", keeps_what_it_cuts),
        ("map_read", maps_wrongly),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_each_bug_is_found(verb: str, bug: Callable[..., Any]) -> None:
    @asynccontextmanager
    async def factory() -> AsyncIterator[Node]:
        driver = MemoryDriver(pattern(SIZE))
        setattr(driver, verb, bug.__get__(driver))
        yield node_over(driver)

    with pytest.raises((AssertionError, ExceptionGroup)):
        await check_block_driver(factory)


async def test_the_memory_image_fails_and_waits_as_told() -> None:
    node = memory_node(4096)
    driver = node.driver
    assert isinstance(driver, MemoryDriver)
    driver.fail["preadv"] = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        await node.preadv(0, [memoryview(bytearray(10))])
    driver.hold = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.pwritev, 0, [memoryview(b"late")])
        await trio.testing.wait_all_tasks_blocked()
        assert not any(driver.data)
        driver.hold.set()
    assert driver.data[:4] == b"late"
    assert driver.durable[:4] == bytes(4)
    await node.flush()
    assert driver.durable[:4] == b"late"
    assert driver.requests[-1] == ("flush", 0, 0)
