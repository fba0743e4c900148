"""Writing into an image: in place, allocating with copy-on-write, zeroes, discards."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from qsd_trio.block.abc import ReqFlag
from qsd_trio.block.drivers.qcow2.image import InFlight, Kind
from qsd_trio.block.drivers.qcow2.layout import (
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    ZERO,
)
from qsd_trio.block.drivers.qcow2.metadata import MAX_PENDING
from qsd_trio.block.drivers.qcow2.refcounts import overlap
from qsd_trio.errors import os_error
from qsd_trio.iov import iov_size, iov_slice

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

    from qsd_trio.block.abc import Iov
    from qsd_trio.block.drivers.qcow2.image import Image

FREED_BY_REQUEST: Final = 0
FREED_OTHERWISE: Final = 2

_ZEROES: Final = memoryview(bytes(2 << 20))  # the largest cluster


async def pwritev(image: Image, offset: int, iov: Iov) -> None:
    """Write ``iov``. Cancelled: some clusters are written, the others are not; metadata are consistent."""
    length = iov_size(iov)
    done = 0
    while done < length:
        part = iov if not done else iov_slice(iov, done, length - done)
        done += await _write_some(image, offset + done, part, length - done)
    await settle(image)


async def settle(image: Image) -> None:
    """Write back if too much freed space waits for it."""
    if image.metadata.pending_bytes > MAX_PENDING:
        await image.metadata.write_back()


async def _wait_for_conflicts(image: Image, start: int, end: int) -> None:
    while True:
        other = image.conflict(start, end)
        if other is None:
            return
        await other.done.wait()


async def _table(image: Image, start: int, end: int) -> array[int]:
    """Return the L2 table of a range within one, to be changed at once: nobody else is at it."""
    while True:
        if image.broken:
            raise os_error(errno.ENOMEDIUM)
        await _wait_for_conflicts(image, start, end)
        table = await image.metadata.slice_for_write(start >> image.slice_shift)
        if image.conflict(start, end) is None:
            return table


async def _write_some(image: Image, offset: int, iov: Sequence[memoryview], length: int) -> int:
    """Write the first bytes of ``iov``; return how many."""
    metadata, bits = image.metadata, image.cluster_bits
    end = min(offset + length, ((offset >> image.slice_shift) + 1) << image.slice_shift)
    while True:
        table = await _table(image, offset, end)
        kind, host, run = image.classify(table, offset, end)
        if kind is Kind.DATA:
            run = _copied_run(image, table, offset, run)
            if run:
                break
        elif kind is Kind.ZERO_ALLOCATED and table[offset >> bits & image.slice_mask] & COPIED:
            run = _copied_run(image, table, offset, run)
            host &= ~image.mask
            break
        run = _run_to_allocate(image, table, offset, end)
        cluster, count = metadata.refcounts.find_nowait(
            ((offset + run - 1) >> bits) - (offset >> bits) + 1
        )
        if count:
            host = cluster << bits
            run = min(run, (((offset >> bits) + count) << bits) - offset)
            fresh = cluster >= metadata.refcounts.fresh_from
            metadata.refcounts.take_nowait(cluster, count)
            await _write_new(
                image, offset, iov_slice(iov, 0, run), run, host, fresh=fresh, taken=True
            )
            return run
        await metadata.refcounts.prepare()
    part = iov_slice(iov, 0, run)
    _check_overlap(image, host, run)
    if kind is Kind.ZERO_ALLOCATED:
        await _write_new(image, offset, part, run, host, fresh=False, taken=False)
        return run
    token = metadata.begin_io()
    try:
        await image.file.pwritev(host, part)
    finally:
        metadata.end_io(token)
    return run


def _copied_run(image: Image, table: array[int], offset: int, run: int) -> int:
    """Return how much of a run may be written where it is."""
    bits = image.cluster_bits
    first = offset >> bits
    for number in range(first, ((offset + run - 1) >> bits) + 1):
        if not table[number & image.slice_mask] & COPIED:
            return max((number << bits) - offset, 0) if number > first else 0
    return run


def _run_to_allocate(image: Image, table: array[int], offset: int, end: int) -> int:
    """Return the length of the run from ``offset`` where new clusters are needed."""
    bits = image.cluster_bits
    for number in range((offset >> bits) + 1, ((end - 1) >> bits) + 1):
        entry = table[number & image.slice_mask]
        # Written in place: data of ours, and zero clusters with a place of their own.
        if entry & COPIED and entry & OFFSET_MASK and not entry & COMPRESSED:
            return (number << bits) - offset
    return end - offset


def _check_overlap(image: Image, host: int, length: int) -> None:
    """Raise CorruptImageError if an L2 entry leads a write of data to metadata."""
    size = image.cluster_size
    for offset in range(host & ~image.mask, host + length, size):
        if offset in image.metadata.locations:
            raise overlap(image.metadata.locations[offset], host, length)


async def _write_new(
    image: Image,
    offset: int,
    iov: list[memoryview],
    length: int,
    host: int,
    *,
    fresh: bool,
    taken: bool,
) -> None:
    """Write into the clusters at ``host``, then let the L2 table refer to them.

    ``fresh``: the clusters hold zeroes. ``taken``: they are ours to free if this fails.
    """
    metadata, bits, mask = image.metadata, image.cluster_bits, image.mask
    first, last = offset >> bits, (offset + length - 1) >> bits
    job = InFlight(first, last)
    image.in_flight.append(job)
    try:
        head, tail = offset & mask, -(offset + length) & mask
        before = await _untouched(image, first << bits, head, fresh=fresh)
        after = await _untouched(image, offset + length, tail, fresh=fresh)
        token = metadata.begin_io()
        try:
            at = host + head - (len(before) if before else 0)
            pieces = [piece for piece in (before, *iov, after) if piece]
            await image.file.pwritev(at, pieces)
        finally:
            metadata.end_io(token)
        table = await metadata.slice_for_write(offset >> image.slice_shift)
    except BaseException:
        if taken:
            metadata.free(host, (last - first + 1) << bits, FREED_OTHERWISE)
        raise
    else:
        start = first & image.slice_mask
        for at in range(last - first + 1):
            old = table[start + at]
            table[start + at] = host + (at << bits) | COPIED
            if taken:
                free_entry(image, old, FREED_OTHERWISE)
        metadata.mark_l2(offset >> image.slice_shift, start, start + last - first)
    finally:
        image.in_flight.remove(job)
        job.done.set()


async def _untouched(image: Image, offset: int, length: int, *, fresh: bool) -> memoryview | None:
    """Return what must be written beside the data into a new cluster: the old content there.

    None: nothing, the cluster holds it already.
    """
    if not length:
        return None
    table = await image.metadata.slice(offset >> image.slice_shift)
    zero = None if fresh else _ZEROES[:length]
    if table is None:
        entry = 0
    else:
        entry = table[offset >> image.cluster_bits & image.slice_mask]
    kind = image.kind(entry)
    if kind is Kind.ZERO or kind is Kind.ZERO_ALLOCATED or offset >= image.size:
        return zero
    backing = image.backing
    if kind is Kind.UNALLOCATED and (backing is None or backing.getlength() <= offset):
        return zero
    data = memoryview(bytearray(length))
    there = min(length, image.size - offset)
    await image.preadv(offset, [data[:there]])
    return data


def free_entry(image: Image, entry: int, reason: int) -> None:
    """Drop the reference that an overwritten L2 entry was."""
    if entry & COMPRESSED:
        offset, length = image.compressed.extent(entry)
        image.metadata.free(offset, length, reason)
    elif entry & OFFSET_MASK:
        image.metadata.free(entry & OFFSET_MASK & ~image.mask, image.cluster_size, reason)


async def pwrite_zeroes(image: Image, offset: int, length: int, flags: ReqFlag) -> None:
    """Make whole clusters read as zeroes (the last one of the image may be partial)."""
    end = offset + length
    if offset & image.mask or (end & image.mask and end < image.size):
        raise os_error(errno.ENOTSUP)
    if image.version < 3:
        # No zero clusters: what is not allocated and has nothing behind it is zero already.
        if image.backing is not None or not flags & ReqFlag.MAY_UNMAP:
            raise os_error(errno.ENOTSUP)
        await pdiscard(image, offset, length)
        return
    while offset < end:
        number = offset >> image.slice_shift
        stop = min(end, (number + 1) << image.slice_shift)
        table = await _table(image, offset, stop)
        start = offset >> image.cluster_bits & image.slice_mask
        for at in range(start, ((stop - 1) >> image.cluster_bits & image.slice_mask) + 1):
            old = table[at]
            kind = image.kind(old)
            if kind is Kind.ZERO:
                continue
            keep = kind in (Kind.DATA, Kind.ZERO_ALLOCATED) and not flags & ReqFlag.MAY_UNMAP
            if keep:
                new = old | ZERO
            else:
                new = ZERO
                free_entry(image, old, FREED_BY_REQUEST)
            table[at] = new
            image.metadata.mark_l2(number, at, at)
        offset = stop
    await settle(image)


async def pdiscard(image: Image, offset: int, length: int, *, full: bool = False) -> None:
    """Deallocate whole clusters (the last one of the image may be partial).

    Where a backing file would show through they become zero clusters, unless ``full``.
    """
    end = offset + length
    if image.version < 3 and image.backing is not None and not full:
        raise os_error(errno.ENOTSUP)
    if offset & image.mask or (end & image.mask and end < image.size):
        raise os_error(errno.ENOTSUP)
    while offset < end:
        number = offset >> image.slice_shift
        stop = min(end, (number + 1) << image.slice_shift)
        if (full or image.backing is None) and not image.metadata.slice_offset(number):
            if image.in_flight:
                await _wait_for_conflicts(image, offset, stop)
                if image.metadata.slice_offset(number):
                    continue
            offset = stop
            continue
        table = await _table(image, offset, stop)
        start = offset >> image.cluster_bits & image.slice_mask
        for at in range(start, ((stop - 1) >> image.cluster_bits & image.slice_mask) + 1):
            old = table[at]
            kind = image.kind(old)
            new = 0
            if not full:
                if kind is Kind.ZERO or (kind is Kind.UNALLOCATED and image.backing is None):
                    continue
                if image.version >= 3:
                    new = ZERO
            if new == old:
                continue
            free_entry(image, old, FREED_BY_REQUEST)
            table[at] = new
            image.metadata.mark_l2(number, at, at)
        offset = stop
    await settle(image)
