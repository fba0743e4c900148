"""Many requests at once, also cancelled ones: what is read, and what may be on the disk then."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import attrs
import pytest
import trio

from qsd_trio.block.abc import SECTOR, ReqFlag
from qsd_trio.block.io import Node
from qsd_trio.block.snapshots import Snapshot
from qsd_trio.testing.guest import Guest, stamp, stamps
from qsd_trio.testing.memory import memory_node
from qsd_trio.testing.recorder import Journal
from tests.block.drivers.qcow2.kit import (
    Disk,
    check,
    luks_options,
    make,
    new_luks,
    opened,
    read,
    write,
)
from tests.block.drivers.qcow2.workload import USUAL, Workload
from tests.block.secrets import secrets

BELOW = 1 << 40  # the stamp of the backing file


@attrs.frozen
class Shape:
    """A kind of image, and what is asked of it."""

    id: str
    bits: int = 12
    sectors: int = 96
    version: int = 3
    backed: bool = False
    extended: bool = False
    external: bool = False
    crypt: bool = False
    kinds: str = USUAL
    options: tuple[tuple[str, object], ...] = ()


SHAPES = [
    Shape("512-byte clusters", 9, 200),
    Shape("512-byte clusters, backing file", 9, 200, backed=True),
    Shape("4 KiB clusters"),
    Shape("4 KiB clusters, backing file", backed=True),
    Shape("64 KiB clusters", 16, 12 << 7),
    Shape("64 KiB clusters, backing file", 16, 12 << 7, backed=True),
    Shape("v2", version=2),
    Shape("lazy refcounts", options=(("lazy_refcounts", True),)),
    Shape("discard-no-unref", options=(("discard_no_unref", True),)),
    Shape("subclusters", 14, 384, extended=True),
    Shape("subclusters, backing file", 14, 384, extended=True, backed=True),
    Shape("data file", external=True),
    Shape("data file, backing file", external=True, backed=True),
    Shape("compressed", kinds=USUAL + "cccc"),
    Shape("compressed, backing file", kinds=USUAL + "cccc", backed=True),
    Shape("compressed, subclusters", 14, 384, extended=True, kinds=USUAL + "cccc"),
    Shape("encrypted", crypt=True),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=[shape.id for shape in SHAPES])
SEEDS = 3


class Images:
    """An image of a shape on slow disks, and a guest's books."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape
        self.rng = random.Random(f"{shape.id} {seed}")
        self.journal = Journal()
        self.below = stamp(BELOW) * (shape.sectors // 2) if shape.backed else b""
        guest = Guest(self.journal, shape.sectors, stamps(self.below))
        kinds = shape.kinds.replace("d", "") if shape.version == 2 and shape.backed else shape.kinds
        self.work = Workload(self.rng, guest, 1 << shape.bits, kinds)
        self.data = Disk(b"", self.rng, self.journal) if shape.external else None

    async def make(self) -> None:
        shape = self.shape
        image = await make(
            shape.sectors * SECTOR,
            cluster_bits=shape.bits,
            version=shape.version,
            extended=shape.extended,
            data=self.data,
            crypt=new_luks() if shape.crypt else None,
        )
        self.disk = Disk(image, self.rng, self.journal)

    def opened(self) -> AbstractAsyncContextManager[Node]:
        """Open the image with room for two L2 tables: they come and go."""
        backing = memory_node(self.below) if self.below else None
        options: dict[str, object] = {"l2_cache_size": 1024, **dict(self.shape.options)}
        if self.shape.crypt:
            options |= {"encrypt": luks_options(), "objects": secrets()}
        return opened(self.disk, backing, data=self.data, **options)

    def check(self, final: bytes) -> None:
        """Check what is on the disks after closing."""
        data = bytes(self.data.data) if self.data else None
        report = check(bytes(self.disk.data), self.below, data)
        assert (report.errors, report.leaks) == ([], [])
        assert self.shape.crypt or report.content == final


@shapes
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_overlapping_requests_in_random_order(shape: Shape, seed: int) -> None:
    """Writes, zeroes and discards of the same clusters, allocating and not (QEMU b8bfb1478d)."""
    images = Images(shape, seed)
    await images.make()
    async with images.opened() as node:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(images.work.run, node, 15)
            await images.work.check(node, 0, shape.sectors)
        final = await read(node, 0, shape.sectors * SECTOR)
    images.check(final)


@shapes
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_cancelled_requests_leave_a_sound_image(shape: Shape, seed: int) -> None:
    images = Images(shape, seed)
    await images.make()
    async with images.opened() as node:
        for _ in range(5):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    turns = images.rng.randrange(60)
                    nursery.start_soon(cancelled_after, turns, images.work.run, node, 200)
            await images.work.check(node, 0, shape.sectors)
        assert node.driver.image.in_flight == []
        final = await read(node, 0, shape.sectors * SECTOR)
    images.check(final)


async def cancelled_after(
    turns: int, function: Callable[..., Awaitable[object]], *args: object
) -> None:
    """Call a function, and cancel it after some turns of the loop if it is not done by then."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(function, *args)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            scope.cancel()


@pytest.mark.parametrize(
    "shape",
    [shape for shape in SHAPES if not shape.external],  # QEMU has none with data files
    ids=lambda shape: shape.id,
)
async def test_cancelled_snapshots(shape: Shape) -> None:
    """Cancelled taking or deleting leaves the state before or after it, and an image that works."""
    images = Images(shape, 1)
    rng = images.rng
    await images.make()
    taken: dict[bytes, bytes] = {}
    async with images.opened() as node:
        size = node.getlength()
        store = node.driver.snapshots
        for number in range(40):
            await images.work.run(node, 2)
            content = await read(node, 0, size)
            if len(taken) < 4 and rng.random() < 0.6:
                snapshot = Snapshot(
                    id=b"", name=b"%d" % number, date_sec=1, date_nsec=2, vm_clock_nsec=3
                )
                await cancelled_after(rng.randrange(40), store.create, snapshot)
            elif taken:
                name = rng.choice(list(taken))
                await cancelled_after(rng.randrange(40), store.delete, None, name)
            names = {each.name for each in store.all()}
            taken = {name: taken.get(name, content) for name in names}
            assert await read(node, 0, size) == content
        final = await read(node, 0, size)
    images.check(final)
    report = check(bytes(images.disk.data), images.below)
    assert {each.name.encode() for each in report.snapshots} == taken.keys()
    for each in report.snapshots:
        assert shape.crypt or each.content == taken[each.name.encode()]


@shapes
async def test_cancelled_resizes(shape: Shape) -> None:
    """A cancelled resize leaves the old or the new length; what grows later is zeroes nevertheless."""
    images = Images(shape, 2)
    rng = images.rng
    await images.make()
    async with images.opened() as node:
        await images.work.change(node, "w", 0, shape.sectors)
        content = await read(node, 0, node.getlength())
        for _ in range(30):
            old, new = len(content), rng.randrange(1, 2 * shape.sectors) * SECTOR
            await cancelled_after(rng.randrange(50), node.truncate, new)
            size = node.getlength()
            assert size in (old, new)
            found = await read(node, 0, size)
            kept = min(old, new)
            assert found[:kept] == content[:kept]
            if size > old:
                assert not any(found[old:])
            content = found
    images.check(content)


async def test_a_new_l2_table_is_there_before_the_l1_table_names_it() -> None:
    rng = random.Random(1)
    disk = Disk(await make(1 << 20, cluster_bits=9))
    async with opened(disk, pass_discard_request=False) as node:
        # Leave free clusters with something in them that would make a bad L2 table.
        await write(node, 0, stamp(0x77777777777777) * 40)
        await node.flush()
        await node.pdiscard(0, 40 * SECTOR)
        await node.flush()
        for at in range(8):
            await write(node, (at + 1) << 15, stamp(1))
        await node.flush()
    points = 0
    for crash in disk.journal.crashes(rng, 200):
        points += 1
        assert check(crash.images[0]).errors == []
    assert points == 200


async def test_a_cluster_that_is_still_written_to_is_not_used_again() -> None:
    """A discard during a write must not let another guest cluster have the host cluster meanwhile."""
    disk = Disk(await make(1 << 20, cluster_bits=12))
    go = trio.Event()
    real = Disk.pwritev

    async def held(self: Disk, offset: int, iov: list[memoryview], flags: ReqFlag) -> None:
        if bytes(iov[0][:1]) == b"H":
            await go.wait()
        await real(self, offset, iov, flags)

    Disk.pwritev = held
    try:
        async with opened(disk) as node, trio.open_nursery() as nursery:
            await write(node, 0, b"a" * 8192)
            nursery.start_soon(write, node, 0, b"H" * 4096)
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            await node.pdiscard(0, 8192)
            await node.flush()
            for at in range(4):
                await write(node, 65536 + at * 4096, b"b" * 4096)
            go.set()
            for _ in range(5):
                await trio.lowlevel.checkpoint()
            assert await read(node, 65536, 4 * 4096) == b"b" * 4 * 4096
    finally:
        Disk.pwritev = real
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])


async def test_a_flush_serves_all_who_wait_for_it() -> None:
    disk = Disk(await make(1 << 20), random.Random(1))
    async with opened(disk) as node:
        for at in range(8):
            await write(node, at << 16, stamp(1))
        disk.flushes = 0
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(node.driver.image.metadata.write_back)
        assert disk.flushes <= 4
