"""The image header: parsed and written, every field checked before it is used. Pure.

Source: qcow2 specification, sections "Header" and "Header extensions". Error texts as QEMU's.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final, final

import attrs

from qsd_trio.block.drivers.qcow2 import layout as lay
from qsd_trio.errors import QmpError, os_error

if TYPE_CHECKING:
    from collections.abc import Sequence

V2: Final = struct.Struct(">4sIQIIQIIQQIIQ")
V3_TAIL: Final = struct.Struct(">QQQII")
EXTENSION: Final = struct.Struct(">II")
V2_SIZE: Final = 72
V3_SIZE: Final = 104
OUR_V3_SIZE: Final = 112  # with compression_type and its padding, as QEMU writes it

EXT_END: Final = 0
EXT_BACKING_FORMAT: Final = 0xE2792ACA
EXT_FEATURE_TABLE: Final = 0x6803F857
EXT_BITMAPS: Final = 0x23852875
BITMAPS_SIZE: Final = 24  # of that extension
EXT_CRYPTO: Final = 0x0537BE77
EXT_DATA_FILE: Final = 0x44415441

MAX_BACKING_NAME: Final = 1023
_FEATURE_SIZE: Final = 48
SECTOR: Final = 512  # what a crash cannot tear
#: QEMU leaves the feature names out where they would take up much of the cluster.
MIN_FEATURE_TABLE_CLUSTER: Final = 8192

#: The feature names QEMU 7.2 writes: (type, bit, name).
FEATURES: Final = (
    (0, 0, b"dirty bit"),
    (0, 1, b"corrupt bit"),
    (0, 2, b"external data file"),
    (0, 3, b"compression type"),
    (0, 4, b"extended L2 entries"),
    (1, 0, b"lazy refcounts"),
    (2, 0, b"bitmaps"),
    (2, 1, b"raw external data"),
)


@final
@attrs.frozen(kw_only=True)
class Header:
    """What the header cluster says. Offsets and sizes in bytes."""

    version: int = 3
    cluster_bits: int = 16
    size: int = 0
    crypt_method: int = 0
    l1_size: int = 0  # entries
    l1_table_offset: int = 0
    refcount_table_offset: int = 0
    refcount_table_clusters: int = 0
    nb_snapshots: int = 0
    snapshots_offset: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    header_length: int = OUR_V3_SIZE
    compression_type: int = 0
    #: Bytes of the header after the fields we know.
    unknown_fields: bytes = b""
    #: Where the backing file's name was found in the cluster.
    backing_offset: int = 0
    backing_file: str | None = None
    backing_format: str | None = None
    #: (type, data) of what we only keep.
    extensions: Sequence[tuple[int, bytes]] = ()

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    @property
    def data_file(self) -> str | None:
        """The name of the external data file, if there is one."""
        for kind, data in self.extensions:
            if kind == EXT_DATA_FILE:
                # A C program stops at the first NUL.
                return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        return None

    @property
    def disk_size(self) -> int:
        """Bytes of the disk: the whole sectors of ``size``."""
        return self.size // SECTOR * SECTOR

    def has_extension(self, kind: int) -> bool:
        """Say whether an extension of type ``kind`` is there."""
        return any(known == kind for known, _ in self.extensions)

    def to_bytes(self) -> bytes:
        """Return the header cluster, up to the end of the backing file's name.

        Raises OSError (ENOSPC, EINVAL) if it does not fit into the first cluster.
        """
        name = self.backing_name()
        area = self.extension_area(len(FEATURES))
        end = len(self.fields(0)) + len(area)
        if len(name) > MAX_BACKING_NAME:
            raise os_error(errno.EINVAL)
        if end + len(name) > self.cluster_size:
            raise os_error(errno.ENOSPC)
        return self.fields(end if name else 0) + area + name

    def packed(self) -> tuple[Header, bytes]:
        """Return ``to_bytes()``, and the header knowing where its backing file's name is in there."""
        data, name = self.to_bytes(), self.backing_name()
        return attrs.evolve(self, backing_offset=len(data) - len(name) if name else 0), data

    def extension_area(self, features: int) -> bytes:
        """Return the header extensions, the first ``features`` feature names among them."""
        out = bytearray()
        if self.backing_format:
            out += _extension(EXT_BACKING_FORMAT, self.backing_format.encode())
        for kind, data in self.extensions:
            if kind != EXT_FEATURE_TABLE:
                out += _extension(kind, data)
        if self.version >= 3 and self.cluster_size >= MIN_FEATURE_TABLE_CLUSTER and features:
            table = b"".join(struct.pack(">BB46s", *name) for name in FEATURES[:features])
            out += _extension(EXT_FEATURE_TABLE, table)
        return bytes(out + _extension(EXT_END, b""))

    def fields(self, backing_offset: int) -> bytes:
        """Return the header proper, without extensions."""
        start = V2.pack(
            lay.MAGIC,
            self.version,
            backing_offset,
            len(self.backing_name()),
            self.cluster_bits,
            self.size,
            self.crypt_method,
            self.l1_size,
            self.l1_table_offset,
            self.refcount_table_offset,
            self.refcount_table_clusters,
            self.nb_snapshots,
            self.snapshots_offset,
        )
        if self.version < 3:
            return start
        start += V3_TAIL.pack(
            self.incompatible,
            self.compatible,
            self.autoclear,
            self.refcount_order,
            self.header_length,
        )
        if self.header_length > V3_SIZE:
            start += bytes([self.compression_type]) + bytes(7) + self.unknown_fields
        return start

    def extension_end(self) -> int:
        """Return where the extensions end, at most: as they were parsed, or as we write them."""
        lengths = [len(data) for _, data in self.extensions]
        if self.backing_format:
            lengths.append(len(self.backing_format.encode()))
        sizes = (EXTENSION.size + (length + 7 & ~7) for length in lengths)
        written = len(self.fields(0)) + len(self.extension_area(len(FEATURES)))
        return max(written, self.header_length + sum(sizes) + EXTENSION.size)

    def backing_name(self) -> bytes:
        """Return the backing file's name as it is on disk."""
        return (self.backing_file or "").encode("utf-8", "surrogateescape")

    def same_layout(self, other: Header) -> bool:
        """Say whether ``other`` has the same extensions and backing file: only fields may differ."""
        return (
            self.backing_file == other.backing_file
            and self.backing_format == other.backing_format
            and list(self.extensions) == list(other.extensions)
        )


def rewrite(old: Header, new: Header) -> tuple[Header, list[tuple[int, bytes]]]:
    """Put ``new`` in the place of ``old``: return it as it will be, and the writes (offset, data).

    A flush is due after each write. A crash between them, or one that tears a write at 512 bytes, leaves the old or the new header:
    fields and extensions are kept within the first sector, at the cost of feature names, and a longer
    part, the backing file's name, is put where the old header has none. Only a header whose extensions
    exceed a sector is written without that safety.
    """
    if old.same_layout(new):
        return new, [(0, new.fields(old.backing_offset))]
    packed, whole = new.packed()
    if len(whole) <= SECTOR:
        return packed, [(0, whole.ljust(SECTOR, b"\0"))]
    name = new.backing_name()
    at = SECTOR
    old_end = old.backing_offset + len(old.backing_name())
    stays = name == old.backing_name() and old.backing_offset >= SECTOR
    if stays:
        at = old.backing_offset
    elif at < old.extension_end() or (old.backing_offset < at + len(name) and at < old_end):
        at = max(old_end, old.extension_end())
    moved = attrs.evolve(new, backing_offset=at if name else 0)
    for features in range(len(FEATURES), -1, -1):
        start = new.fields(moved.backing_offset) + new.extension_area(features)
        if len(start) <= SECTOR and at + len(name) <= new.cluster_size:
            writes = [] if stays or not name else [(at, name)]
            return moved, [*writes, (0, start.ljust(SECTOR, b"\0"))]
    return packed, [(0, whole.ljust(new.cluster_size, b"\0"))]


def _extension(kind: int, data: bytes) -> bytes:
    return EXTENSION.pack(kind, len(data)) + data + bytes(-len(data) % 8)


def cluster_bits_of(start: bytes) -> int:
    """Check magic, version and cluster size of the file's first bytes; return the cluster bits."""
    if len(start) < V2_SIZE:
        raise QmpError("Could not read qcow2 header: Invalid argument")
    magic, version, _, _, cluster_bits, *_ = V2.unpack_from(start)
    if magic != lay.MAGIC:
        raise QmpError("Image is not in qcow2 format")
    if version not in (2, 3):
        raise QmpError(f"Unsupported qcow2 version {version}")
    if not lay.MIN_CLUSTER_BITS <= cluster_bits <= lay.MAX_CLUSTER_BITS:
        raise QmpError(f"Unsupported cluster size: 2^{cluster_bits}")
    assert isinstance(cluster_bits, int)
    return cluster_bits


def parse(cluster: bytes, *, read_only: bool) -> Header:
    """Parse the first cluster (or less, if the file is shorter); refuse what cannot be right.

    The order of the checks is QEMU's, so that an image with several faults gets the same text.
    """
    cluster_bits = cluster_bits_of(cluster)
    cluster_size = 1 << cluster_bits
    (
        _magic,
        version,
        backing_offset,
        backing_size,
        _cluster_bits,
        size,
        crypt_method,
        l1_size,
        l1_table_offset,
        refcount_table_offset,
        refcount_table_clusters,
        nb_snapshots,
        snapshots_offset,
    ) = V2.unpack_from(cluster)
    incompatible = compatible = autoclear = compression_type = 0
    refcount_order, header_length, unknown = 4, V2_SIZE, b""
    if version >= 3:
        if len(cluster) < V3_SIZE:
            raise QmpError("Could not read qcow2 header: Invalid argument")
        incompatible, compatible, autoclear, refcount_order, header_length = V3_TAIL.unpack_from(
            cluster, V2_SIZE
        )
        if header_length < V3_SIZE:
            raise QmpError("qcow2 header too short")
    if header_length > cluster_size:
        raise QmpError("qcow2 header exceeds cluster size")
    if header_length > V3_SIZE:
        compression_type = cluster[V3_SIZE] if len(cluster) > V3_SIZE else 0
        unknown = cluster[OUR_V3_SIZE:header_length]
    if backing_offset > cluster_size:
        raise QmpError("Invalid backing file offset")
    end = backing_offset or cluster_size
    _check_features(cluster, header_length, end, incompatible, compression_type)
    if incompatible & lay.INCOMPAT_CORRUPT and not read_only:
        raise QmpError("qcow2: Image is corrupt; cannot be opened read/write")
    if incompatible & lay.INCOMPAT_EXTENDED_L2 and cluster_bits < 14:
        raise QmpError("qcow2: Image with subclusters needs cluster size of at least 16384 bytes")
    if refcount_order > 6:
        raise QmpError("Reference count entry width too large; may not exceed 64 bits")
    if crypt_method > 2:
        signed = crypt_method - (1 << 32) if crypt_method >= 1 << 31 else crypt_method
        raise QmpError(f"Unsupported encryption method {signed}")
    if refcount_table_clusters == 0:
        raise QmpError("Image does not contain a reference count table")
    if refcount_table_clusters > lay.MAX_REFTABLE_BYTES >> cluster_bits:
        raise QmpError("Reference count table too large")
    mask = cluster_size - 1
    reftable_bytes = refcount_table_clusters << cluster_bits
    _check_offset(refcount_table_offset, reftable_bytes, mask, "Reference count table")
    if nb_snapshots > lay.MAX_SNAPSHOTS:
        raise QmpError("Snapshot table too large")
    snapshot_bytes = nb_snapshots * lay.SNAPSHOT_HEADER_SIZE
    _check_offset(snapshots_offset, snapshot_bytes, mask, "Snapshot table")
    if l1_size > lay.MAX_L1_BYTES // 8:
        raise QmpError("Active L1 table too large")
    _check_offset(l1_table_offset, l1_size * 8, mask, "Active L1 table")
    l2_bits = cluster_bits - (4 if incompatible & lay.INCOMPAT_EXTENDED_L2 else 3)
    l1_needed = (size + (1 << (cluster_bits + l2_bits)) - 1) >> (cluster_bits + l2_bits)
    if l1_needed > 2**31 - 1:
        raise QmpError("Image is too big")
    if l1_size < l1_needed:
        raise QmpError("L1 table is too small")
    backing_format, extensions = parse_extensions(cluster[:cluster_size], header_length, end)
    backing_file = None
    if backing_offset:
        if backing_size > min(MAX_BACKING_NAME, cluster_size - backing_offset):
            raise QmpError("Backing file name too long")
        name = cluster[backing_offset : backing_offset + backing_size]
        if len(name) < backing_size:
            raise QmpError("Could not read backing file name")
        # A C program stops at the first NUL.
        backing_file = name.split(b"\0", 1)[0].decode("utf-8", "surrogateescape") or None
    return Header(
        version=version,
        cluster_bits=cluster_bits,
        size=size,
        crypt_method=crypt_method,
        l1_size=l1_size,
        l1_table_offset=l1_table_offset,
        refcount_table_offset=refcount_table_offset,
        refcount_table_clusters=refcount_table_clusters,
        nb_snapshots=nb_snapshots,
        snapshots_offset=snapshots_offset,
        incompatible=incompatible,
        compatible=compatible,
        autoclear=autoclear,
        refcount_order=refcount_order,
        header_length=header_length,
        compression_type=compression_type,
        unknown_fields=unknown,
        backing_offset=backing_offset,
        backing_file=backing_file,
        backing_format=backing_format,
        extensions=extensions,
    )


def _check_offset(offset: int, size: int, mask: int, what: str) -> None:
    if offset & mask or offset > 2**63 - 1 - size:
        raise QmpError(f"{what} offset invalid")


def _check_features(
    cluster: bytes, header_length: int, end: int, incompatible: int, compression_type: int
) -> None:
    if compression_type > 1:
        raise QmpError(f"qcow2: unknown compression type: {compression_type}")
    flagged = bool(incompatible & lay.INCOMPAT_COMPRESSION)
    if flagged and not compression_type:
        raise QmpError("qcow2: Compression type incompatible feature bit must not be set")
    if compression_type and not flagged:
        raise QmpError("qcow2: Compression type incompatible feature bit must be set")
    unknown = incompatible & ~lay.INCOMPAT_KNOWN
    if not unknown:
        return
    names = []
    _, extensions = parse_extensions(cluster, header_length, end, lenient=True)
    for kind, data in extensions:
        if kind != EXT_FEATURE_TABLE:
            continue
        for at in range(0, len(data) - _FEATURE_SIZE + 1, _FEATURE_SIZE):
            bit = data[at + 1]
            if data[at] == 0 and bit < 64 and unknown >> bit & 1:
                raw = data[at + 2 : at + _FEATURE_SIZE].split(b"\0", 1)[0]
                names.append(raw.decode("utf-8", "replace"))
                unknown &= ~(1 << bit)
    if unknown:
        names.append(f"Unknown incompatible feature: {unknown:x}")
    raise QmpError(f"Unsupported qcow2 feature(s): {', '.join(names)}")


def parse_extensions(
    cluster: bytes, start: int, end: int, *, lenient: bool = False
) -> tuple[str | None, list[tuple[int, bytes]]]:
    """Return the backing format and the (type, data) of the extensions in ``cluster[start:end]``.

    ``lenient`` stops at the first fault instead of raising QmpError.
    """
    backing_format = None
    found: list[tuple[int, bytes]] = []
    at = start
    while at < end:
        if at + EXTENSION.size > len(cluster):
            # The rest of the cluster is past the end of the file and reads as zeroes.
            break
        kind, length = EXTENSION.unpack_from(cluster, at)
        at += EXTENSION.size
        if at > end or length > end - at:
            if lenient:
                break
            raise QmpError("Header extension too large")
        if kind == EXT_END:
            break
        if kind == EXT_BITMAPS and length != BITMAPS_SIZE and not lenient:
            raise QmpError("bitmaps_ext: Invalid extension length")
        data = cluster[at : at + length]
        if kind == EXT_BACKING_FORMAT:
            if length >= 16:
                if lenient:
                    break
                raise QmpError(f"ERROR: ext_backing_format: len={length} too large (>=16)")
            backing_format = data.split(b"\0", 1)[0].decode("utf-8", "replace") or None
        else:
            found.append((kind, data))
        at += (length + 7) & ~7
    return backing_format, found
