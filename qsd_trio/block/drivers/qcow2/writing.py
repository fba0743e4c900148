"""Writing into an image: in place, and allocating with copy-on-write."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from qsd_trio.block.drivers.qcow2 import subclusters as sub
from qsd_trio.block.drivers.qcow2.image import InFlight, Kind
from qsd_trio.block.drivers.qcow2.layout import (
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    ZERO,
    CorruptImageError,
    c_hex,
)
from qsd_trio.block.drivers.qcow2.metadata import MAX_PENDING
from qsd_trio.errors import os_error
from qsd_trio.iov import iov_size, iov_slice

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

    from qsd_trio.block.abc import Iov
    from qsd_trio.block.drivers.qcow2.image import Image

# Reasons: indices into Metadata.pass_discard.
FREED_BY_REQUEST: Final = 0
FREED_BY_SNAPSHOT: Final = 1
FREED_OTHERWISE: Final = 2

_ZEROES: Final = memoryview(bytes(2 << 20))  # the largest cluster


async def pwritev(image: Image, offset: int, iov: Iov, *, fill: bool = False) -> None:
    """Write ``iov``. Cancelled: some clusters are written, the others are not; metadata are consistent.

    ``fill``: only where the image has nothing yet, not even a note that there are zeroes.
    """
    length = iov_size(iov)
    done = 0
    while done < length:
        part = iov if not done else iov_slice(iov, done, length - done)
        done += await _write_some(image, offset + done, part, length - done, fill=fill)
    await settle(image)


async def settle(image: Image) -> None:
    """Write back if too much freed space waits for it."""
    if image.metadata.pending_bytes > MAX_PENDING:
        await image.metadata.write_back()


async def wait_for_conflicts(image: Image, start: int, end: int) -> None:
    while True:
        other = image.conflict(start, end)
        if other is None:
            return
        await other.done.wait()


async def slice_to_change(image: Image, start: int, end: int) -> array[int]:
    """Return the L2 table of a range within one, to be changed at once: nobody else is at it."""
    while True:
        if image.broken:
            raise os_error(errno.ENOMEDIUM)
        await wait_for_conflicts(image, start, end)
        table = await image.metadata.slice_for_write(start >> image.slice_shift)
        if image.conflict(start, end) is None:
            return table


async def _write_some(
    image: Image, offset: int, iov: Sequence[memoryview], length: int, *, fill: bool
) -> int:
    """Write the first bytes of ``iov``, or pass over them; return how many."""
    metadata, bits = image.metadata, image.cluster_bits
    end = min(offset + length, ((offset >> image.slice_shift) + 1) << image.slice_shift)
    while True:
        table = await slice_to_change(image, offset, end)
        _check_entry(image, table, offset)
        kind, host, run = image.classify(table, offset, end)
        if fill:
            if kind is not Kind.UNALLOCATED and kind is not Kind.PREALLOCATED:
                return run
            end = offset + run
        if kind is Kind.DATA:
            run = _copied_run(image, table, offset, run)
            if run:
                break
        elif image.is_own(table[offset >> bits & image.slice_mask]):
            run = _own_run(image, table, offset, end)
            _check_overlap(image, host, run)
            await _write_new(image, offset, iov_slice(iov, 0, run), run, host & ~image.mask)
            return run
        run = _run_to_allocate(image, table, offset, end)
        if image.external:
            host = offset & ~image.mask
            fresh = image.is_fresh(host)
            await _write_new(image, offset, iov_slice(iov, 0, run), run, host, fresh=fresh)
            return run
        cluster, count = metadata.refcounts.find_nowait(
            ((offset + run - 1) >> bits) - (offset >> bits) + 1
        )
        if count:
            host = cluster << bits
            run = min(run, (((offset >> bits) + count) << bits) - offset)
            fresh = image.is_fresh(host)
            _check_overlap(image, host | offset & image.mask, run)
            metadata.refcounts.take_nowait(cluster, count)
            await _write_new(
                image, offset, iov_slice(iov, 0, run), run, host, fresh=fresh, taken=True
            )
            return run
        await metadata.refcounts.prepare()
    _check_overlap(image, host, run)
    await image.write_data(offset, host, iov_slice(iov, 0, run))
    return run


def _check_entry(image: Image, table: array[int], offset: int) -> None:
    """Raise CorruptImageError where QEMU has other words for a write than for a read."""
    entry = table[offset >> image.cluster_bits & image.slice_mask]
    host = entry & OFFSET_MASK
    if host & image.mask and image.is_own(entry):
        what = "Preallocated zero" if entry & image.zero_bit else "Data"
        raise CorruptImageError(
            f"{what} cluster offset {c_hex(host)} unaligned (guest offset: {c_hex(offset)})",
            fatal=True,
        )
    if image.extended and not entry & COMPRESSED and not sub.is_valid(image.bitmap(offset)):
        raise image.corrupt_entry("Invalid cluster entry found", offset)


def _copied_run(image: Image, table: array[int], offset: int, run: int) -> int:
    """Return how much of a run may be written where it is."""
    bits = image.cluster_bits
    first = offset >> bits
    for number in range(first, ((offset + run - 1) >> bits) + 1):
        if not table[number & image.slice_mask] & COPIED:
            return max((number << bits) - offset, 0) if number > first else 0
    return run


def _own_run(image: Image, table: array[int], offset: int, end: int) -> int:
    """Return the length of the run from ``offset`` in adjacent host clusters that are ours alone.

    Without subclusters those with data are left out: they need no change of their L2 entries.
    """
    bits = image.cluster_bits
    first = offset >> bits
    host = table[first & image.slice_mask] & OFFSET_MASK
    for number in range(first + 1, ((end - 1) >> bits) + 1):
        entry = table[number & image.slice_mask]
        host += image.cluster_size
        if (
            not image.is_own(entry)
            or entry & OFFSET_MASK != host
            or (not image.extended and not entry & ZERO)
        ):
            return (number << bits) - offset
    return end - offset


def _run_to_allocate(image: Image, table: array[int], offset: int, end: int) -> int:
    """Return the length of the run from ``offset`` where new clusters are needed."""
    bits = image.cluster_bits
    for number in range((offset >> bits) + 1, ((end - 1) >> bits) + 1):
        if image.is_own(table[number & image.slice_mask]):
            return (number << bits) - offset
    return end - offset


def _check_overlap(image: Image, host: int, length: int) -> None:
    """Raise CorruptImageError if an L2 entry leads a write of data to metadata."""
    if image.external:
        return
    size = image.cluster_size
    for offset in range(host & ~image.mask, host + length, size):
        image.metadata.locations.check(offset, host, length)


async def _write_new(
    image: Image,
    offset: int,
    iov: list[memoryview],
    length: int,
    host: int,
    *,
    fresh: bool = False,
    taken: bool = False,
) -> None:
    """Write into the clusters at ``host``, then let the L2 table refer to them.

    ``fresh``: the clusters hold zeroes. ``taken``: they are ours to free if this fails.
    """
    metadata, bits = image.metadata, image.cluster_bits
    end = offset + length
    first, last = offset >> bits, (end - 1) >> bits
    fresh = fresh and image.crypt is None  # zeroes on the disk are not zeroes for the guest
    job = InFlight(first, last)
    image.in_flight.append(job)
    try:
        start, stop = await _borders(image, offset, end)
        before = await _untouched(image, start, offset - start, fresh=fresh)
        after = await _untouched(image, end, stop - end, fresh=fresh)
        begin = offset - (len(before) if before else 0)
        pieces = [piece for piece in (before, *iov, after) if piece]
        await image.write_data(begin, host + begin - (first << bits), pieces)
        await metadata.slice_for_write(offset >> image.slice_shift)
    except BaseException:
        if taken:
            metadata.free(host, (last - first + 1) << bits, FREED_OTHERWISE)
        raise
    else:
        # A new, zeroed cluster where there was nothing is as good as what it replaces, even unwritten.
        new = taken and fresh and not before and not after
        data_first = not new or image.backing is not None or image.external
        _refer(image, start, stop, host, replace=taken, data_first=data_first)
    finally:
        image.in_flight.remove(job)
        job.done.set()


def _refer(
    image: Image, start: int, stop: int, host: int, *, replace: bool, data_first: bool = True
) -> None:
    """Let the L2 entries of a range, which lies in a cached slice, say that its data are at ``host``.

    ``replace``: what they referred to before is another place, and free then. ``data_first``: see
    ``Metadata.mark_l2``.
    """
    metadata, bits = image.metadata, image.cluster_bits
    number = start >> image.slice_shift
    table = metadata.l2[number]
    first, last = start >> bits, (stop - 1) >> bits
    for cluster in range(first, last + 1):
        at = cluster & image.slice_mask
        old = table[at]
        table[at] = host + ((cluster - first) << bits) | COPIED
        if image.extended:
            low = max(start - (cluster << bits), 0)
            high = min(stop - (cluster << bits), image.cluster_size)
            bitmaps = metadata.subclusters[number]
            written = sub.span(low, high, image.subcluster_bits)
            bitmaps[at] = sub.with_allocated(bitmaps[at], written)
        if replace:
            free_entry(image, old, FREED_OTHERWISE)
    low, high = first & image.slice_mask, last & image.slice_mask
    metadata.mark_l2(number, low, high, data_first=data_first)


async def _borders(image: Image, offset: int, end: int) -> tuple[int, int]:
    """Return from where to where must be written so that ``offset`` to ``end`` can be.

    Nobody else changes the L2 entries of the range meanwhile.
    """
    if not image.extended:
        return offset & ~image.mask, -(-end & ~image.mask)
    table = await image.metadata.slice(offset >> image.slice_shift)
    assert table is not None
    base, last_base = offset & ~image.mask, (end - 1) & ~image.mask
    unit = 1 << image.subcluster_bits
    # A subcluster with data of ours needs no more than the write. In a new cluster there must be all
    # that was in the old one, and what lies between that and the write.
    keep, own = _kept(image, table, base)
    first = (offset - base) // unit
    if own:
        start = offset if keep >> first & 1 else base + first * unit
    else:
        start = base + min(first, sub.lowest(keep)) * unit
    keep, own = _kept(image, table, last_base)
    last = (end - 1 - last_base) // unit
    if own:
        stop = end if keep >> last & 1 else last_base + (last + 1) * unit
    else:
        stop = last_base + (max(last, sub.highest(keep)) + 1) * unit
    return start, stop


def _kept(image: Image, table: array[int], base: int) -> tuple[int, bool]:
    """Return the subclusters with data of the cluster at ``base``, and whether it is ours alone."""
    entry = table[base >> image.cluster_bits & image.slice_mask]
    if entry & COMPRESSED:
        return sub.ALL, False
    return sub.allocated(image.bitmap(base)), image.is_own(entry)


async def _untouched(image: Image, offset: int, length: int, *, fresh: bool) -> memoryview | None:
    """Return what must be written beside the data into a new cluster: the old content there.

    None: nothing, the cluster holds it already.
    """
    if not length:
        return None
    table = await image.metadata.slice(offset >> image.slice_shift)
    if reads_as_zero(image, table, offset, min(offset + length, image.size)):
        return None if fresh else _ZEROES[:length]
    data = memoryview(bytearray(length))
    there = min(length, image.size - offset)
    await image.preadv(offset, [data[:there]])
    return data


def reads_as_zero(image: Image, table: array[int] | None, offset: int, end: int) -> bool:
    """Say whether a range within a cluster is known to read as zeroes."""
    while offset < end:
        if table is None:
            kind, length = Kind.UNALLOCATED, end - offset
        else:
            kind, _, length = image.classify(table, offset, end)
        if kind is Kind.UNALLOCATED or kind is Kind.PREALLOCATED:
            if image.backing is not None and image.backing.getlength() > offset:
                return False
        elif kind is not Kind.ZERO and kind is not Kind.ZERO_ALLOCATED:
            return False
        offset += length
    return True


def free_entry(image: Image, entry: int, reason: int) -> None:
    """Drop the reference that an overwritten L2 entry was."""
    if image.external:
        return
    if entry & COMPRESSED:
        offset, length = image.compressed.extent(entry)
        image.metadata.free(offset, length, reason)
        return
    host = entry & OFFSET_MASK
    if host & image.mask:
        # Whose it is nobody knows: rather a leak.
        text = f"Cannot free unaligned cluster {c_hex(host)}"
        image.report(CorruptImageError(text, fatal=False))
    elif host:
        image.metadata.free(host, image.cluster_size, reason)
