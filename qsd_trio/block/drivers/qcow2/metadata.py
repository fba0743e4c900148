"""An image's tables in memory, and the order in which they reach the disk.

Writing changes tables in memory only. ``write_back`` writes them so that a crash between any two of its
writes leaves an image without errors (leaks at worst):

1. refcount blocks, then the refcount table entries that name new ones;
2. a barrier: guest data and refcounts are there before anything points at them;
3. L2 tables; a barrier; L1 entries that name new ones;
4. a barrier, and only then the refcounts of clusters that nothing refers to any more go down.

With lazy refcounts the dirty bit takes the place of steps 1 and 4: while it is set, refcounts stay in memory
until the image is closed, and who finds the bit set counts anew (repair.py). Step 2 is left out if the
guest data that wait go to places that are sure to be there and to read as what was there before.

Step 4 is also when such clusters can be used again: until then the disk still refers to them, and requests
that were under way when they were freed may still read or write them (``begin_io``).
"""

from __future__ import annotations

import functools
import itertools
import logging
from array import array
from typing import TYPE_CHECKING, Final, final

import attrs
import trio

from qsd_trio.block.drivers.qcow2 import header as hdr
from qsd_trio.block.drivers.qcow2 import layout as lay
from qsd_trio.block.drivers.qcow2.freed import FreedClusters
from qsd_trio.block.drivers.qcow2.layout import (
    COPIED,
    OFFSET_MASK,
    CorruptImageError,
)
from qsd_trio.block.drivers.qcow2.overlap import ACTIVE_L2, REFBLOCK, Locations
from qsd_trio.block.drivers.qcow2.refcounts import Refcounts, from_disk, to_disk
from qsd_trio.errors import QmpError
from qsd_trio.iov import iov_slice, iov_zero

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from qsd_trio.block.abc import Child
    from qsd_trio.block.drivers.qcow2.header import Header
    from qsd_trio.block.drivers.qcow2.snapshot_table import Entry

log = logging.getLogger(__name__)

#: Bytes of freed clusters that may wait for a flush before we write back by ourselves.
MAX_PENDING: Final = 64 << 20
#: Bytes by which the file is made longer at a time while refcounts are lazy.
LAZY_AHEAD: Final = 64 << 20
L1_SECTOR: Final = 64  # entries of a 512-byte piece: what is written of the L1 table at once


@final
@attrs.define(eq=False)
class Metadata:
    """The header, the L1 table, L2 tables, refcounts."""

    file: Child
    header: Header
    #: Where guest data are: ``file``, unless the image has an external data file.
    data: Child
    l1: array[int]
    l1_offset: int
    refcounts: Refcounts = attrs.field(init=False)
    #: The snapshot table, and its bytes on disk (snapshots.load reads it).
    snapshots: list[Entry] = attrs.field(init=False, factory=list)
    snapshots_size: int = attrs.field(init=False, default=0)
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
    #: Limits of the caches: in slices, in clusters.
    l2_limit: int = attrs.field(init=False, default=512)
    cluster_bits: int = attrs.field(init=False)
    #: Whether L2 entries are extended by subcluster bitmaps.
    extended: bool = attrs.field(init=False)
    _entry_bits: int = attrs.field(init=False)
    l2_bits: int = attrs.field(init=False)  # log2 of entries per L2 table
    slice_bits: int = attrs.field(init=False)  # log2 of entries per slice, the unit of the cache
    #: Whether clusters freed for a reason are discarded in the file: request, snapshot, other.
    pass_discard: tuple[bool, bool, bool] = attrs.field(init=False, default=(False, False, False))
    #: Whether a cluster that is discarded keeps its place.
    discard_no_unref: bool = attrs.field(init=False, default=False)
    _freed: FreedClusters = attrs.field(init=False)
    _write_lock: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _header_lock: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    #: Number of the last run of _write_back that began, and that succeeded.
    _started: int = attrs.field(init=False, default=0)
    _finished: int = attrs.field(init=False, default=0)
    #: What is being written must stay in the caches: the disk may still have the old state.
    #: Whether refcounts on the disk may be behind, under the dirty bit.
    lazy: bool = attrs.field(init=False, default=False)
    #: With lazy refcounts: what is dirty refers to data that a flush must bring to the disk first.
    _data_first: bool = attrs.field(init=False, default=False)
    #: With lazy refcounts: the file's length that is sure to survive a crash; 0: nothing is sure.
    _ahead: int = attrs.field(init=False, default=0)
    _writing_l2: dict[int, list[int]] = attrs.field(init=False, factory=dict)
    #: Slices that nobody asked for since the last ``clean_caches``: where they are, and their words.
    _aged: dict[int, tuple[int, array[int], array[int] | None]] = attrs.field(
        init=False, factory=dict
    )
    _loading: dict[int, trio.Event] = attrs.field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self.cluster_bits = self.header.cluster_bits
        self.extended = bool(self.header.incompatible & lay.INCOMPAT_EXTENDED_L2)
        self._entry_bits = 4 if self.extended else 3  # log2 of bytes per entry
        self.l2_bits = self.cluster_bits - self._entry_bits
        self.slice_bits = self.l2_bits

    @classmethod
    async def load(cls, file: Child, header: Header) -> Metadata:
        """Read the L1 and the refcount table. Their sizes were checked with the header.

        Where metadata is has to be noted then (overlap.locate).
        """
        cluster_bits = header.cluster_bits
        try:
            l1 = from_disk(await read_file(file, header.l1_table_offset, header.l1_size * 8))
        except OSError as exc:
            raise QmpError(f"Could not read L1 table: {exc.strerror}") from exc
        try:
            table = await read_file(
                file, header.refcount_table_offset, header.refcount_table_clusters << cluster_bits
            )
        except OSError as exc:
            raise QmpError(f"Could not initialize refcount handling: {exc.strerror}") from exc
        self = cls(file=file, header=header, data=file, l1=l1, l1_offset=header.l1_table_offset)

        async def read(offset: int, length: int) -> bytearray:
            return await read_file(file, offset, length)

        self.refcounts = Refcounts(
            file=file,
            cluster_bits=cluster_bits,
            order=header.refcount_order,
            table_offset=header.refcount_table_offset,
            table=from_disk(table),
            read=read,
            write_back=functools.partial(self.write_back, accurate=True),
            update_header=self.update_header,
            write_lock=self._write_lock,
            locations=self.locations,
            fresh_from=(file.getlength() + self.cluster_size - 1) >> cluster_bits,
        )
        self._freed = FreedClusters(self.refcounts, functools.partial(discard_file, file))
        return self

    # -- the header ----------------------------------------------------------------------------------

    async def update_header(self, change: Callable[[Header], Header]) -> None:
        """Put what ``change`` makes of the header on stable storage.

        A crash leaves the old or the new one (see header.rewrite). Nothing else that is cached is
        written: what the new header refers to must be there already. Cancelled: nothing has happened,
        or all of it. Failed: old or new on disk, the old one in memory, so that neither what the old
        nor what the new one refers to may be freed.
        """
        async with self._header_lock:
            with trio.CancelScope(shield=True):
                new, writes = hdr.rewrite(self.header, change(self.header))
                for offset, data in writes:
                    await self.file.pwritev(offset, [memoryview(data)])
                    await self.file.flush()
                self.header = new

    async def set_dirty_bit(self, value: bool) -> None:
        """Say on stable storage whether the refcounts there may be wrong."""

        def change(header: Header) -> Header:
            rest = header.incompatible & ~lay.INCOMPAT_DIRTY
            return attrs.evolve(header, incompatible=rest | (lay.INCOMPAT_DIRTY if value else 0))

        if bool(self.header.incompatible & lay.INCOMPAT_DIRTY) != value:
            await self.update_header(change)

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    def clusters_of(self, offset: int, length: int) -> range:
        """Return the offsets of the clusters that a structure occupies."""
        return range(offset, offset + length, self.cluster_size)

    # -- L2 tables -----------------------------------------------------------------------------------

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

    # -- freed clusters --------------------------------------------------------------------------------

    def begin_io(self) -> int:
        """Keep clusters that are freed from now on from being used again until ``end_io``."""
        return self._freed.begin_io()

    def end_io(self, token: int) -> None:
        """End what ``begin_io`` began."""
        self._freed.end_io(token)

    def free(self, offset: int, length: int, reason: int) -> None:
        """Drop a reference to the clusters of a range, once the disk no longer has it.

        ``reason`` is an index into ``pass_discard``: 0 a request, 1 a snapshot, 2 other.
        """
        self._freed.add(offset, length, discard=self.pass_discard[reason])

    @property
    def pending_bytes(self) -> int:
        """Bytes of clusters that wait to be free."""
        return len(self._freed.pending) << self.cluster_bits

    # -- writing back ------------------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """Whether the disk lacks something."""
        return bool(
            self.dirty_l2
            or self.dirty_l1
            or self._freed.pending
            or self.refcounts.dirty_blocks
            or self.refcounts.dirty_table
        )

    async def write_back(self, *, accurate: bool = False) -> None:
        """Write everything that was dirty when this was called; see the module's text for the order.

        Lazy refcounts are only written if they are to be ``accurate``. Nothing is on stable storage
        before the file is flushed. Cancelled or failed: what may not have been written is dirty again.
        """
        if not self.dirty and not self._write_lock.locked():
            return
        seen = self._started
        async with self._write_lock:
            if not self.dirty or (self._finished > seen and not (accurate and self.lazy)):
                return  # a run that began later did it for us
            lazily = self.lazy and not accurate and self._is_behind
            await self._write_back(lazily=lazily)

    async def make_clean(self) -> None:
        """Write everything, flush, and take the dirty bit away. Nobody may write meanwhile."""
        await self.write_back(accurate=True)
        end = self.refcounts.fresh_from << self.cluster_bits
        if self._ahead and self.file.getlength() > end:
            await self._set_file_length(end)
        self._ahead = 0
        if self.header.incompatible & lay.INCOMPAT_DIRTY:
            await self.file.flush()
            await self.set_dirty_bit(False)

    @property
    def _is_behind(self) -> bool:
        """Whether the refcounts on the disk are not those in memory, or need not be."""
        return bool(
            self.header.incompatible & lay.INCOMPAT_DIRTY
            or self.refcounts.dirty_blocks
            or self.refcounts.dirty_table
        )

    @property
    def would_be_dirty(self) -> bool:
        """Whether the dirty bit is set, or will be when something is written."""
        return bool(self.header.incompatible & lay.INCOMPAT_DIRTY) or (
            self.lazy and self._is_behind
        )

    async def _reach_ahead(self) -> None:
        """Make the file longer than what is in use, so that a crash cannot leave references beyond it."""
        end = (self.refcounts.fresh_from << self.cluster_bits) + LAZY_AHEAD
        if end > self.file.getlength():
            await self._set_file_length(end)
        self._ahead = self.file.getlength()

    async def _set_file_length(self, length: int) -> None:
        try:
            await self.file.truncate(length)
        except (OSError, QmpError) as exc:
            # A device, for one. Nothing is lost but time.
            log.debug("qcow2: cannot make the file %d bytes long: %s", length, exc)

    async def _write_back(self, *, lazily: bool) -> None:
        self._started = run = self._started + 1
        refcounts = self.refcounts
        # One instant: what is written hangs together, whatever changes while it is being written.
        blocks: dict[int, list[int]] = {}
        entries: set[int] = set()
        if not lazily:
            blocks, refcounts.dirty_blocks = refcounts.dirty_blocks, blocks
            entries, refcounts.dirty_table = refcounts.dirty_table, entries
        data_first, self._data_first = self._data_first or not lazily, False
        tables, self.dirty_l2 = self.dirty_l2, {}
        sectors, self.dirty_l1 = self.dirty_l1, set()
        frees = self._freed.take()
        self._writing_l2, refcounts.writing = tables, blocks
        try:
            block_writes = self._block_writes(blocks)
            entry_writes = [
                (refcounts.table_offset + number * 8, refcounts.table[number].to_bytes(8, "big"))
                for number in sorted(entries)
            ]
            table_writes = [
                self._slice_write(number, first, last)
                for number, (first, last) in sorted(tables.items())
            ]
            sector_writes = []
            for sector in sorted(sectors):
                data = to_disk(self.l1[sector * L1_SECTOR : (sector + 1) * L1_SECTOR])
                sector_writes.append((self.l1_offset + sector * L1_SECTOR * 8, data))
            if lazily and (table_writes or sector_writes):
                await self.set_dirty_bit(True)
                end = refcounts.fresh_from << self.cluster_bits
                if not end <= self._ahead <= self.file.getlength():
                    await self._reach_ahead()
                    data_first = True
            await self._write(block_writes)
            if entry_writes:
                if block_writes:
                    await self.file.flush()
                await self._write(entry_writes)
            if table_writes:
                if data_first:
                    if self.data is not self.file:
                        await self.data.flush()
                    await self.file.flush()
                await self._write(table_writes)
            if sector_writes:
                await self.file.flush()
                await self._write(sector_writes)
            released = bool(frees)
            if released:
                await self.file.flush()
                await self._freed.release(frees)
            if released and not lazily:
                freed, refcounts.dirty_blocks = refcounts.dirty_blocks, {}
                blocks = refcounts.writing = _merged(blocks, freed)
                await self._write(self._block_writes(freed))
        except BaseException:
            refcounts.dirty_blocks = _merged(blocks, refcounts.dirty_blocks)
            refcounts.dirty_table |= entries
            self.dirty_l2 = _merged(tables, self.dirty_l2)
            self.dirty_l1 |= sectors
            self._freed.pending += frees
            self._data_first |= data_first
            raise
        finally:
            self._writing_l2, refcounts.writing = {}, {}
        self._finished = run

    def _block_writes(self, blocks: dict[int, list[int]]) -> list[tuple[int, bytes]]:
        refcounts = self.refcounts
        writes = []
        for number, (first, last) in sorted(blocks.items()):
            offset = refcounts.table[number] & lay.REFTABLE_OFFSET_MASK
            self.locations.check(offset, offset, self.cluster_size, REFBLOCK)
            at, data = refcounts.blocks[number].to_bytes(first, last)
            writes.append((offset + at, data))
        return writes

    async def _write(self, writes: Iterable[tuple[int, bytes]]) -> None:
        for offset, data in writes:
            await self.file.pwritev(offset, [memoryview(data)])


def _merged(old: dict[int, list[int]], new: dict[int, list[int]]) -> dict[int, list[int]]:
    answer = {key: list(span) for key, span in old.items()}
    for key, (first, last) in new.items():
        span = answer.get(key)
        answer[key] = [first, last] if span is None else [min(span[0], first), max(span[1], last)]
    return answer


async def read_file(file: Child, offset: int, length: int) -> bytearray:
    """Read a piece of the image file; what lies past its end is zero."""
    data = bytearray(length)
    await read_into(file, offset, [memoryview(data)], length)
    return data


async def read_into(file: Child, offset: int, iov: Sequence[memoryview], length: int) -> None:
    """Fill ``iov``, ``length`` bytes long, from the image file; what lies past its end is zero."""
    there = file.getlength() - offset
    if there >= length:
        await file.preadv(offset, iov)
        return
    there = max(there, 0)
    if there:
        await file.preadv(offset, iov_slice(iov, 0, there))
    iov_zero(iov_slice(iov, there, length - there))


async def discard_file(file: Child, offset: int, length: int) -> None:
    """Discard a piece of the image file, as far as it goes; a file that cannot is no error."""
    length = min(length, file.getlength() - offset)
    if length <= 0:
        return
    try:
        await file.pdiscard(offset, length)
    except OSError as exc:
        log.debug("qcow2: discard of %#x+%#x: %s", offset, length, exc)
