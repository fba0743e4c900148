"""Making parts of an image read as zeroes, and deallocating them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from qsd_trio.block.abc import ReqFlag
from qsd_trio.block.drivers.qcow2 import subclusters as sub
from qsd_trio.block.drivers.qcow2.image import InFlight
from qsd_trio.block.drivers.qcow2.imagefile import discard_file
from qsd_trio.block.drivers.qcow2.layout import COMPRESSED, COPIED, OFFSET_MASK, ZERO
from qsd_trio.block.drivers.qcow2.writing import (
    FREED_BY_REQUEST,
    free_entry,
    reads_as_zero,
    settle,
    slice_to_change,
    wait_for_conflicts,
)
from qsd_trio.errors import os_error

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    from qsd_trio.block.drivers.qcow2.image import Image

    #: (entry, bitmap, subclusters concerned) -> (new entry, new bitmap)
    Change: TypeAlias = Callable[[int, int, int], tuple[int, int]]


#: Clusters whose entries are changed between two checkpoints: about a millisecond.
MAX_CLUSTERS: Final = 1024


async def pwrite_zeroes(image: Image, offset: int, length: int, flags: ReqFlag) -> None:
    """Make whole (sub)clusters read as zeroes; the last one of the image may be partial.

    Less than one is fine if the rest of it is known to be zero, and no data yet; else ENOTSUP.
    """
    end = offset + length
    unit = (1 << image.subcluster_bits) - 1
    partial = bool(offset & unit or (end & unit and end < image.size))
    if partial:
        offset &= ~unit
        end = min(-(-end & ~unit), image.size)
        if end - offset > unit + 1:
            raise os_error(errno.ENOTSUP)
    fill = bool(flags & ReqFlag.WRITE_UNCHANGED)
    if fill and (image.external or image.version < 3):
        raise os_error(errno.ENOTSUP)
    if image.version < 3:
        # No zero clusters: what is not allocated and has nothing behind it is zero already.
        if partial or image.backing is not None or not flags & ReqFlag.MAY_UNMAP:
            raise os_error(errno.ENOTSUP)
        await pdiscard(image, offset, length)
        return
    keep = image.metadata.discard_no_unref
    unmap = bool(flags & ReqFlag.MAY_UNMAP) and not keep

    def change(entry: int, bitmap: int, which: int) -> tuple[int, int]:
        if fill:
            return _fill_with_zeroes(image, entry, bitmap, which)
        if image.extended:
            return _zero_subclusters(image, entry, bitmap, which, unmap=unmap)
        if entry & COMPRESSED or (unmap and entry & image.allocated):
            return ZERO, 0
        return entry | ZERO, 0

    while offset < end:
        stop = _stop(image, offset, end)
        table = await slice_to_change(image, offset, stop)
        if partial and not reads_as_zero(image, table, offset, stop):
            raise os_error(errno.ENOTSUP)
        keep = keep and bool(flags & ReqFlag.MAY_UNMAP)
        if image.external or keep:
            zero = flags if image.raw_external else None
            await _change_busy(image, offset, stop, change, zero=zero, keep=keep)
        else:
            _change_entries(image, table, offset, stop, change)
        offset = stop
        await trio.lowlevel.checkpoint()
    await settle(image)


def _fill_with_zeroes(image: Image, entry: int, bitmap: int, which: int) -> tuple[int, int]:
    """Note zeroes where nothing is allocated or noted yet."""
    if entry & COMPRESSED:
        return entry, bitmap
    if image.extended:
        return entry, sub.with_zero(bitmap, which & ~(sub.allocated(bitmap) | sub.zero(bitmap)))
    return (entry if entry & image.allocated else entry | ZERO), 0


def _zero_subclusters(
    image: Image, entry: int, bitmap: int, which: int, *, unmap: bool
) -> tuple[int, int]:
    if which != sub.ALL:
        if entry & COMPRESSED:
            raise os_error(errno.ENOTSUP)
        return entry, sub.with_zero(bitmap, which)
    if entry & COMPRESSED or (unmap and entry & image.allocated):
        entry = 0
    return entry, sub.ALL_ZERO


async def pdiscard(image: Image, offset: int, length: int, *, full: bool = False) -> None:
    """Deallocate whole clusters (the last one of the image may be partial).

    Where a backing file would show through they become zero clusters, unless ``full``. With
    discard-no-unref all become zero clusters that keep their place, unless ``full``.
    """
    end = offset + length
    if image.version < 3 and image.backing is not None and not full:
        raise os_error(errno.ENOTSUP)
    if offset & image.mask or (end & image.mask and end < image.size):
        raise os_error(errno.ENOTSUP)

    keep = image.metadata.discard_no_unref and not full

    def change(entry: int, bitmap: int, which: int) -> tuple[int, int]:
        if full:
            return 0, 0
        if (
            keep
            and not entry & COMPRESSED
            and (entry & image.allocated or image.backing is not None)
        ):
            return (entry, sub.ALL_ZERO) if image.extended else (entry | ZERO, 0)
        if image.backing is None and not entry & (image.allocated | COMPRESSED):
            return entry, bitmap
        if image.extended:
            return 0, sub.ALL_ZERO
        return ZERO if image.version >= 3 else 0, 0

    while offset < end:
        number = offset >> image.slice_shift
        stop = _stop(image, offset, end)
        if (full or image.backing is None) and not image.metadata.slice_offset(number):
            if image.in_flight:
                await wait_for_conflicts(image, offset, stop)
                if image.metadata.slice_offset(number):
                    continue
        else:
            table = await slice_to_change(image, offset, stop)
            if image.external or keep:
                await _change_busy(image, offset, stop, change, keep=keep)
            else:
                _change_entries(image, table, offset, stop, change)
        offset = stop
        await trio.lowlevel.checkpoint()
    await settle(image)


def _stop(image: Image, offset: int, end: int) -> int:
    """Return up to where L2 entries can be changed at once: within a slice, and without a stall."""
    most = (offset & ~image.mask) + (MAX_CLUSTERS << image.cluster_bits)
    return min(end, most, ((offset >> image.slice_shift) + 1) << image.slice_shift)


def _change_entries(
    image: Image, table: array[int], offset: int, stop: int, change: Change, *, keep: bool = False
) -> list[int]:
    """Change the L2 entries of a range in a cached slice.

    Returns the clusters whose data are gone but whose place is not free: in a data file, or because
    they ``keep`` it. (One that shares its place still has its data there.)
    """
    bits = image.cluster_bits
    number = offset >> image.slice_shift
    bitmaps = image.metadata.subclusters[number] if image.extended else None
    which = sub.ALL
    gone = []
    for cluster in range(offset >> bits, ((stop - 1) >> bits) + 1):
        at = cluster & image.slice_mask
        old, bitmap = table[at], 0
        if bitmaps is not None:
            bitmap = bitmaps[at]
            start = cluster << bits
            high = image.cluster_size if stop == image.size else stop - start
            which = sub.span(
                max(offset - start, 0), min(high, image.cluster_size), image.subcluster_bits
            )
        new, new_bitmap = change(old, bitmap, which)
        if new == old and new_bitmap == bitmap:
            continue
        table[at] = new
        if bitmaps is not None:
            bitmaps[at] = new_bitmap
        if old & (image.allocated | COMPRESSED) and not new & image.allocated:
            free_entry(image, old, FREED_BY_REQUEST)
            if image.external:
                gone.append(cluster)
        elif keep and new & image.allocated and old & COPIED and which == sub.ALL:
            gone.append((new & OFFSET_MASK) >> bits)
        image.metadata.mark_l2(number, at, at)
    return gone


async def _change_busy(
    image: Image,
    offset: int,
    stop: int,
    change: Change,
    *,
    zero: ReqFlag | None = None,
    keep: bool = False,
) -> None:
    """Change the L2 entries of a range, which nobody else is at, and their data besides.

    ``zero``: write zeroes there first, with these flags. No other write may come in between: the place of
    a cluster's data stays the same, be it in a data file or because the clusters ``keep`` it.
    """
    bits = image.cluster_bits
    job = InFlight(offset >> bits, (stop - 1) >> bits)
    image.in_flight.append(job)
    try:
        if zero is not None:
            await image.data.pwrite_zeroes(offset, stop - offset, zero)
        table = await image.metadata.slice_for_write(offset >> image.slice_shift)
        gone = _change_entries(image, table, offset, stop, change, keep=keep)
        if image.metadata.pass_discard[FREED_BY_REQUEST]:
            await _discard_data(image, gone)
    finally:
        image.in_flight.remove(job)
        job.done.set()


async def _discard_data(image: Image, clusters: list[int]) -> None:
    start = end = -1
    for cluster in [*clusters, -1]:
        if cluster != end:
            if start >= 0:
                offset = start << image.cluster_bits
                length = min(end << image.cluster_bits, image.data.getlength()) - offset
                if length > 0:
                    await discard_file(image.data, offset, length)
            start = cluster
        end = cluster + 1
