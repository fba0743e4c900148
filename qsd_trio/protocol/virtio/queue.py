"""A split virtqueue, as the device sees it (virtio 1.2, 2.7).

The driver may write to its rings at any time: each field is read once, checked, and used as it was read.
Descriptors are looked at in ``pop`` only; what it returns are views of guest memory.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, final

from qsd_trio.protocol.virtio.memory import VirtqueueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd_trio.protocol.virtio.memory import GuestMemory

#: Pieces of memory of one request: preadv and pwritev take no more, and QEMU neither.
MAX_PIECES: Final = 1024

#: Entries of an indirect table that can be named: ``next`` has 16 bits.
MAX_TABLE: Final = 65536

#: The largest queue (virtio 1.2, 2.7).
MAX_SIZE: Final = 32768

DESCRIPTOR: Final = Struct("<QIHH")  # address, length, flags, next
NEXT, WRITE, INDIRECT = 1, 2, 4

TOO_MANY: Final = "virtio: too many descriptors in indirect table"

AVAIL_NO_INTERRUPT: Final = 1
USED_NO_NOTIFY: Final = 1

_unpack = DESCRIPTOR.unpack_from


def ring_sizes(num: int, event_idx: bool) -> tuple[int, int, int]:
    """Return the bytes of descriptor table, available ring and used ring."""
    event = 2 if event_idx else 0
    return 16 * num, 4 + 2 * num + event, 4 + 8 * num + event


@final
class Element:
    """A request: what the driver wrote, and where it wants the answer."""

    __slots__ = ("head", "readable", "writable")

    def __init__(self, head: int, readable: list[memoryview], writable: list[memoryview]) -> None:
        self.head = head
        self.readable = readable
        self.writable = writable


@final
class Virtqueue:
    """The device's side of one split ring.

    Args:
        memory: What descriptors point into.
        desc: The descriptor table, avail and used: the rings, of ``ring_sizes`` bytes.
        num: The queue's size. (The specification wants a power of two; real back-ends do not.)
        last_avail: The index in the available ring of the next request.
        used_index: The driver's view of how much has been used so far.
        event_idx: VIRTIO_F_EVENT_IDX was negotiated.
        notify_on_empty: VIRTIO_F_NOTIFY_ON_EMPTY was.
        barrier: A full memory barrier, see ``publish`` and ``enable_notifications``.
    """

    def __init__(
        self,
        memory: GuestMemory,
        desc: memoryview,
        avail: memoryview,
        used: memoryview,
        num: int,
        *,
        last_avail: int,
        used_index: int,
        event_idx: bool,
        notify_on_empty: bool,
        barrier: Callable[[], None],
    ) -> None:
        if not 1 <= num <= MAX_SIZE:
            raise ValueError("queue size")
        if (len(desc), len(avail), len(used)) != ring_sizes(num, event_idx):
            raise ValueError("sizes of the rings")
        self.num = num
        self.last_avail = last_avail
        self.used_index = used_index
        self.in_flight = 0
        self._memory = memory
        self._desc = desc
        self._avail = avail.cast("H")  # flags, idx, ring[num], used_event
        self._used = used[: 4 + 8 * num].cast("I")  # (flags, idx), then (id, length)[num]
        self._used_head = used[:4].cast("H")  # flags, idx
        self._avail_event = used[4 + 8 * num :].cast("H")
        self._event_idx = event_idx
        self._notify_on_empty = notify_on_empty
        self._barrier = barrier
        self._available = last_avail  # the driver's index when we last looked
        self._published = used_index
        self._notified_yet = False

    def pop(self) -> Element | None:
        """Return the next request, None if there is none yet. VirtqueueError: the queue is broken."""
        last = self.last_avail
        if last == self._available:
            self._look()
            if last == self._available:
                return None
        head = self._avail[2 + last % self.num]
        element = self.element(head)
        self.last_avail = last + 1 & 0xFFFF
        return element

    def skip_to(self, index: int) -> None:
        """Go on at ``index`` of the available ring (modulo 65536)."""
        self.last_avail = self._available = index & 0xFFFF

    def _look(self) -> None:
        available = self._avail[1]
        if available - self.last_avail & 0xFFFF > self.num:
            raise VirtqueueError(f"Guest moved used index from {self.last_avail} to {available}")
        self._available = available
        self._barrier()  # the index is read before what it stands for

    def element(self, head: int) -> Element:
        """Return the request whose first descriptor is ``head``: in flight from now on."""
        num = self.num
        if head >= num:
            raise VirtqueueError(f"Guest says index {head} is available")
        if self.in_flight >= num:
            raise VirtqueueError("Virtqueue size exceeded")
        memory = self._memory
        start, end, view = memory.window
        table, left = self._desc, num
        address, length, flags, index = _unpack(table, head * 16)
        if flags & INDIRECT:
            table, left = self._indirect(address, length)
            address, length, flags, index = _unpack(table, 0)
        size = left
        if left > MAX_PIECES:
            left = MAX_PIECES + 1
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        while True:
            if flags & WRITE:
                pieces = writable
            elif writable:
                raise VirtqueueError("Incorrect order for descriptors")
            else:
                pieces = readable
            if not length:
                raise VirtqueueError("virtio: zero sized buffers are not allowed")
            if start <= address and address + length <= end:
                address -= start
                pieces.append(view[address : address + length])
            else:
                pieces += memory.view(address, length, bool(flags & WRITE))
                start, end, view = memory.window
            if not flags & NEXT:
                break
            left -= 1
            if not left:
                if len(readable) + len(writable) > MAX_PIECES:
                    raise VirtqueueError(TOO_MANY)
                raise VirtqueueError("Looped descriptor")
            if index >= size:
                raise VirtqueueError(f"Desc next is {index}")
            address, length, flags, index = _unpack(table, index * 16)
        if len(readable) + len(writable) > MAX_PIECES:
            raise VirtqueueError(TOO_MANY)
        self.in_flight += 1
        return Element(head, readable, writable)

    def _indirect(self, address: int, length: int) -> tuple[memoryview, int]:
        """Return a table of descriptors elsewhere and how many it has."""
        if length % 16:
            raise VirtqueueError("Invalid size for indirect buffer table")
        if not length:
            raise VirtqueueError("Invalid indirect buffer table")
        size = length // 16
        start, end, view = self._memory.window
        if start <= address and address + length <= end:
            address -= start
            return view[address : address + length], min(size, MAX_TABLE)
        # A table in two regions is copied: of one that claims 4 GiB only what a request may use.
        try:
            pieces = self._memory.view(address, min(length, 16 * MAX_TABLE), write=False)
        except VirtqueueError:
            raise VirtqueueError("Invalid indirect buffer table") from None
        table = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        return table, min(size, MAX_TABLE)

    # -- answering -----------------------------------------------------------------------------------

    def push(self, head: int, length: int) -> None:
        """Put a request into the used ring; the driver sees it after ``publish``."""
        index = self.used_index
        at = 1 + 2 * (index % self.num)
        used = self._used
        used[at] = head
        used[at + 1] = length
        self.used_index = index + 1 & 0xFFFF
        self.in_flight -= 1

    def publish(self) -> bool:
        """Show the driver what was pushed; return whether it wants to be notified of that."""
        new, old = self.used_index, self._published
        if new == old:
            return False
        self._barrier()  # the entries are there before the index says so
        self._used_head[1] = new
        self._published = new
        # The driver stores used_event (or clears its flag) and then looks at the index; we store the index and then
        # look at used_event. If either's load went before its store, both could miss the other: no notification,
        # and a driver that waits for ever. (virtio 1.2, 2.7.13.4.1)
        self._barrier()
        if self._notify_on_empty and not self.in_flight and self._avail[1] == self.last_avail:
            return True
        if not self._event_idx:
            return not self._avail[0] & AVAIL_NO_INTERRUPT
        first, self._notified_yet = not self._notified_yet, True
        used_event = self._avail[2 + self.num]
        return first or (new - used_event - 1 & 0xFFFF) < (new - old & 0xFFFF)

    # -- being told ----------------------------------------------------------------------------------

    def has_more(self) -> bool:
        """Return whether ``pop`` has something to return."""
        return self.last_avail != self._available or self._avail[1] != self.last_avail

    def disable_notifications(self) -> None:
        """Tell the driver that it need not kick: the ring is looked at anyway."""
        if not self._event_idx:  # else the old avail_event stays, which the driver passes once
            self._used_head[0] = USED_NO_NOTIFY

    def enable_notifications(self) -> bool:
        """Ask for a kick at the next request; True: there is none yet, one may wait for the kick."""
        if self._event_idx:
            self._avail_event[0] = self.last_avail
        else:
            self._used_head[0] = 0
        # As in publish(): our wish is visible before we look for the last time.
        self._barrier()
        return not self.has_more()
