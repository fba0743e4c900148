"""Refcounts in memory: which host clusters are in use, and finding free ones.

Changes stay in memory until ``Metadata.write_back`` writes them, in the order that a crash demands.
The ``_nowait`` functions neither await nor do I/O: the fast path allocates through them.
"""

from __future__ import annotations

import errno
import logging
from array import array
from typing import TYPE_CHECKING, final

import attrs
import trio

from qsd_trio.block.drivers.qcow2.layout import (
    MAX_HOST_OFFSET,
    MAX_REFTABLE_BYTES,
    REFTABLE_OFFSET_MASK,
    CorruptImageError,
    c_hex,
)
from qsd_trio.block.drivers.qcow2.overlap import REFBLOCK, REFTABLE
from qsd_trio.block.drivers.qcow2.refblock import SWAP, parse_refblock
from qsd_trio.errors import os_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from qsd_trio.block.abc import Child
    from qsd_trio.block.drivers.qcow2.header import Header
    from qsd_trio.block.drivers.qcow2.overlap import Locations
    from qsd_trio.block.drivers.qcow2.refblock import RefBlock

log = logging.getLogger(__name__)


@final
@attrs.define(eq=False)
class Refcounts:
    """The refcount table, the cached blocks, and the free space."""

    file: Child
    cluster_bits: int
    order: int
    table_offset: int
    #: In host byte order; an entry per refcount block.
    table: array[int]
    #: Reads a piece of the image file, zero-filled past its end.
    read: Callable[[int, int], Awaitable[bytearray]]
    #: Writes everything cached, in order.
    write_back: Callable[[], Awaitable[None]]
    update_header: Callable[[Callable[[Header], Header]], Awaitable[None]]
    #: Held while something cached is being written.
    write_lock: trio.Lock
    #: Where metadata is: never handed out or written as data.
    locations: Locations
    #: Clusters from here on were never used: beyond the end of the file, or holes at its end.
    fresh_from: int
    blocks: dict[int, RefBlock] = attrs.field(init=False, factory=dict)
    #: block index -> [first, last] counter that differs from the disk
    dirty_blocks: dict[int, list[int]] = attrs.field(init=False, factory=dict)
    #: Blocks that are being written: the disk may still have their old state.
    writing: dict[int, list[int]] = attrs.field(init=False, factory=dict)
    #: How many blocks to keep in memory.
    limit: int = attrs.field(init=False, default=4)
    dirty_table: set[int] = attrs.field(init=False, factory=set)
    #: No cluster below is free, as far as the counters in memory go.
    free_index: int = attrs.field(init=False, default=0)
    #: Clusters below are not to be handed out for now, free or not.
    floor: int = attrs.field(init=False, default=0)
    #: Where the next compressed cluster goes: into the rest of a cluster that has some already. 0: nowhere.
    tail: int = attrs.field(init=False, default=0)
    bits: int = attrs.field(init=False)  # log2 of counters per block
    mask: int = attrs.field(init=False)
    _grow_lock: trio.Lock = attrs.field(init=False, factory=trio.Lock)

    def __attrs_post_init__(self) -> None:
        self.bits = self.cluster_bits + 3 - self.order
        self.mask = (1 << self.bits) - 1

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    # -- blocks ------------------------------------------------------------------------------------

    async def block(self, number: int) -> RefBlock | None:
        """Return refcount block ``number``, reading it if need be; None: it does not exist."""
        block = self.blocks.get(number)
        if block is not None:
            return block
        if number >= len(self.table):
            return None
        data = await self._read_block(number)
        if data is None:
            return None
        offset = self.table[number] & REFTABLE_OFFSET_MASK
        # Someone else may have read it, and changed it, meanwhile.
        block = self.blocks.get(number)
        if block is None:
            block = self.blocks[number] = parse_refblock(data, self.order)
            self.locations.note(offset, REFBLOCK)
        return block

    async def _read_block(self, number: int) -> bytearray | None:
        offset = self.table[number] & REFTABLE_OFFSET_MASK
        if not offset:
            return None
        if offset & (self.cluster_size - 1):
            raise CorruptImageError(
                f"Refblock offset {offset:#x} unaligned (reftable index: {c_hex(number)})",
                fatal=True,
            )
        return await self.read(offset, self.cluster_size)

    async def _peek(self, number: int) -> RefBlock | None:
        """Return block ``number`` without keeping it, for walks over all blocks."""
        block = self.blocks.get(number)
        if block is None:
            data = await self._read_block(number)
            block = self.blocks.get(number)
            if block is None and data is not None:
                block = parse_refblock(data, self.order)
        return block

    def evict(self, *needed: int) -> None:
        """Drop the oldest clean blocks beyond the limit, but not those that are ``needed``."""
        surplus = len(self.blocks) - self.limit
        if surplus <= 0:
            return
        keep = {self.free_index >> self.bits, *needed}
        clean = [
            number
            for number in self.blocks
            if number not in self.dirty_blocks and number not in self.writing and number not in keep
        ]
        for number in clean[:surplus]:
            self.drop_block(number)

    def drop_unused(self) -> None:
        """Drop every clean block but the one that new clusters come from."""
        for number in tuple(self.blocks):
            if not (
                number in self.dirty_blocks
                or number in self.writing
                or number == self.free_index >> self.bits
            ):
                self.drop_block(number)

    def drop_block(self, number: int) -> None:
        """Drop a clean block from memory."""
        del self.blocks[number]
        self.locations.evicted(self.table[number] & REFTABLE_OFFSET_MASK, REFBLOCK)

    async def get(self, cluster: int) -> int:
        """Return the refcount of a host cluster."""
        block = await self.block(cluster >> self.bits)
        return 0 if block is None else block.get(cluster & self.mask)

    def mark(self, number: int, first: int, last: int) -> None:
        """Note that counters of a cached block differ from the disk."""
        span = self.dirty_blocks.get(number)
        if span is None:
            self.dirty_blocks[number] = [first, last]
        else:
            if first < span[0]:
                span[0] = first
            if last > span[1]:
                span[1] = last

    def _create_block(self, number: int, cluster: int) -> None:
        """Make the block of a range where everything is free, at a host cluster not yet counted."""
        self._check_not_metadata(cluster, 1)
        offset = cluster << self.cluster_bits
        self.blocks[number] = parse_refblock(bytes(self.cluster_size), self.order)
        self.mark(number, 0, self.mask)
        self.table[number] = offset
        self.dirty_table.add(number)
        self.locations.note(offset, REFBLOCK)

    def _is_missing(self, number: int) -> bool:
        return not self.table[number] & REFTABLE_OFFSET_MASK

    def _check_not_metadata(self, cluster: int, count: int) -> None:
        """Raise CorruptImageError if clusters that are counted as free hold metadata."""
        for number in range(cluster, cluster + count):
            offset = number << self.cluster_bits
            self.locations.check(offset, offset, self.cluster_size)

    # -- allocation --------------------------------------------------------------------------------

    def find_nowait(self, wanted: int) -> tuple[int, int]:
        """Return (cluster, count) of the first free run, at most ``wanted`` long.

        A count of 0 means that the counters are not in memory: await ``prepare()`` and ask again.
        """
        index = self.free_index
        while True:
            block = self.blocks.get(index >> self.bits)
            if block is None:
                return 0, 0
            at = block.find_zero(index & self.mask)
            if at >= 0:
                index = (index & ~self.mask) + at
                self.free_index = index
                if wanted == 1:
                    return index, 1
                return index, block.zero_run(at, min(wanted, self.mask + 1 - at))
            index = (index | self.mask) + 1
            self.free_index = index

    def share_nowait(self, cluster: int) -> bool:
        """Add a reference to a cluster in use; False if its counter is not in memory, or at its limit."""
        block = self.blocks.get(cluster >> self.bits)
        at = cluster & self.mask
        if block is None or block.get(at) >= (1 << (1 << self.order)) - 1:
            return False
        block.put(at, block.get(at) + 1)
        self.mark(cluster >> self.bits, at, at)
        return True

    def take_nowait(self, cluster: int, count: int) -> None:
        """Set the refcount of free clusters, all of one cached block, to 1."""
        if count > 1 or cluster << self.cluster_bits in self.locations:
            self._check_not_metadata(cluster, count)
        self._take(cluster, count)

    def _take(self, cluster: int, count: int) -> None:
        number = cluster >> self.bits
        first = cluster & self.mask
        self.blocks[number].put_run(first, count, 1)
        self.mark(number, first, first + count - 1)
        if cluster == self.free_index:
            self.free_index = cluster + count
        if cluster + count > self.fresh_from:
            self.fresh_from = cluster + count

    async def prepare(self) -> None:
        """Bring the counters of the next free cluster into memory, making their block if needed."""
        while not self.find_nowait(1)[1]:
            await self._provide(self.free_index >> self.bits)

    async def _provide(self, number: int) -> None:
        self.evict(number)
        if number >= len(self.table):
            self._check_end(number + 1)
            await self._grow_table(number + 1)
        if await self.block(number) is None and self._is_missing(number):
            self._check_end(number + 1)
            cluster = number << self.bits
            self._create_block(number, cluster)
            self._take(cluster, 1)

    def _check_end(self, blocks: int) -> None:
        if blocks << (self.bits + self.cluster_bits) > MAX_HOST_OFFSET:
            raise os_error(errno.EFBIG)

    async def allocate(self, wanted: int) -> tuple[int, int]:
        """Take 1 to ``wanted`` adjacent clusters; return (first, count)."""
        while True:
            cluster, count = self.find_nowait(wanted)
            if count:
                self.take_nowait(cluster, count)
                return cluster, count
            await self.prepare()

    async def allocate_run(self, count: int) -> int:
        """Take exactly ``count`` adjacent clusters; return the first."""
        wanted = count
        while True:
            start = await self._find_run(wanted)
            # Nothing awaits from here on, but much may have happened since the run was found.
            numbers = range(start >> self.bits, ((start + wanted - 1) >> self.bits) + 1)
            missing = [number for number in numbers if self._is_missing(number)]
            if count + len(missing) > wanted:
                wanted = count + len(missing)  # the blocks go behind the run, and are counted too
            elif self._run_is_free(start, wanted):
                break
        for turn, number in enumerate(missing):
            self._create_block(number, start + count + turn)
        self._take_run(start + count, len(missing))
        self._check_not_metadata(start, count)
        self._take_run(start, count)
        return start

    def _take_run(self, start: int, count: int) -> None:
        end = start + count
        while start < end:
            part = min(end - start, self.mask + 1 - (start & self.mask))
            self._take(start, part)
            start += part

    async def _find_run(self, count: int) -> int:
        """Return the start of a free run; blocks that do not exist count as free."""
        await self.prepare()
        index = start = self.free_index
        while True:
            number = index >> self.bits
            if number >= len(self.table):
                needed = ((start + count) >> self.bits) + 2
                self._check_end(needed)
                await self._grow_table(needed)
                continue
            block = await self.block(number)
            at = index & self.mask
            want = min(count - (index - start), self.mask + 1 - at)
            if block is None and not self._is_missing(number):
                continue
            free = want if block is None else block.zero_run(at, want)
            index += free
            if index - start == count:
                return start
            if block is not None and free < want:
                at = block.find_zero(index & self.mask)
                index = (index | self.mask) + 1 if at < 0 else (index & ~self.mask) + at
                start = index
                self.evict(start >> self.bits)

    def _run_is_free(self, start: int, count: int) -> bool:
        index, end = start, start + count
        while index < end:
            number = index >> self.bits
            at = index & self.mask
            part = min(end - index, self.mask + 1 - at)
            block = self.blocks.get(number)
            if block is None:
                if not self._is_missing(number):
                    return False
            elif block.zero_run(at, part) < part:
                return False
            index += part
        return True

    def decrement_nowait(self, cluster: int) -> bool:
        """Take one reference from a cluster of a cached block; say whether it is free now."""
        number = cluster >> self.bits
        block = self.blocks[number]
        at = cluster & self.mask
        value = block.get(at)
        if not value:
            # A corrupt image; QEMU says the same and goes on: a leak at worst.
            log.warning("qcow2: cluster %#x is freed but was free", cluster << self.cluster_bits)
            return False
        block.put(at, value - 1)
        self.mark(number, at, at)
        if value > 1:
            return False
        if cluster == self.tail >> self.cluster_bits:
            self.tail = 0
        if cluster >= self.floor:
            self.free_index = min(self.free_index, cluster)
        return True

    async def add(self, number: int, indices: Sequence[int], delta: int) -> list[int]:
        """Add to counters of block ``number``; return the clusters that are free now, in order.

        Raises OSError (EINVAL), with nothing changed, if a counter cannot take it, or should count
        another reference to what is free.
        """
        block = await self.block(number)
        if block is None or (delta > 0 and not all(map(block.get, indices))):
            raise os_error(errno.EINVAL)
        try:
            block.add(indices, delta)
        except OverflowError:
            raise os_error(errno.EINVAL) from None
        self.mark(number, min(indices), max(indices))
        if delta > 0:
            return []
        base = number << self.bits
        freed = sorted({base + index for index in indices if not block.get(index)})
        if freed:
            if self.tail >> self.cluster_bits in freed:
                self.tail = 0
            self.free_index = min(self.free_index, max(freed[0], self.floor))
        return freed

    async def count_used(self, limit: int) -> int:
        """Count the clusters in use, up to about ``limit``."""
        used = 0
        for number in range(len(self.table)):
            if self._is_missing(number):
                continue
            block = await self._peek(number)
            await trio.lowlevel.checkpoint()
            if block is not None:
                used += self.mask + 1 - block.count_zero()
            if used >= limit:
                break
        return used

    async def end_of_used(self) -> int:
        """Return the number of the cluster after the last one in use."""
        for number in range(len(self.table) - 1, -1, -1):
            if self._is_missing(number):
                continue
            block = await self._peek(number)
            await trio.lowlevel.checkpoint()
            last = -1 if block is None else block.find_last_used()
            if last >= 0:
                return (number << self.bits) + last + 1
        return 1

    def replace_table(self, offset: int, table: array[int], clusters: int) -> None:
        """Take a refcount table that is on disk already, with other blocks, for ``clusters`` clusters."""
        for number in self.blocks:
            self.locations.drop(self.table[number] & REFTABLE_OFFSET_MASK, REFBLOCK)
        self.blocks.clear()
        for at in self._clusters(self.table_offset, len(self.table) * 8 >> self.cluster_bits):
            self.locations.drop(at, REFTABLE)
        self.table, self.table_offset = table, offset
        for at in self._clusters(offset, len(table) * 8 >> self.cluster_bits):
            self.locations.note(at, REFTABLE)
        self.free_index = self.tail = 0
        self.fresh_from = max(self.fresh_from, clusters)

    # -- growth of the table -------------------------------------------------------------------------

    async def _grow_table(self, needed: int) -> None:
        """Write a larger refcount table behind everything that the old one could describe.

        Nothing else is written back meanwhile: what the disk's L2 tables refer to must be counted by the
        new table from the moment on when the header names it. Cancelled: the old table stays, the new
        one was never referred to.
        """
        async with self._grow_lock:
            if needed <= len(self.table):
                return
            await self.write_back()
            async with self.write_lock:
                await self._move_table(*self._plan_table(needed))

    def _plan_table(self, needed: int) -> tuple[int, int]:
        """Return of how many clusters a table of ``needed`` entries will be, and their refcount blocks.

        They go behind what the old table describes, and count themselves.
        """
        per_cluster = self.cluster_size // 8
        old_entries = len(self.table)
        clusters = max(-(-needed // per_cluster), old_entries * 3 // 2 // per_cluster + 1)
        while True:
            count = -(-clusters // self.mask)
            if old_entries + count <= clusters * per_cluster:
                break
            clusters += 1
        end = (old_entries << self.bits) + count + clusters
        if (
            clusters << self.cluster_bits > MAX_REFTABLE_BYTES
            or end << self.cluster_bits > MAX_HOST_OFFSET
        ):
            raise os_error(errno.EFBIG)
        return clusters, count

    async def _move_table(self, clusters: int, count: int) -> None:
        """Write ``count`` blocks, then a table of ``clusters`` clusters; use it."""
        old_entries, old_offset = len(self.table), self.table_offset
        start = old_entries << self.bits
        total = count + clusters
        self._check_not_metadata(start, total)
        added = array("Q", bytes((clusters << self.cluster_bits) - old_entries * 8))
        blocks: dict[int, RefBlock] = {}
        for turn in range(count):
            block = parse_refblock(bytes(self.cluster_size), self.order)
            block.put_run(0, min(total - (turn << self.bits), self.mask + 1), 1)
            blocks[old_entries + turn] = block
            added[turn] = (start + turn) << self.cluster_bits
        table_offset = (start + count) << self.cluster_bits
        on_disk = self.table + added
        for number in self.dirty_table:  # blocks that are not on the disk yet
            on_disk[number] = 0
        for number, block in blocks.items():
            _, data = block.to_bytes(0, self.mask)
            await self.file.pwritev(on_disk[number], [memoryview(data)])
        await self.file.pwritev(table_offset, [memoryview(to_disk(on_disk))])
        await self.file.flush()
        await self.update_header(
            lambda header: attrs.evolve(
                header, refcount_table_offset=table_offset, refcount_table_clusters=clusters
            )
        )
        self.table = self.table + added  # with the blocks that were made meanwhile
        self.table_offset = table_offset
        self.blocks.update(blocks)
        for number in blocks:
            self.locations.note(self.table[number], REFBLOCK)
        for offset in self._clusters(table_offset, clusters):
            self.locations.note(offset, REFTABLE)
        self.fresh_from = max(self.fresh_from, start + total)
        for offset in self._clusters(old_offset, old_entries * 8 >> self.cluster_bits):
            self.locations.drop(offset, REFTABLE)
            cluster = offset >> self.cluster_bits
            if await self.block(cluster >> self.bits) is not None:
                self.decrement_nowait(cluster)

    def _clusters(self, offset: int, count: int) -> range:
        return range(offset, offset + (count << self.cluster_bits), self.cluster_size)


def to_disk(table: array[int]) -> bytes:
    """Return an array's items as big-endian bytes."""
    if not SWAP:
        return table.tobytes()
    swapped = table[:]
    swapped.byteswap()
    return swapped.tobytes()


def from_disk(data: bytes | bytearray) -> array[int]:
    """Return big-endian 64-bit integers as an array."""
    table = array("Q", data)
    if SWAP:
        table.byteswap()
    return table
