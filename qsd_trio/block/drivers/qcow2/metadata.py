"""An image's tables in memory, and the order in which they reach the disk.

Writing changes tables in memory only. ``write_back`` writes them so that a crash between any two of its
writes leaves an image without errors (leaks at worst):

1. refcount blocks, then the refcount table entries that name new ones;
2. a barrier: guest data and refcounts are there before anything points at them;
3. L2 tables; a barrier; L1 entries that name new ones;
4. a barrier, and only then the refcounts of clusters that nothing refers to any more go down.

With lazy refcounts the dirty bit takes the place of steps 1 and 4: while it is set, refcounts stay in memory
until the image is closed, and who finds the bit set counts anew (repair.py). Step 2 is left out if the
guest data that wait go to places that are sure to be there and to read as what was there before.

Step 4 is also when such clusters can be used again: until then the disk still refers to them, and requests
that were under way when they were freed may still read or write them (``begin_io``).
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Final, final

import attrs
import trio

from qsd_trio.block.drivers.qcow2 import header as hdr
from qsd_trio.block.drivers.qcow2 import layout as lay
from qsd_trio.block.drivers.qcow2.freed import FreedClusters
from qsd_trio.block.drivers.qcow2.imagefile import discard_file, read_file
from qsd_trio.block.drivers.qcow2.l2tables import L1_SECTOR, L2Tables
from qsd_trio.block.drivers.qcow2.overlap import REFBLOCK
from qsd_trio.block.drivers.qcow2.refcounts import Refcounts, from_disk, to_disk
from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from qsd_trio.block.abc import Child
    from qsd_trio.block.drivers.qcow2.header import Header
    from qsd_trio.block.drivers.qcow2.snapshot_table import Entry

log = logging.getLogger(__name__)

#: Bytes of freed clusters that may wait for a flush before we write back by ourselves.
MAX_PENDING: Final = 64 << 20
#: Bytes by which the file is made longer at a time while refcounts are lazy.
LAZY_AHEAD: Final = 64 << 20


@final
@attrs.define(eq=False)
class Metadata(L2Tables):
    """The header, the L1 table, L2 tables, refcounts."""

    #: Where guest data are: ``file``, unless the image has an external data file.
    data: Child
    #: The snapshot table, and its bytes on disk (snapshots.load reads it).
    snapshots: list[Entry] = attrs.field(init=False, factory=list)
    snapshots_size: int = attrs.field(init=False, default=0)
    #: Whether clusters freed for a reason are discarded in the file: request, snapshot, other.
    pass_discard: tuple[bool, bool, bool] = attrs.field(init=False, default=(False, False, False))
    #: Whether a cluster that is discarded keeps its place.
    discard_no_unref: bool = attrs.field(init=False, default=False)
    _freed: FreedClusters = attrs.field(init=False)
    _write_lock: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _header_lock: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    #: Number of the last run of _write_back that began, and that succeeded.
    _started: int = attrs.field(init=False, default=0)
    _finished: int = attrs.field(init=False, default=0)
    #: Whether refcounts on the disk may be behind, under the dirty bit.
    lazy: bool = attrs.field(init=False, default=False)
    #: With lazy refcounts: the file's length that is sure to survive a crash; 0: nothing is sure.
    _ahead: int = attrs.field(init=False, default=0)

    @classmethod
    async def load(cls, file: Child, header: Header) -> Metadata:
        """Read the L1 and the refcount table. Their sizes were checked with the header.

        Where metadata is has to be noted then (overlap.locate).
        """
        cluster_bits = header.cluster_bits
        try:
            l1 = from_disk(await read_file(file, header.l1_table_offset, header.l1_size * 8))
        except OSError as exc:
            raise QmpError(f"Could not read L1 table: {exc.strerror}") from exc
        try:
            table = await read_file(
                file, header.refcount_table_offset, header.refcount_table_clusters << cluster_bits
            )
        except OSError as exc:
            raise QmpError(f"Could not initialize refcount handling: {exc.strerror}") from exc
        self = cls(file=file, header=header, data=file, l1=l1, l1_offset=header.l1_table_offset)

        async def read(offset: int, length: int) -> bytearray:
            return await read_file(file, offset, length)

        self.refcounts = Refcounts(
            file=file,
            cluster_bits=cluster_bits,
            order=header.refcount_order,
            table_offset=header.refcount_table_offset,
            table=from_disk(table),
            read=read,
            write_back=functools.partial(self.write_back, accurate=True),
            update_header=self.update_header,
            write_lock=self._write_lock,
            locations=self.locations,
            fresh_from=(file.getlength() + self.cluster_size - 1) >> cluster_bits,
        )
        self._freed = FreedClusters(self.refcounts, functools.partial(discard_file, file))
        return self

    # -- the header ----------------------------------------------------------------------------------

    async def update_header(self, change: Callable[[Header], Header]) -> None:
        """Put what ``change`` makes of the header on stable storage.

        A crash leaves the old or the new one (see header.rewrite). Nothing else that is cached is
        written: what the new header refers to must be there already. Cancelled: nothing has happened,
        or all of it. Failed: old or new on disk, the old one in memory, so that neither what the old
        nor what the new one refers to may be freed.
        """
        async with self._header_lock:
            with trio.CancelScope(shield=True):
                new, writes = hdr.rewrite(self.header, change(self.header))
                for offset, data in writes:
                    await self.file.pwritev(offset, [memoryview(data)])
                    await self.file.flush()
                self.header = new

    async def set_dirty_bit(self, value: bool) -> None:
        """Say on stable storage whether the refcounts there may be wrong."""

        def change(header: Header) -> Header:
            rest = header.incompatible & ~lay.INCOMPAT_DIRTY
            return attrs.evolve(header, incompatible=rest | (lay.INCOMPAT_DIRTY if value else 0))

        if bool(self.header.incompatible & lay.INCOMPAT_DIRTY) != value:
            await self.update_header(change)

    # -- freed clusters --------------------------------------------------------------------------------

    def begin_io(self) -> int:
        """Keep clusters that are freed from now on from being used again until ``end_io``."""
        return self._freed.begin_io()

    def end_io(self, token: int) -> None:
        """End what ``begin_io`` began."""
        self._freed.end_io(token)

    def free(self, offset: int, length: int, reason: int) -> None:
        """Drop a reference to the clusters of a range, once the disk no longer has it.

        ``reason`` is an index into ``pass_discard``: 0 a request, 1 a snapshot, 2 other.
        """
        self._freed.add(offset, length, discard=self.pass_discard[reason])

    @property
    def pending_bytes(self) -> int:
        """Bytes of clusters that wait to be free."""
        return len(self._freed.pending) << self.cluster_bits

    # -- writing back ------------------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """Whether the disk lacks something."""
        return bool(
            self.dirty_l2
            or self.dirty_l1
            or self._freed.pending
            or self.refcounts.dirty_blocks
            or self.refcounts.dirty_table
        )

    async def write_back(self, *, accurate: bool = False) -> None:
        """Write everything that was dirty when this was called; see the module's text for the order.

        Lazy refcounts are only written if they are to be ``accurate``. Nothing is on stable storage
        before the file is flushed. Cancelled or failed: what may not have been written is dirty again.
        """
        if not self.dirty and not self._write_lock.locked():
            return
        seen = self._started
        async with self._write_lock:
            if not self.dirty or (self._finished > seen and not (accurate and self.lazy)):
                return  # a run that began later did it for us
            lazily = self.lazy and not accurate and self._is_behind
            await self._write_back(lazily=lazily)

    async def make_clean(self) -> None:
        """Write everything, flush, and take the dirty bit away. Nobody may write meanwhile."""
        await self.write_back(accurate=True)
        end = self.refcounts.fresh_from << self.cluster_bits
        if self._ahead and self.file.getlength() > end:
            await self._set_file_length(end)
        self._ahead = 0
        if self.header.incompatible & lay.INCOMPAT_DIRTY:
            await self.file.flush()
            await self.set_dirty_bit(False)

    @property
    def _is_behind(self) -> bool:
        """Whether the refcounts on the disk are not those in memory, or need not be."""
        return bool(
            self.header.incompatible & lay.INCOMPAT_DIRTY
            or self.refcounts.dirty_blocks
            or self.refcounts.dirty_table
        )

    @property
    def would_be_dirty(self) -> bool:
        """Whether the dirty bit is set, or will be when something is written."""
        return bool(self.header.incompatible & lay.INCOMPAT_DIRTY) or (
            self.lazy and self._is_behind
        )

    async def _reach_ahead(self) -> None:
        """Make the file longer than what is in use, so that a crash cannot leave references beyond it."""
        end = (self.refcounts.fresh_from << self.cluster_bits) + LAZY_AHEAD
        if end > self.file.getlength():
            await self._set_file_length(end)
        self._ahead = self.file.getlength()

    async def _set_file_length(self, length: int) -> None:
        try:
            await self.file.truncate(length)
        except (OSError, QmpError) as exc:
            # A device, for one. Nothing is lost but time.
            log.debug("qcow2: cannot make the file %d bytes long: %s", length, exc)

    async def _write_back(self, *, lazily: bool) -> None:
        self._started = run = self._started + 1
        refcounts = self.refcounts
        # One instant: what is written hangs together, whatever changes while it is being written.
        blocks: dict[int, list[int]] = {}
        entries: set[int] = set()
        if not lazily:
            blocks, refcounts.dirty_blocks = refcounts.dirty_blocks, blocks
            entries, refcounts.dirty_table = refcounts.dirty_table, entries
        data_first, self._data_first = self._data_first or not lazily, False
        tables, self.dirty_l2 = self.dirty_l2, {}
        sectors, self.dirty_l1 = self.dirty_l1, set()
        frees = self._freed.take()
        self._writing_l2, refcounts.writing = tables, blocks
        try:
            block_writes = self._block_writes(blocks)
            entry_writes = [
                (refcounts.table_offset + number * 8, refcounts.table[number].to_bytes(8, "big"))
                for number in sorted(entries)
            ]
            table_writes = [
                self._slice_write(number, first, last)
                for number, (first, last) in sorted(tables.items())
            ]
            sector_writes = []
            for sector in sorted(sectors):
                data = to_disk(self.l1[sector * L1_SECTOR : (sector + 1) * L1_SECTOR])
                sector_writes.append((self.l1_offset + sector * L1_SECTOR * 8, data))
            if lazily and (table_writes or sector_writes):
                await self.set_dirty_bit(True)
                end = refcounts.fresh_from << self.cluster_bits
                if not end <= self._ahead <= self.file.getlength():
                    await self._reach_ahead()
                    data_first = True
            await self._write(block_writes)
            if entry_writes:
                if block_writes:
                    await self.file.flush()
                await self._write(entry_writes)
            if table_writes:
                if data_first:
                    if self.data is not self.file:
                        await self.data.flush()
                    await self.file.flush()
                await self._write(table_writes)
            if sector_writes:
                await self.file.flush()
                await self._write(sector_writes)
            released = bool(frees)
            if released:
                await self.file.flush()
                await self._freed.release(frees)
            if released and not lazily:
                freed, refcounts.dirty_blocks = refcounts.dirty_blocks, {}
                blocks = refcounts.writing = _merged(blocks, freed)
                await self._write(self._block_writes(freed))
        except BaseException:
            refcounts.dirty_blocks = _merged(blocks, refcounts.dirty_blocks)
            refcounts.dirty_table |= entries
            self.dirty_l2 = _merged(tables, self.dirty_l2)
            self.dirty_l1 |= sectors
            self._freed.pending += frees
            self._data_first |= data_first
            raise
        finally:
            self._writing_l2, refcounts.writing = {}, {}
        self._finished = run

    def _block_writes(self, blocks: dict[int, list[int]]) -> list[tuple[int, bytes]]:
        refcounts = self.refcounts
        writes = []
        for number, (first, last) in sorted(blocks.items()):
            offset = refcounts.table[number] & lay.REFTABLE_OFFSET_MASK
            self.locations.check(offset, offset, self.cluster_size, REFBLOCK)
            at, data = refcounts.blocks[number].to_bytes(first, last)
            writes.append((offset + at, data))
        return writes

    async def _write(self, writes: Iterable[tuple[int, bytes]]) -> None:
        for offset, data in writes:
            await self.file.pwritev(offset, [memoryview(data)])


def _merged(old: dict[int, list[int]], new: dict[int, list[int]]) -> dict[int, list[int]]:
    answer = {key: list(span) for key, span in old.items()}
    for key, (first, last) in new.items():
        span = answer.get(key)
        answer[key] = [first, last] if span is None else [min(span[0], first), max(span[1], last)]
    return answer
