"""Internal snapshots: taken, deleted, written over, in images of every shape, and crashes meanwhile."""

from __future__ import annotations

import errno
import random

import attrs
import pytest

from qsd_trio.block.abc import SECTOR, ReqFlag
from qsd_trio.block.io import Node
from qsd_trio.block.snapshots import Snapshot
from qsd_trio.qapi import Qcow2OverlapCheckMode
from qsd_trio.testing.memory import memory_node
from qsd_trio.testing.recorder import Journal
from tests.block.drivers.qcow2.kit import Disk, check, make, opened, read, write


@attrs.frozen
class Shape:
    """A kind of image and its length."""

    id: str
    sectors: int
    bits: int
    version: int = 3
    order: int = 4
    extended: bool = False
    backed: bool = False


SHAPES = [
    Shape("512-byte clusters", 600, 9),
    Shape("512-byte clusters, v2", 600, 9, version=2),
    Shape("2-bit refcounts", 100, 12, order=1),
    Shape("8-bit refcounts", 100, 12, order=3),
    Shape("64-bit refcounts", 300, 9, order=6),
    Shape("v2, backing file", 100, 12, version=2, backed=True),
    Shape("backing file", 600, 9, backed=True),
    Shape("64 KiB clusters", 700, 16),
    Shape("subclusters", 700, 14, extended=True),
]
BELOW = b"below" * 5000


def named(name: str) -> Snapshot:
    return Snapshot(id=b"", name=name.encode(), date_sec=1, date_nsec=2, vm_clock_nsec=3)


class Model:
    """What an image and its snapshots must read as, and random steps on both."""

    def __init__(self, shape: Shape, rng: random.Random, *, most: int = 5) -> None:
        self.shape = shape
        self.rng = rng
        self.below = BELOW if shape.backed else b""
        self.active = bytearray(
            self.below[: shape.sectors * SECTOR].ljust(shape.sectors * SECTOR, b"\0")
        )
        self.kept: dict[bytes, bytes] = {}
        self.most = min(most, (1 << (1 << shape.order)) - 1 - 1)

    async def image(self) -> bytes:
        shape = self.shape
        return await make(
            shape.sectors * SECTOR,
            cluster_bits=shape.bits,
            version=shape.version,
            refcount_order=shape.order,
            extended=shape.extended,
        )

    def backing(self) -> Node | None:
        return memory_node(self.below) if self.shape.backed else None

    async def step(self, node: Node, kinds: str) -> None:
        rng, size = self.rng, len(self.active)
        kind = rng.choice(kinds)
        unit = 1 << self.shape.bits
        offset = rng.randrange(size)
        length = min(rng.choice([1, 512, unit, unit * 3 + 5]), size - offset)
        if kind == "w":
            data = rng.randbytes(1) * length
            await write(node, offset, data, fast=rng.random() < 0.5)
            self.active[offset : offset + length] = data
        elif kind == "c":
            offset = offset // unit * unit
            data = (rng.randbytes(2) * unit)[: min(unit, size - offset)]
            await node.pwritev(offset, [memoryview(data)], ReqFlag.WRITE_COMPRESSED)
            self.active[offset : offset + len(data)] = data
        elif kind in "zZ":
            flags = ReqFlag.MAY_UNMAP if kind == "Z" else ReqFlag.NONE
            await node.pwrite_zeroes(offset, length, flags)
            self.active[offset : offset + length] = bytes(length)
        elif kind == "d":
            await node.pdiscard(offset, length)
            low, high = -(-offset // unit) * unit, (offset + length) // unit * unit
            if offset + length == size:
                high = size
            if low < high and not (self.shape.version == 2 and self.below):
                self.active[low:high] = bytes(high - low)
        elif kind == "f":
            await node.flush()
        elif kind == "r":
            size = rng.randrange(1, self.shape.sectors * 2) * SECTOR
            await node.truncate(size)
            del self.active[size:]
            self.active += bytes(size - len(self.active))
        elif kind == "s" and len(self.kept) < self.most:
            try:
                taken = await node.driver.snapshots.create(named(f"n{rng.random()}"))
            except OSError as exc:
                if exc.errno != errno.EINVAL or self.shape.order > 1:
                    raise
                # Several compressed clusters share a host cluster: too many references.
            else:
                self.kept[taken.id] = bytes(self.active)
        elif kind == "x" and self.kept:
            id_ = rng.choice(list(self.kept))
            await node.driver.snapshots.delete(id_, None)
            del self.kept[id_]

    def compare(self, image: bytes) -> None:
        report = check(image, self.below)
        assert (report.errors, report.leaks, report.dirty) == ([], [], False)
        assert report.content == self.active
        found = {snapshot.id.encode(): snapshot.content for snapshot in report.snapshots}
        assert found == self.kept


OPTIONS = [{}, {"pass_discard_snapshot": False}, {"overlap_check": Qcow2OverlapCheckMode.ALL}]


@pytest.mark.parametrize("shape", SHAPES, ids=[shape.id for shape in SHAPES])
@pytest.mark.parametrize("seed", range(len(OPTIONS)))
async def test_any_sequence(shape: Shape, seed: int) -> None:
    rng = random.Random(f"{shape.id} {seed}")
    model = Model(shape, rng)
    disk = Disk(await model.image(), rng)
    kinds = "wwwwwzZdfsssxx" + ("r" if shape.version > 2 else "") + ("" if shape.extended else "cc")
    for _ in range(3):
        options = OPTIONS[seed]
        async with opened(disk, model.backing(), l2_cache_size=1024, **options) as node:
            for _ in range(25):
                await model.step(node, kinds)
            if model.active:
                assert await read(node, 0, len(model.active)) == model.active
        model.compare(bytes(disk.data))


CRASHING = [shape for shape in SHAPES if shape.id not in ("64-bit refcounts", "backing file")]


@pytest.mark.parametrize("shape", CRASHING, ids=[shape.id for shape in CRASHING])
async def test_crashes_while_one_is_taken_or_deleted(shape: Shape) -> None:
    """Whatever reaches the disk: all that was flushed is there, and stays when it is written over."""
    rng = random.Random(shape.id)
    model = Model(shape, rng, most=2)
    disk = Disk(await model.image(), rng)
    for kinds in ("s", "s", "x", "s", "x", "x"):
        async with opened(disk, model.backing(), l2_cache_size=1024) as node:
            for _ in range(6):
                await model.step(node, "wwwZd")
        before = dict(model.kept)
        journal = Journal()
        disk = Disk(bytes(disk.data), rng, journal)
        async with opened(disk, model.backing(), l2_cache_size=1024) as node:
            await model.step(node, kinds)
        may = [before, model.kept]
        for crash in journal.crashes(rng, 6):
            await look(model, crash.images[0], may)
    model.compare(bytes(disk.data))


async def look(model: Model, image: bytes, may: list[dict[bytes, bytes]]) -> None:
    """Check an image after a crash, open it, write all over it, and check it again."""
    report = check(image, model.below)
    assert harmful(report.errors) == []
    assert report.content == model.active
    kept = {snapshot.id.encode(): snapshot.content for snapshot in report.snapshots}
    assert kept in may
    disk = Disk(image)
    new = b"n" * len(model.active)
    async with opened(disk, model.backing()) as node:
        assert await read(node, 0, len(model.active)) == model.active
        if model.shape.version > 2:  # it has been repaired
            await node.flush()
            report = check(bytes(disk.data), model.below)
            assert (report.errors, report.leaks) == ([], [])
        await write(node, 0, new)
    report = check(bytes(disk.data), model.below)
    assert harmful(report.errors) == []
    assert report.content == new
    assert {snapshot.id.encode(): snapshot.content for snapshot in report.snapshots} == kept


def harmful(errors: list[str]) -> list[str]:
    """Leave out that the flag of what is used once is missing: it only costs a copy."""
    return [error for error in errors if not error.startswith("COPIED flag missing")]
