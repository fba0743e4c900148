"""The metadata contexts of the NBD export: from the graph's block status to NBD's extents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from qsd_trio.block.abc import StatusFlag
from qsd_trio.protocol.nbd.constants import State
from qsd_trio.protocol.nbd.negotiation import BASE_ALLOCATION

if TYPE_CHECKING:
    from qsd_trio.block.backend import BlockBackend

#: Descriptors in one reply. The client asks on from where they end.
MAX_DESCRIPTORS: Final = 16 * 1024

#: Questions to the graph for one reply, so that an image in tiny pieces does not keep it for minutes.
MAX_LOOKS: Final = 64 * 1024

#: Looks after which other tasks get their turn: the graph may answer all of them from memory.
LOOKS_PER_TURN: Final = 32

#: The longest descriptor without extended headers: 32 bits, kept a multiple of every block size in use.
MAX_LENGTH: Final = 2**32 - 64 * 1024


async def collect(
    backend: BlockBackend,
    context: str,
    offset: int,
    length: int,
    *,
    only_one: bool,
    extended: bool,
) -> list[tuple[int, int]]:
    """Return the (length, flags) of a range in a metadata context, at least one; may end early."""
    extents: list[tuple[int, int]] = []
    look = _allocation if context == BASE_ALLOCATION else _depth
    end = offset + length
    for turn in range(MAX_LOOKS):
        if offset == end:
            break
        if turn % LOOKS_PER_TURN == LOOKS_PER_TURN - 1:
            await trio.lowlevel.checkpoint()
        size, flags = await look(backend, offset, end - offset)
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


async def _allocation(backend: BlockBackend, offset: int, length: int) -> tuple[int, int]:
    status = await backend.block_status_above(offset, length)
    flags = 0 if status.flags & StatusFlag.DATA else State.HOLE
    if status.flags & StatusFlag.ZERO:
        flags |= State.ZERO
    return status.length, flags


async def _depth(backend: BlockBackend, offset: int, length: int) -> tuple[int, int]:
    depth, size = await backend.allocation_depth(offset, length)
    return size, depth
