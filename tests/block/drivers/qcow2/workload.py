"""Random requests on a qcow2 image, from any number of tasks, with the guest's books kept."""

from __future__ import annotations

import random
from typing import Final

import attrs
import trio

from qsd_trio.block.abc import SECTOR, ReqFlag
from qsd_trio.block.io import Node
from qsd_trio.block.snapshots import Snapshot
from qsd_trio.testing.guest import Guest, stamp
from tests.block.drivers.qcow2.kit import read, write

#: What requests may be, a letter each; a letter that comes twice is twice as frequent.
#: w write, z zero, Z zero with MAY_UNMAP, d discard, r read, f flush, c compressed write; and with only
#: one task: s resize, S take a snapshot, D delete one.
USUAL: Final = "wwwwzZdrf"
MAX_SNAPSHOTS: Final = 3


@attrs.define
class Taken:
    """A snapshot: what it holds, and positions in the journal; None: not yet."""

    name: str
    content: bytes
    begun: int
    taken: int | None = None
    doomed: int | None = None
    deleted: int | None = None


class Workload:
    """Requests of one kind of image; ``unit`` is its cluster size."""

    def __init__(self, rng: random.Random, guest: Guest, unit: int, kinds: str = USUAL) -> None:
        self.rng = rng
        self.guest = guest
        self.unit = unit // SECTOR
        self.kinds = kinds
        self.number = 0
        self.snapshots: list[Taken] = []

    async def run(self, node: Node, steps: int) -> None:
        """Make requests, one after the other."""
        for _ in range(steps):
            kind = self.rng.choice(self.kinds)
            first, count = self.some_range()
            if kind == "f":
                begun = self.guest.journal.now()
                await node.flush()
                self.guest.flushed(begun)
            elif kind == "r":
                await self.check(node, first, count)
            elif kind == "s":
                await self.resize(node)
            elif kind == "S":
                await self.take_snapshot(node)
            elif kind == "D":
                await self.delete_snapshot(node)
            else:
                await self.change(node, kind, first, count)

    def some_range(self) -> tuple[int, int]:
        """Return (first, count) of sectors, half of them at the begin of a cluster."""
        rng, unit = self.rng, self.unit
        first = rng.randrange(self.guest.sectors)
        if rng.random() < 0.5:
            first = first // unit * unit
        return first, min(rng.choice([1, 1, 2, 20, unit, 3 * unit]), self.guest.sectors - first)

    async def change(self, node: Node, kind: str, first: int, count: int) -> None:
        """Write, zero or discard sectors."""
        if kind in "cd":  # whole clusters only
            last = (first + count) // self.unit * self.unit
            first = -(-first // self.unit) * self.unit
            count = last - first
            if count <= 0:
                return
        self.number += 1
        number = self.number if kind in "wc" else 0
        offset, length = first * SECTOR, count * SECTOR
        request = self.guest.begin(first, count, number)
        try:
            if kind == "w":
                await write(node, offset, stamp(number) * count, fast=self.rng.random() < 0.4)
            elif kind == "c":
                data = memoryview(stamp(number) * count)
                await node.pwritev(offset, [data], ReqFlag.WRITE_COMPRESSED)
            elif kind == "d":
                await node.pdiscard(offset, length)
            else:
                flags = ReqFlag.MAY_UNMAP if kind == "Z" else ReqFlag.NONE
                await node.pwrite_zeroes(offset, length, flags)
        except trio.Cancelled:
            self.guest.end(request, sure=False)  # it may have come to anything
            raise
        self.guest.end(request)

    async def resize(self, node: Node) -> None:
        """Grow or shrink."""
        sectors = self.rng.randrange(self.guest.sectors // 2, self.guest.sectors * 3 // 2)
        requests = self.guest.begin_resize(sectors)
        await node.truncate(sectors * SECTOR)
        self.guest.end_resize(requests)

    async def take_snapshot(self, node: Node) -> None:
        """Take a snapshot, if there are not many."""
        name = f"snapshot {len(self.snapshots)}"
        if sum(each.doomed is None for each in self.snapshots) < MAX_SNAPSHOTS:
            content = await read(node, 0, node.getlength())
            snapshot = Taken(name, content, self.guest.journal.now())
            self.snapshots.append(snapshot)
            await node.driver.snapshots.create(
                Snapshot(id=b"", name=name.encode(), date_sec=1, date_nsec=2, vm_clock_nsec=3)
            )
            snapshot.taken = self.guest.journal.now()

    async def delete_snapshot(self, node: Node) -> None:
        """Delete one of the snapshots, if there are any."""
        there = [each for each in self.snapshots if each.doomed is None]
        if there:
            snapshot = self.rng.choice(there)
            snapshot.doomed = self.guest.journal.now()
            await node.driver.snapshots.delete(None, snapshot.name.encode())
            snapshot.deleted = self.guest.journal.now()

    def check_snapshots(self, position: int, found: dict[str, bytes]) -> None:
        """Check the snapshots, name -> content, that a crash at a position left."""
        for each in self.snapshots:
            if each.name in found:
                assert each.begun < position
                assert each.deleted is None or each.deleted >= position
                assert found[each.name] == each.content
            elif each.taken is not None and each.taken < position:
                assert each.doomed is not None
                assert each.doomed < position
        assert not found.keys() - {each.name for each in self.snapshots}

    async def check(self, node: Node, first: int, count: int) -> None:
        """Read, and check what comes."""
        begun = self.guest.journal.now()
        self.guest.check_read(first, await read(node, first * SECTOR, count * SECTOR), begun)
