"""An open image: where its bytes are, and reading them.

``map_read`` and ``map_write`` are the fast path: no await, no I/O, answers from cached tables only.
"""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING, final

import attrs
import trio

from qsd_trio.block.drivers.qcow2 import layout as lay
from qsd_trio.block.drivers.qcow2.compressed import PARALLEL, CompressedClusters
from qsd_trio.block.drivers.qcow2.layout import (
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    ZERO,
    CorruptImageError,
)
from qsd_trio.block.drivers.qcow2.metadata import Metadata, read_into
from qsd_trio.errors import os_error
from qsd_trio.iov import iov_fill, iov_size, iov_slice, iov_zero

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

    from qsd_trio.block.abc import Child, Extent, Extents, Iov


class Kind(enum.Enum):
    """What an L2 entry says of its cluster."""

    UNALLOCATED = enum.auto()
    ZERO = enum.auto()  # reads as zeroes, no host cluster
    ZERO_ALLOCATED = enum.auto()  # reads as zeroes, has a host cluster
    DATA = enum.auto()
    COMPRESSED = enum.auto()


@final
@attrs.define(eq=False)
class InFlight:
    """Guest clusters ``first`` to ``last`` whose L2 entries are about to change."""

    first: int
    last: int
    done: trio.Event = attrs.field(factory=trio.Event)


@final
@attrs.define(eq=False)
class Image:
    """The state that reading, writing and resizing share."""

    file: Child
    metadata: Metadata
    size: int
    version: int
    backing: Child | None = None
    #: A fatal corruption was found: nothing works any more.
    broken: bool = False
    #: Allocating writes, and other changes of L2 entries that take their time.
    in_flight: list[InFlight] = attrs.field(init=False, factory=list)
    cluster_bits: int = attrs.field(init=False)
    cluster_size: int = attrs.field(init=False)
    mask: int = attrs.field(init=False)  # offset within a cluster
    l1_shift: int = attrs.field(init=False)  # offset -> L1 index
    slice_shift: int = attrs.field(init=False)  # offset -> number of its L2 slice
    slice_mask: int = attrs.field(init=False)  # cluster number -> index within the slice
    #: Bits of an L2 entry that a plain, sound data cluster has not.
    odd: int = attrs.field(init=False)
    #: COPIED and ``odd``: such bits of an entry equal COPIED if it may be written in place.
    in_place: int = attrs.field(init=False)
    _tables: dict[int, array[int]] = attrs.field(init=False)
    _locations: dict[int, str] = attrs.field(init=False)
    compressed: CompressedClusters = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.cluster_bits = self.metadata.cluster_bits
        self.cluster_size = 1 << self.cluster_bits
        self.mask = self.cluster_size - 1
        self.l1_shift = self.cluster_bits + self.metadata.l2_bits
        self.set_slices()
        self.odd = COMPRESSED | ZERO | (OFFSET_MASK & self.mask)
        self.in_place = COPIED | self.odd
        self._tables = self.metadata.l2
        self._locations = self.metadata.locations
        self.compressed = CompressedClusters(
            metadata=self.metadata, kind=self.metadata.header.compression_type
        )

    def set_slices(self) -> None:
        """Take over the unit of the L2 cache."""
        self.slice_shift = self.cluster_bits + self.metadata.slice_bits
        self.slice_mask = (1 << self.metadata.slice_bits) - 1

    # -- the fast path -------------------------------------------------------------------------------

    def map_read(self, offset: int, length: int) -> Extents | None:
        """Say where the bytes are, or None."""
        table = self._tables.get(offset >> self.slice_shift)
        if table is not None:
            within = offset & self.mask
            if within + length <= self.cluster_size:
                entry = table[offset >> self.cluster_bits & self.slice_mask]
                host = entry & OFFSET_MASK
                if host and not entry & self.odd:
                    return self.file.map_read(host + within, length)
        return self._map_read(offset, length)

    def _map_read(self, offset: int, length: int) -> Extents | None:
        if self.broken:
            return None
        end = offset + length
        extents: list[Extent] = []
        while offset < end:
            number = offset >> self.slice_shift
            stop = min(end, (number + 1) << self.slice_shift)
            table = self._tables.get(number)
            if table is None:
                if self.metadata.l1[offset >> self.l1_shift] & OFFSET_MASK:
                    return None
                if not self._map_unallocated(extents, offset, stop - offset):
                    return None
                offset = stop
                continue
            while offset < stop:
                try:
                    kind, host, length = self.classify(table, offset, stop)
                except CorruptImageError:
                    return None
                if kind is Kind.DATA:
                    found = self.file.map_read(host, length)
                    if found is None:
                        return None
                    extents += found
                elif kind is Kind.UNALLOCATED:
                    if not self._map_unallocated(extents, offset, length):
                        return None
                elif kind is Kind.COMPRESSED:
                    return None
                else:
                    extents.append((None, 0, length))
                offset += length
        return extents

    def _map_unallocated(self, extents: list[Extent], offset: int, length: int) -> bool:
        if self.backing is not None:
            there = min(length, self.backing.getlength() - offset)
            if there > 0:
                found = self.backing.map_read(offset, there)
                if found is None:
                    return False
                extents += found
                length -= there
        if length > 0:
            extents.append((None, 0, length))
        return True

    def map_write(self, offset: int, length: int) -> Extents | None:
        """Say where to write at once, or None. May allocate: then the caller's write is its content.

        What is allocated here reads as zeroes until written, as it did before or is to be overwritten.
        """
        table = self._tables.get(offset >> self.slice_shift)
        if table is None:
            return None
        if not self.in_flight:
            within = offset & self.mask
            if within + length <= self.cluster_size:
                entry = table[offset >> self.cluster_bits & self.slice_mask]
                if entry & self.in_place == COPIED:
                    host = entry & OFFSET_MASK
                    if host not in self._locations:
                        return self.file.map_write(host + within, length)
                    return None
                if not entry & (OFFSET_MASK | COMPRESSED):
                    return self._map_new(table, offset, length, entry)
        elif self.conflict(offset, offset + length) is not None:
            return None
        return self._map_write(table, offset, length)

    def _map_new(self, table: array[int], offset: int, length: int, entry: int) -> Extents | None:
        """Allocate one cluster for a write into it, if nothing is to be read or written besides."""
        if not self.metadata.l1[offset >> self.l1_shift] & COPIED:
            return None
        refcounts = self.metadata.refcounts
        cluster, found = refcounts.find_nowait(1)
        if not found:
            return None
        if length < self.cluster_size:
            if cluster < refcounts.fresh_from:
                return None
            if (
                self.backing is not None
                and not entry & ZERO
                and offset & ~self.mask < self.backing.getlength()
            ):
                return None
        host = cluster << self.cluster_bits
        if host in self._locations:
            return None  # a corrupt image: the slow path reports it
        extents = self.file.map_write(host + (offset & self.mask), length)
        if extents is None:
            return None
        for host_file, _, _ in extents:
            if host_file is None or not host_file.can_write_now:
                return None
        refcounts.take_nowait(cluster, 1)
        at = offset >> self.cluster_bits & self.slice_mask
        table[at] = host | COPIED
        self.metadata.mark_l2(offset >> self.slice_shift, at, at)
        return extents

    def _map_write(self, table: array[int], offset: int, length: int) -> Extents | None:
        """Map a range of several clusters, or one to allocate."""
        metadata, bits, mask = self.metadata, self.cluster_bits, self.mask
        number = offset >> self.slice_shift
        end = offset + length
        if (
            (end - 1) >> self.slice_shift != number
            or not metadata.l1[offset >> self.l1_shift] & COPIED
        ):
            return None
        first = offset >> bits
        entries = table[first & self.slice_mask : ((end - 1) >> bits & self.slice_mask) + 1]
        new = -1  # the one run of clusters to allocate
        count = 0
        cluster = 0
        runs: list[list[int]] = []  # [host offset, length] of whole clusters
        for at, entry in enumerate(entries):
            if entry & self.in_place == COPIED:
                host = entry & OFFSET_MASK
                if host in metadata.locations:
                    return None
            elif entry & (OFFSET_MASK | COMPRESSED):
                return None
            else:
                if new < 0:
                    new = at
                    wanted = len(entries) - at
                    cluster, found = metadata.refcounts.find_nowait(wanted)
                elif at != new + count:
                    return None
                count += 1
                if count > found:
                    return None
                host = (cluster + count - 1) << bits
                if host in metadata.locations:
                    return None
            if runs and runs[-1][0] + runs[-1][1] == host:
                runs[-1][1] += mask + 1
            else:
                runs.append([host, mask + 1])
        head, tail = offset & mask, -end & mask
        if count and not self._may_allocate(entries, new, count, cluster, offset, end):
            return None
        runs[0][0] += head
        runs[0][1] -= head
        runs[-1][1] -= tail
        extents: list[Extent] = []
        for host, size in runs:
            found_extents = self.file.map_write(host, size)
            if found_extents is None:
                return None
            extents += found_extents
        if count:
            for host_file, _, _ in extents:
                if host_file is None or not host_file.can_write_now:
                    return None
            metadata.refcounts.take_nowait(cluster, count)
            start = (first & self.slice_mask) + new
            for at in range(count):
                table[start + at] = (cluster + at) << bits | COPIED
            metadata.mark_l2(number, start, start + count - 1)
        return extents

    def _may_allocate(
        self, entries: array[int], new: int, count: int, cluster: int, offset: int, end: int
    ) -> bool:
        """Say whether what a write leaves untouched of new clusters is right without more I/O."""
        first = offset >> self.cluster_bits
        partial = []
        if new == 0 and offset & self.mask:
            partial.append(0)
        if new + count == len(entries) and end & self.mask:
            partial.append(len(entries) - 1)
        fresh = cluster >= self.metadata.refcounts.fresh_from
        if partial and not fresh:
            return False
        if self.backing is not None:
            there = self.backing.getlength()
            for at in partial:
                if not entries[at] & ZERO and (first + at) << self.cluster_bits < there:
                    return False
        return True

    def conflict(self, start: int, end: int) -> InFlight | None:
        """Return a change under way of an L2 entry of the range, or None."""
        first, last = start >> self.cluster_bits, (end - 1) >> self.cluster_bits
        for other in self.in_flight:
            if other.first <= last and other.last >= first:
                return other
        return None

    # -- what a cluster is ---------------------------------------------------------------------------

    def kind(self, entry: int) -> Kind:
        """Return what an L2 entry says."""
        if entry & COMPRESSED:
            return Kind.COMPRESSED
        if entry & ZERO:
            return Kind.ZERO_ALLOCATED if entry & OFFSET_MASK else Kind.ZERO
        return Kind.DATA if entry & OFFSET_MASK else Kind.UNALLOCATED

    def classify(self, table: array[int], offset: int, stop: int) -> tuple[Kind, int, int]:
        """Return (kind, host offset of the byte at ``offset``, length up to ``stop``).

        Adjacent clusters of a kind are one run; of data if they are adjacent on the host as well. A
        compressed one comes alone, with its entry in place of the offset. ``stop`` is in the same table.
        """
        bits = self.cluster_bits
        number = offset >> bits
        at = number & self.slice_mask
        entry = table[at]
        kind = self.kind(entry)
        if kind is Kind.COMPRESSED:
            return kind, entry, min(stop, (number + 1) << bits) - offset
        self._check_entry(entry, offset)
        host = entry & OFFSET_MASK
        last = at + ((stop - 1) >> bits) - number
        run = 1
        if last > at:
            others = table[at + 1 : last + 1]
            if not entry:
                rest = others.tobytes()
                run += (len(rest) - len(rest.lstrip(b"\0"))) // 8
            else:
                mask = OFFSET_MASK | COMPRESSED | ZERO
                want = entry & mask
                step = self.cluster_size if host else 0
                for other in others:
                    want += step
                    if other & mask != want:
                        break
                    run += 1
        return kind, host + (offset & self.mask), min(stop, (number + run) << bits) - offset

    def _check_entry(self, entry: int, offset: int) -> None:
        if not entry & self.odd:
            return
        index = offset >> self.cluster_bits & self.slice_mask
        l2_offset = self.metadata.slice_offset(offset >> self.slice_shift)
        where = f"(L2 offset: {l2_offset:#x}, L2 index: {index:#x})"
        if entry & ZERO and self.version < 3:
            raise CorruptImageError(f"Zero cluster entry found in pre-v3 image {where}", fatal=True)
        host = entry & OFFSET_MASK
        if host & self.mask:
            raise CorruptImageError(
                f"Cluster allocation offset {host:#x} unaligned {where}", fatal=True
            )

    # -- reading -------------------------------------------------------------------------------------

    async def preadv(self, offset: int, iov: Iov) -> None:
        """Fill ``iov``."""
        end = offset + iov_size(iov)
        while True:
            if self.broken:
                raise os_error(errno.ENOMEDIUM)
            number = offset >> self.slice_shift
            stop = min(end, (number + 1) << self.slice_shift)
            table = await self.metadata.slice(number)
            if table is None:
                kind, host, length = Kind.UNALLOCATED, 0, stop - offset
            else:
                kind, host, length = self.classify(table, offset, stop)
            part = iov if offset + length == end else iov_slice(iov, 0, length)
            if kind is Kind.DATA:
                token = self.metadata.begin_io()
                try:
                    await read_into(self.file, host, part, length)
                finally:
                    self.metadata.end_io(token)
            elif kind is Kind.UNALLOCATED:
                await self.read_backing(offset, part, length)
            elif kind is Kind.COMPRESSED:
                length = await self._read_compressed(table, offset, stop, iov)
            else:
                iov_zero(part)
            offset += length
            if offset >= end:
                return
            iov = iov_slice(iov, length, end - offset)

    async def read_backing(self, offset: int, iov: Sequence[memoryview], length: int) -> None:
        """Fill ``iov`` with what an unallocated range reads as."""
        backing = self.backing
        if backing is None or backing.getlength() <= offset:
            iov_zero(iov)
        else:
            await read_into(backing, offset, iov, length)

    async def _read_compressed(
        self, table: array[int] | None, offset: int, stop: int, iov: Iov
    ) -> int:
        """Fill the start of ``iov`` from one or more compressed clusters; return how much."""
        assert table is not None
        entries = []
        end = offset
        while end < stop and len(entries) < PARALLEL:
            kind, entry, length = self.classify(table, end, stop)
            if kind is not Kind.COMPRESSED:
                break
            entries.append(entry)
            end += length
        data = b"".join(await self.compressed.read(entries))
        within = offset & self.mask
        length = end - offset
        iov_fill(iov_slice(iov, 0, length), memoryview(data)[within : within + length])
        return length

    # -- a corrupt image -----------------------------------------------------------------------------

    async def mark_corrupt(self) -> None:
        """Stop working, and say so in the image if it has a place for it (version 3)."""
        self.broken = True
        self._tables.clear()
        self.metadata.subclusters.clear()
        if self.version >= 3:
            await self.metadata.update_header(
                lambda header: attrs.evolve(
                    header, incompatible=header.incompatible | lay.INCOMPAT_CORRUPT
                )
            )
