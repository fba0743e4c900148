"""Clusters that lost a reference, until the disk has lost it too and nobody can be using them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, final

import attrs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from qsd_trio.block.drivers.qcow2.refcounts import Refcounts

log = logging.getLogger(__name__)


@final
@attrs.frozen
class Freed:
    """A cluster that lost a reference.

    Attributes:
        cluster: its number.
        epoch: the newest request that was under way.
        discard: whether to discard it in the file if that was the last reference.
    """

    cluster: int
    epoch: int
    discard: bool


@final
@attrs.define(eq=False)
class FreedClusters:
    """What waits for being free."""

    refcounts: Refcounts
    #: Discards (offset, length) in the file.
    discard: Callable[[int, int], Awaitable[None]]
    pending: list[Freed] = attrs.field(init=False, factory=list)
    #: Requests under way, the oldest first.
    _io: dict[int, None] = attrs.field(init=False, factory=dict)
    _epoch: int = attrs.field(init=False, default=0)

    def begin_io(self) -> int:
        """Keep clusters that are freed from now on from being used again until ``end_io``."""
        self._epoch += 1
        self._io[self._epoch] = None
        return self._epoch

    def end_io(self, token: int) -> None:
        """End what ``begin_io`` began."""
        del self._io[token]

    def add(self, offset: int, length: int, *, discard: bool) -> None:
        """Drop a reference to the clusters of a range."""
        bits = self.refcounts.cluster_bits
        for cluster in range(offset >> bits, ((offset + length - 1) >> bits) + 1):
            self.pending.append(Freed(cluster, self._epoch, discard))

    def take(self) -> list[Freed]:
        """Take those that no request under way can be using."""
        if not self._io:
            taken, self.pending = self.pending, []
            return taken
        oldest = next(iter(self._io))
        taken = [item for item in self.pending if item.epoch < oldest]
        self.pending = [item for item in self.pending if item.epoch >= oldest]
        return taken

    async def release(self, items: list[Freed]) -> None:
        """Lower the refcounts of ``items``, which the disk no longer refers to.

        The list empties: what is left of it after an error or a cancellation is not released.
        """
        refcounts = self.refcounts
        items.sort(key=lambda item: item.cluster, reverse=True)
        while items:
            number = items[-1].cluster >> refcounts.bits
            if await refcounts.block(number) is None:
                log.warning("qcow2: cluster %#x is freed but was free", items.pop().cluster)
                continue
            last = [items.pop()]
            while items and items[-1].cluster >> refcounts.bits == number:
                last.append(items.pop())
            if any(item.discard for item in last):
                # Still counted as used, so nobody writes to them meanwhile.
                try:
                    await self._discard(last)
                except BaseException:
                    items.extend(reversed(last))
                    raise
            if number not in refcounts.blocks:
                items.extend(reversed(last))
                continue
            for item in last:
                refcounts.decrement_nowait(item.cluster)

    async def _discard(self, items: list[Freed]) -> None:
        """Discard in the file those of ``items``, all of one cached block, that become free."""
        refcounts = self.refcounts
        block = refcounts.blocks[items[0].cluster >> refcounts.bits]
        doomed = [
            item.cluster
            for item in items
            if item.discard
            and block.get(item.cluster & refcounts.mask) == 1
            # There the next compressed cluster may be written meanwhile.
            and item.cluster != refcounts.tail >> refcounts.cluster_bits
        ]
        bits = refcounts.cluster_bits
        for first, count in runs(doomed):
            await self.discard(first << bits, count << bits)


def runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Return (first, count) of the runs in ascending numbers."""
    first = count = 0
    for number in numbers:
        if count and number == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count
