"""Internal snapshots of an image: reading their table, taking and deleting them.

A snapshot is a copy of the active L1 table: from then on both share L2 tables and clusters, which have a
refcount above 1 and, in the active tables, no COPIED flag, so that writing copies them.

Taking and deleting one take many writes. Their order makes each state between them harmless: a flag is
gone before a refcount goes up and comes back after it went down; the header names a new snapshot when
all its references are counted, and an old one no longer before they are not. What a crash may leave is
leaks and missing flags. Of version 3 images the dirty bit has the next open put those right.
"""

from __future__ import annotations

import errno
from array import array
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import attrs
import trio

from qsd_trio.block.drivers.qcow2 import layout as lay
from qsd_trio.block.drivers.qcow2 import overlap, snapshot_table
from qsd_trio.block.drivers.qcow2.compressed import parse_entry
from qsd_trio.block.drivers.qcow2.layout import (
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    CorruptImageError,
)
from qsd_trio.block.drivers.qcow2.metadata import L1_SECTOR, discard_file, read_file
from qsd_trio.block.drivers.qcow2.overlap import (
    INACTIVE_L1,
    INACTIVE_L2,
    MAX_LOCATIONS,
    SNAPSHOT_TABLE,
)
from qsd_trio.block.drivers.qcow2.refcounts import from_disk, to_disk
from qsd_trio.block.drivers.qcow2.snapshot_table import NO_ICOUNT, Entry
from qsd_trio.block.snapshots import Snapshot, SnapshotStore
from qsd_trio.errors import QmpError, os_error, with_errno

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence

    from qsd_trio.block.drivers.qcow2.image import Image
    from qsd_trio.block.drivers.qcow2.metadata import Metadata

# Indices into Metadata.pass_discard.
FREED_BY_SNAPSHOT: Final = 1
FREED_OTHERWISE: Final = 2

#: Bytes of a table that are read, and looked at between two checkpoints, at a time.
PIECE: Final = 64 << 10
#: Bytes of snapshots' L1 tables that are looked through for where they have L2 tables.
MAX_INACTIVE_BYTES: Final = 64 << 20
#: L1 entries looked at between two checkpoints.
L1_STEP: Final = 4096
_EVERYTHING: Final = 1 << 64  # batches of references: more than there can be


async def load(metadata: Metadata) -> None:
    """Read the snapshot table. Raises QmpError."""
    header = metadata.header
    parser = snapshot_table.parse(header.nb_snapshots, header.size)
    offset, buffered = header.snapshots_offset, b""
    size = 0
    try:
        wanted = next(parser)
        while True:
            while len(buffered) < wanted:
                buffered += await read_file(metadata.file, offset, PIECE)
                offset += PIECE
            size += wanted
            answer, buffered = buffered[:wanted], buffered[wanted:]
            wanted = parser.send(answer)
    except StopIteration as stop:
        metadata.snapshots = stop.value
        metadata.snapshots_size = size
    except OSError as exc:
        raise with_errno("Failed to read snapshot table", exc) from exc


async def locate_all(metadata: Metadata, protected: frozenset[str]) -> None:
    """Note where an image has its metadata, of the kinds to be protected."""
    await overlap.locate(metadata, protected)
    await locate(metadata)


async def locate(metadata: Metadata) -> None:
    """Note anew where the snapshots have their tables."""
    places: dict[int, str] = {}
    tables = []
    for entry in metadata.snapshots:
        try:
            snapshot_table.check_l1(entry, metadata.cluster_size)
        except QmpError:
            continue  # an error for who uses it
        tables.append((entry.l1_table_offset, entry.l1_size * 8))
    for offset in metadata.clusters_of(metadata.header.snapshots_offset, metadata.snapshots_size):
        places[offset] = SNAPSHOT_TABLE
    for offset, length in tables:
        for cluster in metadata.clusters_of(offset, length):
            if len(places) >= MAX_LOCATIONS:
                break
            places.setdefault(cluster, INACTIVE_L1)
        await trio.lowlevel.checkpoint()
    if INACTIVE_L2 in metadata.locations.protected:
        left = MAX_INACTIVE_BYTES
        for offset, length in tables:
            left -= length
            if left < 0 or len(places) >= MAX_LOCATIONS:
                break
            async with aclosing(_words(metadata, offset, length)) as pieces:
                async for words in pieces:
                    for word in words:
                        if word & OFFSET_MASK:
                            places.setdefault(word & OFFSET_MASK, INACTIVE_L2)
    metadata.locations.set_snapshots(places)


async def _words(metadata: Metadata, offset: int, length: int) -> AsyncGenerator[array[int]]:
    """Read a table piece by piece, with a checkpoint after each."""
    for at in range(0, length, PIECE):
        yield from_disk(await read_file(metadata.file, offset + at, min(PIECE, length - at)))
        await trio.lowlevel.checkpoint()


@final
@attrs.define(eq=False)
class Snapshots(SnapshotStore):
    """The snapshots of an open image. Nobody else may use it while one is taken or deleted."""

    image: Image
    #: Tells the world of a corruption.
    report: Callable[[CorruptImageError], Awaitable[None]]
    _metadata: Metadata = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._metadata = self.image.metadata

    def all(self) -> Sequence[Snapshot]:
        """Return the snapshots in the order of the table."""
        if self._metadata.header.incompatible & lay.INCOMPAT_DATA_FILE:
            raise os_error(errno.ENOTSUP)
        return [_shown(entry) for entry in self._metadata.snapshots]

    async def create(self, snapshot: Snapshot) -> Snapshot:
        """Take a snapshot. Raises OSError with nothing changed; cancelled: nothing is changed."""
        metadata = self._metadata
        if len(metadata.snapshots) >= lay.MAX_SNAPSHOTS:
            raise os_error(errno.EFBIG)
        l1 = array("Q", [word & ~COPIED for word in metadata.l1])
        try:
            async with self._changing():
                await self._set_flags(clear=True)
                await self._settle()
                await self._add_references(l1)
                try:
                    entry, table = await self._store(snapshot, l1)
                except BaseException:
                    await self._drop_references(l1)
                    raise
                await self._install([*metadata.snapshots, entry], *table)
        except CorruptImageError as exc:
            await self.report(exc)
            raise
        return _shown(entry)

    async def delete(self, id_: bytes | None, name: bytes | None) -> None:
        """Delete a snapshot. Raises QmpError: then it is still there, or has leaked its clusters.

        Cancelled: it is still there.
        """
        metadata = self._metadata
        entry = _find(metadata.snapshots, id_, name)
        if entry is None:
            raise QmpError("Can't find the snapshot")
        snapshot_table.check_l1(entry, metadata.cluster_size)
        rest = [other for other in metadata.snapshots if other is not entry]
        what = "Failed to remove snapshot from snapshot list"
        try:
            length = entry.l1_size * 8
            l1 = from_disk(await read_file(metadata.file, entry.l1_table_offset, length))
            async with self._changing():
                await self._install(rest, *await self._store_table(rest))
                what = "Failed to free the cluster and L1 table"
                with trio.CancelScope(shield=True):
                    await self._drop_references(l1)
                    await self._drop_clusters(entry.l1_table_offset, length)
                what = "Failed to update snapshot status in disk"
        except CorruptImageError as exc:
            await self.report(exc)
            raise with_errno(what, exc) from exc
        except OSError as exc:
            raise with_errno(what, exc) from exc

    # -- steps ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _changing(self) -> AsyncGenerator[None]:
        """Mark the image dirty while the context is open; put the COPIED flags right at its end."""
        metadata = self._metadata
        if self.image.broken:
            raise os_error(errno.ENOMEDIUM)
        await self._settle()
        if self.image.version >= 3:
            await metadata.set_dirty_bit(value=True)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await self._set_flags()
                await self._settle()
                await locate(metadata)
                await metadata.make_clean()

    async def _settle(self) -> None:
        """Put everything that is cached on stable storage."""
        await self._metadata.write_back(accurate=True)
        await self._metadata.file.flush()

    async def _store(self, snapshot: Snapshot, l1: array[int]) -> tuple[Entry, tuple[int, int]]:
        """Write the L1 table of a new snapshot, and a snapshot table with it; nothing names them yet."""
        metadata = self._metadata
        data = to_disk(l1)
        offset = await self._write_new(data)
        try:
            entry = Entry(
                l1_table_offset=offset,
                l1_size=len(l1),
                id_str=snapshot_table.next_id(metadata.snapshots),
                name=snapshot.name,
                date_sec=snapshot.date_sec,
                date_nsec=snapshot.date_nsec,
                vm_clock_nsec=snapshot.vm_clock_nsec,
                disk_size=self.image.size,
            )
            return entry, await self._store_table([*metadata.snapshots, entry])
        except BaseException:
            metadata.free(offset, len(data), FREED_OTHERWISE)
            raise

    async def _store_table(self, entries: Iterable[Entry]) -> tuple[int, int]:
        """Write a snapshot table that nothing names yet; return its offset and length."""
        data = snapshot_table.to_bytes(entries)
        if len(data) > snapshot_table.MAX_TABLE_BYTES:
            raise os_error(errno.EFBIG)
        if not data:
            return 0, 0
        offset = await self._write_new(data)
        try:
            await self._settle()
        except BaseException:
            self._metadata.free(offset, len(data), FREED_OTHERWISE)
            raise
        return offset, len(data)

    async def _write_new(self, data: bytes) -> int:
        """Write data into clusters of its own; return where. Cancelled or failed: they are free again."""
        metadata = self._metadata
        if not data:
            return 0
        clusters = (len(data) + metadata.cluster_size - 1) >> metadata.cluster_bits
        offset = await metadata.refcounts.allocate_run(clusters) << metadata.cluster_bits
        try:
            await metadata.file.pwritev(offset, [memoryview(data)])
        except BaseException:
            metadata.free(offset, len(data), FREED_OTHERWISE)
            raise
        return offset

    async def _install(self, entries: list[Entry], offset: int, length: int) -> None:
        """Let the header name another snapshot table.

        Failed: the header may name either, so that both stay, and one of them is leaked.
        """
        metadata = self._metadata
        old_offset, old_length = metadata.header.snapshots_offset, metadata.snapshots_size
        with trio.CancelScope(shield=True):
            await metadata.update_header(
                lambda header: attrs.evolve(
                    header, nb_snapshots=len(entries), snapshots_offset=offset
                )
            )
        metadata.snapshots, metadata.snapshots_size = entries, length
        if old_length:
            metadata.free(old_offset, old_length, FREED_BY_SNAPSHOT)

    # -- references ----------------------------------------------------------------------------------

    async def _references(self, l1: array[int]) -> AsyncGenerator[tuple[int, list[int]]]:
        """Yield what L1 entries lead to, as (refcount block, indices there); a cluster may come again."""
        metadata, refcounts = self._metadata, self._metadata.refcounts
        for index, word in enumerate(l1):
            table = word & OFFSET_MASK
            if not table:
                continue
            if table & (metadata.cluster_size - 1):
                raise CorruptImageError(
                    f"L2 table offset {table:#x} unaligned (L1 index: {index:#x})", fatal=True
                )
            at = 0
            async with aclosing(_words(metadata, table, metadata.cluster_size)) as pieces:
                async for words in pieces:
                    entries = words[::2] if metadata.extended else words
                    clusters = self._clusters(entries, table, at)
                    at += len(entries)
                    for block, indices in _by_block(clusters, refcounts.bits).items():
                        yield block, indices
            # After what it holds: when it is free it may be discarded.
            number = table >> metadata.cluster_bits
            yield number >> refcounts.bits, [number & refcounts.mask]

    def _clusters(self, entries: array[int], table: int, first: int) -> list[int]:
        """Return the host clusters that L2 entries, ``first`` and on of a table, refer to."""
        bits, mask = self._metadata.cluster_bits, self._metadata.cluster_size - 1
        plain = [entry & OFFSET_MASK for entry in entries if entry and not entry & COMPRESSED]
        clusters = [host >> bits for host in plain if host]
        if any(host & mask for host in plain):
            for at, entry in enumerate(entries, first):
                host = entry & OFFSET_MASK
                if host & mask and not entry & COMPRESSED:
                    raise CorruptImageError(
                        f"Cluster allocation offset {host:#x} unaligned"
                        f" (L2 offset: {table:#x}, L2 index: {at:#x})",
                        fatal=True,
                    )
        if len(plain) < len(entries):
            for entry in entries:
                if entry & COMPRESSED:
                    offset, length = parse_entry(entry, bits)
                    clusters.extend(range(offset >> bits, ((offset + length - 1) >> bits) + 1))
        return clusters

    async def _add_references(self, l1: array[int]) -> None:
        """Count the references of another L1 table like this. Raises OSError with nothing counted."""
        done = 0
        try:
            async with aclosing(self._references(l1)) as batches:
                async for block, indices in batches:
                    await self._metadata.make_room(0)
                    await self._metadata.refcounts.add(block, indices, 1)
                    done += 1
        except BaseException:
            await self._drop_references(l1, done)
            raise

    async def _drop_references(self, l1: array[int], batches: int = _EVERYTHING) -> None:
        """Take back the references of an L1 table that is gone, or their first ``batches``."""
        with trio.CancelScope(shield=True):
            async with aclosing(self._references(l1)) as references:
                async for block, indices in references:
                    if not batches:
                        break
                    batches -= 1
                    await self._drop(block, indices)

    async def _drop_clusters(self, offset: int, length: int) -> None:
        """Take back the references that the snapshot table has to an L1 table."""
        bits = self._metadata.cluster_bits
        clusters = range(offset >> bits, (offset + length + self.image.mask) >> bits)
        for block, indices in _by_block(clusters, self._metadata.refcounts.bits).items():
            await self._drop(block, indices)

    async def _drop(self, block: int, indices: Sequence[int]) -> None:
        metadata = self._metadata
        await metadata.make_room(0)
        freed = await metadata.refcounts.add(block, indices, -1)
        if freed and metadata.pass_discard[FREED_BY_SNAPSHOT]:
            end = metadata.file.getlength()
            for start, stop in _runs(freed):
                offset = start << metadata.cluster_bits
                length = min(stop << metadata.cluster_bits, end) - offset
                if length > 0:
                    await discard_file(metadata.file, offset, length)

    # -- COPIED flags --------------------------------------------------------------------------------

    async def _set_flags(self, *, clear: bool = False) -> None:
        """Let active entries have a COPIED flag if theirs is the only reference; ``clear``: none has one."""
        metadata = self._metadata
        for index in range(len(metadata.l1)):
            if not index % L1_STEP:
                await trio.lowlevel.checkpoint()
            table = metadata.l2_offset(index)
            if not table:
                continue
            await metadata.make_room(0)
            refcount = await metadata.refcounts.get(table >> metadata.cluster_bits)
            own = not clear and refcount == 1
            if own or clear:  # else its entries' clusters are shared as well
                for number in metadata.slices_of(index):
                    await self._set_slice_flags(number, clear=clear)
            word = metadata.l1[index] & ~COPIED | (COPIED if own else 0)
            if word != metadata.l1[index]:
                metadata.l1[index] = word
                metadata.dirty_l1.add(index // L1_SECTOR)

    async def _set_slice_flags(self, number: int, *, clear: bool) -> None:
        metadata = self._metadata
        entries = await metadata.slice(number)
        if entries is None:
            return
        flagged = array("Q", [entry & ~COPIED for entry in entries])
        if not clear:
            await self._flag_own(flagged)
        entries = await metadata.slice(number)  # it may have left the cache
        if entries is not None and flagged != entries:
            entries[:] = flagged
            metadata.mark_l2(number, 0, len(flagged) - 1)
        await trio.lowlevel.checkpoint()

    async def _flag_own(self, entries: array[int]) -> None:
        """Set the COPIED flag of entries whose cluster has a refcount of 1."""
        metadata, refcounts = self._metadata, self._metadata.refcounts
        bits, mask = metadata.cluster_bits, refcounts.mask
        shift = bits + refcounts.bits
        places: dict[int, list[int]] = {}
        for at, entry in enumerate(entries):
            if entry & OFFSET_MASK and not entry & COMPRESSED:
                places.setdefault((entry & OFFSET_MASK) >> shift, []).append(at)
        for number in sorted(places):
            await metadata.make_room(0)
            block = await refcounts.block(number)
            if block is None:
                continue
            for at in places[number]:
                if block.get((entries[at] & OFFSET_MASK) >> bits & mask) == 1:
                    entries[at] |= COPIED


def _by_block(clusters: Iterable[int], bits: int) -> dict[int, list[int]]:
    """Sort clusters by refcount block: block number -> indices in the block."""
    mask = (1 << bits) - 1
    answer: dict[int, list[int]] = {}
    for cluster in clusters:
        answer.setdefault(cluster >> bits, []).append(cluster & mask)
    return answer


def _runs(clusters: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of the runs in a sorted list."""
    start = previous = clusters[0]
    for cluster in clusters[1:]:
        if cluster != previous + 1:
            yield start, previous + 1
            start = cluster
        previous = cluster
    yield start, previous + 1


def _shown(entry: Entry) -> Snapshot:
    return Snapshot(
        id=entry.shown_id,
        name=entry.shown_name,
        date_sec=entry.date_sec,
        date_nsec=entry.date_nsec,
        vm_clock_nsec=entry.vm_clock_nsec,
        vm_state_size=_signed(entry.vm_state_size),
        icount=None if entry.icount == NO_ICOUNT else _signed(entry.icount),
    )


def _signed(value: int) -> int:
    """Return an unsigned 64-bit number as QEMU's schema types it: signed."""
    return value - (1 << 64) if value >> 63 else value


def _find(entries: Iterable[Entry], id_: bytes | None, name: bytes | None) -> Entry | None:
    """Return the first entry with this id and name, in full, None matching any; None: there is none."""
    for entry in entries:
        if id_ in (None, entry.id_str) and name in (None, entry.name):
            return entry
    return None
