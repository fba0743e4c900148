"""The one gate before all drivers.

A ``Node`` is a driver in the graph, and every request to the driver passes through it: range and
read-only checks, padding to the driver's alignment, splitting at its limits, emulation of what it lacks
(zeroes by writes, FUA by flush), detect-zeroes, the write threshold, the order of overlapping requests.

The fast path (``map_read``, ``map_write``) is synchronous: the gate only has to say when it must not be
taken. It keeps those reasons in one counter, so that asking costs one comparison. Dirty bitmaps are no such
reason: they are marked at once, as asking means writing.
"""

from __future__ import annotations

import errno
import mmap
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, final

import attrs
import trio

from qsd_trio.block.abc import (
    SECTOR,
    BlockStatus,
    ChildRole,
    Limits,
    Perm,
    ReqFlag,
    StatusFlag,
)
from qsd_trio.block.dirty_bitmaps import DirtyBitmaps
from qsd_trio.block.serialising import Serialised
from qsd_trio.errors import QmpError, os_error
from qsd_trio.iov import (
    CHUNK,
    ZEROES,
    iov_fill,
    iov_gather,
    iov_is_zero,
    iov_size,
    iov_slice,
    iov_zero,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from qsd_trio.block.abc import BlockDriver, Extents, Iov
    from qsd_trio.block.options import NodeFlags
    from qsd_trio.events import EventBus
    from qsd_trio.untyped import Json, Options

MAX_LENGTH = 2**63 - 2**30  # QEMU's BDRV_MAX_LENGTH
BOUNCE = CHUNK  # bytes written at a time where zeroes are emulated


@final
class Node:
    """A block node: a driver, its edges, and the gate through which requests reach it."""

    def __init__(
        self,
        node_name: str,
        driver_name: str,
        flags: NodeFlags,
        events: EventBus,
        bitmaps: DirtyBitmaps | None = None,
    ) -> None:
        self.node_name = node_name
        self.driver_name = driver_name
        self.flags = flags
        self.children: list[Edge] = []
        self.parents: list[Edge] = []  # edges of others that point here, oldest first
        self.monitor_owned = False
        self.inherits_from: Node | None = None
        self.options: Options = None  # the generated BlockdevOptions branch it was opened with
        self.generic: dict[str, Json] = {}  # generic options set here or inherited
        self.cumulative = (Perm.NONE, Perm.ALL)
        self.write_threshold = 0
        self.wr_highest_offset = 0
        self.on_resize: list[Callable[[], None]] = []
        self._events = events
        self._driver: BlockDriver | None = None
        self._length = 0
        # Neither wr_highest_offset nor _length is below; stays 0 while bitmaps record, so that no write
        # of the fast path passes them by.
        self._reached = 0
        self.bitmaps = DirtyBitmaps() if bitmaps is None else bitmaps
        self.bitmaps.on_change = self._bitmaps_changed
        self._recording = self.bitmaps.recording
        self._limits = Limits()
        self._simple_reads = True
        self._slow_writes = 1  # reasons why map_write must answer None
        self._dirty = False  # written since the last flush began
        self._flushing = 0
        self._serialised = Serialised()

    def __repr__(self) -> str:
        return f"<Node {self.node_name} ({self.driver_name})>"

    # -- life ----------------------------------------------------------------------------------------

    @property
    def driver(self) -> BlockDriver:
        """The node's driver."""
        if self._driver is None:
            raise RuntimeError(f"node {self.node_name} is not open")
        return self._driver

    @property
    def is_open(self) -> bool:
        """Whether the driver is there."""
        return self._driver is not None

    @property
    def read_only(self) -> bool:
        """Whether the node refuses writes."""
        return self.flags.read_only

    def attach_driver(self, driver: BlockDriver) -> None:
        """Put the opened driver in its place."""
        self._driver = driver
        self.refresh()

    def detach_driver(self) -> None:
        """Take the driver away: the node is closing."""
        self._driver = None

    def refresh(self) -> None:
        """Take over length, limits and options from driver and flags after a change of theirs."""
        driver = self.driver
        self._limits = driver.limits()
        self._length = -(-driver.getlength() // SECTOR) * SECTOR
        self._reached = 0  # a truncated node may be shorter than what was written once
        self._simple_reads = self._limits.request_alignment == 1
        # Reads need nothing from the gate on the fast path: the driver answers itself.
        self.map_read = driver.map_read  # type: ignore[method-assign]  # saves a call per request
        self._count_slow_writes()

    def _count_slow_writes(self) -> None:
        self._slow_writes = (
            self.flags.read_only
            + (self.flags.detect_zeroes != "off")
            + bool(self.write_threshold)
            + len(self._serialised)
            + self.bitmaps.has_readonly
        )

    def _bitmaps_changed(self) -> None:
        self._recording = self.bitmaps.recording
        self._reached = 0
        self._count_slow_writes()

    def set_write_threshold(self, threshold: int) -> None:
        """Report the first write that ends beyond ``threshold`` bytes; 0: none."""
        self.write_threshold = threshold
        self._count_slow_writes()

    def getlength(self) -> int:
        """Return the length in bytes, a multiple of SECTOR."""
        return self._length

    def limits(self) -> Limits:
        """Return the driver's limits."""
        return self._limits

    def below(self) -> Node | None:
        """Return the next layer of content: the backing or filtered child's node, if there is one."""
        edge = self.child(ChildRole.COW) or self.child(ChildRole.FILTERED)
        return edge.node if edge is not None else None

    def child(self, role: ChildRole) -> Edge | None:
        """Return the first edge with a bit of ``role``, or None."""
        for edge in self.children:
            if edge.role & role:
                return edge
        return None

    # -- the fast path -------------------------------------------------------------------------------

    def map_read(self, offset: int, length: int) -> Extents | None:
        """Say where the bytes are on the host, or None. Bound to the driver's own while it is open."""
        return self.driver.map_read(offset, length)

    def map_write(self, offset: int, length: int) -> Extents | None:
        """Say where the bytes are to be written at once, or None."""
        if self._slow_writes:
            return None
        extents = self._driver.map_write(offset, length)  # type: ignore[union-attr]  # open: has edges
        if extents is not None:
            end = offset + length
            if end > self._reached:
                self.wr_highest_offset = max(self.wr_highest_offset, end)
                if end > self._length:
                    self._grow(end)
                if self._recording:
                    for bitmap in self._recording:
                        bitmap.mark(offset, length)
                else:
                    self._reached = end
            self._dirty = True
        return extents

    def _grow(self, end: int) -> None:
        self._length = -(-end // SECTOR) * SECTOR
        self.bitmaps.resize(self._length)

    def _mark(self, offset: int, length: int) -> None:
        """Note in the bitmaps what a request of the slow path may have changed, also one that failed.

        After it, not before: what a command clears meanwhile must be marked again.
        """
        align = self._limits.request_alignment
        start = offset // align * align
        end = min(-(-(offset + length) // align) * align, self._length)
        if start < end:
            for bitmap in self._recording:
                bitmap.mark(start, end - start)

    # -- reads ---------------------------------------------------------------------------------------

    async def preadv(self, offset: int, iov: Iov) -> None:
        """Fill ``iov``; what lies beyond the end reads as zeroes."""
        length = iov_size(iov)
        inside = min(length, self._length - offset)
        if inside < length:
            if inside <= 0:
                iov_zero(iov)
                await trio.lowlevel.checkpoint()
                return
            iov_zero(iov_slice(iov, inside, length - inside))
            iov = iov_slice(iov, 0, inside)
        if self._simple_reads and inside <= self._limits.max_transfer:
            await self.driver.preadv(offset, iov)
        else:
            await self._preadv_aligned(offset, inside, iov)

    async def _preadv_aligned(self, offset: int, length: int, iov: Iov) -> None:
        align = self._limits.request_alignment
        start = offset // align * align
        end = -(-(offset + length) // align) * align
        step = self._max_transfer()
        if start == offset and end == offset + length:
            if self._serialised:
                await self._serialised.wait(start, end)
            for at in range(0, length, step):
                await self.driver.preadv(offset + at, iov_slice(iov, at, min(step, length - at)))
            return
        await self._serialised.wait(start, end)
        for at in range(start, end, step):
            size = min(step, end - at)
            bounce = memoryview(mmap.mmap(-1, size))
            await self.driver.preadv(at, [bounce])
            low, high = max(at, offset), min(at + size, offset + length)
            iov_fill(iov_slice(iov, low - offset, high - low), bounce[low - at : high - at])

    def _max_transfer(self) -> int:
        align = self._limits.request_alignment
        return max(self._limits.max_transfer // align * align, align)

    # -- writes --------------------------------------------------------------------------------------

    async def pwritev(self, offset: int, iov: Iov, flags: ReqFlag = ReqFlag.NONE) -> None:
        """Write ``iov``. Cancelled: each byte of the range is old or new."""
        length = iov_size(iov)
        if not length:
            await trio.lowlevel.checkpoint()
            return
        self._check_write(offset, length)
        if self.flags.detect_zeroes != "off" and self._limits.can_write_zeroes and iov_is_zero(iov):
            if self.flags.detect_zeroes == "unmap":
                flags |= ReqFlag.MAY_UNMAP
            await self.pwrite_zeroes(offset, length, flags)
            return
        limits = self._limits
        align = limits.request_alignment
        if flags & ReqFlag.WRITE_COMPRESSED and not limits.write_flags & ReqFlag.WRITE_COMPRESSED:
            raise os_error(errno.ENOTSUP)
        try:
            if align == 1 and length <= limits.max_transfer:
                await self.driver.pwritev(offset, iov, flags & limits.write_flags)
            elif offset % align or length % align:
                await self._pwritev_unaligned(offset, length, iov, flags)
            else:
                step = self._max_transfer()
                async with self._serialising(offset, offset + length):
                    for at in range(0, length, step):
                        part = iov_slice(iov, at, min(step, length - at))
                        await self.driver.pwritev(offset + at, part, flags & limits.write_flags)
            self._written(offset, length)
        finally:
            if self._recording and not flags & ReqFlag.WRITE_UNCHANGED:
                self._mark(offset, length)
        if flags and flags & ReqFlag.FUA and not limits.write_flags & ReqFlag.FUA:
            await self.flush()

    async def _pwritev_unaligned(self, offset: int, length: int, iov: Iov, flags: ReqFlag) -> None:
        """Read, modify, write the blocks at the ends; nobody else may be in them meanwhile."""
        align = self._limits.request_alignment
        start = offset // align * align
        end = -(-(offset + length) // align) * align
        step = self._max_transfer()
        async with self._serialising(start, end):
            for at in range(start, end, step):
                size = min(step, end - at)
                bounce = memoryview(mmap.mmap(-1, size))
                low, high = max(at, offset), min(at + size, offset + length)
                if low > at:
                    await self._read_block(at, bounce[:align])
                if high < at + size and not (low > at and size == align):
                    await self._read_block(at + size - align, bounce[size - align :])
                iov_gather(bounce[low - at : high - at], iov_slice(iov, low - offset, high - low))
                await self.driver.pwritev(at, [bounce], flags & self._limits.write_flags)

    async def _read_block(self, offset: int, block: memoryview) -> None:
        if offset < self._length:
            await self.driver.preadv(offset, [block])

    def _check_write(self, offset: int, length: int) -> None:
        if self.flags.read_only or self.bitmaps.has_readonly:
            raise os_error(errno.EPERM)
        if offset + length > self._length and not self.cumulative[0] & Perm.RESIZE:
            raise os_error(errno.EIO)
        if self.write_threshold and offset + length > self.write_threshold:
            threshold, self.write_threshold = self.write_threshold, 0
            self._count_slow_writes()
            self._events.emit(
                "BLOCK_WRITE_THRESHOLD",
                node_name=self.node_name,
                amount_exceeded=offset + length - threshold,
                write_threshold=threshold,
            )

    def _written(self, offset: int, length: int) -> None:
        end = offset + length
        self.wr_highest_offset = max(self.wr_highest_offset, end)
        if end > self._length:
            self._grow(end)
        self._dirty = True

    async def pwrite_zeroes(self, offset: int, length: int, flags: ReqFlag = ReqFlag.NONE) -> None:
        """Make the range read as zeroes; with NO_FALLBACK fail with ENOTSUP rather than be slow."""
        if not length:
            await trio.lowlevel.checkpoint()
            return
        self._check_write(offset, length)
        end = offset + length
        low = high = offset
        if self._limits.can_write_zeroes:
            align = max(self._limits.pwrite_zeroes_alignment, self._limits.request_alignment)
            low = min(-(-offset // align) * align, end)
            high = max(end // align * align, low)
        elif flags & ReqFlag.NO_FALLBACK:
            raise os_error(errno.ENOTSUP)
        try:
            if low > offset:
                await self._zero_part(offset, low - offset, flags)
            if high > low:
                await self._zero_aligned(low, high, flags)
            if high < end:
                await self._zero_part(high, end - high, flags)
            self._written(offset, length)
        finally:
            if self._recording and not flags & ReqFlag.WRITE_UNCHANGED:
                self._mark(offset, length)
        if flags & ReqFlag.FUA and not self._limits.zero_flags & ReqFlag.FUA:
            await self.flush()

    async def _zero_part(self, offset: int, length: int, flags: ReqFlag) -> None:
        """Zero a part of the driver's unit: it may know that the rest of it is zero as well."""
        limits = self._limits
        aligned = not (offset % limits.request_alignment or length % limits.request_alignment)
        if limits.can_zero_parts and aligned:
            await self._zero_aligned(offset, offset + length, flags)
        else:
            await self._write_zero_bytes(offset, length, flags)

    async def _zero_aligned(self, start: int, end: int, flags: ReqFlag) -> None:
        passed = flags & (self._limits.zero_flags | ReqFlag.NO_FALLBACK)
        step = self._limits.max_pwrite_zeroes
        async with self._serialising(start, end):
            at = start
            while at < end:
                size = min(step, end - at)
                try:
                    await self.driver.pwrite_zeroes(at, size, passed)
                except OSError as exc:
                    if exc.errno != errno.ENOTSUP or flags & ReqFlag.NO_FALLBACK:
                        raise
                    break
                at += size
        if at < end:
            await self._write_zero_bytes(at, end - at, flags)

    async def _write_zero_bytes(self, offset: int, length: int, flags: ReqFlag) -> None:
        flags &= self._limits.write_flags
        align = self._limits.request_alignment
        while length:
            size = min(BOUNCE, length, self._max_transfer())
            part = ZEROES[:size]
            if offset % align or size % align:
                size = min(size, align - offset % align) if offset % align else size
                await self._pwritev_unaligned(offset, size, [ZEROES[:size]], flags)
            else:
                async with self._serialising(offset, offset + size):
                    await self.driver.pwritev(offset, [part], flags)
            offset += size
            length -= size

    async def pdiscard(self, offset: int, length: int) -> None:
        """Deallocate what the driver can of the range; with ``discard=ignore`` nothing."""
        if self.flags.read_only or self.bitmaps.has_readonly:
            raise os_error(errno.EPERM)
        limits = self._limits
        if not (self.flags.discard_unmap and limits.can_discard and length):
            await trio.lowlevel.checkpoint()
            return
        align = max(limits.pdiscard_alignment, limits.request_alignment)
        end = offset + length
        start = -(-offset // align) * align
        # The image's last, partial unit may be discarded as a whole.
        stop = end if end == self._length else end // align * align
        try:
            async with self._serialising(start, max(start, stop)):
                for at in range(start, stop, limits.max_pdiscard):
                    try:
                        await self.driver.pdiscard(at, min(limits.max_pdiscard, stop - at))
                    except OSError as exc:
                        if exc.errno != errno.ENOTSUP:
                            raise
                        break
        finally:
            if self._recording:
                self._mark(offset, length)
        self._dirty = True
        await trio.lowlevel.checkpoint()

    async def flush(self) -> None:
        """Put what has been written on stable storage (``cache.no-flush``: in the host's hands)."""
        if self.flags.read_only or not (self._dirty or self._flushing):
            await trio.lowlevel.checkpoint()
            return
        self._dirty = False
        self._flushing += 1
        done = False
        try:
            await self.driver.flush()
            done = True
        finally:
            self._flushing -= 1
            if not done:
                self._dirty = True  # the next flush must try again

    # -- order of overlapping requests ---------------------------------------------------------------

    @asynccontextmanager
    async def _serialising(self, start: int, end: int) -> AsyncGenerator[None]:
        """Keep every other serialising request out of the range (block-aligned drivers only)."""
        if self._limits.request_alignment == 1:
            yield
            return
        try:
            async with self._serialised.hold(start, end):
                self._count_slow_writes()
                yield
        finally:
            self._count_slow_writes()

    # -- the rest ------------------------------------------------------------------------------------

    async def block_status(
        self, offset: int, length: int, *, want_zero: bool = True
    ) -> BlockStatus:
        """Describe the first bytes of the range as this node sees it, without its backing chain."""
        if offset >= self._length:
            await trio.lowlevel.checkpoint()
            return BlockStatus(StatusFlag.EOF, 0)
        length = min(length, self._length - offset)
        status = await self.driver.block_status(offset, length, want_zero=want_zero)
        if status.flags & StatusFlag.RAW and status.file is not None:
            below = await status.file.block_status(
                status.offset, status.length, want_zero=want_zero
            )
            return self._with_eof(offset, below)
        flags = status.flags
        if flags & (StatusFlag.DATA | StatusFlag.ZERO):
            flags |= StatusFlag.ALLOCATED
        elif want_zero and self.driver.supports_backing:
            backing = self.child(ChildRole.COW)
            if backing is None or offset >= backing.node.getlength():
                flags |= StatusFlag.ZERO
        length = status.length
        recurse = StatusFlag.RECURSE | StatusFlag.DATA | StatusFlag.OFFSET_VALID
        if want_zero and flags & recurse == recurse and status.file is not None:
            below = await status.file.block_status(status.offset, length)
            if below.flags & StatusFlag.EOF and not below.length:
                flags |= StatusFlag.ZERO  # beyond the end of the file
            elif below.length:
                length = min(length, below.length)
                flags |= below.flags & StatusFlag.ZERO
        flags &= ~(StatusFlag.RECURSE | StatusFlag.EOF)
        return self._with_eof(offset, BlockStatus(flags, length, status.file, status.offset))

    def _with_eof(self, offset: int, status: BlockStatus) -> BlockStatus:
        flags = status.flags & ~StatusFlag.EOF
        if offset + status.length >= self._length:
            flags |= StatusFlag.EOF
        return attrs.evolve(status, flags=flags)

    async def truncate(
        self,
        size: int,
        *,
        exact: bool = False,
        prealloc: str = "off",
        flags: ReqFlag = ReqFlag.NONE,
    ) -> None:
        """Make the node ``size`` bytes long. ``exact``: not longer either."""
        if size > MAX_LENGTH:
            raise QmpError(f"offset({size}) exceeds maximum({MAX_LENGTH})")
        if self.flags.read_only:
            raise QmpError("Image is read-only")
        self.bitmaps.check_size(size)
        old = self._length
        backing = self.child(ChildRole.COW)
        if backing is not None and size > old < backing.node.getlength():
            flags |= ReqFlag.ZERO_WRITE  # what grows must not show the backing file's data
        async with self._serialising(min(old, size), max(old, size)):
            await self.driver.truncate(size, exact=exact, prealloc=prealloc, flags=flags)
        self._dirty = True
        self.refresh()
        self.bitmaps.resize(self._length)
        for callback in tuple(self.on_resize):
            callback()

    async def prefetch(self, offset: int, length: int) -> None:
        """Bring the range closer (into the page cache) by reading it."""
        end = min(offset + length, self._length)
        if offset >= end:
            await trio.lowlevel.checkpoint()
            return
        scratch = memoryview(mmap.mmap(-1, min(BOUNCE, end - offset)))
        for at in range(offset, end, BOUNCE):
            await self.preadv(at, [scratch[: min(BOUNCE, end - at)]])


@final
class Edge:
    """A child edge: the requests of the child node, and who needs what of it."""

    def __init__(
        self,
        name: str,
        role: ChildRole,
        node: Node,
        parent: Node | None,
        describe: Callable[[], str],
        perm: Perm = Perm.NONE,
        shared: Perm = Perm.ALL,
    ) -> None:
        self.name = name
        self.role = role
        self.node = node
        self.parent = parent
        self.perm = perm
        self.shared = shared
        #: Whether blockdev-reopen and jobs must leave the edge where it points.
        self.frozen = False
        self.parent_desc = describe
        self.bind()

    @property
    def link(self) -> str:
        """How texts name the edge: 'backing' link from 'top' to 'base'."""
        parent = self.parent.node_name if self.parent is not None else ""
        return f"'{self.name}' link from '{parent}' to '{self.node.node_name}'"

    def bind(self) -> None:
        """Take over the node's requests: a call through the edge costs no more than a direct one."""
        node = self.node
        self.getlength = node.getlength
        self.map_write = node.map_write
        self.preadv = node.preadv
        self.pwritev = node.pwritev
        self.pdiscard = node.pdiscard
        self.flush = node.flush
        self.block_status = node.block_status
        self.truncate = node.truncate

    async def pwrite_zeroes(self, offset: int, length: int, flags: ReqFlag = ReqFlag.NONE) -> None:
        """Make a range of the child read as zeroes, deallocating it only with ``discard=unmap``.

        As in QEMU that option is not asked for zeroes that come from a user, only from a parent node.
        """
        if not self.node.flags.discard_unmap:
            flags &= ~ReqFlag.MAY_UNMAP
        await self.node.pwrite_zeroes(offset, length, flags)

    def map_read(self, offset: int, length: int) -> Extents | None:
        """Say where the child's bytes are on the host, or None."""
        return self.node.map_read(offset, length)
