"""A node as a virtio block device: serves the requests of virtqueues. Shared by vhost-user-blk and VDUSE.

Requests are harvested in batches. What the page cache can answer is done at once, straight between it and guest memory,
and a batch is shown to the driver and notified of as one. Everything else is a task of its own: there are never
more than the queue has descriptors.

See DESIGN.md, section 5.
"""

from __future__ import annotations

import logging
import os
from os import preadv
from time import perf_counter
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio.block.abc import ReqFlag
from qsd_trio.exports.extents import read_now, write_now
from qsd_trio.host.files import MAX_BUFFERS
from qsd_trio.host.spin import SPIN, Spin
from qsd_trio.iov import iov_fill, iov_size, iov_slice
from qsd_trio.protocol.virtio.blk import (
    BARRIER,
    COMMON_FEATURES,
    DISCARD,
    FLUSH,
    GET_ID,
    HEADER,
    ID_SIZE,
    IN,
    IOERR,
    OK,
    OUT,
    SECTOR,
    SEGMENT,
    UNSUPP,
    WRITE_ZEROES,
    BlkRequest,
    Config,
    Feature,
    is_in_range,
    parse,
    parse_segment,
)
from qsd_trio.protocol.virtio.memory import VirtqueueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd_trio.block.backend import BlockBackend
    from qsd_trio.protocol.virtio.inflight import InflightQueue
    from qsd_trio.protocol.virtio.queue import Element, Virtqueue

log = logging.getLogger("qsd_trio.exports.virtio_blk")

#: Requests after which a batch is shown to the driver: it goes on while we serve the next.
BATCH: Final = 16

#: Bytes after which it is, too: large requests take long enough for the driver to make use of one's answer.
BATCH_BYTES: Final = 128 * 1024

#: Bytes of a request that is done on the event loop.
MAX_INLINE: Final = 1 << 20

#: Seconds of serving without giving way to the other tasks of the loop (monitors must answer).
TIME_SLICE: Final = 0.0005


@final
class VirtioBlk:
    """The device behind all queues of one export.

    Args:
        backend: The node; owned by the export.
        writable: Whether the guest may write.
        block_size: The logical block size, bytes.
        num_queues: For the configuration space.
        seg_max: Likewise.
        serial: The answer to GET_ID.
        write_cache: Whether writes may stay in the cache until a flush.
    """

    def __init__(
        self,
        backend: BlockBackend,
        *,
        writable: bool,
        block_size: int,
        num_queues: int,
        seg_max: int,
        serial: str,
        write_cache: bool,
    ) -> None:
        self.backend = backend
        self.writable = writable
        self.block_size = block_size or SECTOR  # 0 is taken for the default, as by the real daemon
        self.serial = serial.encode() + b"\0"
        self.wce = int(write_cache)  # as the configuration space has it: any byte but 0 is "on"
        self.spin = Spin()
        self.length = backend.getlength()
        self._logical_block_size = block_size
        self._num_queues = num_queues
        self._seg_max = seg_max
        self._in_flight: set[trio.CancelScope] = set()

    @property
    def features(self) -> Feature:
        """What every such device offers; its transport adds its own."""
        return COMMON_FEATURES if self.writable else COMMON_FEATURES | Feature.RO

    def config(self) -> bytes:
        """Return the configuration space as it is now."""
        return Config(
            capacity=self.length // SECTOR,
            seg_max=self._seg_max,
            block_size=self._logical_block_size,
            wce=self.wce,
            num_queues=self._num_queues,
        ).pack()

    def resized(self) -> None:
        """Take note of the node's new length."""
        self.length = self.backend.getlength()

    def abandon(self) -> None:
        """Give up the requests in flight on the slow path: they are never answered."""
        for scope in tuple(self._in_flight):
            scope.cancel()

    async def serve(
        self,
        queue: Virtqueue,
        kick_fd: int,
        call: Callable[[], None],
        *,
        inflight: InflightQueue | None = None,
    ) -> None:
        """Serve ``queue`` until cancelled; then requests in flight are finished before it returns.

        ``kick_fd`` is an event descriptor, non-blocking; ``call`` notifies the driver and must not raise.
        Raises VirtqueueError if the driver breaks the ring, also after the requests in flight, and OSError
        if the kick descriptor is none.
        """
        broken: VirtqueueError | OSError | None = None
        async with trio.open_nursery() as nursery:
            try:
                await _QueueServer(self, queue, call, inflight).run(kick_fd, nursery)
            except (VirtqueueError, OSError) as exc:
                broken = exc
        if broken is not None:
            raise broken

    async def carry_out(self, request: BlkRequest) -> int | None:
        """Do one request on the slow path and return its status; None: it was abandoned."""
        kind = request.kind & ~BARRIER
        with trio.CancelScope(shield=True) as scope:
            self._in_flight.add(scope)
            try:
                if kind == IN:
                    return await self._read(request)
                if kind == OUT:
                    return await self._write(request)
                if kind == FLUSH:
                    await self.backend.flush()
                    return OK
                if kind == GET_ID:
                    room = iov_slice(request.into, 0, min(ID_SIZE, len(self.serial)))
                    iov_fill(room, memoryview(self.serial))
                    return OK
                if kind in (DISCARD, WRITE_ZEROES):
                    return await self._discard_or_zero(request, kind)
                return UNSUPP
            except OSError:
                return IOERR
            finally:
                self._in_flight.discard(scope)
        return None

    def _may(self, sector: int, size: int) -> bool:
        return is_in_range(sector, size, length=self.length, block_size=self.block_size)

    async def _read(self, request: BlkRequest) -> int:
        size = iov_size(request.into)
        if not self._may(request.sector, size):
            return IOERR
        if size:
            await self.backend.preadv(request.sector * SECTOR, request.into)
        return OK

    async def _write(self, request: BlkRequest) -> int:
        size = iov_size(request.out)
        if not self.writable or not self._may(request.sector, size):
            return IOERR
        if size:
            durable = ReqFlag.NONE if self.wce else ReqFlag.FUA
            await self.backend.pwritev(request.sector * SECTOR, request.out, durable)
        return OK

    async def _discard_or_zero(self, request: BlkRequest, kind: int) -> int:
        if not self.writable:
            return IOERR
        found = parse_segment(request, length=self.length, block_size=self.block_size)
        if isinstance(found, int):
            if (size := iov_size(request.out)) < SEGMENT.size:
                log.warning("Invalid size %d, expected %d", size, SEGMENT.size)
            return found
        if found.length:
            if kind == DISCARD:
                await self.backend.pdiscard(found.offset, found.length)
                if not self.wce:
                    await self.backend.flush()
            else:
                flags = ReqFlag.MAY_UNMAP if found.unmap else ReqFlag.NONE
                if not self.wce:
                    flags |= ReqFlag.FUA
                await self.backend.pwrite_zeroes(found.offset, found.length, flags)
        return OK


@final
class _QueueServer:
    """Serves one queue, once."""

    def __init__(
        self,
        device: VirtioBlk,
        queue: Virtqueue,
        call: Callable[[], None],
        inflight: InflightQueue | None,
    ) -> None:
        self._device = device
        self._queue = queue
        self._call = call
        self._inflight = inflight
        self._heads: list[int] = []  # pushed and not published, for the log

    async def run(self, kick_fd: int, nursery: trio.Nursery) -> None:
        queue = self._queue
        if self._inflight is not None:
            self._resubmit(self._inflight, nursery)
        slice_end = perf_counter() + TIME_SLICE
        while True:
            queue.disable_notifications()
            while self._harvest(queue.pop, nursery):
                if perf_counter() > slice_end:
                    await trio.lowlevel.checkpoint()
                    slice_end = perf_counter() + TIME_SLICE
            if self._look_again():
                await trio.lowlevel.checkpoint_if_cancelled()
                continue
            if not queue.enable_notifications():
                await trio.lowlevel.checkpoint_if_cancelled()
                continue
            await trio.lowlevel.wait_readable(kick_fd)
            slice_end = perf_counter() + TIME_SLICE
            try:
                kicked = os.read(kick_fd, 8)
            except BlockingIOError:
                continue
            if not kicked:  # a pipe or socket that nobody will ever kick again
                raise VirtqueueError("Error reading eventfd: end of file")

    def _look_again(self) -> bool:
        """Wait a moment for a driver that may be back at once; return whether it is."""
        queue, spin = self._queue, self._device.spin
        if queue.in_flight or not spin.may(self):
            return False
        has_more = queue.has_more
        end = perf_counter() + SPIN
        while not has_more():
            if perf_counter() > end:
                spin.missed()
                return False
        return True

    def _resubmit(self, inflight: InflightQueue, nursery: trio.Nursery) -> None:
        """Begin again what a predecessor had begun and not finished."""
        queue = self._queue
        heads = inflight.recover(queue.used_index)
        # The available ring was read up to there.
        queue.skip_to(queue.used_index + len(heads))
        elements = (queue.element(head) for head in heads)
        while self._harvest(lambda: next(elements, None), nursery):
            pass

    # -- the fast path -------------------------------------------------------------------------------

    def _harvest(self, pop: Callable[[], Element | None], nursery: trio.Nursery) -> bool:
        """Serve a batch and show the driver what is done; False: there was nothing.

        The rest of the room may be slow so that this can be quick: local names, few calls.
        """
        device, queue, inflight = self._device, self._queue, self._inflight
        backend = device.backend
        map_read, map_write, push = backend.map_read, backend.map_write, queue.push
        length, unaligned = device.length, device.block_size - 1
        may_write = device.writable and device.wce
        unpack_header = HEADER.unpack_from
        count = moved = 0
        try:
            while count < BATCH and moved < BATCH_BYTES:
                element = pop()
                if element is None:
                    break
                count += 1
                if inflight is not None:
                    inflight.begin(element.head)
                out, into = element.readable, element.writable
                request: BlkRequest | None = None
                if out and into and len(out[0]) == HEADER.size and len(into[-1]) == 1:
                    # As all drivers do it: parse(), without the calls.
                    kind, _, sector = unpack_header(out.pop(0))
                    status = into.pop()
                else:
                    parsed = parse(element)
                    if isinstance(parsed, str):
                        log.warning("%s", parsed)
                        self._drop(element)
                        continue
                    request = parsed
                    _, kind, sector, out, into, status = request
                head = element.head
                offset = sector << 9
                done = False
                size = 0  # of what can be done at once
                if kind == IN:
                    size = len(into[0]) if len(into) == 1 else iov_size(into)
                elif kind == OUT and may_write:
                    size = len(out[0]) if len(out) == 1 else iov_size(out)
                if (
                    0 < size <= MAX_INLINE
                    and not size & 511
                    and not offset & unaligned
                    and offset + size <= length
                ):
                    if kind == OUT:
                        extents = map_write(offset, size)
                        done = extents is not None and write_now(extents, out)
                    else:
                        extents = map_read(offset, size)
                        if extents is not None:
                            file, at, _ = extents[0]
                            if (
                                file is not None
                                and len(extents) == 1
                                and file.fd >= 0
                                and file.can_read_now
                                and len(into) <= MAX_BUFFERS
                            ):
                                try:
                                    done = preadv(file.fd, into, at, file.read_flags) == size
                                except OSError:
                                    pass  # not cached, or the slow path meets it again and reports it
                            else:
                                done = read_now(extents, into)
                if done:
                    moved += size
                    status[0] = OK
                    push(head, size + 1 if kind == IN else 1 + iov_size(into))
                    if inflight is not None:
                        self._heads.append(head)
                else:
                    if request is None:
                        request = BlkRequest(head, kind, sector, out, into, status)
                    nursery.start_soon(self._do_slowly, request)
        finally:
            # Also before a broken ring ends it all: what is done is done.
            self._publish()
        return count > 0

    def _drop(self, element: Element) -> None:
        """Give back a request that is none. (The real daemon never does: its driver would wait for ever.)"""
        if element.writable:
            element.writable[-1][-1] = IOERR
        self._push(element.head, 0)

    def _push(self, head: int, used: int) -> None:
        self._queue.push(head, used)
        if self._inflight is not None:
            self._heads.append(head)

    def _publish(self) -> None:
        inflight, heads = self._inflight, self._heads
        if inflight is not None:
            if not heads:
                return
            inflight.finish(heads)
        wanted = self._queue.publish()
        if inflight is not None:
            inflight.finished(heads, self._queue.used_index)
            heads.clear()
        if wanted:
            self._call()

    # -- the slow path -------------------------------------------------------------------------------

    async def _do_slowly(self, request: BlkRequest) -> None:
        status = await self._device.carry_out(request)
        if status is None:
            return
        request.status[0] = status
        self._push(request.head, 1 + iov_size(request.into))
        self._publish()
