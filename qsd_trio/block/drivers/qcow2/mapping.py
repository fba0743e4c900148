"""The fast path of an image: where bytes are, or may be written, from cached tables only.

No await, no I/O, no lock. Images with subclusters or an external data file have functions of their own, so
that the others need not ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from qsd_trio.block.drivers.qcow2 import subclusters as sub
from qsd_trio.block.drivers.qcow2.image import Kind
from qsd_trio.block.drivers.qcow2.layout import COMPRESSED, COPIED, OFFSET_MASK, CorruptImageError

if TYPE_CHECKING:
    from array import array

    from qsd_trio.block.abc import Child, Extent, Extents
    from qsd_trio.block.ciphering import CipheredFile
    from qsd_trio.block.drivers.qcow2.image import Image


@final
class FastPath:
    """Answers ``map_read`` and ``map_write`` for one image."""

    def __init__(self, image: Image) -> None:
        """Map ``image``."""
        self.image = image
        self._data: CipheredFile | Child = image.data
        self._metadata = image.metadata
        self._tables = image.metadata.l2
        self._locations = image.metadata.locations
        self._in_flight = image.in_flight
        self._bits = image.cluster_bits
        self._size = image.cluster_size
        self._mask = image.mask
        self._odd = image.odd
        self._in_place = image.in_place
        self.set_slices()
        ciphered = image.crypt and image.crypt.ciphered(image.data)
        if ciphered is not None:
            self._data = ciphered
        if image.crypt is not None and ciphered is None:
            self.map_read = self.map_write = self._map_nothing  # type: ignore[method-assign]
        elif image.extended or image.external:
            self.map_read = self._map_read_general  # type: ignore[method-assign]
            self.map_write = self._map_write_general  # type: ignore[method-assign]

    def set_slices(self) -> None:
        """Take over the unit of the L2 cache."""
        self._slice_shift = self.image.slice_shift
        self._slice_mask = self.image.slice_mask

    def _map_nothing(self, offset: int, length: int) -> None:
        """Leave everything to the slow path: the old AES numbers sectors as the guest sees them."""

    # -- reading -------------------------------------------------------------------------------------

    def map_read(self, offset: int, length: int) -> Extents | None:
        """Say where the bytes are, or None."""
        table = self._tables.get(offset >> self._slice_shift)
        if table is None:
            empty = self._has_no_table(offset, length)
        else:
            within = offset & self._mask
            empty = False
            if within + length <= self._size:
                entry = table[offset >> self._bits & self._slice_mask]
                host = entry & OFFSET_MASK
                if host and not entry & self._odd:
                    return self._data.map_read(host + within, length)
                empty = not entry
        if empty:
            # In a chain of images most reads fall through most of them.
            backing = self.image.backing
            if backing is not None and offset + length <= backing.getlength():
                return backing.map_read(offset, length)
        return self._map_read_runs(offset, length)

    def _has_no_table(self, offset: int, length: int) -> bool:
        """Say whether a range is within that of an L1 entry without an L2 table."""
        image = self.image
        index = offset >> image.l1_shift
        return not (
            self._metadata.l1[index] & OFFSET_MASK
            or (offset + length - 1) >> image.l1_shift != index
            or image.broken
        )

    def _map_read_general(self, offset: int, length: int) -> Extents | None:
        number = offset >> self._slice_shift
        table = self._tables.get(number)
        if table is not None:
            within = offset & self._mask
            if within + length <= self._size:
                at = offset >> self._bits & self._slice_mask
                if self._is_data(number, at, table[at], offset, within + length):
                    return self._data.map_read((table[at] & OFFSET_MASK) + within, length)
        return self._map_read_runs(offset, length)

    def _is_data(self, number: int, at: int, entry: int, offset: int, end: int) -> bool:
        """Say whether all is data from ``offset`` up to ``end``, which counts from the cluster's start."""
        image = self.image
        if entry & self._odd or not entry & image.allocated:
            return False
        if image.external and entry & OFFSET_MASK != offset & ~self._mask:
            return False
        if not image.extended:
            return True
        bitmap = self._metadata.subclusters[number][at]
        if bitmap == sub.ALL_ALLOCATED:
            return True
        touched = sub.span(offset & self._mask, end, image.subcluster_bits)
        return bitmap & touched == touched and sub.is_valid(bitmap)

    def _map_read_runs(self, offset: int, length: int) -> Extents | None:
        image = self.image
        if image.broken:
            return None
        end = offset + length
        extents: list[Extent] = []
        while offset < end:
            number = offset >> self._slice_shift
            stop = min(end, (number + 1) << self._slice_shift)
            table = self._tables.get(number)
            if table is None:
                if self._metadata.l1[offset >> image.l1_shift] & OFFSET_MASK:
                    return None
                if not self._map_unallocated(extents, offset, stop - offset):
                    return None
                offset = stop
                continue
            while offset < stop:
                try:
                    kind, host, length = image.classify(table, offset, stop)
                except CorruptImageError:
                    return None  # the slow path reports it
                if kind is Kind.DATA:
                    found = self._data.map_read(host, length)
                    if found is None:
                        return None
                    extents += found
                elif kind is Kind.UNALLOCATED or kind is Kind.PREALLOCATED:
                    if not self._map_unallocated(extents, offset, length):
                        return None
                elif kind is Kind.COMPRESSED:
                    return None
                else:
                    extents.append((None, 0, length))
                offset += length
        return extents

    def _map_unallocated(self, extents: list[Extent], offset: int, length: int) -> bool:
        backing = self.image.backing
        if backing is not None:
            there = min(length, backing.getlength() - offset)
            if there > 0:
                found = backing.map_read(offset, there)
                if found is None:
                    return False
                extents += found
                length -= there
        if length > 0:
            extents.append((None, 0, length))
        return True

    # -- writing -------------------------------------------------------------------------------------

    def map_write(self, offset: int, length: int) -> Extents | None:
        """Say where to write at once, or None. May allocate: then the caller's write is its content.

        What is allocated here reads as zeroes until written, as it did before or is to be overwritten.
        """
        table = self._tables.get(offset >> self._slice_shift)
        if table is None:
            return None
        if not self._in_flight:
            within = offset & self._mask
            if within + length <= self._size:
                entry = table[offset >> self._bits & self._slice_mask]
                if entry & self._in_place == COPIED:
                    host = entry & OFFSET_MASK
                    if host not in self._locations:
                        return self._data.map_write(host + within, length)
                    return None
                if not entry & (OFFSET_MASK | COMPRESSED):
                    return self._map_new(table, offset, length, entry)
        elif self.image.conflict(offset, offset + length) is not None:
            return None
        return self._map_write_runs(table, offset, length)

    def _map_new(self, table: array[int], offset: int, length: int, entry: int) -> Extents | None:
        """Allocate one cluster for a write into it, if nothing is to be read or written besides."""
        image, metadata = self.image, self._metadata
        if not metadata.l1[offset >> image.l1_shift] & COPIED:
            return None
        refcounts = metadata.refcounts
        cluster, found = refcounts.find_nowait(1)
        if not found:
            return None
        host = cluster << self._bits
        fresh = image.is_fresh(host)
        if length < self._size:
            if not fresh:
                return None
            if (
                image.backing is not None
                and not entry & image.zero_bit
                and offset & ~self._mask < image.backing.getlength()
            ):
                return None
        if host in self._locations:
            return None  # a corrupt image: the slow path reports it
        extents = self._data.map_write(host + (offset & self._mask), length)
        if extents is None or not _can_write_now(extents):
            return None
        data_first = image.backing is not None or not fresh
        refcounts.take_nowait(cluster, 1)
        at = offset >> self._bits & self._slice_mask
        table[at] = host | COPIED
        metadata.mark_l2(offset >> self._slice_shift, at, at, data_first=data_first)
        return extents

    def _map_write_general(self, offset: int, length: int) -> Extents | None:
        number = offset >> self._slice_shift
        table = self._tables.get(number)
        if table is None:
            return None
        if self._in_flight and self.image.conflict(offset, offset + length) is not None:
            return None
        within = offset & self._mask
        if within + length <= self._size:
            at = offset >> self._bits & self._slice_mask
            entry = table[at]
            if entry & COPIED and self._is_data(number, at, entry, offset, within + length):
                host = entry & OFFSET_MASK
                if self.image.external or host not in self._locations:
                    return self._data.map_write(host + within, length)
                return None
        return self._map_write_runs(table, offset, length)

    def _map_write_runs(self, table: array[int], offset: int, length: int) -> Extents | None:
        """Map a range of several clusters, or where something is to allocate: one run of clusters at most."""
        image, metadata, bits = self.image, self._metadata, self._bits
        number = offset >> self._slice_shift
        end = offset + length
        if (end - 1) >> self._slice_shift != number or not metadata.l1[
            offset >> image.l1_shift
        ] & COPIED:
            return None
        first = offset >> bits
        start = first & self._slice_mask
        entries = table[start : ((end - 1) >> bits & self._slice_mask) + 1]
        allocation = _Allocation(self, offset, end, entries)
        runs: list[list[int]] = []  # [host offset, length] of whole clusters
        for at, entry in enumerate(entries):
            if entry & self._in_place == COPIED and entry & image.allocated:
                if not allocation.use_own(at):
                    return None
                host = entry & OFFSET_MASK
            elif entry & (image.allocated | COMPRESSED):
                return None
            else:
                found = allocation.add(at)
                if found is None:
                    return None
                host = found
            if not image.external and host in self._locations:
                return None
            if runs and runs[-1][0] + runs[-1][1] == host:
                runs[-1][1] += self._size
            else:
                runs.append([host, self._size])
        head, tail = offset & self._mask, -end & self._mask
        runs[0][0] += head
        runs[0][1] -= head
        runs[-1][1] -= tail
        extents: list[Extent] = []
        for host, size in runs:
            found_extents = self._data.map_write(host, size)
            if found_extents is None:
                return None
            extents += found_extents
        if allocation.changes:
            if not _can_write_now(extents):
                return None
            allocation.commit(table, number, start)
        return extents


@final
class _Allocation:
    """What a synchronous write adds to L2 entries: nothing is changed before ``commit``."""

    def __init__(self, mapping: FastPath, offset: int, end: int, entries: array[int]) -> None:
        self._image = image = mapping.image
        self._refcounts = image.metadata.refcounts
        self._offset = offset
        self._end = end
        self._entries = entries
        self._last = len(entries) - 1
        self._first = offset >> image.cluster_bits
        self._bitmaps: array[int] | None = None
        if image.extended:
            start = self._first & image.slice_mask
            bitmaps = image.metadata.subclusters[offset >> image.slice_shift]
            self._bitmaps = bitmaps[start : start + len(entries)]
        self._cluster = 0
        self._found = 0
        self._count = 0
        self._next = -1  # where the run of new clusters must go on
        #: (index in entries, new entry, new bitmap)
        self.changes: list[tuple[int, int, int]] = []

    def _touched(self, at: int) -> int:
        """Return the subclusters of a cluster that are written to."""
        low, high = self._bytes(at)
        return sub.span(low, high, self._image.subcluster_bits)

    def _bytes(self, at: int) -> tuple[int, int]:
        image = self._image
        start = (self._first + at) << image.cluster_bits
        return max(self._offset - start, 0), min(self._end - start, image.cluster_size)

    def use_own(self, at: int) -> bool:
        """Write into a cluster's host cluster; False if more than the write were to be written."""
        if self._bitmaps is None:
            return True
        bitmap, touched = self._bitmaps[at], self._touched(at)
        if not sub.is_valid(bitmap):
            return False
        if bitmap & touched == touched:
            return True
        low, high = self._bytes(at)
        unit = 1 << self._image.subcluster_bits
        data = sub.allocated(bitmap)
        if low % unit and not data >> low // unit & 1:
            return False
        if high % unit and not data >> high // unit & 1:
            return False
        self.changes.append((at, self._entries[at], sub.with_allocated(bitmap, touched)))
        return True

    def add(self, at: int) -> int | None:
        """Return the host offset of a new cluster, None if there is no synchronous way."""
        image = self._image
        if self._next not in (-1, at):
            return None
        self._next = at + 1
        bitmap = self._bitmaps[at] if self._bitmaps is not None else 0
        if sub.allocated(bitmap):
            return None  # a corrupt entry: the slow path reports it
        if image.external:
            host = (self._first + at) << image.cluster_bits
        else:
            if not self._count:
                wanted = len(self._entries) - at
                self._cluster, self._found = self._refcounts.find_nowait(wanted)
            if self._count == self._found:
                return None
            host = (self._cluster + self._count) << image.cluster_bits
        fresh = image.is_fresh(host)
        if (at == 0 or at == self._last) and not self._may_leave_rest(at, bitmap, fresh=fresh):
            return None
        self._count += 1
        if self._bitmaps is not None:
            bitmap = sub.with_allocated(bitmap, self._touched(at))
        self.changes.append((at, host | COPIED, bitmap))
        return host

    def _may_leave_rest(self, at: int, bitmap: int, *, fresh: bool) -> bool:
        """Say whether what the write leaves untouched of new (sub)clusters is right without more I/O."""
        image = self._image
        unit = 1 << image.subcluster_bits
        low, high = self._bytes(at)
        if not (low % unit or high % unit):
            return True
        if not fresh:
            return False
        backing = image.backing
        if backing is None:
            return True
        start = (self._first + at) << image.cluster_bits
        for edge in (low, high):
            if edge % unit:
                zero = self._entries[at] & image.zero_bit or sub.zero(bitmap) >> edge // unit & 1
                if not zero and start + edge // unit * unit < backing.getlength():
                    return False
        return True

    def commit(self, table: array[int], number: int, start: int) -> None:
        """Change the slice ``number``, where the entries begin at ``start``."""
        metadata = self._image.metadata
        # New, zeroed clusters where there was nothing: as good as what they replace, even unwritten.
        data_first = (
            self._image.external
            or self._image.backing is not None
            or self._count < len(self.changes)
            or not self._image.is_fresh(self._cluster << self._image.cluster_bits)
        )
        if self._count and not self._image.external:
            self._refcounts.take_nowait(self._cluster, self._count)
        bitmaps = metadata.subclusters[number] if self._bitmaps is not None else None
        for at, entry, bitmap in self.changes:
            table[start + at] = entry
            if bitmaps is not None:
                bitmaps[start + at] = bitmap
        low, high = start + self.changes[0][0], start + self.changes[-1][0]
        metadata.mark_l2(number, low, high, data_first=data_first)


def _can_write_now(extents: Extents) -> bool:
    """Say whether the write itself, on which an allocation relies, can be done at once."""
    return all(file is not None and file.can_write_now for file, _, _ in extents)
