"""What the virtio-blk tests share: a device over a memfd, served in-process, and a driver in the same memory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from qsd_trio.exports.virtio_blk import VirtioBlk
from qsd_trio.host.barrier import make_barrier
from qsd_trio.protocol.virtio.inflight import InflightQueue, log_size
from qsd_trio.protocol.virtio.memory import Region, RegionMemory
from qsd_trio.protocol.virtio.queue import Virtqueue
from qsd_trio.testing.virtqueue import DriverRing
from tests.exports.nbd_kit import FakeBackend

BASE = 0x1_0000_0000
NUM = 64
SLOTS = 16
SLOT = 0x4000  # of guest memory, for a request
NO_STATUS = 0xEE


def device(backend: FakeBackend, **options: object) -> VirtioBlk:
    settings = {
        "writable": True,
        "block_size": 512,
        "num_queues": 1,
        "seg_max": 126,
        "serial": "vhost_user_blk",
        "write_cache": True,
        **options,
    }
    return VirtioBlk(backend, **settings)  # type: ignore[arg-type]


class Guest:
    """A driver of one queue: requests go in by ``post``, answers are awaited by ``answer``."""

    def __init__(self, *, event_idx: bool = False, inflight: bool = False) -> None:
        self.memory = memoryview(bytearray(SLOT * (SLOTS + 1)))
        self.event_idx = event_idx
        self.ring = DriverRing(self.memory, offset=0, address=BASE, num=NUM, event_idx=event_idx)
        self.log = memoryview(bytearray(log_size(NUM))) if inflight else None
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.calls = 0
        self.used: dict[int, int] = {}  # head: length
        self.order: list[int] = []
        self._last_avail = 0
        self._slots = list(range(1, SLOTS + 1))
        self._slot_of: dict[int, int] = {}

    def close(self) -> None:
        os.close(self.kick_fd)
        os.close(self.call_fd)

    def call(self) -> None:
        self.calls += 1
        os.eventfd_write(self.call_fd, 1)

    def queue(self) -> Virtqueue:
        desc, avail, used = self.ring.parts
        return Virtqueue(
            RegionMemory([Region(guest_address=BASE, user_address=BASE, view=self.memory)]),
            desc,
            avail,
            used,
            NUM,
            last_avail=self._last_avail,
            used_index=self.ring.used_index,
            event_idx=self.event_idx,
            notify_on_empty=False,
            barrier=make_barrier(),
        )

    def put(self, readable: list[bytes], writable: list[int], *, publish: bool = True) -> int:
        """Offer a request with these pieces; rooms to write to are filled with NO_STATUS."""
        slot = self._slots.pop()
        at = slot * SLOT
        buffers = []
        for data in readable:
            self.memory[at : at + len(data)] = data
            buffers.append((BASE + at, len(data), False))
            at += len(data)
        for room in writable:
            self.memory[at : at + room] = bytes([NO_STATUS]) * room
            buffers.append((BASE + at, room, True))
            at += room
        assert at <= (slot + 1) * SLOT
        head = self.ring.add(buffers)
        self._slot_of[head] = slot
        if publish:
            self.publish()
        return head

    def publish(self) -> None:
        if self.ring.publish():
            os.eventfd_write(self.kick_fd, 1)

    def room(self, head: int, skip: int, length: int) -> bytes:
        """Return what the device wrote: ``skip`` bytes after the start of the request's slot."""
        at = self._slot_of[head] * SLOT + skip
        return bytes(self.memory[at : at + length])

    def free(self, head: int) -> None:
        self._slots.append(self._slot_of.pop(head))

    async def answer(self, head: int) -> int:
        """Wait for ``head`` and return the used length."""
        while head not in self.used:
            await trio.lowlevel.wait_readable(self.call_fd)
            os.eventfd_read(self.call_fd)
            for done, length in self.ring.take():
                self.used[done] = length
                self.order.append(done)
        return self.used.pop(head)


@asynccontextmanager
async def served(blk: VirtioBlk, guest: Guest) -> AsyncIterator[trio.CancelScope]:
    """Serve the guest's queue; the scope cancels that, and only that."""
    scope = trio.CancelScope()

    async def serve() -> None:
        inflight = InflightQueue(guest.log, NUM) if guest.log is not None else None
        queue = guest.queue()
        with scope:
            try:
                await blk.serve(queue, guest.kick_fd, guest.call, inflight=inflight)
            finally:
                guest._last_avail = queue.last_avail

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield scope
            scope.cancel()
