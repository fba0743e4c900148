"""A checker of qcow2 images that shares no code with the driver: it reads the specification again.

``check`` walks everything an image refers to, counts the references, compares them with the refcounts and
the COPIED flags, and returns what a guest reads: of the active layer and of each internal snapshot.
An image with the dirty bit set may have wrong refcounts, and only those (``Report.dirty``).
"""

from __future__ import annotations

import struct
import zlib
from array import array
from typing import Final, final

import attrs

OFFSET: Final = 0x00FFFFFFFFFFFE00
COPIED: Final = 1 << 63
COMPRESSED: Final = 1 << 62

DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = (1 << bit for bit in range(5))
AUTOCLEAR_BITMAPS, AUTOCLEAR_RAW = 1, 2
EXT_BITMAPS: Final = 0x23852875
EXT_CRYPTO: Final = 0x0537BE77
SUBCLUSTERS: Final = 32


@final
@attrs.define
class Bitmap:
    """A stored dirty bitmap."""

    granularity: int
    in_use: bool
    auto: bool
    bits: bytes  # the first granule is the lowest bit of the first byte


@final
@attrs.define
class Snapshot:
    """An internal snapshot: id, name and what it reads as."""

    id: str
    name: str
    content: bytes


@final
@attrs.define
class Report:
    """What ``check`` found."""

    errors: list[str]
    leaks: list[int]  # host clusters
    content: bytes
    entries: dict[int, int]  # guest cluster -> L2 entry, where it is not 0
    dirty: bool = False
    corrupt: bool = False
    snapshots: list[Snapshot] = attrs.field(factory=list)
    bitmaps: dict[str, Bitmap] = attrs.field(factory=dict)


def check(image: bytes, backing: bytes = b"", data_file: bytes | None = None) -> Report:
    """Check an image and read it; of an encrypted one the content is what is stored."""
    return _Checker(image, backing, data_file).run()


@final
class _Checker:
    def __init__(self, image: bytes, backing: bytes, data_file: bytes | None) -> None:
        self.image = memoryview(image)
        self.backing = backing
        self.version = image[7]
        (self.bits,) = struct.unpack_from(">I", image, 20)
        (self.size,) = struct.unpack_from(">Q", image, 24)
        self.cluster = 1 << self.bits
        self.incompatible = self.autoclear = 0
        self.order, self.compression = 4, 0
        self.header_length = 72
        if self.version >= 3:
            self.incompatible, _, self.autoclear, self.order, self.header_length = (
                struct.unpack_from(">QQQII", image, 72)
            )
            if self.header_length > 104:
                self.compression = image[104]
        self.extended = bool(self.incompatible & EXTENDED_L2)
        self.external = bool(self.incompatible & DATA_FILE)
        self.raw = bool(self.autoclear & AUTOCLEAR_RAW)
        self.data = memoryview(data_file or b"") if self.external else self.image
        self.entry_size = 16 if self.extended else 8
        self.report = Report([], [], b"", {})
        self.errors = self.report.errors
        self.refs: dict[int, int] = {}
        self.metadata: dict[int, str] = {}
        self.counts: dict[int, int] = {}
        self.tables: dict[int, array[int]] = {}  # L2 tables by offset

    # -- pieces of the file ------------------------------------------------------------------------

    def piece(self, offset: int, length: int, *, of: memoryview | None = None) -> bytes:
        """Return bytes of the file; past its end there are zeroes."""
        return bytes((self.image if of is None else of)[offset : offset + length]).ljust(
            length, b"\0"
        )

    def words(self, offset: int, count: int) -> array[int]:
        """Return big-endian 64-bit integers."""
        answer = array("Q", self.piece(offset, count * 8))
        answer.byteswap()
        return answer

    # -- references --------------------------------------------------------------------------------

    def own(self, offset: int, what: str, length: int = 1) -> None:
        """Note metadata: nobody else may be there."""
        if offset % self.cluster:
            self.errors.append(f"{what} at {offset:#x} is unaligned")
        for at in range(offset, offset + max(length, 1), self.cluster):
            number = at >> self.bits
            if number in self.metadata or number in self.refs:
                other = self.metadata.get(number, "data")
                self.errors.append(f"{what} at {at:#x} overlaps with {other}")
            self.metadata[number] = what
            self.refs[number] = self.refs.get(number, 0) + 1

    def share(self, offset: int, what: str) -> None:
        """Note one more reference to a cluster that snapshots may share."""
        if offset % self.cluster:
            self.errors.append(f"{what} at {offset:#x} is unaligned")
        number = offset >> self.bits
        if self.metadata.get(number, what) != what:
            self.errors.append(f"{what} at {offset:#x} overlaps with {self.metadata[number]}")
        if what != "data":
            if number in self.refs and number not in self.metadata:
                self.errors.append(f"{what} at {offset:#x} overlaps with data")
            self.metadata[number] = what
        self.refs[number] = self.refs.get(number, 0) + 1

    # -- the whole -----------------------------------------------------------------------------------

    def run(self) -> Report:
        report = self.report
        report.dirty = bool(self.incompatible & DIRTY)
        report.corrupt = bool(self.incompatible & CORRUPT)
        l1_size, l1_offset, reft_offset, reft_clusters, nb_snapshots, snapshots_offset = (
            struct.unpack_from(">IQQIIQ", self.image, 36)
        )
        self.own(0, "header")
        if l1_size:
            self.own(l1_offset, "active L1 table", l1_size * 8)
        self.own(reft_offset, "refcount table", reft_clusters << self.bits)
        self._read_refcounts(reft_offset, reft_clusters)
        self._extensions()
        layers = self._snapshots(nb_snapshots, snapshots_offset)
        report.content = self._layer(l1_offset, l1_size, self.size, active=True)
        for snapshot, offset, size, length in layers:
            snapshot.content = self._layer(offset, size, length, active=False)
        if not report.dirty:
            self._compare()
        return report

    def _read_refcounts(self, offset: int, clusters: int) -> None:
        per_block = (self.cluster * 8) >> self.order
        for number, entry in enumerate(self.words(offset, clusters * self.cluster // 8)):
            if not entry:
                continue
            self.own(entry, "refcount block")
            first = number * per_block
            for index, count in enumerate(self._counters(entry)):
                if count:
                    self.counts[first + index] = count

    def _counters(self, offset: int) -> array[int] | list[int]:
        raw = self.piece(offset, self.cluster)
        if self.order >= 3:
            values = array("BHIQ"[self.order - 3], raw)
            values.byteswap()
            return values
        width = 1 << self.order
        mask = (1 << width) - 1
        raw = raw.rstrip(b"\0")
        return [byte >> shift & mask for byte in raw for shift in range(0, 8, width)]

    def _compare(self) -> None:
        for number, count in self.refs.items():
            found = self.counts.get(number, 0)
            if found < count:
                what = self.metadata.get(number, "data")
                self.errors.append(f"cluster {number:#x} ({what}): refcount {found}, used {count}")
        self.report.leaks += [
            number for number, count in self.counts.items() if count > self.refs.get(number, 0)
        ]

    # -- header extensions -----------------------------------------------------------------------------

    def _extensions(self) -> None:
        at = self.header_length
        while at + 8 <= self.cluster:
            kind, length = struct.unpack_from(">II", self.piece(at, 8))
            if kind == 0:
                break
            body = self.piece(at + 8, length)
            if kind == EXT_CRYPTO:
                offset, size = struct.unpack_from(">QQ", body)
                self.own(offset, "crypto header", size)
            elif kind == EXT_BITMAPS and self.autoclear & AUTOCLEAR_BITMAPS:
                count, _, size, offset = struct.unpack_from(">IIQQ", body)
                self.own(offset, "bitmap directory", size)
                self._bitmaps(offset, size, count)
            at += 8 + (length + 7) // 8 * 8

    def _bitmaps(self, offset: int, size: int, count: int) -> None:
        directory = self.piece(offset, size)
        at = found = 0
        while at < size:
            table, entries, flags, kind, shift, name_size, extra = struct.unpack_from(
                ">QIIBBHI", directory, at
            )
            start = at + 24 + extra
            name = directory[start : start + name_size].decode()
            at = start + name_size + (-(24 + extra + name_size) % 8)
            found += 1
            if kind != 1:
                self.errors.append(f"bitmap {name}: type {kind}")
            bits = bytearray()
            if entries:
                self.own(table, "bitmap table", entries * 8)
            for entry in self.words(table, entries):
                if entry & OFFSET:
                    self.own(entry & OFFSET, "bitmap data")
                    bits += self.piece(entry & OFFSET, self.cluster)
                else:
                    bits += (b"\xff" if entry & 1 else b"\0") * self.cluster
            if name in self.report.bitmaps:
                self.errors.append(f"two bitmaps {name}")
            granules = -(-self.size // (1 << shift))
            if len(bits) < (granules + 7) // 8:
                self.errors.append(f"bitmap {name}: {len(bits)} bytes for {granules} granules")
            self.report.bitmaps[name] = Bitmap(
                1 << shift, bool(flags & 1), bool(flags & 2), bytes(bits[: (granules + 7) // 8])
            )
        if found != count:
            self.errors.append(f"{found} bitmaps in the directory, {count} in the header")

    # -- snapshots -------------------------------------------------------------------------------------

    def _snapshots(self, count: int, offset: int) -> list[tuple[Snapshot, int, int, int]]:
        """Return (snapshot, L1 offset, L1 entries, length) of each."""
        layers = []
        at = offset
        for _ in range(count):
            at = (at + 7) & ~7
            l1_offset, l1_size, id_size, name_size, *_, extra = struct.unpack_from(
                ">QIHHIIQII", self.piece(at, 40)
            )
            length = self.size
            if extra >= 16:
                (length,) = struct.unpack_from(">Q", self.piece(at + 48, 8))
            name_at = at + 40 + extra
            text = self.piece(name_at, id_size + name_size)
            snapshot = Snapshot(text[:id_size].decode(), text[id_size:].decode(), b"")
            self.report.snapshots.append(snapshot)
            at = name_at + id_size + name_size
            if l1_size:
                self.own(l1_offset, "snapshot L1 table", l1_size * 8)
            layers.append((snapshot, l1_offset, l1_size, length))
        if count:
            self.own(offset, "snapshot table", at - offset)
        return layers

    # -- what a guest sees -----------------------------------------------------------------------------

    def _layer(self, l1_offset: int, l1_size: int, length: int, *, active: bool) -> bytes:
        content = bytearray(self.backing[:length].ljust(length, b"\0"))
        per_table = self.cluster // self.entry_size
        if -(-length // (per_table * self.cluster)) > l1_size:
            self.errors.append(f"an L1 table of {l1_size} entries for {length} bytes")
        seen: set[int] = set()  # L2 tables
        mine: set[int] = set()  # data
        for l1_index, l1_entry in enumerate(self.words(l1_offset, l1_size)):
            table = l1_entry & OFFSET
            if not table:
                if l1_entry:
                    self.errors.append(f"L1 entry {l1_entry:#x}")
                continue
            self.share(table, "L2 table")
            if table in seen:
                self.errors.append(f"L2 table at {table:#x} overlaps with itself")
            seen.add(table)
            if active:
                self._check_copied(l1_entry, table, "L2 table")
            words = self.tables.get(table)
            if words is None:
                words = self.tables[table] = self.words(table, self.cluster // 8)
            if self.extended:
                pairs = zip(words[::2], words[1::2], strict=True)
            else:
                pairs = ((word, 0) for word in words)
            for l2_index, (entry, bitmap) in enumerate(pairs):
                if entry or bitmap:
                    number = l1_index * per_table + l2_index
                    if active:
                        self.report.entries[number] = entry
                    self._entry(content, number, entry, bitmap, mine, active=active)
        return bytes(content)

    def _entry(
        self,
        content: bytearray,
        number: int,
        entry: int,
        bitmap: int,
        mine: set[int],
        *,
        active: bool,
    ) -> None:
        """Account for one L2 entry, and put what it says into ``content``."""
        start = number << self.bits
        if entry & COMPRESSED:
            if entry & COPIED or bitmap or self.external:
                self.errors.append(f"compressed entry {entry:#x}/{bitmap:#x} of cluster {number}")
            self._put(content, start, self._inflate(entry))
            return
        host = entry & OFFSET
        allocated = bool(host) or (self.external and bool(entry & COPIED))
        if allocated:
            if not self.external:
                self.share(host, "data")
                if active:
                    self._check_copied(entry, host, "data")
            elif not entry & COPIED:
                self.errors.append(f"entry {entry:#x} into the data file without COPIED")
            if host in mine:
                self.errors.append(f"data at {host:#x} is used twice")
            mine.add(host)
            if self.raw and host != start:
                self.errors.append(f"raw data file: cluster {number} at {host:#x}")
        elif entry & COPIED:
            self.errors.append(f"entry {entry:#x} of cluster {number}")
        if not self.extended:
            if entry & 1:
                if self.version < 3:
                    self.errors.append(f"zero cluster {number} in a v2 image")
                self._put(content, start, bytes(self.cluster))
            elif allocated:
                self._put(content, start, self.piece(host, self.cluster, of=self.data))
            return
        if entry & 1:
            self.errors.append(f"entry {entry:#x} of cluster {number} with subclusters")
        used, zero = bitmap & 0xFFFFFFFF, bitmap >> 32
        if used & zero or (used and not allocated):
            self.errors.append(f"subclusters {bitmap:#x} of entry {entry:#x}, cluster {number}")
        step = self.cluster // SUBCLUSTERS
        for at in range(SUBCLUSTERS):
            if zero >> at & 1:
                self._put(content, start + at * step, bytes(step))
            elif used >> at & 1 and allocated:
                piece = self.piece(host + at * step, step, of=self.data)
                self._put(content, start + at * step, piece)

    def _put(self, content: bytearray, start: int, piece: bytes) -> None:
        room = max(0, len(content) - start)
        content[start : start + len(piece)] = piece[:room]

    def _inflate(self, entry: int) -> bytes:
        shift = 62 - (self.bits - 8)
        offset = entry & ((1 << shift) - 1)
        sectors = (entry & (COMPRESSED - 1)) >> shift
        end = (offset & ~511) + (sectors + 1) * 512
        for at in range(offset & -self.cluster, end, self.cluster):
            self.share(at, "data")
        raw = self.piece(offset, end - offset)
        try:
            if self.compression:
                import zstandard

                data = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
            else:
                data = zlib.decompressobj(-15).decompress(raw, self.cluster)
        except Exception as exc:
            self.errors.append(f"compressed data at {offset:#x}: {exc}")
            data = b""
        if len(data) != self.cluster:
            self.errors.append(f"compressed data at {offset:#x}: {len(data)} bytes")
        return data[: self.cluster].ljust(self.cluster, b"\0")

    def _check_copied(self, entry: int, offset: int, what: str) -> None:
        if self.report.dirty:
            return
        count = self.counts.get(offset >> self.bits, 0)
        if count == 1 and not entry & COPIED:
            self.errors.append(f"COPIED flag missing: {what} {entry:#x}")
        elif count != 1 and entry & COPIED:
            self.errors.append(f"COPIED flag of {what} {entry:#x}: refcount {count}")
