"""Guest memory: from a guest's address to the bytes of a shared mapping."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable

    #: First address, the one after the last, and the bytes between them.
    Window: TypeAlias = tuple[int, int, memoryview]

#: An address must fit into 64 bits.
ADDRESS_LIMIT: Final = 1 << 64

#: The window of a memory that has none.
NO_WINDOW: Final = (0, 0, memoryview(b""))


@final
class VirtqueueError(Exception):
    """A driver's queue is broken: it is not served any more. The text is the one QEMU prints."""


class GuestMemory(Protocol):
    """What a virtqueue needs of its guest's memory."""

    #: A readable and writable part that most addresses are in: these need no call.
    window: Window

    def view(self, address: int, length: int, write: bool) -> list[memoryview]:
        """Return the pieces that make up ``length`` > 0 bytes from the guest's ``address``.

        Raises VirtqueueError if a part of them is not mapped, or not to be written to.
        """
        ...


@final
@attrs.frozen(kw_only=True, eq=False)
class Region:
    """A contiguous part of guest memory. ``user_address`` is where the front-end has it."""

    guest_address: int
    user_address: int
    view: memoryview

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return len(self.view)


@final
class RegionMemory:
    """Guest memory made of regions. Immutable: another memory table is another object."""

    def __init__(self, regions: Iterable[Region] = ()) -> None:
        """Raises ValueError if regions are empty, overlap, or do not fit into 64 bits."""
        self.regions = tuple(sorted(regions, key=lambda region: region.guest_address))
        self._starts = [region.guest_address for region in self.regions]
        end = 0
        for region in self.regions:
            if not region.size:
                raise ValueError("empty memory region")
            if region.guest_address < end:
                raise ValueError("overlapping memory regions")
            end = region.guest_address + region.size
            if max(end, region.user_address + region.size) > ADDRESS_LIMIT:
                raise ValueError("memory region beyond 64 bits")
        self.window: Window = NO_WINDOW

    def view(self, address: int, length: int, write: bool) -> list[memoryview]:
        """See GuestMemory. A buffer may run on into the next region, if there is no gap."""
        del write  # all of it is
        pieces: list[memoryview] = []
        index = bisect_right(self._starts, address) - 1
        while length:
            if not 0 <= index < len(self.regions):
                raise VirtqueueError("virtio: invalid address for buffers")
            region = self.regions[index]
            at = address - region.guest_address
            piece = region.view[at : at + length]
            if at < 0 or not piece:
                raise VirtqueueError("virtio: invalid address for buffers")
            pieces.append(piece)
            address += len(piece)
            length -= len(piece)
            index += 1
        # The next address is probably near.
        self.window = (region.guest_address, region.guest_address + region.size, region.view)
        return pieces

    def at_user_address(self, address: int, length: int) -> memoryview | None:
        """Return what the front-end has at its ``address``; None if that is not in one region."""
        for region in self.regions:
            at = address - region.user_address
            if at >= 0 and at + length <= region.size:
                return region.view[at : at + length]
        return None
