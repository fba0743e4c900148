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
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import attrs
import trio

from qsd_trio.block.drivers.qcow2 import layout as lay
from qsd_trio.block.drivers.qcow2 import sharing, snapshot_table
from qsd_trio.block.drivers.qcow2.check import STEP, read_words
from qsd_trio.block.drivers.qcow2.imagefile import read_file
from qsd_trio.block.drivers.qcow2.layout import (
    COPIED,
    OFFSET_MASK,
    CorruptImageError,
)
from qsd_trio.block.drivers.qcow2.overlap import (
    INACTIVE_L1,
    INACTIVE_L2,
    MAX_LOCATIONS,
    SNAPSHOT_TABLE,
)
from qsd_trio.block.drivers.qcow2.refcounts import from_disk, to_disk
from qsd_trio.block.drivers.qcow2.snapshot_table import NO_ICOUNT, Entry
from qsd_trio.block.drivers.qcow2.writing import FREED_BY_SNAPSHOT, FREED_OTHERWISE
from qsd_trio.block.snapshots import Snapshot, SnapshotStore
from qsd_trio.errors import QmpError, os_error, with_errno

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence

    from qsd_trio.block.drivers.qcow2.image import Image
    from qsd_trio.block.drivers.qcow2.metadata import Metadata

#: Bytes of the snapshot table that are read at a time.
PIECE: Final = 64 << 10
#: Bytes of snapshots' L1 tables that are looked through for where they have L2 tables.
MAX_INACTIVE_BYTES: Final = 64 << 20


async def load(metadata: Metadata) -> None:
    """Read the snapshot table. Raises QmpError."""
    header = metadata.header
    parser = snapshot_table.parse(header.nb_snapshots, header.disk_size)
    buffered, at = b"", 0
    size = 0
    try:
        wanted = next(parser)
        while True:
            while at + wanted > len(buffered):
                offset = header.snapshots_offset + size + len(buffered) - at
                buffered, at = buffered[at:] + await read_file(metadata.file, offset, PIECE), 0
            at, size = at + wanted, size + wanted
            wanted = parser.send(buffered[at - wanted : at])
    except StopIteration as stop:
        metadata.snapshots = stop.value
        metadata.snapshots_size = size
    except OSError as exc:
        raise with_errno("Failed to read snapshot table", exc) from exc


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
        await _locate_l2_tables(metadata, tables, places)
    metadata.locations.set_snapshots(places)


async def _locate_l2_tables(
    metadata: Metadata, tables: Iterable[tuple[int, int]], places: dict[int, str]
) -> None:
    """Add to ``places`` where L1 tables, (offset, length) each, lead; as many as may be kept."""
    left = MAX_INACTIVE_BYTES
    for offset, length in tables:
        left -= length
        for start in range(0, length // 8, STEP):
            if left < 0 or len(places) >= MAX_LOCATIONS:
                return
            for word in await read_words(metadata, offset, start, length // 8):
                if word & OFFSET_MASK:
                    places.setdefault(word & OFFSET_MASK, INACTIVE_L2)


@final
@attrs.define(eq=False)
class Snapshots(SnapshotStore):
    """The snapshots of an open image. Nobody else may use it while one is taken or deleted."""

    image: Image
    #: Tells the world of a corruption.
    report: Callable[[CorruptImageError], Awaitable[None]]
    #: Finds out where the metadata are that no write may hit.
    before_change: Callable[[], Awaitable[None]]
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
                await sharing.clear_flags(metadata)
                await self._settle()
                await sharing.add_references(metadata, l1)
                try:
                    entry, table = await self._store(snapshot, l1)
                except BaseException:
                    await sharing.drop_references(metadata, l1)
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
                with trio.CancelScope(shield=True):  # nothing can be taken back any more
                    await sharing.drop_references(metadata, l1)
                    await sharing.drop_region(metadata, entry.l1_table_offset, length)
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
        await self.before_change()
        await self._settle()
        if self.image.version >= 3:
            await metadata.set_dirty_bit(value=True)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await locate(metadata)
                await sharing.set_flags(metadata)
                await self._settle()
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
