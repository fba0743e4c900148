"""An open image: what its L2 entries say of guest clusters, and reading them."""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING, final

import attrs
import trio

from qsd_trio.block.drivers.qcow2 import layout as lay
from qsd_trio.block.drivers.qcow2 import subclusters as sub
from qsd_trio.block.drivers.qcow2.compressed import PARALLEL, CompressedClusters
from qsd_trio.block.drivers.qcow2.imagefile import read_into
from qsd_trio.block.drivers.qcow2.layout import (
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    ZERO,
    CorruptImageError,
)
from qsd_trio.errors import os_error
from qsd_trio.iov import iov_fill, iov_size, iov_slice, iov_zero

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Sequence

    from qsd_trio.block.abc import Child, Iov
    from qsd_trio.block.drivers.qcow2.encryption import ImageCipher
    from qsd_trio.block.drivers.qcow2.metadata import Metadata


class Kind(enum.Enum):
    """What an L2 entry says of its cluster, or of a subcluster."""

    UNALLOCATED = enum.auto()
    PREALLOCATED = enum.auto()  # reads as if unallocated, has a host cluster (subclusters only)
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


def _ignore(error: CorruptImageError) -> None:
    pass


@final
@attrs.define(eq=False)
class Image:
    """The state that reading, writing and resizing share."""

    file: Child
    #: Where guest data are: ``file``, or the external data file.
    data: Child
    metadata: Metadata
    size: int
    version: int
    backing: Child | None = None
    #: What guest data are encrypted with.
    crypt: ImageCipher | None = None
    #: Tells of a corruption that is no reason for a request to fail.
    report: Callable[[CorruptImageError], None] = _ignore
    #: A fatal corruption was found: nothing works any more.
    broken: bool = False
    #: Allocating writes, and other changes of L2 entries that take their time.
    in_flight: list[InFlight] = attrs.field(init=False, factory=list)
    #: Whether what ``data`` grows by reads as zeroes.
    zero_init: bool = attrs.field(init=False)
    #: Whether data are in a file of their own, at their guest offset.
    external: bool = attrs.field(init=False)
    #: ... which can be read without us, so that zeroes must be written there too.
    raw_external: bool = attrs.field(init=False)
    #: Whether a cluster's subclusters have a state each.
    extended: bool = attrs.field(init=False)
    cluster_bits: int = attrs.field(init=False)
    subcluster_bits: int = attrs.field(init=False)  # as cluster_bits, if there are no subclusters
    cluster_size: int = attrs.field(init=False)
    mask: int = attrs.field(init=False)  # offset within a cluster
    l1_shift: int = attrs.field(init=False)  # offset -> L1 index
    slice_shift: int = attrs.field(init=False)  # offset -> number of its L2 slice
    slice_mask: int = attrs.field(init=False)  # cluster number -> index within the slice
    #: Bits of an L2 entry of which one is set if the cluster has a host cluster.
    allocated: int = attrs.field(init=False)
    #: The bit of an L2 entry that says that the cluster reads as zeroes, if there is one.
    zero_bit: int = attrs.field(init=False)
    #: Bits of an L2 entry that a plain, sound data cluster has not.
    odd: int = attrs.field(init=False)
    #: COPIED and ``odd``: such bits of an entry equal COPIED if it may be written in place.
    in_place: int = attrs.field(init=False)
    _tables: dict[int, array[int]] = attrs.field(init=False)
    compressed: CompressedClusters = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        header = self.metadata.header
        self.zero_init = self.crypt is None and self.data.node.driver.has_zero_init()
        self.external = bool(header.incompatible & lay.INCOMPAT_DATA_FILE)
        self.raw_external = bool(header.autoclear & lay.AUTOCLEAR_DATA_FILE_RAW)
        self.extended = self.metadata.extended
        self.cluster_bits = self.metadata.cluster_bits
        self.subcluster_bits = self.cluster_bits - (sub.COUNT_BITS if self.extended else 0)
        self.cluster_size = 1 << self.cluster_bits
        self.mask = self.cluster_size - 1
        self.l1_shift = self.cluster_bits + self.metadata.l2_bits
        self.set_slices()
        self.allocated = OFFSET_MASK | (COPIED if self.external else 0)
        self.zero_bit = 0 if self.extended else ZERO
        self.odd = COMPRESSED | self.zero_bit | (OFFSET_MASK & self.mask)
        self.in_place = COPIED | self.odd
        self._tables = self.metadata.l2
        self.compressed = CompressedClusters(
            metadata=self.metadata, kind=self.metadata.header.compression_type
        )

    def set_slices(self) -> None:
        """Take over the unit of the L2 cache."""
        self.slice_shift = self.cluster_bits + self.metadata.slice_bits
        self.slice_mask = (1 << self.metadata.slice_bits) - 1

    # -- what a cluster is ---------------------------------------------------------------------------

    def is_fresh(self, host: int) -> bool:
        """Say whether a free host cluster holds zeroes, since nothing was ever written there."""
        if not self.zero_init:
            return False
        if self.external:
            return host >= self.data.getlength()
        return host >> self.cluster_bits >= self.metadata.refcounts.fresh_from

    def conflict(self, start: int, end: int) -> InFlight | None:
        """Return a change under way of an L2 entry of the range, or None."""
        first, last = start >> self.cluster_bits, (end - 1) >> self.cluster_bits
        for other in self.in_flight:
            if other.first <= last and other.last >= first:
                return other
        return None

    def kind(self, entry: int) -> Kind:
        """Return what an L2 entry says of its whole cluster (with subclusters: but for its bitmap)."""
        if entry & COMPRESSED:
            return Kind.COMPRESSED
        if entry & self.zero_bit:
            return Kind.ZERO_ALLOCATED if entry & self.allocated else Kind.ZERO
        return Kind.DATA if entry & self.allocated else Kind.UNALLOCATED

    def is_own(self, entry: int) -> bool:
        """Say whether the cluster has a host cluster that nobody else refers to."""
        return bool(entry & COPIED and entry & self.allocated and not entry & COMPRESSED)

    def bitmap(self, offset: int) -> int:
        """Return the subcluster bitmap of the cluster at ``offset``, whose slice is cached."""
        return self.metadata.subclusters[offset >> self.slice_shift][
            offset >> self.cluster_bits & self.slice_mask
        ]

    def classify(self, table: array[int], offset: int, stop: int) -> tuple[Kind, int, int]:
        """Return (kind, host offset of the byte at ``offset``, length up to ``stop``).

        Adjacent (sub)clusters of a kind are one run; if they have a place on the host, they are adjacent
        there as well. A compressed one comes alone, with its entry in place of the offset. ``table`` is
        the slice of ``offset`` in the cache, ``stop`` is in the same one.
        """
        bits = self.cluster_bits
        number = offset >> bits
        at = number & self.slice_mask
        entry = table[at]
        kind = self.kind(entry)
        if kind is Kind.COMPRESSED:
            if self.external:
                raise self.corrupt_entry(
                    "Compressed cluster entry found in image with external data file", offset
                )
            return kind, entry, min(stop, (number + 1) << bits) - offset
        self._check_entry(entry, offset)
        if self.extended:
            return self._classify_subclusters(table, offset, stop)
        host = entry & OFFSET_MASK
        last = at + ((stop - 1) >> bits) - number
        run = 1
        if last > at:
            others = table[at + 1 : last + 1]
            if not entry:
                run += _leading_zeroes(others)
            else:
                mask = self.allocated | COMPRESSED | ZERO
                want = entry & mask
                step = self.cluster_size if entry & self.allocated else 0
                for other in others:
                    want += step
                    if other & mask != want:
                        break
                    run += 1
        return kind, host + (offset & self.mask), min(stop, (number + run) << bits) - offset

    def _classify_subclusters(
        self, table: array[int], offset: int, stop: int
    ) -> tuple[Kind, int, int]:
        bits, shift = self.cluster_bits, self.subcluster_bits
        bitmaps = self.metadata.subclusters[offset >> self.slice_shift]
        at = offset >> bits & self.slice_mask
        first = (offset & self.mask) >> shift
        kind, count = self._subcluster_run(table[at], bitmaps[at], first, offset)
        found = table[at] & OFFSET_MASK
        host = found + (offset & self.mask)
        end = (offset & ~self.mask) + ((first + count) << shift)
        step = 0 if kind in (Kind.UNALLOCATED, Kind.ZERO) else self.cluster_size
        while end < stop and not end & self.mask:
            at += 1
            found += step
            entry, bitmap = table[at], bitmaps[at]
            if entry & COMPRESSED or entry & OFFSET_MASK != found:
                break
            if kind is Kind.UNALLOCATED and not entry | bitmap:
                # Long empty ranges are common: not a step for each cluster.
                empty = min(_leading_zeroes(table[at:]), _leading_zeroes(bitmaps[at:]))
                end += empty << bits
                at += empty - 1
                continue
            other, count = self._subcluster_run(entry, bitmap, 0, end)
            if other is not kind:
                break
            end += count << shift
        return kind, host, min(stop, end) - offset

    def _subcluster_run(self, entry: int, bitmap: int, first: int, offset: int) -> tuple[Kind, int]:
        """Return the kind of subcluster ``first`` and how many from there on are of that kind."""
        held = entry & self.allocated
        if not sub.is_valid(bitmap) or (not held and sub.allocated(bitmap)):
            raise self.corrupt_entry("Invalid cluster entry found ", offset)
        zero, data = sub.zero(bitmap), sub.allocated(bitmap)
        if zero >> first & 1:
            return Kind.ZERO_ALLOCATED if held else Kind.ZERO, sub.run_length(zero, first)
        if data >> first & 1:
            return Kind.DATA, sub.run_length(data, first)
        count = sub.run_length(sub.ALL & ~(zero | data), first)
        return Kind.PREALLOCATED if held else Kind.UNALLOCATED, count

    def _check_entry(self, entry: int, offset: int) -> None:
        if not entry & self.odd and not self.external:
            return
        if entry & ZERO and self.version < 3:
            raise self.corrupt_entry("Zero cluster entry found in pre-v3 image", offset)
        if not entry & self.allocated:
            return
        host = entry & OFFSET_MASK
        if host & self.mask:
            raise self.corrupt_entry(
                f"Cluster allocation offset {lay.c_hex(host)} unaligned", offset
            )
        if self.external and host != offset & ~self.mask:
            index = offset >> self.cluster_bits & self.slice_mask
            raise CorruptImageError(
                f"External data file host cluster offset {lay.c_hex(host)} does not match guest cluster"
                f" offset: {lay.c_hex(offset & ~self.mask)}, L2 index: {lay.c_hex(index)})",
                fatal=True,
            )

    def corrupt_entry(self, what: str, offset: int) -> CorruptImageError:
        """Return the error that the L2 entry of ``offset`` is."""
        index = offset >> self.cluster_bits & self.slice_mask
        table = self.metadata.l2_offset(offset >> self.l1_shift)
        return CorruptImageError(
            f"{what} (L2 offset: {lay.c_hex(table)}, L2 index: {lay.c_hex(index)})", fatal=True
        )

    def allocated_now(self, offset: int, end: int) -> bool:
        """Say whether cached L2 tables show that nothing of a range is left to the backing file."""
        if self.broken:
            return False
        while offset < end:
            number = offset >> self.slice_shift
            table = self._tables.get(number)
            if table is None:
                return False
            try:
                kind, _, length = self.classify(
                    table, offset, min(end, (number + 1) << self.slice_shift)
                )
            except CorruptImageError:
                return False  # the slow path reports it
            if kind is Kind.UNALLOCATED or kind is Kind.PREALLOCATED:
                return False
            offset += length
        return True

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
                    if self.crypt is None:
                        await read_into(self.data, host, part, length)
                    else:
                        await self.crypt.read(self.data, offset, host, part)
                finally:
                    self.metadata.end_io(token)
            elif kind is Kind.UNALLOCATED or kind is Kind.PREALLOCATED:
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
        entries: list[int] = []
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

    async def write_data(self, offset: int, host: int, iov: Iov) -> None:
        """Write guest data, which the guest sees at ``offset``, to ``host``; no table is changed."""
        token = self.metadata.begin_io()
        try:
            if self.crypt is None:
                await self.data.pwritev(host, iov)
            else:
                await self.crypt.write(self.data, offset, host, iov)
        finally:
            self.metadata.end_io(token)

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


def _leading_zeroes(words: array[int]) -> int:
    """Return how many items at the start are zero."""
    data = words.tobytes()
    return (len(data) - len(data.lstrip(b"\0"))) // 8
