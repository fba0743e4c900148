"""Changing an image's length, and preallocation."""

from __future__ import annotations

import errno
from array import array
from typing import TYPE_CHECKING, Final

import attrs

from qsd_trio.block.abc import ReqFlag
from qsd_trio.block.drivers.qcow2.image import Kind
from qsd_trio.block.drivers.qcow2.l2tables import L1_SECTOR
from qsd_trio.block.drivers.qcow2.layout import COPIED, MAX_L1_BYTES, OFFSET_MASK
from qsd_trio.block.drivers.qcow2.overlap import ACTIVE_L1, ACTIVE_L2
from qsd_trio.block.drivers.qcow2.refcounts import to_disk
from qsd_trio.block.drivers.qcow2.writing import (
    FREED_OTHERWISE,
    pwritev,
)
from qsd_trio.block.drivers.qcow2.zeroing import pdiscard, pwrite_zeroes
from qsd_trio.errors import QmpError, with_errno

if TYPE_CHECKING:
    from qsd_trio.block.drivers.qcow2.image import Image

_PIECE: Final = memoryview(bytes(1 << 20))


async def truncate(
    image: Image, size: int, prealloc: str, flags: ReqFlag, *, exact: bool = False
) -> None:
    """Make the image ``size`` bytes long. Raises QmpError. ``exact`` is for an external data file.

    The caller keeps other requests away. Cancelled or failed: the old length, clusters may be
    allocated beyond it or be gone from the end.
    """
    if size % 512:
        raise QmpError("The new size must be a multiple of 512")
    if image.metadata.snapshots and image.version < 3:
        # They do not record their size.
        raise QmpError("Can't resize a v2 image which has snapshots")
    old = image.size
    if size < old and prealloc != "off":
        raise QmpError("Preallocation can't be used for shrinking an image")
    try:
        if size < old:
            await _shrink(image, size)
        else:
            await _grow(image, size, prealloc, flags)
        if image.external and prealloc in ("off", "metadata"):
            await image.data.truncate(size, exact=exact)
        await _record_size(image, size)
    except BaseException:
        image.size = old
        raise


async def _record_size(image: Image, size: int) -> None:
    """Write the size into the header, after all that it stands for."""
    try:
        await image.metadata.write_back()
        await image.file.flush()
        await image.metadata.update_header(lambda header: attrs.evolve(header, size=size))
    except OSError as exc:
        raise with_errno("Failed to update the image size", exc) from exc


async def _grow(image: Image, size: int, prealloc: str, flags: ReqFlag) -> None:
    old = image.size
    needed = (size + (1 << image.l1_shift) - 1) >> image.l1_shift
    try:
        await grow_l1(image, needed)
    except OSError as exc:
        raise with_errno("Failed to grow the L1 table", exc) from exc
    zero = bool(flags & ReqFlag.ZERO_WRITE)
    if image.backing is not None and image.backing.getlength() > old:
        zero = True
    image.size = size
    try:
        if zero:
            await _zero_growth(image, old, size)
        # An encrypted file says nothing to who reads it alone; and its zeroes would not read as such.
        if prealloc == "off" and image.raw_external and image.crypt is None:
            # Who reads the data file alone must see what we see: all is allocated.
            await _preallocate(image, old, size, "metadata")
        elif prealloc != "off":
            await _preallocate(image, old, size, prealloc)
    except OSError as exc:
        raise with_errno(
            "Preallocation failed" if not zero else "Failed to zero out the new area", exc
        ) from exc


async def _zero_growth(image: Image, start: int, end: int) -> None:
    border = min((start + image.mask) & ~image.mask, end)
    await write_zero_bytes(image, start, border)
    if border < end:
        try:
            await pwrite_zeroes(image, border, end - border, ReqFlag.MAY_UNMAP)
        except OSError as exc:
            if exc.errno != errno.ENOTSUP:
                raise
            await write_zero_bytes(image, border, end)


async def write_zero_bytes(image: Image, start: int, end: int) -> None:
    """Write zeroes as data."""
    while start < end:
        piece = _PIECE[: min(len(_PIECE), end - start)]
        await pwritev(image, start, [piece])
        start += len(piece)


async def grow_l1(image: Image, needed: int) -> None:
    """Move the L1 table to a place where it can have ``needed`` entries, if it has less."""
    metadata = image.metadata
    if needed <= len(metadata.l1):
        return
    if needed * 8 > MAX_L1_BYTES:
        raise OSError(errno.EFBIG, "File too large")
    await metadata.write_back()
    clusters = (needed * 8 + image.mask) >> image.cluster_bits
    offset = await metadata.refcounts.allocate_run(clusters) << image.cluster_bits
    try:
        table = metadata.l1 + array("Q", bytes((needed - len(metadata.l1)) * 8))
        await image.file.pwritev(offset, [memoryview(to_disk(table))])
        # The header is not to name what is not counted, even if refcounts are lazy: no dirty bit says so.
        await metadata.write_back(accurate=True)
        await image.file.flush()
    except BaseException:
        metadata.free(offset, clusters << image.cluster_bits, FREED_OTHERWISE)
        raise
    # If this fails the disk may name the new place: a leak then, never free.
    await metadata.update_header(
        lambda header: attrs.evolve(header, l1_size=needed, l1_table_offset=offset)
    )
    old_offset, old_length = metadata.l1_offset, len(metadata.l1) * 8
    metadata.l1.extend(table[len(metadata.l1) :])
    metadata.l1_offset = offset
    for at in metadata.clusters_of(old_offset, old_length):
        metadata.locations.drop(at, ACTIVE_L1)
    for at in metadata.clusters_of(offset, needed * 8):
        metadata.locations.note(at, ACTIVE_L1)
    if old_length:
        metadata.free(old_offset, old_length, FREED_OTHERWISE)


async def _preallocate(image: Image, start: int, end: int, mode: str) -> None:
    """Give every cluster of a range its host cluster: in the data file, or at the end of the file.

    ``mode``: metadata, falloc or full; the latter two allocate the file's space as well.
    """
    metadata, refcounts = image.metadata, image.metadata.refcounts
    bits = image.cluster_bits
    first = start >> bits
    last = (end - 1) >> bits if end > start else first - 1
    count = last - first + 1
    if image.external:
        for number in range(first >> metadata.slice_bits, (last >> metadata.slice_bits) + 1):
            await _refer_to_data_file(image, number, first, last)
        if image.data.getlength() < end:
            await image.data.truncate(end, prealloc="off" if mode == "metadata" else mode)
        return
    # Only what was never used holds zeroes.
    refcounts.floor = refcounts.free_index = max(refcounts.free_index, refcounts.fresh_from)
    try:
        if mode != "metadata" and count > 0:
            tables = (count >> metadata.l2_bits) + 2
            blocks = ((count + tables) >> refcounts.bits) + 2
            estimate = (refcounts.fresh_from + count + tables + blocks) << bits
            await image.file.truncate(estimate, prealloc=mode)
        number = first
        while number <= last:
            number += await _preallocate_some(image, number, last)
    finally:
        refcounts.floor = refcounts.free_index = 0
    await metadata.write_back()
    await image.file.truncate(
        refcounts.fresh_from << bits
        if mode != "metadata"
        else max(refcounts.fresh_from << bits, image.file.getlength())
    )


async def _refer_to_data_file(image: Image, number: int, first: int, last: int) -> None:
    """Let those of clusters ``first`` to ``last`` that are in a slice refer to their data in the data file."""
    table = await image.metadata.slice_for_write(number)
    base = number << image.metadata.slice_bits
    low, high = max(first - base, 0), min(last - base, image.slice_mask)
    for at in range(low, high + 1):
        if not table[at] & image.allocated:
            table[at] = (base + at) << image.cluster_bits | COPIED
    image.metadata.mark_l2(number, low, high)


async def _preallocate_some(image: Image, number: int, last: int) -> int:
    metadata, refcounts = image.metadata, image.metadata.refcounts
    index = number >> metadata.slice_bits
    last = min(last, (index + 1 << metadata.slice_bits) - 1)
    while True:
        table = await metadata.slice_for_write(index)
        at = number & image.slice_mask
        if table[at] & OFFSET_MASK:
            return 1
        wanted = 1
        while number + wanted <= last and not table[at + wanted]:
            wanted += 1
        cluster, count = refcounts.find_nowait(wanted)
        if count:
            break
        await refcounts.prepare()
    refcounts.take_nowait(cluster, count)
    host = cluster << image.cluster_bits | COPIED
    table[at : at + count] = array(
        "Q", range(host, host + (count << image.cluster_bits), image.cluster_size)
    )
    metadata.mark_l2(index, at, at + count - 1)
    return count


async def _shrink(image: Image, size: int) -> None:
    metadata = image.metadata
    old = image.size
    border = (size + image.mask) & ~image.mask
    try:
        if border > size:
            # Growing again must not bring it back.
            await _zero_tail(image, size, min(border, old))
        if border < old:
            await pdiscard(image, border, old - border, full=True)
        image.size = size
        first = (size + (1 << image.l1_shift) - 1) >> image.l1_shift
        for index in range(first, len(metadata.l1)):
            offset = metadata.l2_offset(index)
            if offset:
                for number in metadata.slices_of(index):
                    metadata.dirty_l2.pop(number, None)
                    if number in metadata.l2:
                        metadata.forget_slice(number)
                metadata.l1[index] = 0
                metadata.dirty_l1.add(index // L1_SECTOR)
                metadata.locations.drop(offset, ACTIVE_L2)
                metadata.free(offset, image.cluster_size, FREED_OTHERWISE)
        await metadata.write_back()
        end = await metadata.refcounts.end_of_used() << image.cluster_bits
        if end < image.file.getlength():
            await image.file.truncate(end)
            metadata.refcounts.fresh_from = end >> image.cluster_bits
    except OSError as exc:
        raise with_errno("Failed to discard cropped clusters", exc) from exc


async def _zero_tail(image: Image, start: int, end: int) -> None:
    while start < end:
        table = await image.metadata.slice(start >> image.slice_shift)
        if table is None:
            return
        kind, _, length = image.classify(table, start, end)
        if kind is Kind.DATA or kind is Kind.COMPRESSED:
            await write_zero_bytes(image, start, start + length)
        start += length
