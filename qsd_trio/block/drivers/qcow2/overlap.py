"""Where an image has its metadata, so that no request can destroy it (option ``overlap-check``).

A sound image never leads a write of data to metadata; a corrupt one may, and then the write is refused.
The places are kept in one dict, of the kinds that the option asks for: the fast path looks there once.
"""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio.block.drivers.qcow2.header import EXT_BITMAPS
from qsd_trio.block.drivers.qcow2.layout import (
    OFFSET_MASK,
    REFTABLE_OFFSET_MASK,
    CorruptImageError,
)

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable

    from qsd_trio.block.drivers.qcow2.header import Header
    from qsd_trio.block.drivers.qcow2.metadata import Metadata
    from qsd_trio.untyped import Options

# Kinds of metadata, by QEMU's names for them.
HEADER: Final = "qcow2_header"
ACTIVE_L1: Final = "active L1 table"
ACTIVE_L2: Final = "active L2 table"
REFTABLE: Final = "refcount table"
REFBLOCK: Final = "refcount block"
SNAPSHOT_TABLE: Final = "snapshot table"
INACTIVE_L1: Final = "inactive L1 table"
INACTIVE_L2: Final = "inactive L2 table"
BITMAP_DIRECTORY: Final = "bitmap directory"

CONSTANT: Final = frozenset({HEADER, ACTIVE_L1, REFTABLE, SNAPSHOT_TABLE, BITMAP_DIRECTORY})
CACHED: Final = CONSTANT | {ACTIVE_L2, REFBLOCK, INACTIVE_L1}
ALL: Final = CACHED | {INACTIVE_L2}
#: Values of ``overlap-check`` and of its member ``template``.
TEMPLATES: Final = {"none": frozenset[str](), "constant": CONSTANT, "cached": CACHED, "all": ALL}
#: Members of ``overlap-check``, as attributes of the generated type.
FLAGS: Final = {
    "main_header": HEADER,
    "active_l1": ACTIVE_L1,
    "active_l2": ACTIVE_L2,
    "refcount_table": REFTABLE,
    "refcount_block": REFBLOCK,
    "snapshot_table": SNAPSHOT_TABLE,
    "inactive_l1": INACTIVE_L1,
    "inactive_l2": INACTIVE_L2,
    "bitmap_directory": BITMAP_DIRECTORY,
}

#: Places kept of an image (about 100 bytes each). One with more L2 tables and refcount blocks than
#: that, as 512-byte clusters may give, is protected as far as these are cached.
MAX_LOCATIONS: Final = 1 << 18
#: QEMU's limit: 65535 bitmaps with names of 1023 bytes.
MAX_DIRECTORY_BYTES: Final = 65535 * (24 + 1024)
_STEP: Final = 1 << 14  # table entries looked at between two checkpoints
_BITMAPS_EXTENSION: Final = struct.Struct(">8xQQ")  # size and offset of the directory


def kinds(option: Options) -> frozenset[str]:
    """Return the kinds of metadata that a value of ``overlap-check`` protects; None: the default."""
    if option is None:
        return CACHED
    if hasattr(option, "value"):
        return TEMPLATES[option.value]
    chosen = set(CACHED if option.template is None else TEMPLATES[option.template.value])
    for name, kind in FLAGS.items():
        flag = getattr(option, name)
        if flag:
            chosen.add(kind)
        elif flag is not None:
            chosen.discard(kind)
    return frozenset(chosen)


@final
class Locations(dict[int, str]):
    """Host offset of a cluster -> what metadata is there, of the kinds that are protected.

    Look places up as in any dict; change them only by the methods here.
    """

    def __init__(self, protected: frozenset[str] = CACHED) -> None:
        self.protected = protected
        #: What belongs to snapshots; where the active layer shares a table, that comes first.
        self._snapshots: dict[int, str] = {}
        #: Whether some tables are only noted while they are cached.
        self._partial = False

    def reset(self, protected: frozenset[str]) -> None:
        """Forget everything, and protect other kinds from now on."""
        self.clear()
        self.protected = protected
        self._snapshots = {}
        self._partial = False

    def note(self, offset: int, kind: str) -> None:
        """Note that metadata is at ``offset``; what else was known to be there comes first."""
        if kind in self.protected:
            self.setdefault(offset, kind)

    def note_many(self, offsets: Iterable[int], kind: str) -> None:
        """Note metadata of one kind, if they are not too many to keep."""
        if kind not in self.protected:
            return
        new = dict.fromkeys(offsets, kind)
        for offset in self.keys() & new.keys():
            del new[offset]
        room = max(MAX_LOCATIONS - len(self), 0)
        if len(new) > room:
            self._partial = True
            new = dict(itertools.islice(new.items(), room))
        self.update(new)

    def drop(self, offset: int, kind: str) -> None:
        """Note that metadata of a kind is no longer at ``offset``; a snapshot may still have its own there."""
        if self.get(offset) != kind:
            return
        other = self._snapshots.get(offset)
        if other is None:
            del self[offset]
        else:
            self[offset] = other

    def evicted(self, offset: int, kind: str) -> None:
        """Note that a table, which still is at ``offset``, has left the cache."""
        if self._partial:
            self.drop(offset, kind)

    def set_snapshots(self, places: dict[int, str]) -> None:
        """Note anew where snapshots have their tables, and where their own table is."""
        for offset, kind in self._snapshots.items():
            if self.get(offset) == kind:
                del self[offset]
        self._snapshots = {
            offset: kind for offset, kind in places.items() if kind in self.protected
        }
        for offset, kind in self._snapshots.items():
            self.setdefault(offset, kind)

    def check(self, cluster: int, offset: int, length: int, own: str | None = None) -> None:
        """Raise CorruptImageError if a write would destroy metadata of another kind than ``own``.

        ``cluster`` is the offset of the cluster in question; offset and length of the write are for the text.
        """
        kind = self.get(cluster)
        if kind == own:
            kind = self._snapshots.get(cluster)
        if kind is not None:
            raise CorruptImageError(
                f"Preventing invalid write on metadata (overlaps with {kind})",
                fatal=True,
                where=(offset, length),
            )


async def locate(metadata: Metadata, protected: frozenset[str] = CACHED) -> None:
    """Note anew where an image has its metadata, but for what snapshots have."""
    locations, refcounts, header = metadata.locations, metadata.refcounts, metadata.header
    locations.reset(protected)
    locations.note(0, HEADER)
    for offset in metadata.clusters_of(metadata.l1_offset, len(metadata.l1) * 8):
        locations.note(offset, ACTIVE_L1)
    for offset in metadata.clusters_of(refcounts.table_offset, len(refcounts.table) * 8):
        locations.note(offset, REFTABLE)
    for offset in metadata.clusters_of(*_bitmap_directory(header)):
        locations.note(offset, BITMAP_DIRECTORY)
    await _note_tables(locations, metadata.l1, OFFSET_MASK, ACTIVE_L2)
    await _note_tables(locations, refcounts.table, REFTABLE_OFFSET_MASK, REFBLOCK)


async def _note_tables(locations: Locations, table: array[int], mask: int, kind: str) -> None:
    """Note where the entries of an L1 or refcount table lead."""
    for start in range(0, len(table), _STEP):
        entries = table[start : start + _STEP]
        # Most of a large table is zero: cut that off before looking at each entry.
        used = (len(entries.tobytes().rstrip(b"\0")) + 7) // 8
        offsets = [entry & mask for entry in entries[:used] if entry]
        locations.note_many(filter(None, offsets), kind)
        await trio.lowlevel.checkpoint()


def _bitmap_directory(header: Header) -> tuple[int, int]:
    """Return (offset, length) of the bitmap directory, a length of 0 if there is none that may be."""
    for kind, data in header.extensions:
        if kind == EXT_BITMAPS and len(data) >= _BITMAPS_EXTENSION.size:
            size, offset = _BITMAPS_EXTENSION.unpack_from(data)
            if size <= MAX_DIRECTORY_BYTES and not offset & (header.cluster_size - 1):
                return offset, size
    return 0, 0
