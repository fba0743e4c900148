"""Persistent dirty bitmaps: loaded when an image opens, stored when it closes.

While an image is open for writing, the bitmaps in its file are out of date. They are flagged as in use
before the first write can happen, so that after a crash nobody believes them. Storing writes bits and
tables to new clusters, then a new directory, and lets the header refer to that: a crash leaves the
old directory, whose bitmaps are in use, or the new one.

Source: qcow2 specification, section "Bitmaps".
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, final

import attrs
import trio

from qsd_trio.block.abc import SECTOR
from qsd_trio.block.dirty_bitmaps import DirtyBitmap, bits_for
from qsd_trio.block.drivers.qcow2 import bitmap_directory as form
from qsd_trio.block.drivers.qcow2 import bitmap_tables as tables
from qsd_trio.block.drivers.qcow2.imagefile import read_file
from qsd_trio.block.drivers.qcow2.overlap import BITMAP_DIRECTORY
from qsd_trio.block.drivers.qcow2.writing import FREED_OTHERWISE
from qsd_trio.errors import QmpError, with_errno

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from qsd_trio.block.dirty_bitmaps import DirtyBitmaps
    from qsd_trio.block.drivers.qcow2.bitmap_directory import Entry
    from qsd_trio.block.drivers.qcow2.metadata import Metadata
    from qsd_trio.untyped import Json

log = logging.getLogger(__name__)

#: Memory that the bitmaps of an image may take together when it opens.
MAX_LOADED: Final = 1 << 30
#: Bitmaps, or pieces of one of a cluster each, handled between two checkpoints.
_STEP: Final = 512


@final
@attrs.define(eq=False)
class BitmapStore:
    """The bitmaps in an image, and those that its node has for it.

    Attributes:
        bitmaps: All dirty bitmaps of the node.
        size: The node's length in bytes.
        writable: Whether the image may be written.
        entries: The directory as it is on disk.
    """

    metadata: Metadata
    bitmaps: DirtyBitmaps
    size: int
    writable: bool
    entries: dict[bytes, Entry] = attrs.field(factory=dict)

    @classmethod
    async def load(
        cls, metadata: Metadata, bitmaps: DirtyBitmaps, size: int, *, writable: bool
    ) -> BitmapStore:
        """Add the bitmaps of an image to ``bitmaps``. Raises QmpError."""
        size = -(-size // SECTOR) * SECTOR
        store = cls(metadata=metadata, bitmaps=bitmaps, size=size, writable=writable)
        if form.find_extension(metadata.header) is None:
            return store
        found = []
        loaded = 0
        for number, entry in enumerate(await tables.read_directory(metadata)):
            if not number % _STEP:
                await trio.lowlevel.checkpoint()
            name = entry.name.decode("utf-8", "surrogateescape")
            lost = bool(entry.flags & form.IN_USE)
            if not lost:
                loaded += bits_for(size, 1 << entry.granularity_bits) >> 3
                if loaded > MAX_LOADED:
                    raise QmpError(f"The bitmaps of the image need more than {MAX_LOADED} bytes")
            bitmap = DirtyBitmap(name, 1 << entry.granularity_bits, size, inconsistent=lost)
            bitmap.persistent = True
            bitmap.readonly = not writable
            if not lost:
                bitmap.enabled = bool(entry.flags & form.AUTO)
                await store._read_bits(entry, bitmap)
            found.append(bitmap)
            store.entries.setdefault(entry.name, entry)
        bitmaps.add_all(found)
        if writable:
            try:
                await store.set_in_use()
            except OSError as exc:
                raise with_errno("Can't update bitmap directory", exc) from exc
        return store

    async def _read_bits(self, entry: Entry, bitmap: DirtyBitmap) -> None:
        cluster_size = self.metadata.cluster_size
        try:
            table = await tables.read_table(self.metadata, entry)
        except OSError as exc:
            raise with_errno(
                f"Could not read bitmap_table table from image for bitmap '{bitmap.name}'", exc
            ) from exc
        data = bitmap.data
        if len(table) != -(-len(data) // cluster_size):
            raise QmpError(f"Could not read bitmap '{bitmap.name}' from image: Invalid argument")
        try:
            for number, word in enumerate(table):
                if not number % _STEP:
                    await trio.lowlevel.checkpoint()
                at = number * cluster_size
                length = min(cluster_size, len(data) - at)
                if word & form.ALL_ONES:
                    bitmap.load(at, b"\xff" * length)
                elif word:
                    bitmap.load(at, await read_file(self.metadata.file, word, length))
        except OSError as exc:
            raise with_errno(f"Could not read bitmap '{bitmap.name}' from image", exc) from exc

    # -- what the node may do ------------------------------------------------------------------------

    def check_can_store(self, name: str, granularity: int) -> None:
        """Raise QmpError if a new bitmap could not be stored."""
        if self.metadata.header.version < 3:
            raise QmpError("Cannot store dirty bitmaps in qcow2 v2 files")
        encoded = _encode(name)
        form.check_new(encoded, granularity, self.size)
        names = [_encode(bitmap.name) for bitmap in self.bitmaps if bitmap.persistent]
        if len(names) >= form.MAX_BITMAPS:
            raise QmpError("Maximum number of persistent bitmaps is already reached")
        if sum(form.entry_size(len(each)) for each in (*names, encoded)) > form.MAX_DIRECTORY:
            raise QmpError("Not enough space in the bitmap directory")

    def check_resize(self) -> None:
        """Raise QmpError if a bitmap in the image could not follow a change of the length."""
        for bitmap in self._known():
            bitmap.check_changeable()

    def _known(self) -> Iterable[DirtyBitmap]:
        """Return the node's bitmaps that are in the image."""
        for name in self.entries:
            bitmap = self.bitmaps.get(name.decode("utf-8", "surrogateescape"))
            if bitmap is not None and bitmap.persistent:
                yield bitmap

    def info(self) -> list[Json]:
        """Return a Qcow2BitmapInfo of each bitmap in the image."""
        names = ((form.IN_USE, "in-use"), (form.AUTO, "auto"))
        return [
            {
                "name": entry.name.decode("utf-8", "surrogateescape"),
                "granularity": 1 << entry.granularity_bits,
                "flags": [name for flag, name in names if entry.flags & flag],
            }
            for entry in self.entries.values()
        ]

    # -- changes of the image ------------------------------------------------------------------------

    async def set_in_use(self) -> None:
        """Say on stable storage that the bits in the image are out of date from now on.

        Raises OSError: nothing may be written. Cancelled: some may be flagged, none is wrong.
        """
        metadata = self.metadata
        extension = form.find_extension(metadata.header)
        fresh = [entry for entry in self.entries.values() if not entry.flags & form.IN_USE]
        if extension is None or not fresh:
            return
        # In place: each flag is within a sector, so a torn write leaves every entry old or new.
        data = await read_file(metadata.file, extension.offset, extension.size)
        marked = form.mark_in_use(data, fresh)
        await metadata.file.pwritev(extension.offset, [memoryview(data)])
        await metadata.file.flush()
        self.entries.update({entry.name: entry for entry in marked})

    async def become_writable(self) -> None:
        """Let bitmaps record again after the image was read-only. Raises OSError: they stay as they are."""
        await self.set_in_use()
        self.writable = True
        self.bitmaps.set_readonly([bitmap.name for bitmap in self._known()], readonly=False)

    async def become_readonly(self) -> None:
        """Store what there is and let it change no more. Raises QmpError, with nothing changed."""
        await self.store()
        self.writable = False
        self.bitmaps.set_readonly([bitmap.name for bitmap in self._known()], readonly=True)

    async def store(self) -> None:
        """Write the persistent bitmaps into the image. Raises QmpError: those there stay in use.

        Nobody may write to the node meanwhile. Cancelled: clusters may leak.
        """
        due = [
            bitmap
            for bitmap in self.bitmaps
            if bitmap.persistent and not bitmap.readonly and not bitmap.inconsistent
        ]
        if not due:
            return
        if not self.writable:
            raise QmpError("No write access")
        if not self.size:
            raise QmpError(
                "An image of no bytes cannot keep bitmaps"
            )  # a table has at least an entry
        entries = dict(self.entries)
        written: list[tuple[int, int]] = []
        try:
            for bitmap in due:
                name = _encode(bitmap.name)
                form.check_new(name, bitmap.granularity, self.size)
                old = self.entries.get(name)
                if old is not None and not old.flags & form.IN_USE:
                    raise QmpError(f"Bitmap '{bitmap.name}' already exists in the image")
                try:
                    entries[name] = await self._write_bits(name, bitmap, written)
                except OSError as exc:
                    raise with_errno(f"Failed to store bitmap '{bitmap.name}'", exc) from exc
            try:
                await self._replace(entries, written)
            except OSError as exc:
                raise with_errno("Failed to update bitmap extension", exc) from exc
        except BaseException:
            self._free(written)
            raise

    async def remove(self, name: str) -> None:
        """Remove a bitmap from the image, if it is there. Raises QmpError: it is still there."""
        entries = dict(self.entries)
        if entries.pop(_encode(name), None) is None:
            return
        written: list[tuple[int, int]] = []
        try:
            await self._replace(entries, written)
        except OSError as exc:
            raise with_errno("Failed to update bitmap extension", exc) from exc
        finally:
            self._free(written)

    async def _write_bits(
        self, name: bytes, bitmap: DirtyBitmap, written: list[tuple[int, int]]
    ) -> Entry:
        """Write a bitmap to new clusters, adding each (offset, length) of them to ``written``."""
        metadata, cluster_size = self.metadata, self.metadata.cluster_size
        zeroes, ones = bytes(cluster_size), b"\xff" * cluster_size
        view = memoryview(bitmap.data)
        words = []
        for number, at in enumerate(range(0, len(view), cluster_size)):
            if not number % _STEP:
                await trio.lowlevel.checkpoint()
            piece = view[at : at + cluster_size]
            if piece == zeroes[: len(piece)]:
                words.append(0)
            elif piece == ones:
                words.append(form.ALL_ONES)
            else:
                offset = await self._allocate(cluster_size, written)
                padded = memoryview(bytes(piece).ljust(cluster_size, b"\0"))
                await metadata.file.pwritev(offset, [padded])
                words.append(offset)
        data = b"".join([word.to_bytes(8, "big") for word in words])
        table_offset = await self._allocate(len(data), written)
        await metadata.file.pwritev(table_offset, [memoryview(data)])
        return form.Entry(
            name=name,
            table_offset=table_offset,
            table_size=len(words),
            granularity_bits=bitmap.granularity.bit_length() - 1,
            flags=form.AUTO if bitmap.enabled else 0,
        )

    async def _allocate(self, length: int, written: list[tuple[int, int]]) -> int:
        metadata = self.metadata
        clusters = -(-length // metadata.cluster_size)
        offset = await metadata.refcounts.allocate_run(clusters) << metadata.cluster_bits
        written.append((offset, length))
        return offset

    async def _replace(
        self, entries: Mapping[bytes, Entry], written: list[tuple[int, int]]
    ) -> None:
        """Put another directory in the place of the one there, and free what only the old one had.

        ``written`` are the clusters made for it; it is emptied when the disk may refer to them.
        """
        metadata = self.metadata
        old = form.find_extension(metadata.header)
        leaving = [entry for name, entry in self.entries.items() if entries.get(name) is not entry]
        unused = [region for entry in leaving for region in await self._regions_of(entry)]
        new = await self._write_directory(entries, written) if entries else None
        # What the header is to refer to has to be there, and be counted, even if refcounts are lazy.
        await metadata.write_back(accurate=True)
        await metadata.file.flush()
        written.clear()
        await metadata.update_header(lambda header: form.with_extension(header, new))
        self.entries = {}
        at = 0
        for name, entry in entries.items():
            self.entries[name] = attrs.evolve(entry, at=at)
            at += form.entry_size(len(name))
        if old is not None:
            unused.append((old.offset, old.size))
            for offset in metadata.clusters_of(old.offset, old.size):
                metadata.locations.drop(offset, BITMAP_DIRECTORY)
        if new is not None:
            for offset in metadata.clusters_of(new.offset, new.size):
                metadata.locations.note(offset, BITMAP_DIRECTORY)
        self._free(unused)

    async def _write_directory(
        self, entries: Mapping[bytes, Entry], written: list[tuple[int, int]]
    ) -> form.Extension:
        data = form.pack(entries.values())
        offset = await self._allocate(len(data), written)
        await self.metadata.file.pwritev(offset, [memoryview(data)])
        return form.Extension(count=len(entries), size=len(data), offset=offset)

    def _free(self, regions: Iterable[tuple[int, int]]) -> None:
        for offset, length in regions:
            self.metadata.free(offset, length, FREED_OTHERWISE)

    async def _regions_of(self, entry: Entry) -> list[tuple[int, int]]:
        """Return (offset, length) of a bitmap's clusters; of none if its table is broken: they leak."""
        try:
            table = await tables.read_table(self.metadata, entry)
        except OSError as exc:
            log.warning("qcow2: clusters of a bitmap leak: %s", exc.strerror)
            return []
        return tables.regions_of(entry, table, self.metadata.cluster_size)


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
