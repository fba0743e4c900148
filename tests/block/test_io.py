"""The gate: alignment, splitting, emulation, thresholds, order."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd_trio.block.abc import Limits, Perm, ProtocolDriver, ReqFlag
from qsd_trio.block.io import Node
from qsd_trio.block.options import NodeFlags
from qsd_trio.events import Event, EventBus
from qsd_trio.iov import iov_is_zero, iov_size, iov_slice, iov_zero
from qsd_trio.testing.memory import MemoryDriver, child_of, node_over

SIZE = 8192


@attrs.define(eq=False)
class Strict(ProtocolDriver):
    """Memory that asserts that the gate keeps to the limits."""

    data: bytearray = attrs.field(factory=lambda: bytearray(SIZE))
    told: Limits = attrs.field(factory=Limits)
    log: list[tuple[str, int, int]] = attrs.field(factory=list)
    zero_flags: list[ReqFlag] = attrs.field(factory=list)
    hold: trio.Event | None = None
    fail: int = 0

    @classmethod
    async def open(cls, opener: object, options: object) -> Strict:
        return cls()

    async def aclose(self) -> None:
        pass

    def getlength(self) -> int:
        return len(self.data)

    def limits(self) -> Limits:
        return self.told

    def check(self, verb: str, offset: int, length: int) -> None:
        align = self.told.request_alignment
        assert offset % align == 0
        assert length % align == 0
        assert 0 < length <= self.told.max_transfer
        self.log.append((verb, offset, length))

    async def preadv(self, offset: int, iov: Sequence[memoryview]) -> None:
        self.check("read", offset, iov_size(iov))
        await trio.lowlevel.checkpoint()
        for piece in iov:
            piece[:] = self.data[offset : offset + len(piece)].ljust(len(piece), b"\0")
            offset += len(piece)

    async def pwritev(self, offset: int, iov: Sequence[memoryview], flags: ReqFlag) -> None:
        assert not flags & ~self.told.write_flags
        self.check("write", offset, iov_size(iov))
        if self.hold is not None:
            await self.hold.wait()
        await trio.lowlevel.checkpoint()
        for piece in iov:
            self.data[offset : offset + len(piece)] = piece
            offset += len(piece)

    async def pwrite_zeroes(self, offset: int, length: int, flags: ReqFlag) -> None:
        self.log.append(("zero", offset, length))
        self.zero_flags.append(flags)
        if self.fail:
            raise OSError(self.fail, "told to")
        assert offset % self.told.pwrite_zeroes_alignment == 0
        assert length % self.told.pwrite_zeroes_alignment == 0
        self.data[offset : offset + length] = bytes(length)

    async def pdiscard(self, offset: int, length: int) -> None:
        assert offset % self.told.pdiscard_alignment == 0
        self.log.append(("discard", offset, length))

    async def flush(self) -> None:
        self.log.append(("flush", 0, 0))
        await trio.lowlevel.checkpoint()
        if self.fail:
            raise OSError(self.fail, "told to")


def gate(driver: Strict, **flags: Any) -> Node:
    node = Node("node", "strict", NodeFlags(**flags), EventBus())
    node.attach_driver(driver)
    return node


def view(data: bytes) -> list[memoryview]:
    return [memoryview(bytearray(data))]


@given(
    align=st.sampled_from([1, 512, 4096]),
    transfer=st.sampled_from([4096, 8192]),
    requests=st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)), max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_unaligned_requests_equal_a_bytearray(
    align: int, transfer: int, requests: list[tuple[int, int]]
) -> None:
    async def main() -> None:
        driver = Strict(told=Limits(request_alignment=align, max_transfer=transfer))
        node, model = gate(driver), bytearray(SIZE)
        for number, (offset, length) in enumerate(requests, 1):
            length = min(length, SIZE - offset)
            data = bytes([number]) * length
            await node.pwritev(offset, view(data))
            model[offset : offset + length] = data
            got = bytearray(length)
            await node.preadv(offset, [memoryview(got)])
            assert got == data
        assert driver.data == model

    trio.run(main)


async def test_reads_beyond_the_end_are_zeroes() -> None:
    driver = Strict(data=bytearray(b"x" * SIZE))
    node, got = gate(driver), bytearray(b"?" * 1024)
    await node.preadv(SIZE - 100, [memoryview(got)])
    assert got == b"x" * 100 + bytes(924)
    await node.preadv(SIZE + 100, [memoryview(got)])
    assert got == bytes(1024)


async def test_length_is_rounded_up_to_sectors() -> None:
    assert gate(Strict(data=bytearray(1000))).getlength() == 1024


async def test_writes_need_permission_and_range() -> None:
    with pytest.raises(OSError, match="permitted") as excinfo:
        await gate(Strict(), read_only=True).pwritev(0, view(b"x"))
    assert excinfo.value.errno == errno.EPERM
    node = gate(Strict())
    with pytest.raises(OSError, match="Input/output"):
        await node.pwritev(SIZE, view(b"x"))
    node.cumulative = (Perm.WRITE | Perm.RESIZE, Perm.ALL)
    await node.pwritev(SIZE, view(b"x" * 100))
    assert node.getlength() == SIZE + 512


async def test_overlapping_unaligned_writes_wait_for_each_other() -> None:
    driver = Strict(told=Limits(request_alignment=512))
    driver.hold = trio.Event()
    node = gate(driver)
    async with trio.open_nursery() as nursery:
        for part in range(8):
            nursery.start_soon(node.pwritev, part * 64, view(bytes([part + 1]) * 64))
        await trio.testing.wait_all_tasks_blocked()
        assert [entry for entry in driver.log if entry[0] == "write"] == [("write", 0, 512)]
        driver.hold.set()
    assert driver.data[:512] == b"".join(bytes([part + 1]) * 64 for part in range(8))


async def test_cancelled_write_lets_the_next_one_in() -> None:
    driver = Strict(told=Limits(request_alignment=512))
    driver.hold = trio.Event()
    node = gate(driver)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.pwritev, 0, view(b"a" * 64))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    driver.hold = None
    with trio.fail_after(1):
        await node.pwritev(0, view(b"b" * 64))
    assert driver.data[:64] == b"b" * 64


async def test_zeroes_are_emulated_split_and_not_when_they_must_be_fast() -> None:
    driver = Strict(data=bytearray(b"x" * SIZE))
    node = gate(driver)
    await node.pwrite_zeroes(10, 1000)
    assert driver.data[:1020] == b"x" * 10 + bytes(1000) + b"x" * 10
    with pytest.raises(OSError, match="supported") as excinfo:
        await node.pwrite_zeroes(0, 512, ReqFlag.NO_FALLBACK)
    assert excinfo.value.errno in (errno.ENOTSUP, errno.EOPNOTSUPP)
    driver.told = Limits(can_write_zeroes=True, pwrite_zeroes_alignment=1024)
    node.refresh()
    driver.log.clear()
    driver.data[:] = b"x" * SIZE
    await node.pwrite_zeroes(1000, 3000)
    assert driver.log == [("write", 1000, 24), ("zero", 1024, 2048), ("write", 3072, 928)]
    assert driver.data == b"x" * 1000 + bytes(3000) + b"x" * (SIZE - 4000)
    driver.fail = errno.ENOTSUP
    await node.pwrite_zeroes(0, SIZE)
    assert driver.data == bytes(SIZE)
    driver.fail = errno.EIO
    with pytest.raises(OSError, match="told to"):
        await node.pwrite_zeroes(0, SIZE)


async def test_fua_is_emulated_by_a_flush() -> None:
    driver = Strict()
    await gate(driver).pwritev(0, view(b"x"), ReqFlag.FUA)
    assert [verb for verb, *_ in driver.log] == ["write", "flush"]
    driver.log.clear()
    driver.told = Limits(write_flags=ReqFlag.FUA)
    await gate(driver).pwritev(0, view(b"x"), ReqFlag.FUA)
    assert [verb for verb, *_ in driver.log] == ["write"]


async def test_fua_reaches_a_driver_by_blocks_too() -> None:
    driver = MemoryDriver(bytes(8192), alignment=4096)
    node = node_over(driver)
    await node.pwritev(100, view(b"x"), ReqFlag.FUA)
    assert driver.durable[100:101] == b"x"
    await node.pwrite_zeroes(0, 300, ReqFlag.FUA)
    assert driver.durable[100:101] == b"\0"


async def test_flush_is_skipped_when_nothing_was_written_and_tried_again_after_an_error() -> None:
    driver = Strict()
    node = gate(driver)
    await node.flush()
    assert driver.log == []
    await node.pwritev(0, view(b"x"))
    driver.fail = errno.EIO
    for _ in range(2):
        with pytest.raises(OSError, match="told to"):
            await node.flush()
    driver.fail = 0
    await node.flush()
    await node.flush()
    assert [verb for verb, *_ in driver.log] == ["write", "flush", "flush", "flush"]


async def test_discard_only_with_unmap_and_in_whole_units() -> None:
    driver = Strict(told=Limits(can_discard=True, pdiscard_alignment=1024))
    await gate(driver).pdiscard(0, SIZE)
    assert driver.log == []
    node = gate(driver, discard_unmap=True)
    await node.pdiscard(100, 4000)
    await node.pdiscard(100, 100)
    await node.pdiscard(SIZE - 1500, 1500)
    assert driver.log == [("discard", 1024, 3072), ("discard", 7168, 1024)]


async def test_zeroes_of_a_parent_deallocate_only_with_unmap() -> None:
    """Those of a user do so as they are: QEMU asks for the option on the way to a child only."""
    flags = ReqFlag.MAY_UNMAP
    driver = Strict(told=Limits(can_write_zeroes=True, zero_flags=flags))
    for unmap in (False, True):
        node = gate(driver, discard_unmap=unmap)
        await node.pwrite_zeroes(0, 512, flags)
        await child_of(node).pwrite_zeroes(0, 512, flags)
    assert driver.zero_flags == [flags, ReqFlag.NONE, flags, flags]


@pytest.mark.parametrize("mode", ["on", "unmap"])
async def test_detect_zeroes(mode: str) -> None:
    driver = Strict(told=Limits(can_write_zeroes=True))
    node = gate(driver, detect_zeroes=mode, discard_unmap=True)
    assert node.map_write(0, 512) is None
    await node.pwritev(0, view(bytes(512)))
    await node.pwritev(0, view(bytes(511) + b"x"))
    await node.pwritev(0, view(b"\0x\0"))
    assert [verb for verb, *_ in driver.log] == ["zero", "write", "write"]


async def test_write_threshold_reports_once() -> None:
    bus, seen = EventBus(), list[Event]()
    node = Node("node", "strict", NodeFlags(), bus)
    node.attach_driver(Strict())
    node.set_write_threshold(1000)
    assert node.map_write(0, 512) is None
    with bus.subscribed(seen.append):
        await node.pwritev(0, view(b"x" * 1000))
        await node.pwritev(500, view(b"x" * 1000))
        await node.pwritev(500, view(b"x" * 1000))
    (event,) = seen
    assert event.name == "BLOCK_WRITE_THRESHOLD"
    assert event.data == {"node-name": "node", "amount-exceeded": 500, "write-threshold": 1000}
    assert node.write_threshold == 0


@given(st.lists(st.binary(max_size=20), max_size=5), st.integers(0, 60), st.integers(0, 60))
def test_iov_slice(pieces: list[bytes], start: int, length: int) -> None:
    whole = b"".join(pieces)
    part = iov_slice([memoryview(piece) for piece in pieces], start, length)
    assert b"".join(part) == whole[start : start + length]


def test_iov_zero_and_is_zero() -> None:
    buffers = [bytearray(b"xy"), bytearray(b"z")]
    iov = [memoryview(buffer) for buffer in buffers]
    assert not iov_is_zero(iov)
    iov_zero(iov)
    assert buffers == [bytearray(2), bytearray(1)]
    assert iov_is_zero(iov)


async def test_an_empty_buffer_among_others_is_nothing_special() -> None:
    driver = Strict(told=Limits(can_write_zeroes=True))
    node = gate(driver, detect_zeroes="on")
    await node.pwritev(0, [memoryview(b""), *view(bytes(512))])
    assert [verb for verb, *_ in driver.log] == ["zero"]
