"""The L1 table and the cached slices of L2 tables, with their subcluster bitmaps.

A slice is the unit of the cache (option l2-cache-entry-size): a part of an L2 table, or all of it. Slices
are numbered through all L2 tables, so that a guest offset shifted right gives the number.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from array import array
from typing import TYPE_CHECKING, Final

import attrs
import trio

from qsd_trio.block.drivers.qcow2 import layout as lay
from qsd_trio.block.drivers.qcow2.imagefile import read_file
from qsd_trio.block.drivers.qcow2.layout import COPIED, OFFSET_MASK, CorruptImageError
from qsd_trio.block.drivers.qcow2.overlap import ACTIVE_L2, Locations
from qsd_trio.block.drivers.qcow2.refcounts import from_disk, to_disk

if TYPE_CHECKING:
    from qsd_trio.block.abc import Child
    from qsd_trio.block.drivers.qcow2.header import Header
    from qsd_trio.block.drivers.qcow2.refcounts import Refcounts

L1_SECTOR: Final = 64  # entries of a 512-byte piece: what is written of the L1 table at once


@attrs.define(eq=False)
class L2Tables(ABC):
    """What finds an L2 entry: changed in memory only, until the subclass writes it back."""

    file: Child
    header: Header
    l1: array[int]
    l1_offset: int
    refcounts: Refcounts = attrs.field(init=False)
    #: Slice number -> entries of that slice of its L2 table, in host byte order. The oldest come first.
    l2: dict[int, array[int]] = attrs.field(init=False, factory=dict)
    #: Slice number -> subcluster bitmaps of the cached slices, if the image has extended L2 entries.
    subclusters: dict[int, array[int]] = attrs.field(init=False, factory=dict)
    #: Slice number -> [first, last] entry that differs from the disk
    dirty_l2: dict[int, list[int]] = attrs.field(init=False, factory=dict)
    #: L1_SECTOR-sized pieces that differ from the disk
    dirty_l1: set[int] = attrs.field(init=False, factory=set)
    #: Where metadata is.
    locations: Locations = attrs.field(init=False, factory=Locations)
    #: Slices in the cache, at most.
    l2_limit: int = attrs.field(init=False, default=512)
    cluster_bits: int = attrs.field(init=False)
    #: Whether L2 entries are extended by subcluster bitmaps.
    extended: bool = attrs.field(init=False)
    _entry_bits: int = attrs.field(init=False)
    l2_bits: int = attrs.field(init=False)  # log2 of entries per L2 table
    slice_bits: int = attrs.field(init=False)  # log2 of entries per slice, the unit of the cache
    #: What is being written must stay in the caches: the disk may still have the old state.
    _writing_l2: dict[int, list[int]] = attrs.field(init=False, factory=dict)
    #: Slices that nobody asked for since the last ``clean_caches``: where they are, and their words.
    _aged: dict[int, tuple[int, array[int], array[int] | None]] = attrs.field(
        init=False, factory=dict
    )
    _loading: dict[int, trio.Event] = attrs.field(init=False, factory=dict)
    #: What is dirty refers to data that a flush must bring to the disk first.
    _data_first: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self.cluster_bits = self.header.cluster_bits
        self.extended = bool(self.header.incompatible & lay.INCOMPAT_EXTENDED_L2)
        self._entry_bits = 4 if self.extended else 3  # log2 of bytes per entry
        self.l2_bits = self.cluster_bits - self._entry_bits
        self.slice_bits = self.l2_bits

    @abstractmethod
    async def write_back(self, *, accurate: bool = False) -> None:
        """Write what is dirty; ``accurate``: lazy refcounts, too."""

    @abstractmethod
    def free(self, offset: int, length: int, reason: int) -> None:
        """Drop a reference to the clusters of a range, once the disk no longer has it."""

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    def clusters_of(self, offset: int, length: int) -> range:
        """Return the offsets of the clusters that a structure occupies."""
        return range(offset, offset + length, self.cluster_size)

    def l2_offset(self, index: int) -> int:
        """Return where the L2 table of an L1 entry is on disk, 0 if there is none."""
        if index >= len(self.l1):
            return 0
        offset = self.l1[index] & OFFSET_MASK
        if offset & (self.cluster_size - 1):
            raise CorruptImageError(
                f"L2 table offset {offset:#x} unaligned (L1 index: {lay.c_hex(index)})", fatal=True
            )
        return offset

    def slice_offset(self, number: int) -> int:
        """Return where a slice is on disk, 0 if its L2 table does not exist."""
        shift = self.l2_bits - self.slice_bits
        table = self.l2_offset(number >> shift)
        if not table:
            return 0
        within = number & ((1 << shift) - 1)
        return table + (within << (self.slice_bits + self._entry_bits))

    def slices_of(self, index: int) -> range:
        """Return the numbers of the slices of an L1 entry's L2 table."""
        shift = self.l2_bits - self.slice_bits
        return range(index << shift, (index + 1) << shift)

    async def slice(self, number: int) -> array[int] | None:
        """Return slice ``number`` of all L2 tables, reading it if need be; None: there is no table.

        The slice may leave the cache at the next await: never keep it over one.
        """
        while True:
            entries = self.l2.get(number)
            if entries is not None:
                return entries
            offset = self.slice_offset(number)
            if not offset:
                return None
            if self._rejuvenate(number, offset):
                continue
            loading = self._loading.get(number)
            if loading is not None:
                await loading.wait()
                continue
            self._loading[number] = loading = trio.Event()
            try:
                await self.make_room()
                words = await self._read_words(offset, 1 << (self.slice_bits + self._entry_bits))
                # Only we put slices there while the event is filed; the L1 entry may have changed.
                if self.slice_offset(number) == offset:
                    self._put_slice(number, words)
                    self.locations.note(offset & -self.cluster_size, ACTIVE_L2)
                    return self.l2[number]
            finally:
                del self._loading[number]
                loading.set()

    async def _read_words(self, offset: int, length: int) -> array[int]:
        return from_disk(await read_file(self.file, offset, length))

    def _put_slice(self, number: int, words: array[int]) -> None:
        self._aged.pop(number, None)
        if self.extended:
            self.l2[number] = words[::2]
            self.subclusters[number] = words[1::2]
        else:
            self.l2[number] = words

    async def slice_for_write(self, number: int) -> array[int]:
        """Return slice ``number``, making its L2 table (or a copy of a shared one)."""
        index = number >> (self.l2_bits - self.slice_bits)
        while True:
            entries = await self.slice(number)
            entry = self.l1[index]
            if entries is not None and entry & COPIED:
                self._check_table(number)
                return entries
            # Nobody writes to a shared table: what is read of it stays true as long as the L1 entry does.
            table = self.l2_offset(index)
            words = await self._read_words(table, self.cluster_size) if table else None
            await self.make_room(len(self.slices_of(index)))
            await self.refcounts.prepare()
            # No await from here on.
            if self.l1[index] != entry:
                continue
            cluster, count = self.refcounts.find_nowait(1)
            if not count:
                continue
            self.refcounts.take_nowait(cluster, 1)
            self._move_table(index, cluster << self.cluster_bits, words)
            return self.l2[number]

    def _move_table(self, index: int, offset: int, words: array[int] | None) -> None:
        """Put the L2 table of an L1 entry into a cluster of its own.

        ``words`` is the whole of the shared one, None: there was none. All of it has to be written to
        its new place: every slice comes into the cache and is dirty.
        """
        table = self.l2_offset(index)
        if table:
            self.free(table, self.cluster_size, 2)
            self.locations.drop(table, ACTIVE_L2)
        self.locations.note(offset, ACTIVE_L2)
        size = 1 << (self.slice_bits + self._entry_bits - 3)  # in words
        for turn, number in enumerate(self.slices_of(index)):
            if number not in self.l2:
                part = array("Q", bytes(size * 8)) if words is None else words[turn * size :][:size]
                self._put_slice(number, part)
            self.dirty_l2[number] = [0, (1 << self.slice_bits) - 1]
        self.l1[index] = offset | COPIED
        self.dirty_l1.add(index // L1_SECTOR)

    def _slice_write(self, number: int, first: int, last: int) -> tuple[int, bytes]:
        """Return (offset, data) that brings entries of a cached slice to the disk."""
        words = self.l2[number][first : last + 1]
        if self.extended:
            entries, words = words, array("Q", bytes(16 * len(words)))
            words[::2] = entries
            words[1::2] = self.subclusters[number][first : last + 1]
        self._check_table(number)
        return self.slice_offset(number) + (first << self._entry_bits), to_disk(words)

    def _check_table(self, number: int) -> None:
        """Raise CorruptImageError if writing to a slice would destroy metadata of another kind."""
        offset = self.slice_offset(number)
        size = 1 << (self.slice_bits + self._entry_bits)
        self.locations.check(offset & -self.cluster_size, offset, size, ACTIVE_L2)

    async def set_slice_size(self, size: int) -> None:
        """Cache L2 tables by ``size`` bytes from now on."""
        bits = size.bit_length() - 1 - self._entry_bits
        if bits != self.slice_bits:
            await self.write_back()
            self.forget_l2()
            if not self.l2 and not self._loading:  # else a request came in between: not now
                self.slice_bits = bits

    def mark_l2(self, number: int, first: int, last: int, *, data_first: bool = True) -> None:
        """Note that entries of a cached slice differ from the disk.

        ``data_first``: guest data have to be on the disk before them, as something else is there now.
        """
        if data_first:
            self._data_first = True
        span = self.dirty_l2.get(number)
        if span is None:
            self.dirty_l2[number] = [first, last]
        else:
            if first < span[0]:
                span[0] = first
            if last > span[1]:
                span[1] = last

    async def make_room(self, slices: int = 1) -> None:
        """Keep the caches within their limits, writing back if too much in them is dirty."""
        limit = max(self.l2_limit - slices, 0)
        blocks, most_blocks = self.refcounts.blocks, self.refcounts.limit
        if len(self.l2) + len(self._aged) > limit or len(blocks) > most_blocks:
            self._evict(limit)
            if len(self.l2) > limit or len(blocks) > 2 * most_blocks:
                await self.write_back(accurate=len(blocks) > 2 * most_blocks)
                self._evict(limit)

    def _evict(self, limit: int) -> None:
        """Drop the oldest clean slices until ``limit`` are left, and refcount blocks likewise."""
        surplus = len(self.l2) + len(self._aged) - limit
        for number in tuple(self._aged)[: max(surplus, 0)]:
            self._drop_aged(number)
            surplus -= 1
        if surplus > 0:
            self._drop_l2(surplus)
        self.refcounts.evict()

    def clean_caches(self) -> None:
        """Drop what nobody asked for since this was called last.

        The fast path keeps no record of what it uses. So all clean slices are put aside here; who asks for
        one finds it there, without I/O, and what nobody asked for goes the next time.
        """
        for number in tuple(self._aged):
            self._drop_aged(number)
        for number in self._clean_slices(None):
            self._aged[number] = (
                self.slice_offset(number),
                self.l2.pop(number),
                self.subclusters.pop(number, None),
            )
        self.refcounts.drop_unused()

    def _rejuvenate(self, number: int, offset: int) -> bool:
        """Put a slice back into the cache that was put aside, if it is the one at ``offset``."""
        place, entries, bitmaps = self._aged.pop(number, (0, None, None))
        if entries is None or place != offset:
            return False
        self.l2[number] = entries
        if bitmaps is not None:
            self.subclusters[number] = bitmaps
        return True

    def _drop_aged(self, number: int) -> None:
        place, _, _ = self._aged.pop(number)
        self._note_dropped(number, place & -self.cluster_size)

    def forget_l2(self) -> None:
        """Drop the cached L2 tables but dirty ones."""
        for number in tuple(self._aged):
            self._drop_aged(number)
        self._drop_l2(None)

    def _clean_slices(self, limit: int | None) -> list[int]:
        """Return the oldest clean slices, at most ``limit``."""
        clean = (
            number
            for number in self.l2
            if number not in self.dirty_l2 and number not in self._writing_l2
        )
        return list(itertools.islice(clean, limit))

    def _drop_l2(self, limit: int | None) -> None:
        for number in self._clean_slices(limit):
            self.forget_slice(number)

    def forget_slice(self, number: int) -> None:
        """Drop a slice of the cache."""
        del self.l2[number]
        self.subclusters.pop(number, None)
        index = number >> (self.l2_bits - self.slice_bits)
        self._note_dropped(number, self.l1[index] & OFFSET_MASK)

    def _note_dropped(self, number: int, table: int) -> None:
        """Forget where an L2 table is when no slice of it is left."""
        slices = self.slices_of(number >> (self.l2_bits - self.slice_bits))
        if not any(other in self.l2 or other in self._aged for other in slices):
            self.locations.evicted(table, ACTIVE_L2)
