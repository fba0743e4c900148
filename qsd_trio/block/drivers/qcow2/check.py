"""Count how often an image's own structures refer to each host cluster: what the refcounts ought to be.

Everything is walked once: each distinct L1 and L2 table is read one time however often it is referred to,
so that the work is bounded by the file's size and not by what a crafted image claims. Nothing is written.
"""

from __future__ import annotations

import errno
import itertools
import struct
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Final, final

import attrs
import trio

from qsd_trio.block.drivers.qcow2 import bitmap_tables
from qsd_trio.block.drivers.qcow2.compressed import parse_entry
from qsd_trio.block.drivers.qcow2.header import EXT_CRYPTO
from qsd_trio.block.drivers.qcow2.imagefile import read_file
from qsd_trio.block.drivers.qcow2.layout import (
    COMPRESSED,
    INCOMPAT_DATA_FILE,
    INCOMPAT_EXTENDED_L2,
    OFFSET_MASK,
    REFTABLE_OFFSET_MASK,
    ZERO,
)
from qsd_trio.block.drivers.qcow2.refcounts import from_disk
from qsd_trio.errors import os_error

if TYPE_CHECKING:
    from qsd_trio.block.drivers.qcow2.metadata import Metadata

#: Host clusters of a file that is checked: 2 to 8 bytes of memory each, twice while tables are walked.
MAX_CLUSTERS: Final = 1 << 27
_REGION: Final = struct.Struct(">QQ")  # host offset, length
#: Entries looked at between two checkpoints (about a millisecond).
STEP: Final = 4096
_ZEROES: Final = bytes(STEP * 8)

# Counters as wide as an image's refcounts, but for the widest, where no walk gets that far.
_COUNTER: Final = ("B", "B", "B", "B", "H", "I", "I")


@final
@attrs.frozen(kw_only=True)
class References:
    """What an image refers to besides its active layer, as host offsets.

    Attributes:
        l1_tables: (offset, entries) of inactive L1 tables.
        regions: (offset, length) of everything else: snapshot table, bitmaps, an encryption header.
    """

    l1_tables: tuple[tuple[int, int], ...] = ()
    regions: tuple[tuple[int, int], ...] = ()


@final
@attrs.define(eq=False)
class Census:
    """The references to each host cluster.

    Attributes:
        counts: references by host cluster.
        corruptions: references that cannot be: unaligned, beyond the end of the file, or too many for
            the refcounts' width. No repair of refcounts mends them.
        bad_blocks: refcount table entries that name no block of their own.
        table_is_sound: whether the refcount table's clusters are its own.
    """

    counts: array[int]
    cluster_bits: int
    corruptions: int = 0
    bad_blocks: list[int] = attrs.field(factory=list)
    table_is_sound: bool = True
    extended: bool = False
    external: bool = False

    def add_cluster(self, offset: int, times: int) -> None:
        """Count references to the cluster at an offset."""
        if offset & ((1 << self.cluster_bits) - 1):
            self.add_unaligned(offset, times)
            return
        try:
            self.counts[offset >> self.cluster_bits] += times
        except (IndexError, OverflowError):
            self.corruptions += 1

    def add_unaligned(self, offset: int, times: int) -> None:
        """Note an impossible reference to a cluster; what it may mean must not be taken for free."""
        self.corruptions += 1
        self.add_region(offset, 1 << self.cluster_bits, times)

    def add_region(self, offset: int, length: int, times: int = 1) -> None:
        """Count references to each cluster that a region touches."""
        first = offset >> self.cluster_bits
        last = (offset + length - 1) >> self.cluster_bits
        there = len(self.counts)
        if last >= there:
            self.corruptions += 1
        for cluster in range(first, min(last + 1, there)):
            self.add_cluster(cluster << self.cluster_bits, times)

    def add_l2_entries(self, entries: array[int], times: int) -> None:
        """Count what entries of an L2 table refer to."""
        counts, bits = self.counts, self.cluster_bits
        odd = ((1 << bits) - 1) | COMPRESSED
        for entry in filter(None, entries):  # most are zero, in many an image
            host = entry & OFFSET_MASK
            if not host and not entry & COMPRESSED:
                continue
            if entry & COMPRESSED:
                if self.external:
                    self.corruptions += 1
                else:
                    self.add_region(*parse_entry(entry, bits), times)
                continue
            if host & odd:
                if not self.is_mendable(entry):
                    self.add_unaligned(host, times)
                continue
            if self.external:
                continue
            try:
                counts[host >> bits] += times
            except (IndexError, OverflowError):
                self.corruptions += 1

    def is_mendable(self, entry: int) -> bool:
        """Say whether an unaligned entry may become a zero cluster without a place: it reads so."""
        return bool(entry & ZERO) and not self.extended


async def references_of(metadata: Metadata) -> References:
    """Find what an image refers to besides its active layer."""
    regions = []
    for kind, data in metadata.header.extensions:
        if kind == EXT_CRYPTO and len(data) >= _REGION.size:
            regions.append(_REGION.unpack_from(data))
    regions.append((metadata.header.snapshots_offset, metadata.snapshots_size))
    regions += await bitmap_tables.regions(metadata)
    length = metadata.file.getlength()
    l1_tables = []
    for entry in metadata.snapshots:
        offset = entry.l1_table_offset
        # What lies past the end of the file is zero: no need to read it.
        l1_tables.append((offset, min(entry.l1_size, max(length - offset, 0) // 8)))
    return References(l1_tables=tuple(l1_tables), regions=tuple(regions))


async def take(metadata: Metadata) -> Census:
    """Walk an image. Raises OSError: EFBIG if the file is too long, else what reading it raises."""
    header, bits = metadata.header, metadata.cluster_bits
    clusters = (metadata.file.getlength() + metadata.cluster_size - 1) >> bits
    if clusters > MAX_CLUSTERS:
        raise os_error(errno.EFBIG)
    census = Census(
        counts=array(_COUNTER[header.refcount_order], [0]) * clusters,
        cluster_bits=bits,
        extended=bool(header.incompatible & INCOMPAT_EXTENDED_L2),
        external=bool(header.incompatible & INCOMPAT_DATA_FILE),
    )
    references = await references_of(metadata)
    await _count_l2_tables(metadata, census, references)
    tables = census.counts[:]
    for start in range(0, clusters, STEP):
        for index in nonzero(tables, start):
            await _count_l2_table(metadata, census, index << bits, tables[index])
        await trio.lowlevel.checkpoint()
    del tables
    await _add_structures(metadata, census, references)
    await _check_refcount_structures(metadata, census)
    await _check_width(census, header.refcount_order)
    return census


async def _count_l2_tables(metadata: Metadata, census: Census, references: References) -> None:
    """Count references to L2 tables only: how often each will count what it refers to."""
    for start in range(0, len(metadata.l1), STEP):
        _add_l1_entries(census, metadata.l1[start : start + STEP], 1)
        await trio.lowlevel.checkpoint()
    for (offset, size), times in Counter(references.l1_tables).items():
        for start in range(0, size, STEP):
            entries = await read_words(metadata, offset, start, size)
            _add_l1_entries(census, entries, times)


async def _count_l2_table(metadata: Metadata, census: Census, offset: int, times: int) -> None:
    count = metadata.cluster_size // 8
    for start in range(0, count, STEP):
        entries = await read_words(metadata, offset, start, count)
        census.add_l2_entries(entries[::2] if census.extended else entries, times)


def _add_l1_entries(census: Census, entries: array[int], times: int) -> None:
    for entry in filter(None, entries):
        if entry & OFFSET_MASK:
            census.add_cluster(entry & OFFSET_MASK, times)


async def _add_structures(metadata: Metadata, census: Census, references: References) -> None:
    regions = Counter(references.regions)
    regions.update((offset, size * 8) for offset, size in references.l1_tables)
    regions[(metadata.l1_offset, len(metadata.l1) * 8)] += 1
    regions[(0, metadata.cluster_size)] += 1
    for (offset, length), times in regions.items():
        if length:
            census.add_region(offset, length, times)
        await trio.lowlevel.checkpoint()


async def _check_refcount_structures(metadata: Metadata, census: Census) -> None:
    """Count refcount table and blocks, but only those that share their place with nothing."""
    refcounts, bits, counts = metadata.refcounts, metadata.cluster_bits, census.counts
    mask = metadata.cluster_size - 1
    blocks: list[tuple[int, int]] = []
    for start in range(0, len(refcounts.table), STEP):
        for number, entry in enumerate(refcounts.table[start : start + STEP], start):
            offset = entry & REFTABLE_OFFSET_MASK
            if not offset:
                continue
            if offset & mask or offset >> bits >= len(counts):
                census.bad_blocks.append(number)
            else:
                blocks.append((number, offset >> bits))
                census.add_cluster(offset, 1)
        await trio.lowlevel.checkpoint()
    first = refcounts.table_offset >> bits
    table = range(first, first + (len(refcounts.table) * 8 >> bits))
    census.table_is_sound = table.stop <= len(counts) and not any(counts[table.start : table.stop])
    bad = [(number, cluster) for number, cluster in blocks if counts[cluster] != 1]
    for number, cluster in bad:
        census.bad_blocks.append(number)
        counts[cluster] -= 1
    if census.table_is_sound:
        for cluster in table:
            counts[cluster] = 1


async def _check_width(census: Census, order: int) -> None:
    limit = (1 << (1 << order)) - 1
    if limit >= 255:
        return  # the counters cannot hold more than the refcounts
    for start in range(0, len(census.counts), STEP):
        for index in nonzero(census.counts, start):
            if census.counts[index] > limit:
                census.counts[index] = limit
                census.corruptions += 1
        await trio.lowlevel.checkpoint()


def nonzero(counts: array[int], start: int) -> list[int]:
    """Return the indices of what is not zero of the STEP counters from ``start``."""
    part = counts[start : start + STEP]
    raw = part.tobytes()
    if raw.count(0) == len(raw):
        return []
    return list(itertools.compress(range(start, start + len(part)), part))


async def read_words(metadata: Metadata, offset: int, start: int, count: int) -> array[int]:
    """Read words ``start`` to ``start + STEP`` of a table of ``count``; none, if they are all zero."""
    length = min(STEP, count - start) * 8
    data = await read_file(metadata.file, offset + start * 8, length)
    await trio.lowlevel.checkpoint()
    return from_disk(data) if data != _ZEROES[:length] else array("Q")
