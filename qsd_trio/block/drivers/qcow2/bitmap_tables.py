"""Reading the directory and the tables of an image's dirty bitmaps, and what clusters they use."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import trio

from qsd_trio.block.drivers.qcow2 import bitmap_directory as form
from qsd_trio.block.drivers.qcow2.imagefile import read_file
from qsd_trio.block.drivers.qcow2.refcounts import from_disk
from qsd_trio.errors import os_error, with_errno

if TYPE_CHECKING:
    from array import array

    from qsd_trio.block.drivers.qcow2.bitmap_directory import Entry
    from qsd_trio.block.drivers.qcow2.metadata import Metadata

#: Bytes of tables that are read to account for an image's clusters: enough for bitmaps of a gigabyte
#: in the smallest clusters.
MAX_TABLES: Final = 16 << 20
#: Entries of a directory, and of a table, looked at between two checkpoints.
_ENTRIES: Final = 512
_WORDS: Final = 1 << 14


async def read_directory(metadata: Metadata) -> list[Entry]:
    """Read the directory, which exists. Raises QmpError."""
    extension = form.find_extension(metadata.header)
    assert extension is not None
    try:
        data = await _read(metadata, extension.offset, extension.size)
    except OSError as exc:
        raise with_errno("Failed to read bitmap directory", exc) from exc
    parsed = form.parse(
        data,
        extension.count,
        size=metadata.header.disk_size,
        cluster_size=metadata.cluster_size,
    )
    entries: list[Entry] = []
    for entry in parsed:
        if not len(entries) % _ENTRIES:
            await trio.lowlevel.checkpoint()
        entries.append(entry)
    return entries


async def read_table(metadata: Metadata, entry: Entry) -> array[int]:
    """Read a bitmap's table; OSError if it holds what it must not."""
    table = from_disk(await _read(metadata, entry.table_offset, entry.table_size * 8))
    for at in range(0, len(table), _WORDS):
        await trio.lowlevel.checkpoint()
        form.check_table(table[at : at + _WORDS], metadata.cluster_size)
    return table


async def _read(metadata: Metadata, offset: int, length: int) -> bytearray:
    """Read a piece of the image file, from an offset that may be any 64-bit number."""
    if offset + length >= 1 << 63:
        raise os_error(errno.EIO)
    return await read_file(metadata.file, offset, length)


async def regions(metadata: Metadata) -> list[tuple[int, int]]:
    """Return (offset, length) of everything that an image's bitmaps use.

    Raises QmpError if the directory is broken, OSError if a table is or cannot be read, or if the tables
    are longer than MAX_TABLES (EFBIG).
    """
    extension = form.find_extension(metadata.header)
    if extension is None:
        return []
    found = [(extension.offset, extension.size)]
    entries = await read_directory(metadata)
    if sum(entry.table_size for entry in entries) * 8 > MAX_TABLES:
        raise os_error(errno.EFBIG)
    for entry in entries:
        table = await read_table(metadata, entry)
        found += regions_of(entry, table, metadata.cluster_size)
    return found


def regions_of(entry: Entry, table: array[int], cluster_size: int) -> list[tuple[int, int]]:
    """Return (offset, length) of a bitmap's table and of its clusters of bits."""
    bits = [(word, cluster_size) for word in table if word & ~form.ALL_ONES]
    return [(entry.table_offset, entry.table_size * 8), *bits]
