"""The books of a guest: which requests it made, and so what each sector may hold, also after a crash.

Each write fills its sectors with a ``stamp`` of its own, so that what is read tells whose it is. The clock is the
journal of the disks below (testing/recorder.py):

    guest = Guest(disk.journal, sectors=200)
    request = guest.begin(first, count, number)
    await write(node, first * SECTOR, stamp(number) * count)
    guest.end(request)
    ...
    guest.check_crash(crash.position, content)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import attrs

from qsd_trio.block.abc import SECTOR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsd_trio.testing.recorder import Journal

MIXED = -1


def stamp(number: int) -> bytes:
    """Return a sector that tells which request it is of; 0: zeroes."""
    return number.to_bytes(8, "little") * (SECTOR // 8)


def stamps(data: bytes) -> list[int]:
    """Return the number of each sector; one that is no stamp is MIXED."""
    answer = []
    for at in range(0, len(data), SECTOR):
        sector = data[at : at + SECTOR]
        number = int.from_bytes(sector[:8], "little")
        answer.append(number if sector == stamp(number) else MIXED)
    return answer


@final
@attrs.define(eq=False)
class Request:
    """A change of sectors (or of the size, which is ``number`` then): positions of begin and end."""

    number: int
    begun: int
    ended: int | None = None
    #: False: it may have come to nothing, or to a part (cancelled; a discard).
    sure: bool = True


@final
class Guest:
    """What a guest did to a disk of sectors."""

    def __init__(self, journal: Journal, sectors: int, below: Sequence[int] = ()) -> None:
        """Begin with zeroes, or the stamps ``below`` where a backing file shows through."""
        start = journal.now()
        self.journal = journal
        self.sectors = sectors
        self._below = below
        self._cells: list[list[Request]] = []
        self._sizes = [Request(sectors, start, start)]
        self._flushes: list[tuple[int, int]] = []  # (begun, ended)
        self._start = start
        self._extend(sectors)

    def _extend(self, sectors: int) -> None:
        for at in range(len(self._cells), sectors):
            number = self._below[at] if at < len(self._below) else 0
            self._cells.append([Request(number, self._start, self._start)])

    # -- requests ------------------------------------------------------------------------------------

    def begin(self, first: int, count: int, number: int, *, sure: bool = True) -> Request:
        """Note that a request for sectors begins that leaves ``number`` there."""
        request = Request(number, self.journal.now(), sure=sure)
        for cell in self._cells[first : first + count]:
            cell.append(request)
        return request

    def end(self, request: Request, *, sure: bool | None = None) -> None:
        """Note that it has returned; not ``sure``: cancelled or failed."""
        request.ended = self.journal.now()
        if sure is not None:
            request.sure = sure

    def begin_resize(self, sectors: int) -> tuple[Request, ...]:
        """Note that a resize begins: what it cuts off is zeroes when it comes back.

        Until it is done what is below may show where it cuts: nobody who asks for that cares.
        """
        self._extend(sectors)
        resize = Request(sectors, self.journal.now())
        self._sizes.append(resize)
        cut = len(self._cells) - sectors
        shown = [
            self.begin(at, 1, self._below[at], sure=False)
            for at in range(sectors, min(len(self._cells), len(self._below)))
        ]
        for request in shown:
            request.ended = request.begun
        return resize, self.begin(sectors, cut, 0)

    def end_resize(self, requests: tuple[Request, ...]) -> None:
        """Note that it has returned."""
        for request in requests:
            self.end(request)
        self.sectors = requests[0].number

    def flushed(self, begun: int) -> None:
        """Note that a flush has returned that began at ``begun``."""
        self._flushes.append((begun, self.journal.now()))

    # -- what may be there ---------------------------------------------------------------------------

    def may_read(self, sector: int, begun: int, ended: int) -> set[int]:
        """Return what a read between two positions may find."""
        return _possible(self._cells[sector], begun, ended)

    def check_read(self, first: int, data: bytes, begun: int) -> None:
        """Check what a read returned just now that began at ``begun``; AssertionError."""
        ended = self.journal.now()
        for sector, number in enumerate(stamps(data), first):
            may = self.may_read(sector, begun, ended)
            assert number in may, f"sector {sector} reads as {number}, not one of {sorted(may)}"

    def check_crash(self, position: int, content: bytes) -> None:
        """Check what is read after a crash at ``position``; AssertionError.

        What a flush covered that had returned must be there, or something newer.
        """
        covered = max((begun for begun, ended in self._flushes if ended <= position), default=0)
        sizes = _possible(self._sizes, covered, position)
        assert len(content) // SECTOR in sizes, f"{len(content) // SECTOR} sectors, not {sizes}"
        for sector, number in enumerate(stamps(content)):
            if number not in (may := _possible(self._cells[sector], covered, position)):
                raise AssertionError(
                    f"crash at {position}, flushed up to {covered}: sector {sector} holds {number},"
                    f" not one of {sorted(may)}"
                )


def _possible(cell: list[Request], sure_before: int, until: int) -> set[int]:
    """Return the numbers of requests begun before ``until`` that none overwrote before ``sure_before``."""
    newest = -1
    for request in cell:
        if request.sure and request.ended is not None and request.ended <= sure_before:
            newest = max(newest, request.begun)
    return {
        request.number
        for request in cell
        if request.begun < until and (request.ended is None or request.ended >= newest)
    }
