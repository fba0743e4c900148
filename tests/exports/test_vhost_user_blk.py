"""The vhost-user-blk export with our own front-end: messages, memory, queues, resize, crashes of both sides."""

from __future__ import annotations

import gc
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qsd_trio
from qsd_trio.api import EmbeddedDaemon
from qsd_trio.block.backend import BlockBackend
from qsd_trio.exports.vhost_user_connection import Connection
from qsd_trio.protocol import vhost_user as vu
from qsd_trio.protocol.vhost_user import Message
from qsd_trio.protocol.virtio.blk import IN, OUT, Feature
from qsd_trio.testing.vhost_user import (
    GUEST_BASE,
    USER_BASE,
    FrontEnd,
    RequestFailed,
    connect_front_end,
    open_front_end,
)
from tests.exports.nbd_kit import FakeBackend
from tests.exports.virtio_kit import device

SIZE = 1 << 20
ALL = st.sampled_from([int(message) for message in Message])


@asynccontextmanager
async def exported(directory: Path, **options: object) -> AsyncIterator[EmbeddedDaemon]:
    """Export a file of random bytes at ``s``."""
    image = directory / "disk"
    if not image.exists():
        image.write_bytes(os.urandom(SIZE))
    with trio.fail_after(20):
        async with qsd_trio.open_daemon() as daemon:
            await daemon.qmp(
                "blockdev-add", {"driver": "file", "node-name": "n", "filename": str(image)}
            )
            await daemon.qmp(
                "block-export-add",
                {
                    "type": "vhost-user-blk",
                    "id": "e",
                    "node-name": "n",
                    "writable": True,
                    "addr": {"type": "unix", "path": str(directory / "s")},
                    **options,
                },
            )
            yield daemon


def fd_count() -> int:
    gc.collect()  # tracebacks may hold views of guest memory, which has a descriptor, too
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("mmap_offset", [0, 4096, 512])
async def test_a_disk(sock_dir: Path, event_idx: bool, mmap_offset: int) -> None:
    async with (
        exported(sock_dir, **{"num-queues": 2}),
        open_front_end(
            sock_dir / "s", num_queues=2, event_idx=event_idx, mmap_offset=mmap_offset
        ) as vm,
    ):
        content = (sock_dir / "disk").read_bytes()
        assert await vm.capacity() == SIZE
        assert await vm.get_id() == "vhost_user_blk"
        for queue in (0, 1):
            assert await vm.read(4096, 8192, queue=queue) == content[4096:12288]
            await vm.write(queue * 4096, bytes([queue]) * 4096, queue=queue)
            await vm.flush(queue=queue)
        assert await vm.read(0, 8192) == bytes(4096) + bytes([1]) * 4096
        await vm.write_zeroes(4096, 4096, unmap=True)
        await vm.discard(8192, 4096)
        assert await vm.read(4096, 4096) == bytes(4096)
        with pytest.raises(RequestFailed):
            await vm.read(SIZE, 512)
        answer = await vm.queues[0].request(IN, 8, into=16384, indirect=True, pieces=7)
        assert answer.data == (sock_dir / "disk").read_bytes()[4096:20480]
        assert answer.used == 16385


async def test_many_requests_at_once(sock_dir: Path) -> None:
    async with (
        exported(sock_dir, **{"num-queues": 2}),
        open_front_end(sock_dir / "s", num_queues=2) as vm,
    ):

        async def work(number: int) -> None:
            for step in range(10):
                offset = (number * 10 + step) * 4096
                data = struct.pack("<I", offset) * 1024
                await vm.write(offset, data, queue=number % 2)
                assert await vm.read(offset, 4096, queue=(number + step) % 2) == data

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(work, number)


async def test_a_queue_stops_and_goes_on(sock_dir: Path) -> None:
    async with exported(sock_dir), open_front_end(sock_dir / "s") as vm:
        (queue,) = vm.queues
        await vm.write(0, b"a" * 512)
        assert await vm.stop(queue) == 1
        await vm.start(queue, base=1)
        assert await vm.read(0, 512) == b"a" * 512


async def test_a_running_queue_is_set_up_again(sock_dir: Path) -> None:
    """UML's way: no GET_VRING_BASE, everything anew over the running queue, from index 0."""
    async with exported(sock_dir), open_front_end(sock_dir / "s", mmap_offset=1 << 20) as vm:
        (queue,) = vm.queues
        for _ in range(3):
            await vm.write(0, b"a" * 512)
            assert await vm.tell(Message.SET_VRING_ENABLE, vu.STATE.pack(0, 0)) == 0
            queue.ring.reset()
            await vm.get_u64(Message.GET_FEATURES)
            assert await vm.tell(Message.SET_FEATURES, vu.U64.pack(vm.features)) == 0
            await vm.share_memory()
            await vm.start(queue, base=0)
            assert await vm.read(0, 512) == b"a" * 512


async def test_the_memory_table_changes_under_requests(sock_dir: Path) -> None:
    async with exported(sock_dir), open_front_end(sock_dir / "s") as vm:

        async def work() -> None:
            for step in range(50):
                await vm.write(step * 512, bytes([step]) * 512)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            while True:
                await vm.share_memory()
                await vm.get_u64(Message.GET_FEATURES)
    content = (sock_dir / "disk").read_bytes()
    assert all(content[step * 512] == step for step in range(50))


async def test_memory_slots(sock_dir: Path) -> None:
    async with exported(sock_dir), connect_front_end(sock_dir / "s") as vm:
        await vm.negotiate()
        assert await vm.get_u64(Message.GET_MAX_MEM_SLOTS) == 32
        half = vm.size // 2 // 4096 * 4096
        parts = [(0, half), (half, vm.size - half)]
        regions = [
            vu.SINGLE_REGION.pack(GUEST_BASE + at, size, USER_BASE + at, at) for at, size in parts
        ]
        for region in regions:
            assert await vm.tell(Message.ADD_MEM_REG, region, [vm.memory_fd]) == 0
        await vm.start(vm.queues[0])
        await vm.write(0, b"a" * 4096)
        assert await vm.tell(Message.REM_MEM_REG, regions[1]) == 0
        assert await vm.tell(Message.ADD_MEM_REG, regions[1], [vm.memory_fd]) == 0
        assert await vm.read(0, 4096) == b"a" * 4096
        assert await vm.tell(Message.REM_MEM_REG, regions[1]) == 0
        assert await vm.tell(Message.REM_MEM_REG, regions[1]) != 0, "unknown now"
        with pytest.raises(EOFError):
            await vm.receive()


async def test_what_is_offered(sock_dir: Path) -> None:
    async with exported(sock_dir, **{"num-queues": 3}), connect_front_end(sock_dir / "s") as vm:
        features = Feature(await vm.get_u64(Message.GET_FEATURES))
        assert not features & Feature.SIZE_MAX, "with size_max 0 Linux cuts requests to 4 KiB"
        assert not features & Feature.RO
        # The real daemon's, less SIZE_MAX and LOG_ALL.
        assert features == 0x175007E46 & ~Feature.SIZE_MAX & ~(1 << 26)
        assert await vm.get_u64(Message.GET_PROTOCOL_FEATURES) == 0x1B229
        assert await vm.get_u64(Message.GET_QUEUE_NUM) == 3
        config = await vm.config()
        assert len(config) == 60
        assert config[34] == 3
        assert config[32] == 1, "the write cache is on, and says so"
        assert await vm.ask(Message.GET_CONFIG, vu.CONFIG.pack(0, 61, 0) + bytes(61)) == b""


async def test_write_cache_mode_survives_a_reconnect(sock_dir: Path) -> None:
    async with exported(sock_dir, writethrough=True):
        for expected, then in ((0, True), (1, False), (0, False)):
            async with connect_front_end(sock_dir / "s") as vm:
                assert (await vm.config())[32] == expected
                await vm.set_write_cache(then)
                await vm.config()


async def test_the_guest_sees_a_resize(sock_dir: Path) -> None:
    """The real 7.2 fixes the capacity when the export is made."""
    async with exported(sock_dir) as daemon, open_front_end(sock_dir / "s") as vm:
        changed = vm.config_changed
        await vm.capacity()  # so that all messages before are handled
        await daemon.qmp("block_resize", {"node-name": "n", "size": SIZE * 2})
        await changed.wait()
        assert await vm.capacity() == SIZE * 2
        await vm.write(SIZE, b"new" + bytes(509))
        await daemon.qmp("block_resize", {"node-name": "n", "size": SIZE})
        with pytest.raises(RequestFailed):
            await vm.read(SIZE, 512)


async def test_the_next_front_end_waits(sock_dir: Path) -> None:
    async with exported(sock_dir):
        second = socket.socket(socket.AF_UNIX)
        async with open_front_end(sock_dir / "s") as vm:
            second.connect(os.fspath(sock_dir / "s"))
            second.send(vu.message(Message.GET_QUEUE_NUM))
            await vm.read(0, 512)
            second.setblocking(False)
            with pytest.raises(BlockingIOError):
                second.recv(1)
        with second:
            await trio.lowlevel.wait_readable(second)
            assert second.recv(20) == vu.reply(Message.GET_QUEUE_NUM, vu.U64.pack(1))


async def test_deletion_finishes_requests_and_removes_the_socket(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = trio.Event()
    pwritev = BlockBackend.pwritev

    async def slow(self: BlockBackend, *args: Any) -> None:
        await gate.wait()
        await pwritev(self, *args)

    monkeypatch.setattr(BlockBackend, "map_write", lambda *_: None)
    monkeypatch.setattr(BlockBackend, "pwritev", slow)
    async with exported(sock_dir) as daemon, open_front_end(sock_dir / "s") as vm:
        ring = vm.queues[0].ring
        deleted: list[int] = []

        async def delete() -> None:
            await daemon.qmp("block-export-del", {"id": "e"})
            deleted.append(ring.used_index)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(vm.write, number * 512, bytes([number]) * 512)
            await vm.get_id()
            nursery.start_soon(delete)
            await trio.testing.wait_all_tasks_blocked()
            assert (deleted, ring.used_index) == ([], 1)
            gate.set()
        assert deleted == [7], "all in the ring before the deletion is over"
        assert not (sock_dir / "s").exists()
        assert await daemon.qmp("query-block-exports") == []
    content = (sock_dir / "disk").read_bytes()
    assert all(content[number * 512] == number for number in range(6))


async def test_several_exports_of_a_node(sock_dir: Path) -> None:
    async with exported(sock_dir) as daemon:
        address = {"type": "unix", "path": str(sock_dir / "t")}
        options = {"type": "vhost-user-blk", "id": "f", "node-name": "n", "writable": True}
        await daemon.qmp("block-export-add", {**options, "addr": address})
        async with (
            open_front_end(sock_dir / "s") as one,
            open_front_end(sock_dir / "t", event_idx=False) as other,
        ):
            for step in range(10):
                writer, reader = (one, other) if step % 2 else (other, one)
                await writer.write(0, bytes([step]) * 4096)
                assert await reader.read(0, 4096) == bytes([step]) * 4096
            await daemon.qmp("block-export-del", {"id": "f"})
            with pytest.raises(EOFError):
                await other.receive()
            await one.read(0, 512)


async def test_a_crash_of_one_connection_is_not_the_exports(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with exported(sock_dir):
        with monkeypatch.context() as broken:
            broken.setattr("qsd_trio.exports.virtio_blk.parse", lambda _: 1 // 0)
            async with open_front_end(sock_dir / "s") as vm:
                vm.queues[0].ring.add([(GUEST_BASE, 8, False), (GUEST_BASE + 8, 1, True)])
                vm.queues[0].ring.publish()
                vm.queues[0].kick()
                with pytest.raises(EOFError):
                    await vm.receive()
        async with open_front_end(sock_dir / "s") as vm:
            await vm.read(0, 512)
    assert caplog.messages == ["vhost-user front-end crashed"]


async def test_get_vring_base_waits_for_the_requests(sock_dir: Path) -> None:
    """The real daemon answers at once; the requests then find no call descriptor."""
    backend = FakeBackend(SIZE)
    backend.fast = False
    gate = trio.Event()
    backend.before = lambda _name, _offset: gate.wait()
    async with connection(backend) as vm:
        await set_up(vm)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vm.read, 0, 512)
            await trio.testing.wait_all_tasks_blocked()
            answers: list[int] = []

            async def stop() -> None:
                answers.append(await vm.stop(vm.queues[0]))

            nursery.start_soon(stop)
            await trio.testing.wait_all_tasks_blocked()
            assert not answers
            gate.set()
        assert answers == [1]


async def test_a_killed_back_end_is_succeeded(sock_dir: Path) -> None:
    """With the in-flight log the front-end submits nothing again."""
    backend = FakeBackend(SIZE)
    backend.fast = False
    backend.before = lambda _name, offset: trio.Event().wait() if offset < 4096 else None
    blk = device(backend)
    async with trio.open_nursery() as nursery, connection(backend, blk) as vm:
        await set_up(vm)
        await vm.open_inflight()
        await vm.get_u64(Message.GET_FEATURES)
        await vm.queues[0].request(OUT, 100, b"z" * 512)
        for number in range(3):
            nursery.start_soon(vm.write, number * 512, bytes([number + 1]) * 512)
        await trio.testing.wait_all_tasks_blocked()
        # Killed: nothing is answered, the connection is gone.
        vm.sock.shutdown(socket.SHUT_RDWR)
        blk.abandon()
        await trio.testing.wait_all_tasks_blocked()
        backend.before = None
        async with serve_again(backend, vm):
            await vm.negotiate()
            await vm.share_memory()
            await vm.share_inflight()
            await vm.start(vm.queues[0], base=vm.queues[0].ring.used_index)
            await vm.read(0, 512)
            while any(backend.content[number * 512] != number + 1 for number in range(3)):
                await trio.testing.wait_all_tasks_blocked()  # nobody asked for them again
            await trio.testing.wait_all_tasks_blocked()


# -- what is not right ---------------------------------------------------------------------------------


@asynccontextmanager
async def serve_again(backend: FakeBackend, vm: FrontEnd) -> AsyncIterator[None]:
    """Put a new back-end at the other end of a front-end's connection."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    vm.sock.close()
    vm.sock = theirs
    features = device(backend).features | vu.PROTOCOL_FEATURES
    with ours, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Connection(ours, device(backend), features, 2).run)
            yield
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def connection(backend: FakeBackend, blk: object = None) -> AsyncIterator[FrontEnd]:
    """Connect a front-end to a Connection in-process."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    blk = blk or device(backend)
    vm = FrontEnd(
        theirs,
        num_queues=1,
        queue_size=16,
        event_idx=False,
        slots=8,
        slot_size=8192,
        mmap_offset=0,
    )
    features = int(blk.features) | vu.PROTOCOL_FEATURES  # type: ignore[attr-defined]
    try:
        with ours, trio.fail_after(10):
            async with trio.open_nursery() as nursery:

                async def serve() -> None:
                    try:
                        await Connection(ours, blk, features, 2).run()  # type: ignore[arg-type]
                    finally:
                        ours.close()

                nursery.start_soon(serve)
                nursery.start_soon(vm.queues[0].pump)
                yield vm
                nursery.cancel_scope.cancel()
    finally:
        vm.close()
        backend.close()


async def set_up(vm: FrontEnd) -> None:
    await vm.negotiate()
    await vm.share_memory()
    await vm.start(vm.queues[0])
    await vm.get_u64(Message.GET_FEATURES)


def state(index: int, number: int) -> bytes:
    return vu.STATE.pack(index, number)


def region(size: int = 4096, *, guest: int = 0, user: int = 0, offset: int = 0) -> bytes:
    return vu.REGION.pack(guest, size, user, offset)


#: name: (message, payload, number of descriptors, text)
WRONG: dict[str, tuple[int, bytes, int, str]] = {
    "unknown": (99, b"", 0, "Unhandled request: 99"),
    "not offered": (Message.SET_VRING_ENABLE + 1, b"", 0, "Unhandled request: 19"),
    "legacy": (Message.SET_FEATURES, bytes(8), 0, "virtio legacy devices aren't supported"),
    "short": (Message.SET_FEATURES, bytes(7), 0, "Invalid message: 7 bytes, not 8"),
    "surplus descriptor": (
        Message.SET_FEATURES,
        vu.U64.pack(1 << 32),
        1,
        "Invalid fds in request: 2",
    ),
    # The real daemon aborts or does as if for these four.
    "queue of NUM": (Message.SET_VRING_NUM, state(2, 16), 0, "Invalid queue index: 2"),
    "queue of BASE": (Message.SET_VRING_BASE, state(2, 0), 0, "Invalid queue index: 2"),
    "queue of ADDR": (Message.SET_VRING_ADDR, bytes([7]) + bytes(39), 0, "Invalid queue index: 7"),
    "queue of GET": (Message.GET_VRING_BASE, state(255, 0), 0, "Invalid queue index: 255"),
    "queue of KICK": (Message.SET_VRING_KICK, vu.U64.pack(7), 1, "Invalid queue index: 7"),
    "queue of CALL": (Message.SET_VRING_CALL, vu.U64.pack(7), 1, "Invalid queue index: 7"),
    "queue of ENABLE": (Message.SET_VRING_ENABLE, state(7, 1), 0, "Invalid vring_enable index: 7"),
    "kick without": (Message.SET_VRING_KICK, vu.U64.pack(0), 0, "Invalid fds in request: 12"),
    "kick with none": (Message.SET_VRING_KICK, vu.U64.pack(256), 0, "Invalid fds in request: 12"),
    "kick with two": (Message.SET_VRING_KICK, vu.U64.pack(0), 2, "Invalid fds in request: 12"),
    "queue of none": (Message.SET_VRING_NUM, state(0, 0), 0, "Invalid queue size: 0"),
    "huge queue": (Message.SET_VRING_NUM, state(0, 32769), 0, "Invalid queue size: 32769"),
    "rings nowhere": (Message.SET_VRING_ADDR, bytes(40), 0, "Invalid vring_addr message"),
    # The real daemon reads and closes what lies behind its array.
    "nine regions": (
        Message.SET_MEM_TABLE,
        vu.TABLE.pack(9, 0) + region()[:-4] * 9,
        8,
        "Invalid memory table: 9 regions, 8 descriptors",
    ),
    "regions without": (
        Message.SET_MEM_TABLE,
        vu.TABLE.pack(1, 0) + region(),
        0,
        "Invalid memory table",
    ),
    "one too many": (
        Message.SET_MEM_TABLE,
        vu.TABLE.pack(1, 0) + region(),
        2,
        "Invalid memory table",
    ),
    "half a region": (
        Message.SET_MEM_TABLE,
        vu.TABLE.pack(1, 0) + region()[:-1],
        1,
        "Invalid message",
    ),
    "empty region": (
        Message.SET_MEM_TABLE,
        vu.TABLE.pack(1, 0) + region(0),
        1,
        "Invalid memory region",
    ),
    "region beyond the file": (
        Message.SET_MEM_TABLE,
        vu.TABLE.pack(1, 0) + region(1 << 40),
        1,
        "region mmap error",
    ),
    "region beyond all": (
        Message.ADD_MEM_REG,
        bytes(8) + region(4096, guest=2**64 - 4096),
        1,
        "Invalid memory region",
    ),
    "two over one another": (
        Message.SET_MEM_TABLE,
        vu.TABLE.pack(2, 0) + region() + region(),
        2,
        "overlapping memory regions",
    ),
    "unknown region": (Message.REM_MEM_REG, bytes(8) + region(), 0, "Specified region not found"),
    "config elsewhere": (
        Message.SET_CONFIG,
        vu.CONFIG.pack(0, 8, 0) + bytes(8),
        0,
        "Set virtio configuration space failed",
    ),
    "config without data": (
        Message.SET_CONFIG,
        vu.CONFIG.pack(32, 1, 0),
        0,
        "Set virtio configuration space failed",
    ),
    "log request": (Message.GET_INFLIGHT_FD, bytes(20), 0, "Invalid get_inflight_fd message:20"),
    "log of many": (
        Message.GET_INFLIGHT_FD,
        vu.INFLIGHT.pack(0, 0, 65535, 65535),
        0,
        "Invalid get_inflight_fd message",
    ),
    "log too small": (
        Message.SET_INFLIGHT_FD,
        vu.INFLIGHT.pack(2111, 0, 1, 128),
        1,
        "Invalid set_inflight_fd message",
    ),
    "log of a short file": (
        Message.SET_INFLIGHT_FD,
        vu.INFLIGHT.pack(1 << 40, 1 << 40, 1, 128),
        1,
        "set_inflight_fd mmap error",
    ),
    "log without": (
        Message.SET_INFLIGHT_FD,
        vu.INFLIGHT.pack(2112, 0, 1, 128),
        0,
        "Invalid fds in request: 32",
    ),
    "channel that is none": (Message.SET_BACKEND_REQ_FD, b"", 1, "Invalid backend channel"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_wrong_messages_end_the_connection_and_leak_nothing(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    request, payload, count, text = WRONG[case]
    before = fd_count()
    fd = os.memfd_create("x")
    os.ftruncate(fd, 8192)
    async with connection(FakeBackend(SIZE)) as vm:
        if request in vu.ANSWERED:
            await vm.send(request, payload, [fd] * count)
        else:
            assert await vm.tell(request, payload, [fd] * count) != 0, "the real one says 0"
        with pytest.raises(EOFError):
            await vm.receive()
    os.close(fd)
    assert fd_count() == before
    assert caplog.messages[0].startswith(f"vu_panic: {text}")


@pytest.mark.parametrize("count", [1, 8, 9, 20])
async def test_surplus_descriptors_are_closed(count: int) -> None:
    before = fd_count()
    fd = os.memfd_create("x")
    async with connection(FakeBackend(SIZE)) as vm:
        for _ in range(3):
            try:
                await vm.send(Message.GET_FEATURES, b"", [fd] * count)
            except OSError:
                break
        with pytest.raises(EOFError):
            await vm.receive()
    os.close(fd)
    assert fd_count() == before


async def test_a_message_that_is_too_long(caplog: pytest.LogCaptureFixture) -> None:
    async with connection(FakeBackend(SIZE)) as vm:
        await vm.send_bytes(vu.HEADER.pack(2, 1, 273))
        with pytest.raises(EOFError):
            await vm.receive()
    assert caplog.messages == [
        "vu_panic: Error: too big message request: 2, size: vmsg->size: 273, "
        "while sizeof(vmsg->payload) = 272"
    ]


async def test_a_kick_descriptor_that_can_do_nothing(caplog: pytest.LogCaptureFixture) -> None:
    fd = os.open("/", os.O_PATH)
    async with connection(FakeBackend(SIZE)) as vm:
        assert await vm.tell(Message.SET_VRING_KICK, vu.U64.pack(0), [fd]) != 0
        with pytest.raises(EOFError):
            await vm.receive()
    os.close(fd)
    assert caplog.messages == ["vu_panic: Request 12 failed: Bad file descriptor"]


async def test_a_kick_descriptor_that_hangs_up(caplog: pytest.LogCaptureFixture) -> None:
    read_end, write_end = os.pipe()
    async with connection(FakeBackend(SIZE)) as vm:
        await set_up(vm)
        assert await vm.tell(Message.SET_VRING_KICK, vu.U64.pack(0), [read_end]) == 0
        os.close(write_end)
        with pytest.raises(EOFError):
            await vm.receive()
    os.close(read_end)
    assert caplog.messages == ["vu_panic: Error reading eventfd: end of file"]


async def test_a_device_is_reset(sock_dir: Path) -> None:
    async with exported(sock_dir), open_front_end(sock_dir / "s") as vm:
        await vm.write(0, b"a" * 512)
        for message, payload in (
            (Message.RESET_DEVICE, b""),
            (Message.SET_STATUS, vu.U64.pack(0)),
        ):
            assert await vm.tell(Message.SET_STATUS, vu.U64.pack(15)) == 0
            assert await vm.get_u64(Message.GET_STATUS) == 15
            assert await vm.tell(message, payload) == 0
            assert await vm.get_u64(Message.GET_STATUS) == 0
            assert await vm.stop(vm.queues[0]) == 0, "forgotten"
            vm.queues[0].ring.reset()
            await vm.send(Message.SET_FEATURES, vu.U64.pack(vm.features))
            await vm.start(vm.queues[0])
            assert await vm.read(0, 512) == b"a" * 512


async def test_messages_in_pieces() -> None:
    async with connection(FakeBackend(SIZE)) as vm:
        for byte in vu.message(Message.GET_QUEUE_NUM):
            await vm.send_bytes(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert (await vm.receive())[1] == vu.U64.pack(2)


async def test_a_broken_ring_ends_that_connection_only(
    sock_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with exported(sock_dir):
        async with open_front_end(sock_dir / "s") as vm:
            vm.queues[0].ring.offer(1000)
            vm.queues[0].ring.publish()
            vm.queues[0].kick()
            with pytest.raises(EOFError):
                await vm.receive()
        async with open_front_end(sock_dir / "s") as vm:
            await vm.read(0, 512)
    assert caplog.messages == ["vu_panic: Guest says index 1000 is available"]


async def test_nothing_is_left_of_a_connection(sock_dir: Path) -> None:
    async with exported(sock_dir):
        async with open_front_end(sock_dir / "s", inflight=True) as vm:
            await vm.read(0, 512)
        await trio.testing.wait_all_tasks_blocked()
        before = fd_count()
        for _ in range(3):
            async with open_front_end(sock_dir / "s", inflight=True) as vm:
                await vm.read(0, 512)
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert fd_count() == before


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    messages=st.lists(
        st.tuples(
            st.one_of(ALL, st.integers(0, 2**32 - 1)),
            st.one_of(
                st.binary(max_size=64),
                st.builds(state, st.integers(0, 3), st.integers(0, 20)),
                st.builds(vu.U64.pack, st.integers(0, 2) | st.just(1 << 32)),
            ),
            st.integers(0, 9),
            st.integers(0, 15),
        ),
        max_size=8,
    ),
    ready=st.booleans(),
)
def test_any_messages(messages: list[tuple[int, bytes, int, int]], ready: bool) -> None:
    """Answered or refused; nothing crashes, hangs or leaks."""

    async def run() -> None:
        async with connection(FakeBackend(SIZE)) as vm:
            if ready:
                await set_up(vm)
            for request, payload, count, flags in messages:
                try:
                    await vm.send(request, payload, [fd] * count, flags=flags)
                except OSError:
                    break
            vm.sock.shutdown(socket.SHUT_WR)
            try:
                while True:
                    _, _, fds = await vm.receive()
                    for each in fds:
                        os.close(each)
            except EOFError:
                pass

    before = fd_count()
    fd = os.eventfd(0)
    trio.run(run)
    os.close(fd)
    assert fd_count() == before
