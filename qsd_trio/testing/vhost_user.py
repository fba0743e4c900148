"""A vhost-user front-end: what a virtual machine is to a vhost-user-blk back-end. For tests.

    async with open_front_end("/run/disk.sock", num_queues=2) as vm:
        await vm.write(0, b"x" * 4096)
        assert await vm.read(0, 4096) == b"x" * 4096

``FrontEnd.ask`` and ``FrontEnd.send`` speak any message, right or wrong.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import attrs
import trio

from qsd_trio.host.fdpass import close_all, receive_now, send_now
from qsd_trio.protocol import vhost_user as vu
from qsd_trio.protocol.vhost_user import Message, ProtocolFeature
from qsd_trio.protocol.virtio.blk import (
    CONFIG_SIZE,
    DISCARD,
    FLUSH,
    GET_ID,
    HEADER,
    ID_SIZE,
    IN,
    OK,
    OUT,
    SECTOR,
    SEGMENT,
    WCE_OFFSET,
    WRITE_ZEROES,
    Feature,
)
from qsd_trio.testing.virtqueue import DriverRing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

GUEST_BASE: Final = 0x1_0000_0000
USER_BASE: Final = 0x7F12_3400_0000
RING_AREA: Final = 64 * 1024  # of guest memory, for a queue
PAGE: Final = mmap.PAGESIZE

FEATURES: Final = (
    Feature.VERSION_1
    | Feature.INDIRECT_DESC
    | Feature.FLUSH
    | Feature.DISCARD
    | Feature.WRITE_ZEROES
    | Feature.CONFIG_WCE
    | Feature.MQ
    | vu.PROTOCOL_FEATURES
)

#: Where the back-end writes status: a value that it never writes itself.
NO_STATUS: Final = 0xEE


@final
class RequestFailed(OSError):
    """The device answered with a status other than OK."""

    def __init__(self, status: int) -> None:
        super().__init__(f"virtio-blk status {status}")
        self.status = status


@final
@attrs.frozen(kw_only=True)
class Answer:
    """What came back for a request."""

    status: int
    used: int  # the length in the used ring
    data: bytes


@final
class GuestQueue:
    """One queue of a front-end, with its buffers in guest memory."""

    def __init__(self, vm: FrontEnd, index: int) -> None:
        self.index = index
        self._vm = vm
        self.ring = DriverRing(
            vm.memory,
            offset=index * RING_AREA,
            address=GUEST_BASE + index * RING_AREA,
            num=vm.queue_size,
            event_idx=vm.event_idx,
        )
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        first = vm.num_queues * RING_AREA + index * vm.slots * vm.slot_size
        self._free = [first + slot * vm.slot_size for slot in range(vm.slots)]
        self._freed = trio.Event()
        self._waiting: dict[int, tuple[trio.Event, list[int]]] = {}

    async def request(
        self,
        kind: int,
        sector: int = 0,
        out: bytes = b"",
        into: int = 0,
        *,
        indirect: bool = False,
        pieces: int = 1,
    ) -> Answer:
        """Make a request with ``out`` as its data, or ``into`` bytes of room, and wait for the answer.

        Cancelled: the buffers stay the device's.
        """
        size = len(out) + into
        if size > self._vm.slot_size - PAGE:
            raise ValueError("more than a slot of guest memory")
        while not self._free:
            self._freed = trio.Event()
            await self._freed.wait()
        slot = self._free.pop()
        memory = self._vm.memory
        header, status, data = slot, slot + HEADER.size, slot + PAGE
        HEADER.pack_into(memory, header, kind, 0, sector)
        memory[status] = NO_STATUS
        memory[data : data + len(out)] = out
        buffers = [(GUEST_BASE + header, HEADER.size, False)]
        step = -(-size // pieces) if size else 1
        for at in range(0, size, step):
            buffers.append((GUEST_BASE + data + at, min(step, size - at), not out))
        buffers.append((GUEST_BASE + status, 1, True))
        ring = self.ring
        if indirect:
            table = slot + 64
            head = ring.add_indirect(memory[table : slot + PAGE], GUEST_BASE + table, buffers)
        else:
            head = ring.add(buffers)
        done, lengths = trio.Event(), list[int]()
        self._waiting[head] = done, lengths
        if ring.publish():
            self.kick()
        await done.wait()
        answer = Answer(
            status=memory[status], used=lengths[0], data=bytes(memory[data : data + into])
        )
        self._free.append(slot)
        self._freed.set()
        return answer

    def kick(self) -> None:
        """Notify the device."""
        os.eventfd_write(self.kick_fd, 1)

    async def pump(self) -> None:
        """Hand out answers as they come, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self.call_fd)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.call_fd)
            self.collect()

    def collect(self) -> None:
        """Look at the used ring now."""
        for head, length in self.ring.take():
            done, lengths = self._waiting.pop(head)
            lengths.append(length)
            done.set()

    def close(self) -> None:
        """Close the event descriptors."""
        close_all((self.kick_fd, self.call_fd))


@final
class FrontEnd:
    """A connection to a back-end, and the guest memory behind it. Get it by ``open_front_end``."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        num_queues: int,
        queue_size: int,
        event_idx: bool,
        slots: int,
        slot_size: int,
        mmap_offset: int,
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.num_queues = num_queues
        self.queue_size = queue_size
        self.event_idx = event_idx
        self.slots = slots
        self.slot_size = slot_size
        self.mmap_offset = mmap_offset
        self.size = num_queues * (RING_AREA + slots * slot_size)
        self.memory_fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.memory_fd, mmap_offset + self.size)
        self.memory = memoryview(mmap.mmap(self.memory_fd, mmap_offset + self.size))[mmap_offset:]
        self.features = 0
        self.protocol_features = 0
        self.queues = [GuestQueue(self, index) for index in range(num_queues)]
        #: CONFIG_CHANGE messages so far, and an event for the next one.
        self.config_changes = 0
        self.config_changed = trio.Event()
        self.inflight: tuple[vu.InflightDescription, int] | None = None
        self._channel: socket.socket | None = None

    # -- messages ------------------------------------------------------------------------------------

    async def send(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, flags: int = 0
    ) -> None:
        """Send a message."""
        await self.send_bytes(vu.message(request, payload, flags=flags), fds)

    async def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send what need not be a message."""
        view = memoryview(data)
        while view:
            try:
                view = view[send_now(self.sock, view, fds) :]
                fds = ()
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.sock)

    async def receive(self) -> tuple[int, bytes, list[int]]:
        """Return (request, payload, descriptors) of the next answer; EOFError: the back-end hung up."""
        header, fds = await self._receive(vu.HEADER.size)
        request, _, size = vu.HEADER.unpack(header)
        payload, more = await self._receive(size)
        return request, payload, fds + more

    async def _receive(self, size: int) -> tuple[bytes, list[int]]:
        data, fds = b"", list[int]()
        while len(data) < size:
            try:
                more, came = receive_now(self.sock, size - len(data), vu.MAX_FDS)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)
                continue
            except ConnectionError:
                more, came = b"", []
            if not more:
                raise EOFError("the back-end hung up")
            data += more
            fds += came
        return data, fds

    async def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a message that has an answer, and return the answer's payload."""
        await self.send(request, payload, fds)
        answered, data, came = await self.receive()
        close_all(came)
        if answered != request:
            raise AssertionError(f"message {request} was answered by {answered}")
        return data

    async def tell(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """Send a message that has none, and return what its acknowledgement says: 0 is success."""
        await self.send(request, payload, fds, flags=vu.NEED_REPLY)
        _, data, _ = await self.receive()
        (value,) = vu.U64.unpack(data)
        return int(value)

    async def get_u64(self, request: int) -> int:
        """Ask for a number."""
        (value,) = vu.U64.unpack(await self.ask(request))
        return int(value)

    # -- set-up --------------------------------------------------------------------------------------

    async def negotiate(self, features: int = FEATURES) -> None:
        """Agree on features, as virtual machines do."""
        offered = await self.get_u64(Message.GET_FEATURES)
        if self.event_idx:
            features |= Feature.EVENT_IDX
        self.protocol_features = await self.get_u64(Message.GET_PROTOCOL_FEATURES)
        self.protocol_features &= vu.OFFERED
        await self.send(Message.SET_PROTOCOL_FEATURES, vu.U64.pack(self.protocol_features))
        await self.send(Message.SET_OWNER)
        self.features = offered & features
        await self.send(Message.SET_FEATURES, vu.U64.pack(self.features))

    async def open_channel(self) -> None:
        """Give the back-end a channel for messages of its own."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        self._channel = ours
        with theirs:
            await self.send(Message.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])

    async def watch_channel(self) -> None:
        """Count the back-end's messages, until cancelled or it hangs up."""
        channel = self._channel
        assert channel is not None
        while True:
            await trio.lowlevel.wait_readable(channel)
            data = channel.recv(vu.HEADER.size)
            if not data:
                return
            request, _, size = vu.HEADER.unpack(data)
            if (request, size) != (vu.BackendMessage.CONFIG_CHANGE, 0):
                raise AssertionError(f"message {request} of {size} bytes from the back-end")
            self.config_changes += 1
            self.config_changed.set()
            self.config_changed = trio.Event()

    async def share_memory(self) -> None:
        """Send the memory table: one region."""
        region = vu.REGION.pack(GUEST_BASE, self.size, USER_BASE, self.mmap_offset)
        await self.send(Message.SET_MEM_TABLE, vu.TABLE.pack(1, 0) + region, [self.memory_fd])

    async def open_inflight(self) -> None:
        """Have the back-end make a log of requests in flight, and give it back to it."""
        wanted = vu.InflightDescription(
            mmap_size=0, mmap_offset=0, num_queues=self.num_queues, queue_size=self.queue_size
        )
        await self.send(Message.GET_INFLIGHT_FD, wanted.pack())
        _, payload, fds = await self.receive()
        self.inflight = vu.parse_inflight(Message.GET_INFLIGHT_FD, payload), fds[0]
        await self.share_inflight()

    async def share_inflight(self) -> None:
        """Give the back-end the log that there is."""
        assert self.inflight is not None
        described, fd = self.inflight
        await self.send(Message.SET_INFLIGHT_FD, described.pack(), [fd])

    async def start(self, queue: GuestQueue, *, base: int = 0) -> None:
        """Set a queue up and have it served from ``base`` on."""
        index = queue.index
        desc, avail, used = (USER_BASE - GUEST_BASE + each for each in queue.ring.addresses)
        await self.send(Message.SET_VRING_NUM, vu.STATE.pack(index, self.queue_size))
        await self.send(Message.SET_VRING_BASE, vu.STATE.pack(index, base))
        await self.send(Message.SET_VRING_ADDR, vu.ADDRESSES.pack(index, 0, desc, used, avail, 0))
        await self.send(Message.SET_VRING_CALL, vu.U64.pack(index), [queue.call_fd])
        await self.send(Message.SET_VRING_KICK, vu.U64.pack(index), [queue.kick_fd])
        await self.send(Message.SET_VRING_ENABLE, vu.STATE.pack(index, 1))

    async def stop(self, queue: GuestQueue) -> int:
        """Stop a queue and return the index of the next request."""
        answer = await self.ask(Message.GET_VRING_BASE, vu.STATE.pack(queue.index, 0))
        _, base = vu.parse_state(answer)
        return base

    async def config(self, size: int = CONFIG_SIZE) -> bytes:
        """Return the device's configuration space."""
        asked = vu.CONFIG.pack(0, size, 0) + bytes(size)
        return (await self.ask(Message.GET_CONFIG, asked))[vu.CONFIG.size :]

    async def capacity(self) -> int:
        """Return the disk's length in bytes."""
        return int.from_bytes((await self.config(8)), "little") * SECTOR

    async def set_write_cache(self, enabled: bool) -> None:
        """Write ``wce``."""
        data = vu.CONFIG.pack(WCE_OFFSET, 1, 0) + bytes([enabled])
        await self.send(Message.SET_CONFIG, data)

    # -- the disk ------------------------------------------------------------------------------------

    async def _do(self, kind: int, offset: int, out: bytes, into: int, queue: int) -> bytes:
        answer = await self.queues[queue].request(kind, offset // SECTOR, out, into)
        if answer.status != OK:
            raise RequestFailed(answer.status)
        return answer.data

    async def read(self, offset: int, length: int, *, queue: int = 0) -> bytes:
        """Read bytes; RequestFailed."""
        return await self._do(IN, offset, b"", length, queue)

    async def write(self, offset: int, data: bytes, *, queue: int = 0) -> None:
        """Write bytes; RequestFailed."""
        await self._do(OUT, offset, data, 0, queue)

    async def flush(self, *, queue: int = 0) -> None:
        """Put what has been written on stable storage."""
        await self._do(FLUSH, 0, b"", 0, queue)

    async def discard(self, offset: int, length: int, *, queue: int = 0) -> None:
        """Deallocate a range."""
        await self._do(DISCARD, 0, SEGMENT.pack(offset // SECTOR, length // SECTOR, 0), 0, queue)

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, queue: int = 0
    ) -> None:
        """Make a range read as zeroes."""
        segment = SEGMENT.pack(offset // SECTOR, length // SECTOR, int(unmap))
        await self._do(WRITE_ZEROES, 0, segment, 0, queue)

    async def get_id(self, *, queue: int = 0) -> str:
        """Return the disk's serial number."""
        data = await self._do(GET_ID, 0, b"", ID_SIZE, queue)
        return data.split(b"\0")[0].decode()

    def close(self) -> None:
        """Hang up and give back what the guest had."""
        self.sock.close()
        if self._channel is not None:
            self._channel.close()
        if self.inflight is not None:
            os.close(self.inflight[1])
            self.inflight = None
        for queue in self.queues:
            queue.close()
        # The mapping goes with its last view.
        self.queues = []
        self.memory = memoryview(b"")
        os.close(self.memory_fd)


@asynccontextmanager
async def connect_front_end(
    path: str | os.PathLike[str],
    *,
    num_queues: int = 1,
    queue_size: int = 128,
    event_idx: bool = True,
    slots: int = 32,
    slot_size: int = PAGE + 64 * 1024,
    mmap_offset: int = 0,
) -> AsyncGenerator[FrontEnd]:
    """Connect to a back-end and say nothing yet."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(os.fspath(path))  # unix sockets are connected at once, or refused
    except BaseException:
        sock.close()
        raise
    vm = FrontEnd(
        sock,
        num_queues=num_queues,
        queue_size=queue_size,
        event_idx=event_idx,
        slots=slots,
        slot_size=slot_size,
        mmap_offset=mmap_offset,
    )
    try:
        async with trio.open_nursery() as nursery:
            for queue in vm.queues:
                nursery.start_soon(queue.pump)
            yield vm
            nursery.cancel_scope.cancel()
    finally:
        vm.close()


@asynccontextmanager
async def open_front_end(
    path: str | os.PathLike[str],
    *,
    num_queues: int = 1,
    queue_size: int = 128,
    event_idx: bool = True,
    inflight: bool = False,
    slots: int = 32,
    slot_size: int = PAGE + 64 * 1024,
    mmap_offset: int = 0,
) -> AsyncGenerator[FrontEnd]:
    """Connect to a back-end and set the disk up: all queues are served."""
    async with (
        connect_front_end(
            path,
            num_queues=num_queues,
            queue_size=queue_size,
            event_idx=event_idx,
            slots=slots,
            slot_size=slot_size,
            mmap_offset=mmap_offset,
        ) as vm,
        trio.open_nursery() as nursery,
    ):
        await vm.negotiate()
        if vm.protocol_features & ProtocolFeature.BACKEND_REQ:
            await vm.open_channel()
            nursery.start_soon(vm.watch_channel)
        await vm.share_memory()
        if inflight:
            await vm.open_inflight()
        for queue in vm.queues:
            await vm.start(queue)
        yield vm
        nursery.cancel_scope.cancel()
