"""The structures of qcow2's bitmaps extension: parsed and packed, every field checked. Pure.

Source: qcow2 specification, sections "Bitmaps extension" and "Bitmaps". Error texts as QEMU's.
"""

from __future__ import annotations

import errno
import logging
import struct
from typing import TYPE_CHECKING, Final, final

import attrs

from qsd_trio.block.drivers.qcow2 import header as hdr
from qsd_trio.block.drivers.qcow2 import layout as lay
from qsd_trio.errors import QmpError, os_error

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Iterator

    from qsd_trio.block.drivers.qcow2.header import Header

log = logging.getLogger(__name__)

EXTENSION: Final = struct.Struct(">IIQQ")  # bitmaps, reserved, directory's size and offset
#: table offset, table entries, flags, type, granularity bits, name size, extra data size
ENTRY: Final = struct.Struct(">QIIBBHI")
_FLAGS_AT: Final = 12  # of an entry

IN_USE: Final = 1  # not saved since it was last changed
AUTO: Final = 2  # is to record writes
_TRACKING: Final = 1  # the only type

# QEMU's limits.
MAX_BITMAPS: Final = 65535
MAX_DIRECTORY: Final = 1024 * MAX_BITMAPS  # bytes
MAX_TABLE: Final = 0x8000000  # entries
MAX_PHYSICAL: Final = 0x20000000  # bytes of one bitmap's clusters
MAX_NAME: Final = 1023  # bytes
MIN_GRANULARITY_BITS: Final = 9
MAX_GRANULARITY_BITS: Final = 31

_INT_MAX: Final = (
    2**31 - 1
)  # what QEMU counts an entry's bytes in: longer ones fail for what is extra

# Entries of a bitmap table.
ALL_ONES: Final = 1
_OFFSET_MASK: Final = 0x00FFFFFFFFFFFE00
_RESERVED: Final = ~(_OFFSET_MASK | ALL_ONES)


@final
@attrs.frozen(kw_only=True)
class Extension:
    """What the header extension says."""

    count: int
    size: int
    offset: int

    def to_bytes(self) -> bytes:
        """Return the extension's data."""
        return EXTENSION.pack(self.count, 0, self.size, self.offset)


@final
@attrs.frozen(kw_only=True)
class Entry:
    """A bitmap in the directory.

    Attributes:
        table_offset: Where its table is, in bytes.
        table_size: The table's entries, a cluster of bits each.
        flags: IN_USE, AUTO.
        at: Where the entry was found in the directory.
    """

    name: bytes
    table_offset: int
    table_size: int
    granularity_bits: int
    flags: int
    at: int = 0

    def to_bytes(self) -> bytes:
        """Return the entry with its padding."""
        head = ENTRY.pack(
            self.table_offset,
            self.table_size,
            self.flags,
            _TRACKING,
            self.granularity_bits,
            len(self.name),
            0,
        )
        return (head + self.name).ljust(entry_size(len(self.name)), b"\0")


def entry_size(name_size: int) -> int:
    """Return the bytes that an entry takes."""
    return (ENTRY.size + name_size + 7) & ~7


def find_extension(header: Header) -> Extension | None:
    """Return the checked extension; None if there is none, or it is not to be believed."""
    data = next((data for kind, data in header.extensions if kind == hdr.EXT_BITMAPS), None)
    if data is None:
        return None
    if not header.autoclear & lay.AUTOCLEAR_BITMAPS:
        return None
    count, reserved, size, offset = EXTENSION.unpack(data)
    if reserved:
        raise QmpError("bitmaps_ext: Reserved field is not zero")
    if count > MAX_BITMAPS:
        raise QmpError(
            f"bitmaps_ext: Image has {count} bitmaps, exceeding the QEMU supported maximum of"
            f" {MAX_BITMAPS}"
        )
    if not count:
        raise QmpError("found bitmaps extension with zero bitmaps")
    if offset & (header.cluster_size - 1):
        raise QmpError("bitmaps_ext: invalid bitmap directory offset")
    if size > MAX_DIRECTORY:
        raise QmpError(
            f"bitmaps_ext: bitmap directory size ({size}) exceeds the maximum supported size"
            f" ({MAX_DIRECTORY})"
        )
    if not size:
        raise QmpError("Requested bitmap directory size is zero")
    return Extension(count=count, size=size, offset=offset)


def check_extension(header: Header) -> None:
    """Check the extension, if there is one; one that is not to be believed is worth a warning."""
    if find_extension(header) is None and header.has_extension(hdr.EXT_BITMAPS):
        log.warning(
            "a program lacking bitmap support modified this file, so all bitmaps are now considered"
            " inconsistent; some clusters may be leaked, run 'qemu-img check -r' on the image file"
        )


def without_stale_extension(header: Header) -> Header:
    """Return a header without an extension that is not to be believed."""
    if header.autoclear & lay.AUTOCLEAR_BITMAPS or not header.has_extension(hdr.EXT_BITMAPS):
        return header
    return with_extension(header, None)


def with_extension(header: Header, extension: Extension | None) -> Header:
    """Return a header with another extension, or with none."""
    rest = [(kind, data) for kind, data in header.extensions if kind != hdr.EXT_BITMAPS]
    if extension is None:
        autoclear = header.autoclear & ~lay.AUTOCLEAR_BITMAPS
        return attrs.evolve(header, extensions=rest, autoclear=autoclear)
    return attrs.evolve(
        header,
        extensions=[*rest, (hdr.EXT_BITMAPS, extension.to_bytes())],
        autoclear=header.autoclear | lay.AUTOCLEAR_BITMAPS,
    )


def parse(data: bytes | bytearray, count: int, *, size: int, cluster_size: int) -> Iterator[Entry]:
    """Parse the directory of an image of ``size`` bytes that has ``count`` bitmaps."""
    at = found = 0
    end = len(data)
    while at < end:
        if end - at < ENTRY.size:
            raise QmpError("Broken bitmap directory")
        found += 1
        if found > count:
            raise QmpError("More bitmaps found than specified in header extension")
        table_offset, table_size, flags, kind, granularity_bits, name_size, extra = (
            ENTRY.unpack_from(data, at)
        )
        following = at + entry_size(name_size + extra)
        if following > end and following - at <= _INT_MAX:
            raise QmpError("Broken bitmap directory")
        if extra:
            raise QmpError("Bitmap extra data is not supported")
        name = bytes(data[at + ENTRY.size : at + ENTRY.size + name_size])
        entry = Entry(
            name=name.split(b"\0", 1)[0],  # a C program stops there
            table_offset=table_offset,
            table_size=table_size,
            granularity_bits=granularity_bits,
            flags=flags,
            at=at,
        )
        if not _is_sound(entry, kind, name_size, size, cluster_size):
            shown = entry.name.decode("utf-8", "surrogateescape")
            raise QmpError(f"Bitmap '{shown}' doesn't satisfy the constraints")
        yield entry
        at = following
    if found < count:
        raise QmpError("Less bitmaps found than specified in header extension")


def _is_sound(entry: Entry, kind: int, name_size: int, size: int, cluster_size: int) -> bool:
    physical = entry.table_size * cluster_size
    return (
        0 < entry.table_size <= MAX_TABLE
        and entry.table_offset > 0
        and not entry.table_offset % cluster_size
        and physical <= MAX_PHYSICAL
        and MIN_GRANULARITY_BITS <= entry.granularity_bits <= MAX_GRANULARITY_BITS
        and not entry.flags & ~(IN_USE | AUTO)
        and name_size <= MAX_NAME
        and kind == _TRACKING
        # One in use is not read, so its table may be from before a resize.
        and (bool(entry.flags & IN_USE) or size <= (physical * 8) << entry.granularity_bits)
    )


def pack(entries: Iterable[Entry]) -> bytes:
    """Return a directory."""
    return b"".join([entry.to_bytes() for entry in entries])


def mark_in_use(data: bytearray, entries: Iterable[Entry]) -> list[Entry]:
    """Set the flag of entries in the directory's own bytes; return the entries with it."""
    marked = []
    for entry in entries:
        entry = attrs.evolve(entry, flags=entry.flags | IN_USE)
        struct.pack_into(">I", data, entry.at + _FLAGS_AT, entry.flags)
        marked.append(entry)
    return marked


def check_table(table: array[int], cluster_size: int) -> None:
    """Raise OSError if an entry of a bitmap table is none."""
    for entry in table:
        offset = entry & _OFFSET_MASK
        if entry & _RESERVED or (entry & ALL_ONES and offset) or offset % cluster_size:
            raise os_error(errno.EINVAL)


def check_new(name: bytes, granularity: int, size: int) -> None:
    """Raise QmpError if an image of ``size`` bytes cannot have such a bitmap."""
    if granularity > 1 << MAX_GRANULARITY_BITS:
        raise QmpError(f"Granularity exceeds maximum ({1 << MAX_GRANULARITY_BITS} bytes)")
    if granularity < 1 << MIN_GRANULARITY_BITS:
        raise QmpError(f"Granularity is under minimum ({1 << MIN_GRANULARITY_BITS} bytes)")
    if -(-size // granularity) > MAX_PHYSICAL * 8:
        raise QmpError("Too much space will be occupied by the bitmap. Use larger granularity")
    if len(name) > MAX_NAME:
        raise QmpError(f"Name length exceeds maximum ({MAX_NAME} characters)")
