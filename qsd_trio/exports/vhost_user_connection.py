"""One vhost-user front-end: its messages, and the state of the device that they make.

Messages are handled one after the other. What changes under a running queue (memory, rings, features) is changed while the
queue rests: its requests in flight are finished first, then it goes on. Every connection starts from nothing.

Source: docs/interop/vhost-user.rst of the QEMU project.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import attrs
import trio

from qsd_trio.errors import RemoteProtocolError
from qsd_trio.host.barrier import make_barrier
from qsd_trio.host.fdpass import close_all, map_shared, receive_now, send_now, signal_event
from qsd_trio.protocol import vhost_user as vu
from qsd_trio.protocol.vhost_user import Message
from qsd_trio.protocol.virtio.blk import WCE_OFFSET, Feature
from qsd_trio.protocol.virtio.inflight import InflightQueue, log_size
from qsd_trio.protocol.virtio.memory import Region, RegionMemory, VirtqueueError
from qsd_trio.protocol.virtio.queue import MAX_SIZE, Virtqueue, ring_sizes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from typing import TypeAlias

    from qsd_trio.exports.virtio_blk import VirtioBlk
    from qsd_trio.protocol.vhost_user import (
        InflightDescription,
        RegionDescription,
        RingAddresses,
    )

    #: Takes a message's payload and where queues are served; returns the answer's payload, if it has one.
    Handler: TypeAlias = Callable[["Connection", bytes, trio.Nursery], Awaitable[bytes | None]]

log = logging.getLogger("qsd_trio.exports.vhost_user_blk")

#: The answer to a message that failed.
FAILED: Final = vu.U64.pack(1)
DONE: Final = vu.U64.pack(0)


@final
@attrs.define(eq=False)
class Vring:
    """A queue as the front-end has set it up so far. It owns its descriptors."""

    index: int
    num: int = 0
    base: int = 0  # of the available ring: the next request
    addresses: RingAddresses | None = None
    kick_fd: int | None = None
    call_fd: int | None = None
    err_fd: int | None = None
    #: Until a front-end says otherwise: the real daemon never looks at this, and some front-ends rely on that.
    enabled: bool = True
    #: Between SET_VRING_KICK and GET_VRING_BASE (or another set-up).
    started: bool = False
    scope: trio.CancelScope | None = None  # of the task that serves it
    rests: trio.Event = attrs.Factory(trio.Event)  # set when that has ended

    def set_fd(self, name: str, fd: int | None) -> None:
        """Replace ``kick_fd``, ``call_fd`` or ``err_fd``."""
        old: int | None = getattr(self, name)
        if old is not None:
            os.close(old)
        setattr(self, name, fd)

    def close(self) -> None:
        """Close its descriptors."""
        for name in ("kick_fd", "call_fd", "err_fd"):
            self.set_fd(name, None)


@final
class Connection:
    """Serves one front-end until it leaves, breaks the rules, or the task is cancelled.

    Args:
        sock: The connection, non-blocking; owned by the caller.
        device: What the queues' requests are done by.
        features: What is offered.
        num_queues: How many queues there are.
    """

    def __init__(
        self, sock: socket.socket, device: VirtioBlk, features: int, num_queues: int
    ) -> None:
        self._sock = sock
        self._device = device
        self._offered = features
        self._vrings = [Vring(index) for index in range(num_queues)]
        self._features = 0
        self._protocol_features = 0
        self._status = 0
        self._regions: list[tuple[RegionDescription, Region]] = []
        self._memory = RegionMemory()
        self._inflight: tuple[InflightDescription, memoryview] | None = None
        self._backend_channel: socket.socket | None = None
        self._fds: list[int] = []  # of the message at hand, not taken yet
        self._scope = trio.CancelScope()

    # -- life ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the front-end. However it ends: requests in flight are finished, descriptors closed."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    try:
                        await self._converse(nursery)
                    except RemoteProtocolError as exc:
                        self._fail(str(exc))
                    except ConnectionError:
                        pass  # it is gone: its right, at any time
                    nursery.cancel_scope.cancel()
        finally:
            for vring in self._vrings:
                vring.close()
            if self._backend_channel is not None:
                self._backend_channel.close()
            # The guest's memory goes now, not with the next garbage collection.
            self._regions = []
            self._memory = RegionMemory()
            self._inflight = None

    def config_changed(self) -> None:
        """Tell a front-end that wants to know that the configuration space is another now."""
        needed = vu.ProtocolFeature.BACKEND_REQ | vu.ProtocolFeature.CONFIG
        if self._backend_channel is None or self._protocol_features & needed != needed:
            return
        data = vu.message(vu.BackendMessage.CONFIG_CHANGE)
        try:
            sent = self._backend_channel.send(data)
        except BlockingIOError:
            return  # it has not read the many before this one, which say the same
        except OSError:
            sent = 0
        if sent != len(data):
            self._backend_channel.close()
            self._backend_channel = None

    def _fail(self, text: str) -> None:
        log.warning("vu_panic: %s", text)
        self._scope.cancel()

    # -- messages ------------------------------------------------------------------------------------

    async def _converse(self, nursery: trio.Nursery) -> None:
        while True:
            try:
                header = await self._receive(vu.HEADER.size, with_fds=True)
                if header is None:
                    return
                request, flags, size = vu.parse_header(header)
                payload = await self._receive(size)
                if payload is None:
                    return
                await self._answer(nursery, request, flags, payload)
            finally:
                close_all(self._fds)
                self._fds = []

    async def _answer(
        self, nursery: trio.Nursery, request: int, flags: int, payload: bytes
    ) -> None:
        wants_reply = flags & vu.NEED_REPLY and request not in vu.ANSWERED
        try:
            vu.check_fds(request, len(self._fds))
            handler = _HANDLERS.get(request)
            if handler is None:
                raise RemoteProtocolError(f"Unhandled request: {request}")
            try:
                answer = await handler(self, payload, nursery)
            except OSError as exc:  # a descriptor that cannot do what its message needs
                text = f"Request {request} failed: {exc.strerror}"
                raise RemoteProtocolError(text) from None
        except RemoteProtocolError:
            # The real daemon says that all is well, and closes.
            if wants_reply:
                await self._send(vu.reply(request, FAILED))
            raise
        if answer is not None:
            fds, self._fds = self._fds, []  # those that go with an answer are our own
            try:
                await self._send(vu.reply(request, answer), fds)
            finally:
                close_all(fds)
        elif wants_reply:
            await self._send(vu.reply(request, DONE))

    async def _receive(self, size: int, *, with_fds: bool = False) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                if with_fds:
                    room = vu.MAX_FDS - len(self._fds)
                    more, fds = receive_now(self._sock, size - len(data), room)
                    self._fds += fds
                else:
                    more = self._sock.recv(size - len(data))
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            except ConnectionError:
                return None
            except OSError as exc:
                raise RemoteProtocolError(f"Error while recvmsg: {exc.strerror}") from None
            if not more:
                return None
            data += more
        await trio.lowlevel.checkpoint()
        return data

    async def _send(self, data: bytes, fds: list[int] | None = None) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[send_now(self._sock, view, fds or ()) :]
                fds = None
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)

    def _take_fd(self) -> int:
        return self._fds.pop(0)

    def _vring(self, index: int, what: str = "queue index") -> Vring:
        # The real daemon forgets to look in some messages.
        if index >= len(self._vrings):
            raise RemoteProtocolError(f"Invalid {what}: {index}")
        return self._vrings[index]

    def _vring_of_fd(self, request: int, payload: bytes) -> Vring:
        index, count = vu.parse_vring_fd(payload)
        vring = self._vring(index)
        if len(self._fds) != count:
            raise RemoteProtocolError(f"Invalid fds in request: {request}")
        return vring

    # -- features and configuration --------------------------------------------------------------------

    async def _none(self, _payload: bytes, _nursery: trio.Nursery) -> None:
        log.warning("vu_panic: disconnect")  # and goes on, as the real one

    async def _nothing(self, _payload: bytes, _nursery: trio.Nursery) -> None:
        pass

    async def _get_features(self, _payload: bytes, _nursery: trio.Nursery) -> bytes:
        return vu.U64.pack(self._offered)

    async def _set_features(self, payload: bytes, nursery: trio.Nursery) -> None:
        features = vu.parse_u64(payload)
        if not features & Feature.VERSION_1:
            raise RemoteProtocolError("virtio legacy devices aren't supported by libvhost-user")
        async with self._at_rest(nursery):
            self._features = features & self._offered

    async def _get_protocol_features(self, _payload: bytes, _nursery: trio.Nursery) -> bytes:
        return vu.U64.pack(vu.OFFERED)

    async def _set_protocol_features(self, payload: bytes, _nursery: trio.Nursery) -> None:
        self._protocol_features = vu.parse_u64(payload) & vu.OFFERED

    async def _get_queue_num(self, _payload: bytes, _nursery: trio.Nursery) -> bytes:
        return vu.U64.pack(len(self._vrings))

    async def _get_max_mem_slots(self, _payload: bytes, _nursery: trio.Nursery) -> bytes:
        return vu.U64.pack(vu.MAX_REGIONS)

    async def _get_config(self, payload: bytes, _nursery: trio.Nursery) -> bytes:
        offset, size, flags, _ = vu.parse_config(payload)
        config = self._device.config()[offset : offset + size]
        if len(config) < size:
            return b""
        return vu.CONFIG.pack(offset, size, flags) + config

    async def _set_config(self, payload: bytes, _nursery: trio.Nursery) -> None:
        offset, size, flags, data = vu.parse_config(payload)
        if (offset, size, flags, len(data) >= 1) != (WCE_OFFSET, 1, 0, True):
            raise RemoteProtocolError("Set virtio configuration space failed")
        self._device.wce = data[0]

    async def _get_status(self, _payload: bytes, _nursery: trio.Nursery) -> bytes:
        return vu.U64.pack(self._status)

    async def _set_status(self, payload: bytes, nursery: trio.Nursery) -> None:
        status = vu.parse_u64(payload)
        if not status:
            await self._reset_device(b"", nursery)
        self._status = status & 0xFF

    async def _reset_device(self, _payload: bytes, _nursery: trio.Nursery) -> None:
        for vring in self._vrings:
            await self._stop(vring)
            vring.set_fd("kick_fd", None)
            vring.num = vring.base = 0
            vring.addresses = None
            vring.enabled = True
            # Not call_fd: front-ends give that once, when they connect.
        self._features = 0
        self._status = 0

    async def _set_backend_req_fd(self, _payload: bytes, _nursery: trio.Nursery) -> None:
        try:
            channel = socket.socket(fileno=self._fds[0])
        except OSError as exc:
            raise RemoteProtocolError(f"Invalid backend channel: {exc.strerror}") from None
        self._take_fd()
        channel.setblocking(False)
        if self._backend_channel is not None:
            self._backend_channel.close()
        self._backend_channel = channel

    # -- memory --------------------------------------------------------------------------------------

    async def _set_mem_table(self, payload: bytes, nursery: trio.Nursery) -> None:
        described = vu.parse_table(payload, len(self._fds))
        mapped = [self._map(description, self._take_fd()) for description in described]
        await self._replace_memory(mapped, nursery)

    async def _add_mem_reg(self, payload: bytes, nursery: trio.Nursery) -> None:
        description = vu.parse_single_region(payload)
        if len(self._regions) >= vu.MAX_REGIONS:
            raise RemoteProtocolError("failing attempt to hot add memory, no free ram slots")
        region = self._map(description, self._take_fd())
        await self._replace_memory([*self._regions, region], nursery)

    async def _rem_mem_reg(self, payload: bytes, nursery: trio.Nursery) -> None:
        description = vu.parse_single_region(payload)
        kept = [entry for entry in self._regions if not entry[0].is_same(description)]
        if len(kept) == len(self._regions):
            raise RemoteProtocolError("Specified region not found")
        await self._replace_memory(kept, nursery)

    def _map(self, description: RegionDescription, fd: int) -> tuple[RegionDescription, Region]:
        """Map a region; ``fd`` is closed."""
        start = description.mmap_offset
        try:
            # From 0, as nobody promises that the offset is that of a page.
            view = map_shared(fd, start + description.size)[start:]
        except OSError as exc:
            raise RemoteProtocolError(f"region mmap error: {exc.strerror}") from None
        finally:
            os.close(fd)
        region = Region(
            guest_address=description.guest_address,
            user_address=description.user_address,
            view=view,
        )
        return description, region

    async def _replace_memory(
        self, regions: list[tuple[RegionDescription, Region]], nursery: trio.Nursery
    ) -> None:
        try:
            memory = RegionMemory(region for _, region in regions)
        except ValueError as exc:
            raise RemoteProtocolError(str(exc)) from None
        async with self._at_rest(nursery):
            self._regions = regions
            self._memory = memory

    async def _get_inflight_fd(self, payload: bytes, _nursery: trio.Nursery) -> bytes:
        wanted = vu.parse_inflight(Message.GET_INFLIGHT_FD, payload)
        if wanted.num_queues > len(self._vrings) or not 1 <= wanted.queue_size <= MAX_SIZE:
            raise RemoteProtocolError("Invalid get_inflight_fd message: no such queues")
        size = log_size(wanted.queue_size) * max(wanted.num_queues, 1)
        fd = os.memfd_create("vhost-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._fds.append(fd)  # goes with the answer
        os.ftruncate(fd, size)
        return attrs.evolve(wanted, mmap_size=size, mmap_offset=0).pack()

    async def _set_inflight_fd(self, payload: bytes, nursery: trio.Nursery) -> None:
        described = vu.parse_inflight(Message.SET_INFLIGHT_FD, payload)
        num_queues, queue_size = described.num_queues, described.queue_size
        if num_queues > len(self._vrings) or not 1 <= queue_size <= MAX_SIZE:
            raise RemoteProtocolError("Invalid set_inflight_fd message: no such queues")
        size = log_size(queue_size) * num_queues
        if described.mmap_size < size:
            raise RemoteProtocolError("Invalid set_inflight_fd message: too small")
        start = described.mmap_offset
        try:
            view = map_shared(self._fds[0], start + size)[start:]
        except OSError as exc:
            raise RemoteProtocolError(f"set_inflight_fd mmap error: {exc.strerror}") from None
        async with self._at_rest(nursery):
            self._inflight = described, view

    # -- queues --------------------------------------------------------------------------------------

    async def _set_vring_num(self, payload: bytes, _nursery: trio.Nursery) -> None:
        index, num = vu.parse_state(payload)
        vring = self._vring(index)
        if not 1 <= num <= MAX_SIZE:
            raise RemoteProtocolError(f"Invalid queue size: {num}")
        await self._stop(vring)
        vring.num = num

    async def _set_vring_base(self, payload: bytes, _nursery: trio.Nursery) -> None:
        index, base = vu.parse_state(payload)
        vring = self._vring(index)
        await self._stop(vring)
        vring.base = base & 0xFFFF

    async def _set_vring_addr(self, payload: bytes, nursery: trio.Nursery) -> None:
        index, addresses = vu.parse_addresses(payload)
        vring = self._vring(index)
        async with self._at_rest(nursery, vring):
            vring.addresses = addresses
            for address in (addresses.desc, addresses.avail, addresses.used):
                if self._memory.at_user_address(address, 1) is None:
                    raise RemoteProtocolError("Invalid vring_addr message")

    async def _set_vring_kick(self, payload: bytes, nursery: trio.Nursery) -> None:
        vring = self._vring_of_fd(Message.SET_VRING_KICK, payload)
        if not self._fds:  # a front-end that never kicks: we do not poll
            raise RemoteProtocolError(f"Invalid fds in request: {Message.SET_VRING_KICK}")
        await self._rest(vring)
        os.set_blocking(self._fds[0], False)
        vring.set_fd("kick_fd", self._take_fd())
        vring.started = True
        self._go_on(vring, nursery)

    async def _set_vring_call(self, payload: bytes, _nursery: trio.Nursery) -> None:
        vring = self._vring_of_fd(Message.SET_VRING_CALL, payload)
        if not self._fds:  # a front-end that polls
            vring.set_fd("call_fd", None)
            return
        os.set_blocking(self._fds[0], False)
        vring.set_fd("call_fd", self._take_fd())
        self._call(vring)  # it may have missed something

    async def _set_vring_err(self, payload: bytes, _nursery: trio.Nursery) -> None:
        vring = self._vring_of_fd(Message.SET_VRING_ERR, payload)
        vring.set_fd("err_fd", self._take_fd() if self._fds else None)

    async def _set_vring_enable(self, payload: bytes, nursery: trio.Nursery) -> None:
        index, enabled = vu.parse_state(payload)
        vring = self._vring(index, "vring_enable index")
        if vring.enabled != bool(enabled):
            async with self._at_rest(nursery, vring):
                vring.enabled = bool(enabled)

    async def _get_vring_base(self, payload: bytes, _nursery: trio.Nursery) -> bytes:
        index, _ = vu.parse_state(payload)
        vring = self._vring(index)
        await self._stop(vring)  # the real daemon does not wait: its requests then fail
        vring.set_fd("kick_fd", None)
        vring.set_fd("call_fd", None)
        return vu.STATE.pack(index, vring.base)

    async def _stop(self, vring: Vring) -> None:
        """End serving, until the next SET_VRING_KICK."""
        vring.started = False
        await self._rest(vring)

    async def _rest(self, vring: Vring) -> None:
        """Finish a queue's requests in flight."""
        if vring.scope is not None:
            vring.scope.cancel()
            await vring.rests.wait()

    @asynccontextmanager
    async def _at_rest(
        self, nursery: trio.Nursery, vring: Vring | None = None
    ) -> AsyncGenerator[None]:
        """Change something that ``vring``, or any, needs: it rests meanwhile."""
        affected = self._vrings if vring is None else [vring]
        for each in affected:
            await self._rest(each)
        yield
        for each in affected:
            self._go_on(each, nursery)

    def _go_on(self, vring: Vring, nursery: trio.Nursery) -> None:
        if (
            vring.started
            and vring.enabled
            and vring.num
            and vring.addresses is not None
            and vring.scope is None
            and self._memory.regions
        ):
            queue = self._open_queue(vring, vring.addresses)
            inflight = self._open_inflight(vring)
            vring.scope = trio.CancelScope()
            vring.rests = trio.Event()
            nursery.start_soon(self._serve, vring, queue, inflight)

    def _open_queue(self, vring: Vring, addresses: RingAddresses) -> Virtqueue:
        event_idx = bool(self._features & Feature.EVENT_IDX)
        where = (addresses.desc, addresses.avail, addresses.used)
        rings = [
            self._memory.at_user_address(address, size)
            for address, size in zip(where, ring_sizes(vring.num, event_idx), strict=True)
        ]
        desc, avail, used = rings
        if desc is None or avail is None or used is None:
            raise RemoteProtocolError("Invalid vring_addr message")
        return Virtqueue(
            self._memory,
            desc,
            avail,
            used,
            vring.num,
            last_avail=vring.base,
            used_index=used[:4].cast("H")[1],
            event_idx=event_idx,
            notify_on_empty=bool(self._features & Feature.NOTIFY_ON_EMPTY),
            barrier=make_barrier(),
        )

    def _open_inflight(self, vring: Vring) -> InflightQueue | None:
        if self._inflight is None:
            return None
        described, view = self._inflight
        if vring.index >= described.num_queues:
            return None
        size = log_size(described.queue_size)
        try:
            if vring.num > described.queue_size:
                raise VirtqueueError("in-flight log too small")
            return InflightQueue(view[size * vring.index :][:size], vring.num)
        except VirtqueueError as exc:
            raise RemoteProtocolError(str(exc)) from None

    async def _serve(self, vring: Vring, queue: Virtqueue, inflight: InflightQueue | None) -> None:
        assert vring.scope is not None
        assert vring.kick_fd is not None
        try:
            with vring.scope:
                await self._device.serve(
                    queue, vring.kick_fd, lambda: self._call(vring), inflight=inflight
                )
        except VirtqueueError as exc:
            self._fail(str(exc))
        except OSError as exc:
            self._fail(f"Error reading eventfd: {exc.strerror}")
        finally:
            vring.base = queue.last_avail
            vring.scope = None
            vring.rests.set()

    def _call(self, vring: Vring) -> None:
        if vring.call_fd is None:
            return
        try:
            signal_event(vring.call_fd)
        except OSError as exc:
            self._fail(f"Error writing eventfd: {exc.strerror}")


#: What each message does.
_HANDLERS: Final[dict[int, Handler]] = {
    Message.NONE: Connection._none,
    Message.GET_FEATURES: Connection._get_features,
    Message.SET_FEATURES: Connection._set_features,
    Message.SET_OWNER: Connection._nothing,
    Message.RESET_OWNER: Connection._nothing,
    Message.SET_MEM_TABLE: Connection._set_mem_table,
    Message.SET_VRING_NUM: Connection._set_vring_num,
    Message.SET_VRING_ADDR: Connection._set_vring_addr,
    Message.SET_VRING_BASE: Connection._set_vring_base,
    Message.GET_VRING_BASE: Connection._get_vring_base,
    Message.SET_VRING_KICK: Connection._set_vring_kick,
    Message.SET_VRING_CALL: Connection._set_vring_call,
    Message.SET_VRING_ERR: Connection._set_vring_err,
    Message.GET_PROTOCOL_FEATURES: Connection._get_protocol_features,
    Message.SET_PROTOCOL_FEATURES: Connection._set_protocol_features,
    Message.GET_QUEUE_NUM: Connection._get_queue_num,
    Message.SET_VRING_ENABLE: Connection._set_vring_enable,
    Message.SET_BACKEND_REQ_FD: Connection._set_backend_req_fd,
    Message.GET_CONFIG: Connection._get_config,
    Message.SET_CONFIG: Connection._set_config,
    Message.GET_INFLIGHT_FD: Connection._get_inflight_fd,
    Message.SET_INFLIGHT_FD: Connection._set_inflight_fd,
    Message.RESET_DEVICE: Connection._reset_device,
    Message.GET_MAX_MEM_SLOTS: Connection._get_max_mem_slots,
    Message.ADD_MEM_REG: Connection._add_mem_reg,
    Message.REM_MEM_REG: Connection._rem_mem_reg,
    Message.SET_STATUS: Connection._set_status,
    Message.GET_STATUS: Connection._get_status,
}
