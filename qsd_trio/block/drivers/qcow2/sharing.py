"""What active layer and snapshots share: counting an L1 table's references, and the COPIED flags.

An entry of the active tables has a COPIED flag if its reference is the only one, so that who writes need
not ask for the refcount.
"""

from __future__ import annotations

import errno
import logging
from array import array
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import trio

from qsd_trio.block.drivers.qcow2.check import STEP, read_words
from qsd_trio.block.drivers.qcow2.compressed import parse_entry
from qsd_trio.block.drivers.qcow2.imagefile import discard_file
from qsd_trio.block.drivers.qcow2.l2tables import L1_SECTOR
from qsd_trio.block.drivers.qcow2.layout import (
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    CorruptImageError,
    c_hex,
)
from qsd_trio.block.drivers.qcow2.writing import FREED_BY_SNAPSHOT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence

    from qsd_trio.block.drivers.qcow2.metadata import Metadata

log = logging.getLogger(__name__)

_ALL: Final = 1 << 64  # batches of references: more than there can be


# -- references ----------------------------------------------------------------------------------------


async def add_references(metadata: Metadata, l1: array[int]) -> None:
    """Count what another L1 table like this refers to. Cancelled or OSError: nothing is counted."""
    done = 0
    try:
        async with aclosing(_references(metadata, l1)) as batches:
            async for block, indices in batches:
                await metadata.make_room(0)
                await metadata.refcounts.add(block, indices, 1)
                done += 1
    except BaseException:
        await drop_references(metadata, l1, batches=done)
        raise


async def drop_references(metadata: Metadata, l1: array[int], *, batches: int = _ALL) -> None:
    """Take back what ``add_references`` counted, all or as many batches; runs to its end when cancelled.

    The table must be out of use on the disk: what is free then may be discarded at once.
    """
    with trio.CancelScope(shield=True):
        async with aclosing(_references(metadata, l1)) as references:
            async for block, indices in references:
                if not batches:
                    break
                batches -= 1
                await _drop(metadata, block, indices)


async def drop_region(metadata: Metadata, offset: int, length: int) -> None:
    """Take a reference from each cluster of a region, as ``drop_references`` does.

    What was free (the region was nobody's, then) stays so, as with QEMU.
    """
    bits = metadata.cluster_bits
    clusters = range(offset >> bits, (offset + length + metadata.cluster_size - 1) >> bits)
    with trio.CancelScope(shield=True):
        for block, indices in _by_block(clusters, metadata.refcounts.bits).items():
            try:
                await _drop(metadata, block, indices)
            except OSError as exc:
                if exc.errno != errno.EINVAL:
                    raise
                log.warning("qcow2: clusters at %#x+%#x are freed but were free", offset, length)


async def _drop(metadata: Metadata, block: int, indices: Sequence[int]) -> None:
    await metadata.make_room(0)
    freed = await metadata.refcounts.add(block, indices, -1)
    if freed and metadata.pass_discard[FREED_BY_SNAPSHOT]:
        end = metadata.file.getlength()
        for start, stop in _runs(freed):
            offset = start << metadata.cluster_bits
            length = min(stop << metadata.cluster_bits, end) - offset
            if length > 0:
                await discard_file(metadata.file, offset, length)


async def _references(
    metadata: Metadata, l1: array[int]
) -> AsyncGenerator[tuple[int, Sequence[int]]]:
    """Yield what L1 entries lead to, as (refcount block, indices there); a cluster may come again."""
    refcounts = metadata.refcounts
    count = metadata.cluster_size // 8
    for index, word in enumerate(l1):
        if not index % STEP:
            await trio.lowlevel.checkpoint()
        table = word & OFFSET_MASK
        if not table:
            continue
        if table & (metadata.cluster_size - 1):
            raise CorruptImageError(
                f"L2 table offset {table:#x} unaligned (L1 index: {c_hex(index)})", fatal=True
            )
        for start in range(0, count, STEP):
            entries = await read_words(metadata, table, start, count)
            if metadata.extended:
                entries, start = entries[::2], start // 2
            clusters = _clusters(metadata, entries, table, start)
            for block, indices in _by_block(clusters, refcounts.bits).items():
                yield block, indices
        # After what it holds: when it is free it may be discarded.
        number = table >> metadata.cluster_bits
        yield number >> refcounts.bits, [number & refcounts.mask]


def _clusters(metadata: Metadata, entries: array[int], table: int, first: int) -> list[int]:
    """Return the host clusters that L2 entries, ``first`` and on of a table, refer to."""
    bits, mask = metadata.cluster_bits, metadata.cluster_size - 1
    plain = [entry & OFFSET_MASK for entry in entries if entry and not entry & COMPRESSED]
    clusters = [host >> bits for host in plain if host]
    if any(host & mask for host in plain):
        for at, entry in enumerate(entries, first):
            host = entry & OFFSET_MASK
            if host & mask and not entry & COMPRESSED:
                raise CorruptImageError(
                    f"Cluster allocation offset {host:#x} unaligned"
                    f" (L2 offset: {table:#x}, L2 index: {c_hex(at)})",
                    fatal=True,
                )
    if len(plain) < len(entries):
        for entry in entries:
            if entry & COMPRESSED:
                offset, length = parse_entry(entry, bits)
                clusters.extend(range(offset >> bits, ((offset + length - 1) >> bits) + 1))
    return clusters


def _by_block(clusters: Iterable[int], bits: int) -> dict[int, list[int]]:
    """Sort clusters by refcount block: block number -> indices in the block."""
    mask = (1 << bits) - 1
    answer: dict[int, list[int]] = {}
    for cluster in clusters:
        answer.setdefault(cluster >> bits, []).append(cluster & mask)
    return answer


def _runs(clusters: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of the runs in a sorted list."""
    start = previous = clusters[0]
    for cluster in clusters[1:]:
        if cluster != previous + 1:
            yield start, previous + 1
            start = cluster
        previous = cluster
    yield start, previous + 1


# -- COPIED flags --------------------------------------------------------------------------------------


async def set_flags(metadata: Metadata) -> None:
    """Let each active entry have a COPIED flag if its reference is the only one, and only then."""
    await _walk_flags(metadata, clear=False)


async def clear_flags(metadata: Metadata) -> None:
    """Let no active entry have a COPIED flag: each cluster is about to get another reference."""
    await _walk_flags(metadata, clear=True)


async def _walk_flags(metadata: Metadata, *, clear: bool) -> None:
    for index in range(len(metadata.l1)):
        if not index % STEP:
            await trio.lowlevel.checkpoint()
        table = metadata.l2_offset(index)
        if not table:
            continue
        await metadata.make_room(0)
        refcount = await metadata.refcounts.get(table >> metadata.cluster_bits)
        own = not clear and refcount == 1
        if own or clear:  # else what its entries refer to is shared as well
            for number in metadata.slices_of(index):
                await _flag_slice(metadata, number, clear=clear)
        word = metadata.l1[index] & ~COPIED | (COPIED if own else 0)
        if word != metadata.l1[index]:
            metadata.l1[index] = word
            metadata.dirty_l1.add(index // L1_SECTOR)


async def _flag_slice(metadata: Metadata, number: int, *, clear: bool) -> None:
    entries = await metadata.slice(number)
    if entries is None:
        return
    flagged = array("Q", [entry & ~COPIED for entry in entries])
    if not clear:
        await _flag_own(metadata, flagged)
    entries = await metadata.slice(number)  # it may have left the cache
    if entries is not None and flagged != entries:
        entries[:] = flagged
        metadata.mark_l2(number, 0, len(flagged) - 1)
    await trio.lowlevel.checkpoint()


async def _flag_own(metadata: Metadata, entries: array[int]) -> None:
    """Set the flag of L2 entries whose cluster has a refcount of 1."""
    refcounts = metadata.refcounts
    bits, mask = metadata.cluster_bits, refcounts.mask
    places: dict[int, list[int]] = {}
    for at, entry in enumerate(entries):
        if entry & OFFSET_MASK and not entry & COMPRESSED:
            places.setdefault((entry & OFFSET_MASK) >> (bits + refcounts.bits), []).append(at)
    for number in sorted(places):
        await metadata.make_room(0)
        block = await refcounts.block(number)
        if block is None:
            continue
        for at in places[number]:
            if block.get((entries[at] & OFFSET_MASK) >> bits & mask) == 1:
                entries[at] |= COPIED
