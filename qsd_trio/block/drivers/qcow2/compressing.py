"""Writing compressed clusters: packed side by side, by the byte, into shared host clusters.

A host cluster has a reference for each compressed cluster with bytes in it.
What is there already may be written again, which QEMU refuses with EIO: its bytes are freed, and those of
the new content go elsewhere.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import trio

from qsd_trio.block.drivers.qcow2 import writing
from qsd_trio.block.drivers.qcow2.compressed import PARALLEL, make_entry, offset_bits, pack
from qsd_trio.block.drivers.qcow2.image import InFlight, Kind
from qsd_trio.errors import os_error
from qsd_trio.host.workers import worker_pool
from qsd_trio.iov import iov_gather, iov_size, iov_slice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsd_trio.block.abc import Iov
    from qsd_trio.block.drivers.qcow2.image import Image
    from qsd_trio.block.drivers.qcow2.refcounts import Refcounts

#: Bytes of clusters that a worker packs at a time, if clusters are that small: a hop costs something too.
PIECE: Final = 64 << 10


async def pwritev(image: Image, offset: int, iov: Iov, *, fill: bool = False) -> None:
    """Write whole clusters (the image's last may be partial), compressed where that makes them smaller.

    ``fill``: only where the image has nothing yet. ENOTSUP with an external data file. In an encrypted
    image, where compressed clusters would be plain for all to read, they are written as usual.
    Cancelled: some clusters are written, others are not.
    """
    length = iov_size(iov)
    end = offset + length
    if image.external:
        raise os_error(errno.ENOTSUP)
    if offset & image.mask or (end & image.mask and end < image.size):
        raise os_error(errno.EINVAL)
    if image.metadata.header.crypt_method:
        await writing.pwritev(image, offset, iov, fill=fill)
        return
    step = PARALLEL * max(PIECE, image.cluster_size)
    for at in range(0, length, step):
        part = iov_slice(iov, at, min(step, length - at))
        packed = await _pack(image, part)
        await _write(image, offset + at, part, packed, fill=fill)
    await writing.settle(image)


async def _pack(image: Image, iov: Iov) -> list[bytes | None]:
    """Compress the clusters of ``iov``, several at a time; None where one does not get smaller."""
    size = image.cluster_size
    data = memoryview(bytearray(-(-iov_size(iov) // size) * size))
    iov_gather(data, iov)
    step = max(PIECE, size)
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    packed: list[list[bytes | None]] = [[] for _ in pieces]

    async def pack_piece(at: int) -> None:
        packed[at] = await worker_pool().run(
            _pack_piece, image.compressed.kind, pieces[at], size, slow=True
        )

    async with trio.open_nursery() as nursery:
        for at in range(len(pieces)):
            nursery.start_soon(pack_piece, at)
    return [cluster for piece in packed for cluster in piece]


def _pack_piece(kind: int, data: memoryview, size: int) -> list[bytes | None]:
    return [pack(kind, data[at : at + size]) for at in range(0, len(data), size)]


async def _write(
    image: Image, offset: int, iov: Iov, packed: Sequence[bytes | None], *, fill: bool
) -> None:
    """Write clusters, runs of compressed ones together."""
    size = image.cluster_size
    first = 0
    while first < len(packed):
        at = offset + first * size
        slice_end = ((at >> image.slice_shift) + 1) << image.slice_shift
        run = []
        for data in packed[first : first + (slice_end - at) // size]:
            if data is None:
                break
            run.append(data)
        count = await _write_packed(image, at, run, fill=fill) if run else 0
        if not count:
            await writing.pwritev(image, at, iov_slice(iov, first * size, size), fill=fill)
        first += count or 1


async def _write_packed(image: Image, offset: int, packed: Sequence[bytes], *, fill: bool) -> int:
    """Write compressed clusters whose L2 entries are in one slice, then let those name them.

    Returns how many of them, with ``fill``: only those up to the first one that is not unallocated.
    """
    metadata, bits = image.metadata, image.cluster_bits
    first = offset >> bits
    end = (first + len(packed)) << bits
    table = await writing.slice_to_change(image, offset, end)
    if fill:
        kind, _, length = image.classify(table, offset, end)
        packed = packed[: length >> bits] if kind is Kind.UNALLOCATED else ()
        if not packed:
            return 0
    job = InFlight(first, first + len(packed) - 1)
    image.in_flight.append(job)
    taken: list[tuple[int, int]] = []
    try:
        for data in packed:
            taken.append((await _take_bytes(image, len(data)), len(data)))
        token = metadata.begin_io()
        try:
            await _write_bytes(image, taken, packed)
        finally:
            metadata.end_io(token)
        table = await metadata.slice_for_write(offset >> image.slice_shift)
    except BaseException:
        for host, length in taken:
            metadata.free(host, length, writing.FREED_OTHERWISE)
        raise
    else:
        start = first & image.slice_mask
        number = offset >> image.slice_shift
        for at, (host, length) in enumerate(taken, start):
            old, table[at] = table[at], make_entry(host, length, bits)
            image.compressed.renew(table[at])
            if image.extended:
                metadata.subclusters[number][at] = 0
            writing.free_entry(image, old, writing.FREED_OTHERWISE)
        metadata.mark_l2(number, start, start + len(packed) - 1)
        return len(packed)
    finally:
        image.in_flight.remove(job)
        job.done.set()


async def _take_bytes(image: Image, length: int) -> int:
    """Return the host offset of ``length`` bytes, less than a cluster, in clusters with a reference more."""
    refcounts = image.metadata.refcounts
    while True:
        host = _take_bytes_nowait(refcounts, length)
        if host:
            break
        await refcounts.prepare()
    for cluster in range(host & ~image.mask, host + length, image.cluster_size):
        image.metadata.locations.check(cluster, host, length)
    return host


def _take_bytes_nowait(refcounts: Refcounts, length: int) -> int:
    """As ``_take_bytes``; 0 if the counters are not in memory."""
    bits, tail = refcounts.cluster_bits, refcounts.tail
    room = -tail & (refcounts.cluster_size - 1)
    if room >= length and refcounts.share_nowait(tail >> bits):
        host = tail
    else:
        cluster, count = refcounts.find_nowait(1)
        if not count:
            return 0
        if (cluster + 1) << bits > 1 << offset_bits(bits):
            raise os_error(errno.EFBIG)  # more than an entry can name
        host = cluster << bits
        # Across the boundary, if the next cluster is free.
        if 0 < room < length and tail + room == host and refcounts.share_nowait(tail >> bits):
            host = tail
        refcounts.take_nowait(cluster, 1)
    end = host + length
    refcounts.tail = end if end & (refcounts.cluster_size - 1) else 0
    return host


async def _write_bytes(
    image: Image, places: Sequence[tuple[int, int]], packed: Sequence[bytes]
) -> None:
    """Write each of ``packed`` to its place, adjacent ones at once."""
    start = end = 0
    pieces: list[memoryview] = []
    for (host, length), data in zip(places, packed, strict=True):
        if host != end:
            if pieces:
                await image.file.pwritev(start, pieces)
            start, pieces = host, []
        pieces.append(memoryview(data))
        end = host + length
    await image.file.pwritev(start, pieces)
