"""Disks that record what is done to them, and what a crash at any moment could leave of it.

A driver's crash test puts a ``RecordingDisk`` below the driver, makes requests, and then looks at images:

    disk = RecordingDisk(image)
    async with opened(Qcow2, options, {"file": node_over(disk)}) as node:
        ...
    for crash in disk.journal.crashes(random.Random(1)):
        check(crash.images[0])

The disk is a usual one with a volatile cache: a flush makes stable what had returned before the flush began.
Of everything else a crash leaves any part, in sectors of 512 bytes, whatever the order of the requests. Disks
that share a journal crash together, but a flush of one says nothing of the others.

``Guest`` keeps the books of the layer above: what each sector may hold then.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, TypeAlias, final

import attrs
import trio

from qsd_trio.block.abc import SECTOR, BlockStatus, Limits, ProtocolDriver, ReqFlag, StatusFlag
from qsd_trio.block.extentfile import BufferedFile
from qsd_trio.errors import QmpError, os_error

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from typing import Self

    from qsd_trio.block.abc import Extents, Iov, Opener
    from qsd_trio.untyped import Options

DEFAULT_MAX_LENGTH: Final = 1 << 28  # as a file system has a longest file


@final
@attrs.define(eq=False)
class Write:
    """Bytes that were written; ``data`` of None: ``length`` zeroes (a discard is one too)."""

    disk: int
    offset: int
    length: int
    data: bytes | None
    #: Position in the journal when the request returned; None: it has not.
    ended: int | None = None


@final
@attrs.define(eq=False)
class Truncate:
    """A change of the disk's length."""

    disk: int
    size: int
    ended: int | None = None


@final
@attrs.frozen
class Flush:
    """The end of a flush that began at position ``begun``."""

    disk: int
    begun: int


Change: TypeAlias = Write | Truncate


@final
@attrs.frozen(kw_only=True)
class Crash:
    """What is on the disks, in the order of their making, after a crash right before ``position``."""

    position: int
    images: tuple[bytes, ...]


@final
class Journal:
    """The requests to one or several disks in the order in which they took effect.

    Positions in it serve as a clock for who keeps books besides.
    """

    def __init__(self) -> None:
        """Begin an empty one."""
        self.entries: list[Change | Flush | None] = []
        self._initial: list[bytes] = []

    def add_disk(self, content: bytes) -> int:
        """Return the number of a new disk."""
        self._initial.append(content)
        return len(self._initial) - 1

    def now(self) -> int:
        """Return a position that nothing else has."""
        self.entries.append(None)
        return len(self.entries) - 1

    @property
    def changes(self) -> list[Change]:
        """The recorded writes, discards and truncations."""
        return [entry for entry in self.entries if isinstance(entry, Write | Truncate)]

    def crashes(self, rng: random.Random, count: int | None = None) -> Iterator[Crash]:
        """Give images that crashes could have left, in the order of time.

        There is one after each recorded request, or ``count`` in all, evenly chosen among these moments.
        """
        moments = [at + 1 for at, entry in enumerate(self.entries) if entry is not None]
        if count is not None and moments:
            whole, rest = divmod(count, len(moments))
            moments = sorted(moments * whole + rng.sample(moments, rest))
        disks = [_Disk(number, content) for number, content in enumerate(self._initial)]
        done = 0
        for moment in moments:
            for entry in self.entries[done:moment]:
                if entry is not None:
                    disks[entry.disk].apply(entry)
            done = moment
            yield Crash(position=moment, images=tuple(disk.crash(rng) for disk in disks))


@final
class _Disk:
    """What of a disk is stable, and what is not."""

    def __init__(self, number: int, content: bytes) -> None:
        self.number = number
        self.stable = bytearray(content)
        self.pending: list[Change] = []

    def apply(self, entry: Change | Flush) -> None:
        if not isinstance(entry, Flush):
            self.pending.append(entry)
            return
        stable: list[Change] = []
        rest: list[Change] = []
        # The later first: what they overwrote cannot come back, even if it had not returned.
        for change in reversed(self.pending):
            covered = change.ended is not None and change.ended < entry.begun
            if covered or any(_overlap(change, other) for other in stable):
                stable.append(change)
            else:
                rest.append(change)
        self.pending = rest[::-1]
        for change in reversed(stable):
            _put(self.stable, change)

    def crash(self, rng: random.Random) -> bytes:
        """Return the stable content with some of the rest: all, none, whole requests or torn ones."""
        data = bytearray(self.stable)
        pending = self.pending
        if not pending:
            return bytes(data)
        share = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        how = rng.choice(["sectors", "sectors", "requests", "all but one", "only one"])
        special = rng.randrange(len(pending))
        for number, change in enumerate(pending):
            if how == "sectors" and isinstance(change, Write):
                for first, last in _runs(rng, change, share):
                    _put(data, change, first, last)
            elif how in ("sectors", "requests"):
                if rng.random() < share:
                    _put(data, change)
            elif (number == special) == (how == "only one"):
                _put(data, change)
        return bytes(data)


def _runs(rng: random.Random, change: Write, share: float) -> Iterator[tuple[int, int]]:
    """Give the (start, end) of the sectors of a write that reach the disk, about a ``share`` of them."""
    end = change.offset + change.length
    at = change.offset
    while at < end:
        next_ = min(end, (at // SECTOR + 1) * SECTOR)
        if rng.random() < share:
            yield at, next_
        at = next_


def _overlap(one: Change, two: Change) -> bool:
    """Say whether the order of two changes matters."""
    if isinstance(one, Truncate) or isinstance(two, Truncate):
        return True
    return one.offset < two.offset + two.length and two.offset < one.offset + one.length


def _put(data: bytearray, change: Change, start: int | None = None, end: int = 0) -> None:
    """Let a change, or the bytes ``start`` to ``end`` of a write, take effect."""
    if isinstance(change, Truncate):
        del data[change.size :]
        data += bytes(change.size - len(data))
        return
    if start is None:
        start, end = change.offset, change.offset + change.length
    if change.data is None:
        end = max(start, min(end, len(data)))  # zeroes beyond the end are there already
        data[start:end] = bytes(end - start)
        return
    data += bytes(max(0, start - len(data)))
    data[start:end] = change.data[start - change.offset : end - change.offset]


@final
class _RecordedFile(BufferedFile):
    """What extents of a ``RecordingDisk`` point to."""

    def __init__(self, disk: RecordingDisk) -> None:
        self._disk = disk

    @property
    def can_write_now(self) -> bool:
        return self._disk.fast_writes

    def write_now(self, iov: Iov, offset: int) -> bool:
        if not self._disk.fast_writes:
            return False
        self._disk.store(offset, b"".join(iov))
        return True

    def read_now(self, iov: Iov, offset: int) -> int:
        count = 0
        for piece in iov:
            part = self._disk.data[offset + count : offset + count + len(piece)]
            piece[: len(part)] = part
            count += len(part)
        return count


@final
class RecordingDisk(ProtocolDriver):
    """A disk in memory that writes down in a journal what changes it.

    With an ``rng`` its requests take a random number of turns of the loop. ``fast`` and ``fast_writes`` say whether
    it answers ``map_read`` and ``map_write``, and whether extents take writes. ``on_write`` is called
    after each change.
    """

    format_name = "memory"

    def __init__(
        self,
        content: bytes = b"",
        rng: random.Random | None = None,
        journal: Journal | None = None,
        *,
        max_length: int = DEFAULT_MAX_LENGTH,
    ) -> None:
        """Hold ``content``; a write beyond ``max_length`` fails with EFBIG."""
        self.data = bytearray(content)
        self.journal = Journal() if journal is None else journal
        self.number = self.journal.add_disk(bytes(content))
        self.rng = rng
        self.max_length = max_length
        self.host = _RecordedFile(self)
        self.fast = True
        self.fast_writes = True
        self.flushes = 0
        self.discarded: list[tuple[int, int]] = []
        self.on_write: Callable[[], None] | None = None

    @classmethod
    async def open(cls, opener: Opener, options: Options) -> Self:
        """Not by options: make one and attach it."""
        raise QmpError("a recording disk has no options")

    async def aclose(self) -> None:
        """Hold nothing, release nothing."""

    def getlength(self) -> int:
        """Return the length."""
        return len(self.data)

    def limits(self) -> Limits:
        """Take all there is."""
        return Limits(
            can_discard=True,
            can_write_zeroes=True,
            zero_flags=ReqFlag.MAY_UNMAP | ReqFlag.NO_FALLBACK,
        )

    def has_zero_init(self) -> bool:
        """Read as zeroes where nothing was written."""
        return True

    # -- changes -------------------------------------------------------------------------------------

    def store(self, offset: int, data: bytes) -> None:
        """Write at once."""
        self._ended(self._change(offset, len(data), data))

    def _change(self, offset: int, length: int, data: bytes | None) -> Write:
        if offset + length > self.max_length:
            raise os_error(errno.EFBIG)
        change = Write(self.number, offset, length, data)
        _put(self.data, change)
        self._record(change)
        return change

    def _record(self, change: Change) -> None:
        self.journal.entries.append(change)
        if self.on_write is not None:
            self.on_write()

    def _ended(self, change: Change) -> None:
        change.ended = self.journal.now()

    async def _pause(self) -> None:
        if self.rng is not None:
            for _ in range(self.rng.randrange(3)):
                await trio.lowlevel.checkpoint()

    # -- requests ------------------------------------------------------------------------------------

    def map_read(self, offset: int, length: int) -> Extents | None:
        """Point at ourselves."""
        return ((self.host, offset, length),) if self.fast else None

    def map_write(self, offset: int, length: int) -> Extents | None:
        """Point at ourselves."""
        return ((self.host, offset, length),) if self.fast else None

    async def preadv(self, offset: int, iov: Iov) -> None:
        """Read."""
        await self._pause()
        for piece in iov:
            part = self.data[offset : offset + len(piece)]
            piece[:] = part + bytes(len(piece) - len(part))
            offset += len(piece)

    async def pwritev(self, offset: int, iov: Iov, flags: ReqFlag) -> None:
        """Write; until it has returned no flush covers it."""
        data = b"".join(iov)
        await self._pause()
        change = self._change(offset, len(data), data)
        await self._pause()
        self._ended(change)

    async def pwrite_zeroes(self, offset: int, length: int, flags: ReqFlag) -> None:
        """Zero; beyond the end the disk grows."""
        await self._pause()
        if offset + length > len(self.data):
            self._ended(self._truncate(offset + length))
        change = self._change(offset, length, None)
        await self._pause()
        self._ended(change)

    async def pdiscard(self, offset: int, length: int) -> None:
        """Zero what there is of the range."""
        await self._pause()
        self.discarded.append((offset, length))
        change = self._change(offset, min(length, len(self.data) - offset), None)
        await self._pause()
        self._ended(change)

    async def flush(self) -> None:
        """Make stable what had returned before."""
        begun = self.journal.now()
        await self._pause()
        self.flushes += 1
        self.journal.entries.append(Flush(self.number, begun))

    async def block_status(self, offset: int, length: int, *, want_zero: bool) -> BlockStatus:
        """Say that all of it is data."""
        return BlockStatus(StatusFlag.DATA | StatusFlag.ALLOCATED, length)

    async def truncate(self, size: int, *, exact: bool, prealloc: str, flags: ReqFlag) -> None:
        """Cut or grow."""
        await self._pause()
        change = self._truncate(size)
        await self._pause()
        self._ended(change)

    def _truncate(self, size: int) -> Truncate:
        if size > self.max_length:
            raise os_error(errno.EFBIG)
        change = Truncate(self.number, size)
        _put(self.data, change)
        self._record(change)
        return change
