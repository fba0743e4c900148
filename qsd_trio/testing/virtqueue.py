"""The driver's side of a split virtqueue, as a guest's kernel has it. Pure; for tests of devices.

    ring = DriverRing(memory, offset=0, address=BASE, num=128)
    head = ring.add([(header, 16, False), (buffer, 4096, True), (status, 1, True)])
    if ring.publish():
        ...  # kick
    for head, length in ring.take():
        ...

Descriptors can be written as they are, too (``write_descriptor``, ``offer``): a hostile driver does that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from qsd_trio.protocol.virtio.queue import (
    DESCRIPTOR,
    INDIRECT,
    NEXT,
    USED_NO_NOTIFY,
    WRITE,
    ring_sizes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    #: Guest address, length, whether the device writes to it.
    Buffer = tuple[int, int, bool]

ALIGNMENT: Final = 64


@final
class DriverRing:
    """One queue in ``memory``, at ``offset``, which the guest has at ``address``."""

    def __init__(
        self, memory: memoryview, *, offset: int, address: int, num: int, event_idx: bool = False
    ) -> None:
        self.num = num
        self.event_idx = event_idx
        sizes = ring_sizes(num, event_idx)
        offsets: list[int] = []
        for size in sizes:
            offsets.append(offset)
            offset += (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        self.end = offset
        #: Guest addresses of descriptors, available ring, used ring.
        self.addresses = tuple(address - offsets[0] + each for each in offsets)
        self.parts = tuple(memory[at : at + size] for at, size in zip(offsets, sizes, strict=True))
        desc, avail, used = self.parts
        self._desc = desc
        self._avail = avail.cast("H")
        self._used = used[: 4 + 8 * num].cast("I")
        self._used_head = used[:4].cast("H")
        self._avail_event = used[4 + 8 * num :].cast("H")
        self.reset()

    def reset(self) -> None:
        """Begin anew, with zeroes in all rings."""
        for part in self.parts:
            part[:] = bytes(len(part))
        self._free = list(range(self.num))
        self._chains: dict[int, list[int]] = {}
        self._next_avail = 0
        self._published = 0
        self._last_used = 0

    def write_descriptor(
        self, index: int, address: int, length: int, flags: int = 0, following: int = 0
    ) -> None:
        """Write one descriptor."""
        DESCRIPTOR.pack_into(self._desc, 16 * index, address, length, flags, following)

    def offer(self, head: int) -> None:
        """Put ``head`` into the available ring; the device sees it after ``publish``."""
        self._avail[2 + self._next_avail % self.num] = head
        self._next_avail = self._next_avail + 1 & 0xFFFF

    def add(self, buffers: Sequence[Buffer]) -> int:
        """Offer a chain of descriptors and return its head. IndexError: too few are free."""
        chain = [self._free.pop() for _ in buffers]
        for position, (address, length, write) in enumerate(buffers):
            flags = WRITE if write else 0
            following = 0
            if position + 1 < len(chain):
                flags |= NEXT
                following = chain[position + 1]
            self.write_descriptor(chain[position], address, length, flags, following)
        self._chains[chain[0]] = chain
        self.offer(chain[0])
        return chain[0]

    def add_indirect(self, table: memoryview, address: int, buffers: Sequence[Buffer]) -> int:
        """Offer one descriptor for a table, written to ``table``, that the guest has at ``address``."""
        for position, (at, length, write) in enumerate(buffers):
            last = position + 1 == len(buffers)
            flags = (WRITE if write else 0) | (0 if last else NEXT)
            DESCRIPTOR.pack_into(
                table, 16 * position, at, length, flags, 0 if last else position + 1
            )
        head = self._free.pop()
        self.write_descriptor(head, address, 16 * len(buffers), INDIRECT)
        self._chains[head] = [head]
        self.offer(head)
        return head

    def publish(self) -> bool:
        """Show the device what was offered; return whether it wants to be told (kicked)."""
        old, new = self._published, self._next_avail
        self._avail[1] = new
        self._published = new
        if self.event_idx:
            return (new - self._avail_event[0] - 1 & 0xFFFF) < (new - old & 0xFFFF)
        return not self._used_head[0] & USED_NO_NOTIFY

    def set_index(self, index: int) -> None:
        """Write the available index as it is."""
        self._avail[1] = index & 0xFFFF
        self._next_avail = self._published = index & 0xFFFF

    def suppress_interrupts(self, suppressed: bool) -> None:
        """Set or clear VIRTQ_AVAIL_F_NO_INTERRUPT."""
        self._avail[0] = int(suppressed)

    @property
    def used_index(self) -> int:
        """How far the device is."""
        return self._used_head[1]

    def take(self) -> Iterable[tuple[int, int]]:
        """Return (head, length) of what the device has used since, and ask to be told of more."""
        done: list[tuple[int, int]] = []
        while self._last_used != self._used_head[1]:
            at = 1 + 2 * (self._last_used % self.num)
            head, length = self._used[at], self._used[at + 1]
            self._last_used = self._last_used + 1 & 0xFFFF
            self._free += self._chains.pop(head, [])
            done.append((head, length))
            if self.event_idx:
                self._avail[2 + self.num] = self._last_used
        return done
