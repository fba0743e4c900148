"""The in-flight log of one split virtqueue: what a back-end that was killed had begun and not finished.

It lies in memory that outlives the back-end (vhost-user specification, "Inflight I/O tracking"; libvduse has the same in a
file). The front-end can write there too: what is read from it is checked.

Layout: features Q, version H, desc_num H, last_batch_head H, used_idx H; then for each descriptor
inflight B, 5 unused, next H, counter Q. Native order.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, final

from qsd_trio.protocol.virtio.memory import VirtqueueError

if TYPE_CHECKING:
    from collections.abc import Sequence

ALIGNMENT: Final = 64
VERSION: Final = 1

_HEADER: Final = Struct("=QHHHH")
_COUNTER_LIMIT: Final = 1 << 64

# Where the fields are, in the log as an array of their type.
_FIRST_FLAG, _FLAG_STEP = 16, 16  # of bytes
_LAST_BATCH_HEAD, _USED_IDX, _FIRST_NEXT, _NEXT_STEP = 6, 7, 11, 8  # of 16 bits
_FIRST_COUNTER, _COUNTER_STEP = 3, 2  # of 64 bits


def log_size(num: int) -> int:
    """Return the bytes that the log of a queue of ``num`` descriptors takes."""
    size = _HEADER.size + 16 * num
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


@final
class InflightQueue:
    """The log of one queue. ``view`` is its part of the shared memory, of ``log_size(num)`` bytes."""

    def __init__(self, view: memoryview, num: int) -> None:
        """Raises VirtqueueError if what is there is the log of something else."""
        if len(view) < log_size(num):
            raise VirtqueueError("in-flight log too small")
        view = view[: log_size(num)]
        self._num = num
        self._flags = view
        self._shorts = view.cast("H")
        self._counters = view.cast("Q")
        self._counter = 0
        _, version, desc_num, _, _ = _HEADER.unpack_from(view)
        if version == 0:
            view[:] = bytes(len(view))
            _HEADER.pack_into(view, 0, 0, VERSION, num, 0, 0)
        elif version != VERSION or desc_num < num:
            raise VirtqueueError(f"in-flight log of version {version} for {desc_num} descriptors")

    def recover(self, used_index: int) -> list[int]:
        """Return the heads of the requests that were begun and not finished, in the order they came.

        ``used_index`` is the index in the used ring. VirtqueueError: the log contradicts itself.
        """
        num, shorts, flags = self._num, self._shorts, self._flags
        # The last batch may have reached the used ring without the log having heard of it.
        missed = used_index - shorts[_USED_IDX] & 0xFFFF
        if missed > num:
            raise VirtqueueError("in-flight log does not belong to the used ring")
        head = shorts[_LAST_BATCH_HEAD]
        for _ in range(missed):
            if head >= num:
                raise VirtqueueError(f"in-flight log names descriptor {head}")
            flags[_FIRST_FLAG + _FLAG_STEP * head] = 0
            head = shorts[_FIRST_NEXT + _NEXT_STEP * head]
        shorts[_USED_IDX] = used_index
        marks = bytes(flags[_FIRST_FLAG : _FIRST_FLAG + _FLAG_STEP * num : _FLAG_STEP])
        if marks.count(0) + marks.count(1) != num:
            raise VirtqueueError("in-flight log has marks other than 0 and 1")
        found: list[tuple[int, int]] = []
        head = marks.find(1)
        while head >= 0:
            found.append((self._counters[_FIRST_COUNTER + _COUNTER_STEP * head], head))
            head = marks.find(1, head + 1)
        found.sort()
        self._counter = (found[-1][0] + 1) % _COUNTER_LIMIT if found else 0
        return [head for _, head in found]

    def begin(self, head: int) -> None:
        """Note that the request ``head`` (below ``num``) was taken from the available ring."""
        self._counters[_FIRST_COUNTER + _COUNTER_STEP * head] = self._counter
        self._counter = (self._counter + 1) % _COUNTER_LIMIT
        self._flags[_FIRST_FLAG + _FLAG_STEP * head] = 1

    def finish(self, heads: Sequence[int]) -> None:
        """Note the batch that is about to become visible in the used ring."""
        shorts = self._shorts
        before = shorts[_LAST_BATCH_HEAD]
        for head in heads:
            shorts[_FIRST_NEXT + _NEXT_STEP * head] = before
            before = head
        shorts[_LAST_BATCH_HEAD] = before

    def finished(self, heads: Sequence[int], used_index: int) -> None:
        """Note that the batch is visible: the used ring's index is ``used_index`` now."""
        for head in heads:
            self._flags[_FIRST_FLAG + _FLAG_STEP * head] = 0
        self._shorts[_USED_IDX] = used_index

    def clear(self) -> None:
        """Forget everything: the device was reset."""
        view = self._flags
        view[:] = bytes(len(view))
        _HEADER.pack_into(view, 0, 0, VERSION, self._num, 0, 0)
        self._counter = 0
