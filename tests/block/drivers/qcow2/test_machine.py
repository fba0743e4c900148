"""Any sequence of requests, resizes, snapshots, bitmaps and reopens gives what a model gives.

Some steps are several requests at once, whose order hypothesis chooses through the seed of the disk's pauses.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd_trio.block.abc import SECTOR, ReqFlag
from qsd_trio.block.io import Node
from qsd_trio.block.snapshots import Snapshot
from qsd_trio.qapi import BlockdevOptionsQcow2
from qsd_trio.testing.guest import stamp, stamps
from qsd_trio.testing.memory import FakeOpener, memory_node, pattern
from tests.block.drivers.qcow2.kit import (
    Disk,
    assert_sound,
    check,
    make,
    opened,
    read,
    read_fast,
    write,
)
from tests.peers import is_present

CLUSTERS = 40  # of the image at first
MOST = 60  # clusters of the image at most
MAX_SNAPSHOTS = 3
GRANULARITY = 1024
NAMES = ("red", "green")

#: What an open image may be told otherwise: by closing and opening it, or by blockdev-reopen.
OPTIONS: tuple[dict[str, object], ...] = (
    {},
    {"lazy_refcounts": True},
    {"discard_no_unref": True},
    {"pass_discard_request": False, "pass_discard_other": True},
    {"l2_cache_entry_size": 512, "l2_cache_size": 2048},
)
WRITES = ("write", "write fast", "compress")
V3_ONLY = ("lazy_refcounts", "discard_no_unref")


@attrs.frozen
class Kind:
    """A kind of image."""

    bits: int = 9
    version: int = 3
    order: int = 4
    backed: bool = False
    extended: bool = False
    external: bool = False

    @property
    def cluster(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.bits

    @property
    def below(self) -> bytes:
        """What the backing file holds."""
        return pattern(1000) * (self.cluster * 30 // 1000) if self.backed else b""


KINDS = [
    Kind(),
    Kind(backed=True),
    Kind(version=2),
    Kind(version=2, backed=True),
    Kind(order=0),
    Kind(order=6, backed=True),
    Kind(bits=12, order=1),
    Kind(bits=14, extended=True),
    Kind(bits=14, extended=True, backed=True),
    Kind(external=True),
    Kind(external=True, backed=True),
    Kind(bits=14, external=True, extended=True),
]

# Places are thousandths of a cluster, lengths as they are (below 1: of a cluster).
places = st.integers(0, MOST * 1000)
lengths = st.sampled_from([1, 100, 512, 513, 1024, 5000, 0.5, 1.0, 2.5, 20.0])
some = st.integers(0, 7)
changes = st.tuples(
    st.sampled_from(["write", "write fast", "zero", "zero unmap", "discard", "compress"]),
    places,
    lengths,
)
races = st.tuples(
    st.just("together"), st.lists(changes, min_size=2, max_size=5), st.integers(0, 1 << 16)
)
others = st.tuples(
    st.sampled_from(
        [
            *("resize", "flush", "reopen", "reopen slow", "options", "snapshot", "unsnapshot"),
            *("bitmap", "clear", "switch", "unbitmap"),
        ]
    ),
    st.integers(0, MOST),
    some,
)
steps = st.lists(st.one_of(changes, changes, races, others), max_size=25)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps, kind=st.sampled_from(KINDS))
def test_any_sequence(steps: list[tuple[str, object, object]], kind: Kind) -> None:
    trio.run(run, steps, kind)


async def run(steps: list[tuple[str, object, object]], kind: Kind) -> None:
    data = Disk() if kind.external else None
    image = await make(
        CLUSTERS * kind.cluster,
        cluster_bits=kind.bits,
        version=kind.version,
        refcount_order=kind.order,
        extended=kind.extended,
        data=data,
    )
    machine = Machine(kind, Disk(image), data)
    rest = iter(steps)
    while await machine.session(rest):
        pass
    report = check(bytes(machine.disk.data), kind.below, data and bytes(data.data))
    assert (report.errors, report.leaks) == ([], [])
    assert report.content == machine.content
    assert {each.name: each.content for each in report.snapshots} == machine.snapshots
    assert report.bitmaps.keys() == machine.marks.keys()
    for name, marks in machine.marks.items():
        stored = report.bitmaps[name]
        assert not stored.in_use
        assert stored.auto == marks.enabled
        marks.check(stored.bits)
    if random.Random(len(steps)).random() < 0.1 and not kind.external and not kind.backed:
        show_qemu(machine)


def show_qemu(machine: Machine) -> None:
    """Have qemu-img check the image and compare the content."""
    if is_present("qemu-img"):
        with TemporaryDirectory() as name:
            path = Path(name, "image")
            path.write_bytes(machine.disk.data)
            assert_sound(path, bytes(machine.content))


@attrs.define
class Marks:
    """The granules that a bitmap must have, and those it may have besides (of discards)."""

    enabled: bool = True
    must: set[int] = attrs.field(factory=set)
    may: set[int] = attrs.field(factory=set)

    def check(self, bits: bytes | bytearray) -> None:
        """Compare with a bitmap's bits."""
        found = {at for at in range(len(bits) * 8) if bits[at // 8] >> at % 8 & 1}
        assert self.must <= found
        assert found <= self.must | self.may

    def note(self, offset: int, length: int, *, sure: bool) -> None:
        """Note a request."""
        if self.enabled and length:
            granules = range(offset // GRANULARITY, (offset + length - 1) // GRANULARITY + 1)
            (self.must if sure else self.may).update(granules)

    def resize(self, size: int) -> None:
        """Follow the image's length."""
        granules = -(-size // GRANULARITY)
        self.must = {at for at in self.must if at < granules}
        self.may = {at for at in self.may if at < granules}


class Machine:
    """An image and its model."""

    def __init__(self, kind: Kind, disk: Disk, data: Disk | None) -> None:
        self.kind = kind
        self.disk = disk
        self.data = data
        self.options: dict[str, object] = {}
        size = CLUSTERS * kind.cluster
        self.content = bytearray(kind.below[:size].ljust(size, b"\0"))
        self.snapshots: dict[str, bytes] = {}
        self.marks: dict[str, Marks] = {}
        self.number = 0  # of writes and snapshots

    def opened(self):  # noqa: ANN201 -- an asynccontextmanager's type says nothing
        backing = memory_node(self.kind.below) if self.kind.backed else None
        options = {"l2_cache_size": 1024, **self.options}
        return opened(self.disk, backing, data=self.data, **options)

    async def session(self, rest: Iterator[tuple[str, object, object]]) -> bool:
        """Open the image and take steps until one wants it closed; say whether there may be more."""
        async with self.opened() as node:
            for name, first, second in rest:
                if name.startswith("reopen"):
                    self.disk.fast = not name.endswith("slow")
                    self.options = self.some_options(second)
                    return True
                await self.step(node, name, first, second)
                await self.compare(node)
        return False

    def some_options(self, number: int) -> dict[str, object]:
        options = OPTIONS[number % len(OPTIONS)]
        if self.kind.version < 3:
            return {name: value for name, value in options.items() if name not in V3_ONLY}
        return options

    async def compare(self, node: Node) -> None:
        assert node.getlength() == len(self.content)
        if self.content:
            assert await read(node, 0, len(self.content)) == self.content
            fast = read_fast(node, 0, len(self.content))
            assert fast is None or fast == self.content
        assert {bitmap.name for bitmap in node.bitmaps} == self.marks.keys()
        for name, marks in self.marks.items():
            bitmap = node.bitmaps.find(name)
            assert bitmap.enabled == marks.enabled
            marks.check(bitmap.data)

    async def step(self, node: Node, name: str, first: object, second: object) -> None:
        if name == "flush":
            await node.flush()
        elif name == "together":
            await self.race(node, first, random.Random(second))
        elif name == "resize":
            await self.resize(node, max(first, 1) * self.kind.cluster)  # nothing holds no bitmaps
        elif name == "options":
            await self.reopen(node, second)
        elif name == "snapshot":
            await self.take_snapshot(node)
        elif name == "unsnapshot":
            await self.delete_snapshot(node, second)
        elif name in ("bitmap", "clear", "switch", "unbitmap"):
            await self.change_bitmap(node, name, NAMES[second % len(NAMES)])
        else:
            offset, length = self.range_of(first, second)
            if length:
                await self.change(node, name, offset, length)

    # -- requests --------------------------------------------------------------------------------------

    def range_of(self, place: int, length: float) -> tuple[int, int]:
        """Return (offset, length) within the image."""
        size = len(self.content)
        offset = min(place * self.kind.cluster // 1000, size)
        wanted = length if isinstance(length, int) else int(length * self.kind.cluster)
        return offset, min(wanted, size - offset)

    async def change(self, node: Node, name: str, offset: int, length: int) -> None:
        """Write, zero or discard, and change the model alike."""
        if name == "compress" and (self.kind.external or not self.can_compress(offset, length)):
            name = "write"
        data = pattern(1000, offset % 1000 + 1) * (length // 1000 + 1)
        self.mark(name, offset, length)
        await request(node, name, offset, data[:length])
        if name == "discard":
            offset, length = self.sure_part(offset, length)
        if name in ("zero", "zero unmap", "discard"):
            data = bytes(length)
        self.content[offset : offset + length] = data[:length]

    def can_compress(self, offset: int, length: int) -> bool:
        end = offset + length
        whole = end % self.kind.cluster == 0 or end == len(self.content)
        return offset % self.kind.cluster == 0 and whole

    def sure_part(self, offset: int, length: int) -> tuple[int, int]:
        """Return the part of a discard that is sure to read as zeroes: whole clusters."""
        cluster, end = self.kind.cluster, offset + length
        low = -(-offset // cluster) * cluster
        high = end if end == len(self.content) else end // cluster * cluster
        if low >= high or (self.kind.version == 2 and self.kind.backed):
            return offset, 0
        return low, high - low

    def mark(self, name: str, offset: int, length: int) -> None:
        for marks in self.marks.values():
            if name == "discard":
                marks.note(offset, length, sure=False)
                marks.note(*self.sure_part(offset, length), sure=True)
            else:
                marks.note(offset, length, sure=True)

    async def race(
        self, node: Node, several: list[tuple[str, int, float]], rng: random.Random
    ) -> None:
        """Make requests at once: each sector then holds what one of them made of it."""
        size = len(self.content)
        may: list[set[int]] = [set() for _ in range(size // SECTOR)]
        self.disk.rng = rng
        async with trio.open_nursery() as nursery:
            for name, place, length in several:
                offset, length = self.range_of(place, length)
                # In sectors, and at the same places, as far as they can.
                offset = offset // SECTOR * SECTOR
                length = min(-(-length // SECTOR) * SECTOR, size - offset)
                if name == "compress":
                    offset = offset // self.kind.cluster * self.kind.cluster
                    length = min(self.kind.cluster, size - offset)
                    if self.kind.external:
                        name = "write"
                if not length:
                    continue
                self.number += 1
                self.mark(name, offset, length)
                number = self.number if name in WRITES else 0
                sure = self.sure_part(offset, length) if name == "discard" else (offset, length)
                for sector in range(sure[0] // SECTOR, (sure[0] + sure[1]) // SECTOR):
                    may[sector].add(number)
                data = stamp(number) * (length // SECTOR)
                nursery.start_soon(request, node, name, offset, data)
        self.disk.rng = None
        content = await read(node, 0, size) if size else b""
        for sector, number in enumerate(stamps(content)):
            place = slice(sector * SECTOR, (sector + 1) * SECTOR)
            if may[sector]:
                assert number in may[sector]
                self.content[place] = content[place]

    async def resize(self, node: Node, size: int) -> None:
        if self.kind.version == 2 and self.snapshots:
            return
        await node.truncate(size)
        del self.content[size:]
        self.content += bytes(size - len(self.content))
        for marks in self.marks.values():
            marks.resize(size)

    async def reopen(self, node: Node, number: int) -> None:
        self.options = self.some_options(number)
        options = {"l2_cache_size": 1024, **self.options}
        opener = FakeOpener(node.opener.children)
        opener.bitmaps = node.opener.bitmaps
        commit = await node.driver.reopen(opener, BlockdevOptionsQcow2(file="file", **options))
        await commit()

    # -- snapshots and bitmaps -------------------------------------------------------------------------

    async def take_snapshot(self, node: Node) -> None:
        if len(self.snapshots) >= min(MAX_SNAPSHOTS, (1 << (1 << self.kind.order)) - 2):
            return
        if self.kind.external:
            return
        self.number += 1
        name = f"snapshot {self.number}"
        await node.driver.snapshots.create(
            Snapshot(id=b"", name=name.encode(), date_sec=1, date_nsec=2, vm_clock_nsec=3)
        )
        self.snapshots[name] = bytes(self.content)

    async def delete_snapshot(self, node: Node, number: int) -> None:
        if self.snapshots:
            name = list(self.snapshots)[number % len(self.snapshots)]
            await node.driver.snapshots.delete(None, name.encode())
            del self.snapshots[name]

    async def change_bitmap(self, node: Node, what: str, name: str) -> None:
        if self.kind.version < 3:
            return
        if name not in self.marks:
            bitmap = node.bitmaps.create(name, GRANULARITY, node.getlength())
            bitmap.persistent = True
            self.marks[name] = Marks()
            return
        bitmap, marks = node.bitmaps.find(name), self.marks[name]
        if what == "clear":
            bitmap.take()
            marks.must.clear()
            marks.may.clear()
        elif what == "switch":
            bitmap.enabled = marks.enabled = not marks.enabled
        elif what == "unbitmap":
            await node.driver.bitmap_store.remove(name)
            node.bitmaps.remove(bitmap)
            del self.marks[name]


async def request(node: Node, name: str, offset: int, data: bytes) -> None:
    """Make a request; ``data`` says how long it is."""
    if name.startswith("write"):
        await write(node, offset, data, fast=name.endswith("fast"))
    elif name == "compress":
        await node.pwritev(offset, [memoryview(data)], ReqFlag.WRITE_COMPRESSED)
    elif name == "discard":
        await node.pdiscard(offset, len(data))
    else:
        flags = ReqFlag.MAY_UNMAP if name.endswith("unmap") else ReqFlag.NONE
        await node.pwrite_zeroes(offset, len(data), flags)
