"""Put an image's refcounts and COPIED flags right: what an image with the dirty bit set needs.

The dirty bit is the last thing to go, so that a crash in the middle only means that the next open starts
over: nothing that holds data, or leads to it, is written but COPIED flags, and new refcount blocks and
tables go where nothing is. Blocks and a table that are sound stay where they are.
"""

from __future__ import annotations

import errno
import itertools
import logging
from array import array
from typing import TYPE_CHECKING, Final, final

import attrs
import trio

from qsd_trio.block.drivers.qcow2 import check
from qsd_trio.block.drivers.qcow2 import layout as lay
from qsd_trio.block.drivers.qcow2.freed import runs
from qsd_trio.block.drivers.qcow2.imagefile import discard_file, read_file
from qsd_trio.block.drivers.qcow2.layout import COMPRESSED, COPIED, OFFSET_MASK
from qsd_trio.block.drivers.qcow2.refblock import pack, unpack
from qsd_trio.block.drivers.qcow2.refcounts import to_disk
from qsd_trio.errors import os_error, with_errno

if TYPE_CHECKING:
    from qsd_trio.block.abc import Child
    from qsd_trio.block.drivers.qcow2.check import Census
    from qsd_trio.block.drivers.qcow2.metadata import Metadata

log = logging.getLogger(__name__)

#: Entries of a table compared and written between two checkpoints.
_PIECE: Final = 1 << 16


async def repair_dirty(metadata: Metadata) -> None:
    """Repair an image whose dirty bit is set, then clear it. Raises QmpError.

    Nobody else may use the image meanwhile. What is cached is dropped. Faults that are not about
    refcounts stay, and so does the dirty bit then. Cancelled: the bit stays, too.
    """
    try:
        repair = _Repair(metadata, await check.take(metadata))
        await repair.run()
        if not repair.census.corruptions:
            await metadata.set_dirty_bit(False)
    except OSError as exc:
        raise with_errno("Could not repair dirty image", exc) from exc


@final
@attrs.define(eq=False)
class _Repair:
    metadata: Metadata
    census: Census
    #: The refcount table as it is to be.
    table: array[int] = attrs.field(init=False)
    new_blocks: set[int] = attrs.field(init=False, factory=set)
    raised: int = attrs.field(init=False, default=0)
    leaked: list[int] = attrs.field(init=False, factory=list)

    @property
    def _bits(self) -> int:
        return self.metadata.refcounts.bits

    @property
    def _cluster_bits(self) -> int:
        return self.metadata.cluster_bits

    async def run(self) -> None:
        metadata, refcounts = self.metadata, self.metadata.refcounts
        self.table = array("Q")
        for start in range(0, len(refcounts.table), check.STEP):
            part = refcounts.table[start : start + check.STEP]
            self.table.extend(entry & lay.REFTABLE_OFFSET_MASK for entry in part)
            await trio.lowlevel.checkpoint()
        for number in self.census.bad_blocks:
            self.table[number] = 0
        offset = await self._place()
        for number, entry in enumerate(self.table):
            if not number % check.STEP:
                await trio.lowlevel.checkpoint()
            if entry:
                await self._write_block(number, entry)
        await metadata.file.flush()
        await self._write_table(offset)
        await self._mend_flags()
        metadata.forget_l2()
        await metadata.file.flush()
        await self._discard_leaks()
        if self.raised or self.leaked or self.new_blocks:
            log.warning(
                "qcow2: repaired a dirty image: %d refcounts were too low, %d clusters leaked",
                self.raised,
                len(self.leaked),
            )
        if self.census.corruptions:
            log.error(
                "qcow2: %d faults of a dirty image cannot be repaired", self.census.corruptions
            )

    # -- placing what is missing ---------------------------------------------------------------------

    async def _place(self) -> int:
        """Find room for a refcount block wherever something is counted, and a table that holds all.

        Returns where the refcount table is to be.
        """
        refcounts = self.metadata.refcounts
        needed = await self._ranges_in_use()
        offset = refcounts.table_offset
        placed = range(offset >> self._cluster_bits, 0)  # of the table; empty: not placed
        if self.census.table_is_sound:
            placed = self._clusters_of_table(offset)
        free = 0
        while True:
            missing = [number for number in needed if not self._has_block(number)]
            for number in sorted(missing):
                self._make_room_in_table(number)
                free = self._take_free(free)
                self.table[number] = free << self._cluster_bits
                self.new_blocks.add(number)
                needed.add(free >> self._bits)
            if missing:
                continue
            if len(placed) << self._cluster_bits == len(self.table) * 8:
                return offset
            for cluster in placed:
                self.census.counts[cluster] = 0
            offset = len(self.census.counts) << self._cluster_bits
            placed = self._clusters_of_table(offset)
            self.census.counts.extend([1] * len(placed))
            needed.update(cluster >> self._bits for cluster in placed)

    async def _ranges_in_use(self) -> set[int]:
        """Return the numbers of the refcount blocks that are needed."""
        counts, bits = self.census.counts, self._bits
        numbers = set()
        for number in range((len(counts) >> bits) + 1):
            raw = counts[number << bits : (number + 1) << bits].tobytes()
            if raw.count(0) < len(raw):
                numbers.add(number)
            if not number % check.STEP:
                await trio.lowlevel.checkpoint()
        return numbers

    def _has_block(self, number: int) -> bool:
        return number < len(self.table) and bool(self.table[number])

    def _make_room_in_table(self, number: int) -> None:
        per_cluster = self.metadata.cluster_size // 8
        while number >= len(self.table):
            self.table.extend([0] * per_cluster)
        if len(self.table) * 8 > lay.MAX_REFTABLE_BYTES:
            raise os_error(errno.EFBIG)

    def _take_free(self, start: int) -> int:
        """Take the first cluster from ``start`` that nothing refers to, or one behind the file."""
        counts = self.census.counts
        try:
            cluster = counts.index(0, start)
        except ValueError:
            cluster = len(counts)
            counts.append(0)
        counts[cluster] = 1
        return cluster

    def _clusters_of_table(self, offset: int) -> range:
        first = offset >> self._cluster_bits
        return range(first, first + (len(self.table) * 8 >> self._cluster_bits))

    # -- refcounts -----------------------------------------------------------------------------------

    async def _write_block(self, number: int, offset: int) -> None:
        """Write a refcount block, if the disk has it otherwise."""
        refcounts, metadata = self.metadata.refcounts, self.metadata
        first = number << self._bits
        counts = self.census.counts[first : first + refcounts.mask + 1]
        counts.extend([0] * (refcounts.mask + 1 - len(counts)))
        new = pack(counts, refcounts.order)
        if number in self.new_blocks:
            self.raised += 1
        else:
            old = await read_file(metadata.file, offset, metadata.cluster_size)
            if old == new:
                return
            for at, (was, count) in enumerate(
                zip(unpack(old, refcounts.order), counts, strict=True)
            ):
                if was < count:
                    self.raised += 1
                elif was and not count:
                    self.leaked.append(first + at)
        await metadata.file.pwritev(offset, [memoryview(new)])

    async def _write_table(self, offset: int) -> None:
        metadata, refcounts = self.metadata, self.metadata.refcounts
        if offset == refcounts.table_offset:
            await _write_changes(metadata.file, offset, refcounts.table, self.table)
        else:
            await _write_changes(metadata.file, offset, array("Q"), self.table)
            await metadata.file.flush()
            clusters = len(self.table) * 8 >> self._cluster_bits
            await metadata.update_header(
                lambda header: attrs.evolve(
                    header, refcount_table_offset=offset, refcount_table_clusters=clusters
                )
            )
        refcounts.replace_table(offset, self.table, len(self.census.counts))

    # -- COPIED flags --------------------------------------------------------------------------------

    async def _mend_flags(self) -> None:
        """Let each reference of the active layer tell whether it is the only one."""
        metadata = self.metadata
        before = metadata.l1[:]
        for start in range(0, len(before), check.STEP):
            part = self._mended(before[start : start + check.STEP], step=1)
            metadata.l1[start : start + len(part)] = part
            await trio.lowlevel.checkpoint()
        await _write_changes(metadata.file, metadata.l1_offset, before, metadata.l1)
        step = 2 if self.census.extended else 1
        seen = set()
        for entry in before:
            offset = entry & OFFSET_MASK
            if not offset or offset in seen or not self._is_cluster(offset):
                continue
            seen.add(offset)
            count = metadata.cluster_size // 8
            for start in range(0, count, check.STEP):
                entries = await check.read_words(metadata, offset, start, count)
                mended = self._mended(entries, step=step, of_l2=True)
                if mended != entries:
                    await _write_changes(metadata.file, offset + start * 8, entries, mended)

    def _mended(self, entries: array[int], *, step: int, of_l2: bool = False) -> array[int]:
        """Return L1 or L2 entries with their flags as they ought to be."""
        counts, bits = self.census.counts, self._cluster_bits
        mask = (1 << bits) - 1
        external = of_l2 and self.census.external
        answer = entries[:]
        for at in itertools.compress(range(0, len(entries), step), entries[::step]):
            entry = entries[at]
            host = entry & OFFSET_MASK
            if not host or (of_l2 and entry & COMPRESSED):
                continue
            if host & mask:
                if of_l2 and self.census.is_mendable(entry):
                    answer[at] = lay.ZERO
                continue
            cluster = host >> bits
            alone = external or (cluster < len(counts) and counts[cluster] == 1)
            answer[at] = entry | COPIED if alone else entry & ~COPIED
        return answer

    def _is_cluster(self, offset: int) -> bool:
        mask = self.metadata.cluster_size - 1
        return not offset & mask and offset >> self._cluster_bits < len(self.census.counts)

    # -- leaks ---------------------------------------------------------------------------------------

    async def _discard_leaks(self) -> None:
        """Give the file's space of leaked clusters back, unless something broken may lead to them."""
        if self.census.corruptions:
            return
        for first, count in runs(self.leaked):
            bits = self._cluster_bits
            await discard_file(self.metadata.file, first << bits, count << bits)


async def _write_changes(file: Child, offset: int, old: array[int], new: array[int]) -> None:
    """Write those 512-byte pieces of a table that differ; all, if ``old`` is empty."""
    per_sector = 64
    for start in range(0, len(new), _PIECE):
        changed = [
            at
            for at in range(start, min(start + _PIECE, len(new)), per_sector)
            if old[at : at + per_sector] != new[at : at + per_sector]
        ]
        for first, count in runs(at // per_sector for at in changed):
            part = new[first * per_sector : (first + count) * per_sector]
            await file.pwritev(offset + first * per_sector * 8, [memoryview(to_disk(part))])
        await trio.lowlevel.checkpoint()
