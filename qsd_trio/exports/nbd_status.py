"""The metadata contexts of the NBD export: from block status and dirty bitmaps to NBD's extents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from qsd_trio.block.abc import StatusFlag
from qsd_trio.protocol.nbd.constants import State
from qsd_trio.protocol.nbd.negotiation import BASE_ALLOCATION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qsd_trio.block.backend import BlockBackend
    from qsd_trio.block.dirty_bitmaps import DirtyBitmap

    #: Returns (length, flags) of the first bytes of a range (offset, length).
    Look: TypeAlias = Callable[[int, int], Awaitable[tuple[int, int]]]

#: Descriptors in one reply. The client asks on from where they end.
MAX_DESCRIPTORS: Final = 16 * 1024

#: Questions to the graph for one reply, so that an image in tiny pieces does not keep it for minutes.
MAX_LOOKS: Final = 64 * 1024

#: Looks after which other tasks get their turn: the graph may answer all of them from memory.
LOOKS_PER_TURN: Final = 32

#: The longest descriptor without extended headers: 32 bits, kept a multiple of every block size in use.
MAX_LENGTH: Final = 2**32 - 64 * 1024


def look_for(backend: BlockBackend, context: str, bitmap: DirtyBitmap | None) -> Look:
    """Return what answers for a metadata context; ``bitmap`` is the one it shows, if it does."""

    async def allocation(offset: int, length: int) -> tuple[int, int]:
        status = await backend.block_status_above(offset, length)
        flags = 0 if status.flags & StatusFlag.DATA else State.HOLE
        if status.flags & StatusFlag.ZERO:
            flags |= State.ZERO
        return status.length, flags

    async def depth(offset: int, length: int) -> tuple[int, int]:
        layer, size = await backend.allocation_depth(offset, length)
        return size, layer

    async def dirty(offset: int, length: int) -> tuple[int, int]:
        assert bitmap is not None
        end = offset + length
        start = bitmap.next_dirty(offset, end)
        if start > offset:
            return start - offset, 0
        return bitmap.next_clean(offset, end) - offset, State.DIRTY

    if bitmap is not None:
        return dirty
    return allocation if context == BASE_ALLOCATION else depth


async def collect(
    look: Look,
    offset: int,
    length: int,
    *,
    only_one: bool,
    extended: bool,
) -> list[tuple[int, int]]:
    """Return the (length, flags) of a range in a metadata context, at least one; may end early."""
    extents: list[tuple[int, int]] = []
    end = offset + length
    for turn in range(MAX_LOOKS):
        if offset == end:
            break
        if turn % LOOKS_PER_TURN == LOOKS_PER_TURN - 1:
            await trio.lowlevel.checkpoint()
        size, flags = await look(offset, end - offset)
        offset += size
        if extents and extents[-1][1] == flags:
            size += extents.pop()[0]
        elif len(extents) == (1 if only_one else MAX_DESCRIPTORS):
            break
        if size > MAX_LENGTH and not extended:
            extents.append((MAX_LENGTH, flags))
            break
        extents.append((size, flags))
    return extents
