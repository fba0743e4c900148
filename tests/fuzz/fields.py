"""Where the fields of a qcow2 image are, and what of the disk hangs on each. Shares no code with the driver.

Sources: the qcow2 specification; the LUKS1 on-disk format.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

EVERYTHING = range(1 << 63)
NOTHING = range(0)
OFFSET = 0x00FFFFFFFFFFFE00
COMPRESSED = 1 << 62
EXT_CRYPTO = 0x0537BE77
EXT_BITMAPS = 0x23852875

HEADER = (
    # name, offset, size, whether the disk's content hangs on it
    ("magic", 0, 4, True),
    ("version", 4, 4, True),
    ("backing_file_offset", 8, 8, True),
    ("backing_file_size", 16, 4, True),
    ("cluster_bits", 20, 4, True),
    ("size", 24, 8, True),
    ("crypt_method", 32, 4, True),
    ("l1_size", 36, 4, True),
    ("l1_table_offset", 40, 8, True),
    ("refcount_table_offset", 48, 8, False),
    ("refcount_table_clusters", 56, 4, False),
    ("nb_snapshots", 60, 4, False),
    ("snapshots_offset", 64, 8, False),
)
HEADER_V3 = (
    ("incompatible_features", 72, 8, True),
    ("compatible_features", 80, 8, False),
    ("autoclear_features", 88, 8, False),
    ("refcount_order", 96, 4, False),
    ("header_length", 100, 4, True),
    ("compression_type", 104, 1, True),
)
SNAPSHOT = (
    ("l1_table_offset", 0, 8),
    ("l1_size", 8, 4),
    ("id_size", 12, 2),
    ("name_size", 14, 2),
    ("date", 16, 8),
    ("vm_clock", 24, 8),
    ("vm_state_size", 32, 4),
    ("extra_data_size", 36, 4),
)
BITMAPS_EXTENSION = (
    ("nb_bitmaps", 0, 4),
    ("reserved", 4, 4),
    ("directory_size", 8, 8),
    ("directory_offset", 16, 8),
)
BITMAP = (
    ("bitmap_table_offset", 0, 8),
    ("bitmap_table_size", 8, 4),
    ("flags", 12, 4),
    ("type", 16, 1),
    ("granularity_bits", 17, 1),
    ("name_size", 18, 2),
    ("extra_data_size", 20, 4),
)
LUKS = (
    ("magic", 0, 6),
    ("version", 6, 2),
    ("cipher_name", 8, 8),
    ("cipher_mode", 40, 8),
    ("hash_spec", 72, 8),
    ("payload_offset", 104, 4),
    ("key_bytes", 108, 4),
    ("mk_digest", 112, 8),
    ("mk_digest_iter", 164, 4),
)
LUKS_KEY_SLOT = (
    ("active", 0, 4),
    ("iterations", 4, 4),
    ("key_material_offset", 40, 4),
    ("stripes", 44, 4),
)


@attrs.frozen
class Field:
    """Some bytes of an image; ``affects`` is the part of the disk that may read otherwise if they change."""

    group: str
    name: str
    offset: int
    size: int
    affects: range = NOTHING


def fields(image: bytes) -> Iterator[Field]:
    """Yield the fields of a sound image."""
    cluster_bits = _number(image, 20, 4)
    version = _number(image, 4, 4)
    for name, offset, size, matters in HEADER + (HEADER_V3 if version >= 3 else ()):
        yield Field("header", name, offset, size, EVERYTHING if matters else NOTHING)
    extended = version >= 3 and bool(_number(image, 72, 8) & 16)
    start = _number(image, 100, 4) if version >= 3 else 72
    yield from _extensions(image, start)
    yield from _guest_tables(image, cluster_bits, extended=extended)
    yield from _refcounts(image, cluster_bits)
    yield from _snapshots(image)


def _number(image: bytes, offset: int, size: int) -> int:
    return int.from_bytes(image[offset : offset + size], "big")


def _extensions(image: bytes, at: int) -> Iterator[Field]:
    while True:
        kind, length = _number(image, at, 4), _number(image, at + 4, 4)
        yield Field("extensions", "type", at, 4, EVERYTHING)
        yield Field("extensions", "length", at + 4, 4, EVERYTHING)
        if not kind:
            return
        if kind == EXT_BITMAPS:
            for name, offset, size in BITMAPS_EXTENSION:
                yield Field("bitmaps", name, at + 8 + offset, size)
            yield from _bitmaps(image, at + 8)
        elif kind == EXT_CRYPTO:
            yield Field("luks", "offset", at + 8, 8, EVERYTHING)
            yield Field("luks", "length", at + 16, 8, EVERYTHING)
            yield from luks_fields(image, _number(image, at + 8, 8))
        at += 8 + (length + 7) // 8 * 8


def luks_fields(image: bytes, start: int = 0) -> Iterator[Field]:
    """Yield the fields of a LUKS header at ``start``."""
    for name, offset, size in LUKS:
        yield Field("luks", name, start + offset, size, EVERYTHING)
    for slot in range(8):
        for name, offset, size in LUKS_KEY_SLOT:
            at = start + 208 + 48 * slot + offset
            yield Field("luks", f"key_slot[{slot}].{name}", at, size, EVERYTHING)


def _bitmaps(image: bytes, extension: int) -> Iterator[Field]:
    at = _number(image, extension + 16, 8)
    for number in range(_number(image, extension, 4)):
        for name, offset, size in BITMAP:
            yield Field("bitmaps", f"bitmap[{number}].{name}", at + offset, size)
        table = _number(image, at, 8)
        for index in range(_number(image, at + 8, 4)):
            yield Field("bitmaps", f"bitmap[{number}].table[{index}]", table + index * 8, 8)
        length = 24 + _number(image, at + 18, 2) + _number(image, at + 20, 4)
        at += (length + 7) // 8 * 8


def _guest_tables(image: bytes, cluster_bits: int, *, extended: bool) -> Iterator[Field]:
    step = 16 if extended else 8
    entries = (1 << cluster_bits) // step
    l1_size, l1 = _number(image, 36, 4), _number(image, 40, 8)
    for index in range(l1_size):
        first = index * entries
        part = range(first << cluster_bits, (first + entries) << cluster_bits)
        yield Field("l1", f"l1[{index}]", l1 + index * 8, 8, part)
        table = _number(image, l1 + index * 8, 8) & OFFSET
        if not table:
            continue
        for at in range(entries):
            cluster = first + at
            part = range(cluster << cluster_bits, (cluster + 1) << cluster_bits)
            yield Field("l2", f"l2[{cluster}]", table + at * step, 8, part)
            if extended:
                yield Field("l2", f"l2[{cluster}].bitmap", table + at * step + 8, 8, part)


def _refcounts(image: bytes, cluster_bits: int) -> Iterator[Field]:
    table, clusters = _number(image, 48, 8), _number(image, 56, 4)
    for index in range(min(64, (clusters << cluster_bits) // 8)):
        at = table + index * 8
        yield Field("reftable", f"reftable[{index}]", at, 8)
        block = _number(image, at, 8)
        if block:
            for word in range(min(32, (1 << cluster_bits) // 8)):
                yield Field("refblock", f"refblock[{index}]+{word * 8}", block + word * 8, 8)


def _snapshots(image: bytes) -> Iterator[Field]:
    at = _number(image, 64, 8)
    for number in range(_number(image, 60, 4)):
        for name, offset, size in SNAPSHOT:
            yield Field("snapshots", f"snapshot[{number}].{name}", at + offset, size)
        extra = _number(image, at + 36, 4)
        for offset in range(0, extra, 8):
            yield Field("snapshots", f"snapshot[{number}].extra+{offset}", at + 40 + offset, 8)
        table = _number(image, at, 8)
        for index in range(_number(image, at + 8, 4)):
            yield Field("snapshots", f"snapshot[{number}].l1[{index}]", table + index * 8, 8)
        length = 40 + extra + _number(image, at + 12, 2) + _number(image, at + 14, 2)
        at += (length + 7) // 8 * 8
