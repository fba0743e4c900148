"""The FUSE lane over a socket that keeps messages apart, as /dev/fuse does: no kernel, no mount."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
import trio.testing

from qsd_trio.block.backend import BlockBackend
from qsd_trio.errors import RemoteProtocolError, os_error
from qsd_trio.exports.fuse_lane import MAX_IN_FLIGHT, Lane
from qsd_trio.exports.fuse_semantics import ExportedFile
from qsd_trio.protocol.fuse import MAX_IO, Opcode
from tests.exports.nbd_kit import FakeBackend

KIB = 1024


class Kernel:
    """The other end: sends requests, takes replies in any order."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._unique = 0
        self._replies: dict[int, tuple[int, bytes]] = {}

    def close(self) -> None:
        self._sock.close()

    async def send(self, opcode: int, body: bytes = b"") -> int:
        self._unique += 2
        header = struct.pack("=IIQQIIIHH", 40 + len(body), opcode, self._unique, 1, 0, 0, 1, 0, 0)
        await self._sock.send(header + body)
        return self._unique

    async def send_raw(self, data: bytes) -> None:
        await self._sock.send(data)

    async def reply(self, unique: int) -> tuple[int, bytes]:
        """Return (errno, payload) of a request."""
        while unique not in self._replies:
            try:
                data = await self._sock.recv(MAX_IO + 16)
            except ConnectionResetError:
                continue  # said once where requests were not read; replies may come after it
            if not data:
                raise EOFError
            length, error, number = struct.unpack_from("=IiQ", data)
            assert length == len(data)
            assert number not in self._replies, "answered twice"
            self._replies[number] = (-error, data[16:])
        return self._replies.pop(unique)

    async def ask(self, opcode: int, body: bytes = b"") -> tuple[int, bytes]:
        return await self.reply(await self.send(opcode, body))

    async def read(self, offset: int, size: int) -> tuple[int, bytes]:
        return await self.ask(Opcode.READ, read_in(offset, size))

    async def write(self, offset: int, data: bytes) -> tuple[int, bytes]:
        return await self.ask(Opcode.WRITE, read_in(offset, len(data)) + data)


def read_in(offset: int, size: int) -> bytes:
    return struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0)


def connect(backend: FakeBackend, *, writable: bool = True) -> tuple[Kernel, Lane]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    ours.setblocking(False)
    file = ExportedFile(
        cast("BlockBackend", backend), writable=writable, growable=False, allow_other=False
    )
    return Kernel(theirs), Lane(ours.detach(), file)


@asynccontextmanager
async def serving(
    backend: FakeBackend, *, writable: bool = True
) -> AsyncIterator[tuple[Kernel, Lane]]:
    kernel, lane = connect(backend, writable=writable)
    try:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lane.run)
                yield kernel, lane
                lane.stop()
    finally:
        kernel.close()


@pytest.fixture
def backend() -> Iterator[FakeBackend]:
    backend = FakeBackend()
    backend.fill(os.urandom(64 * KIB))
    yield backend
    backend.close()


@pytest.mark.parametrize("fast", [True, False])
async def test_reads_and_writes(backend: FakeBackend, fast: bool) -> None:
    backend.fast = fast
    async with serving(backend) as (kernel, _):
        assert await kernel.read(512, 4096) == (0, backend.content[512:4608])
        assert await kernel.read(backend.size - 100, 4096) == (0, bytes(100))
        assert await kernel.read(backend.size, 4096) == (0, b"")
        assert await kernel.read(1 << 62, 4096) == (0, b"")
        assert await kernel.write(1000, b"abc") == (0, struct.pack("=II", 3, 0))
        assert backend.content[1000:1003] == b"abc"
        assert await kernel.write(backend.size - 2, b"abcd") == (0, struct.pack("=II", 2, 0))
        assert await kernel.write(backend.size, b"abcd") == (0, struct.pack("=II", 0, 0))
        assert backend.content[-2:] == b"ab"
        assert os.fstat(backend.file.fd).st_size == backend.size


async def test_holes(backend: FakeBackend) -> None:
    backend.holes = {0, 2}
    async with serving(backend) as (kernel, _):
        error, data = await kernel.read(0, 16 * KIB)
        assert error == 0
        expected = bytearray(backend.content[: 16 * KIB])
        expected[:4096] = expected[8192:12288] = bytes(4096)
        assert data == expected


async def test_read_only(backend: FakeBackend) -> None:
    async with serving(backend, writable=False) as (kernel, _):
        before = backend.content
        assert await kernel.write(0, b"abc") == (errno.EACCES, b"")
        body = struct.pack("=QQQII", 0, 0, 4096, 16, 0)
        assert await kernel.ask(Opcode.FALLOCATE, body) == (errno.EACCES, b"")
        assert backend.content == before


async def test_a_buffer_is_its_requests_until_the_reply(backend: FakeBackend) -> None:
    """What the real daemon gets wrong: requests that wait must not see the next one's data."""
    backend.fast = False
    gate = trio.Event()

    async def wait() -> None:
        await gate.wait()

    backend.before = lambda _name, _offset: wait()
    async with serving(backend) as (kernel, _):
        pending = []
        for number in range(20):
            data = bytes([number]) * 4096
            pending.append(await kernel.send(Opcode.WRITE, read_in(number * 4096, 4096) + data))
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
        for unique in pending:
            assert await kernel.reply(unique) == (0, struct.pack("=II", 4096, 0))
    for number in range(20):
        assert backend.content[number * 4096 :][:4096] == bytes([number]) * 4096


async def test_requests_in_flight_are_bounded_and_all_answered(backend: FakeBackend) -> None:
    backend.fast = False
    gate = trio.Event()
    running = 0
    most = 0

    async def wait() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    backend.before = lambda _name, _offset: wait()
    async with serving(backend) as (kernel, _):
        pending = [await kernel.send(Opcode.READ, read_in(0, 512)) for _ in range(100)]
        await trio.testing.wait_all_tasks_blocked()
        assert most == MAX_IN_FLIGHT
        gate.set()
        for unique in pending:
            assert (await kernel.reply(unique))[0] == 0


async def test_stopping_finishes_what_is_in_flight(backend: FakeBackend) -> None:
    backend.fast = False
    gate = trio.Event()

    async def wait() -> None:
        await gate.wait()

    backend.before = lambda _name, _offset: wait()
    async with serving(backend) as (kernel, lane):
        unique = await kernel.send(Opcode.READ, read_in(0, 512))
        await trio.testing.wait_all_tasks_blocked()
        lane.stop()
        late = await kernel.send(Opcode.READ, read_in(0, 512))
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
        assert await kernel.reply(unique) == (0, backend.content[:512])
        with pytest.raises(EOFError):
            await kernel.reply(late)


async def test_cancelling_abandons_what_is_in_flight(backend: FakeBackend) -> None:
    async def wait() -> None:
        await trio.sleep_forever()

    backend.fast = False
    backend.before = lambda _name, _offset: wait()
    kernel, lane = connect(backend)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.run)
        unique = await kernel.send(Opcode.READ, read_in(0, 512))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(EOFError):
        await kernel.reply(unique)
    assert backend.on_resize == []
    kernel.close()


async def test_errors_of_the_node_go_to_the_caller(backend: FakeBackend) -> None:
    def fail(_name: str, _offset: int) -> None:
        raise os_error(errno.ENOSPC)

    backend.fast = False
    backend.before = fail
    async with serving(backend) as (kernel, _):
        assert await kernel.write(0, b"abc") == (errno.ENOSPC, b"")
        assert await kernel.read(0, 512) == (errno.ENOSPC, b"")
        assert await kernel.ask(Opcode.FLUSH, bytes(24)) == (errno.ENOSPC, b"")


async def test_a_node_that_changes_its_length(backend: FakeBackend) -> None:
    async with serving(backend) as (kernel, _):
        old = backend.size
        backend.resize(old + 4096)
        assert await kernel.read(old, 8192) == (0, bytes(4096))
        backend.resize(4096)
        assert await kernel.read(4000, 4096) == (0, backend.content[4000:])
        assert await kernel.write(4096, b"abc") == (0, struct.pack("=II", 0, 0))


async def test_operations_that_a_file_does_not_have(backend: FakeBackend) -> None:
    async with serving(backend) as (kernel, _):
        for opcode in (5, 21, 22, 23, 24, 27, 39, 47, 99, 2**31):
            assert await kernel.ask(opcode, bytes(64)) == (errno.ENOSYS, b"")
        assert await kernel.ask(Opcode.LOOKUP, b"x\0") == (errno.ENOENT, b"")
        for opcode in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT):
            await kernel.send(opcode, bytes(16))
        assert await kernel.ask(Opcode.RELEASE, bytes(24)) == (0, b"")  # nothing came before it


@pytest.mark.parametrize(
    "message",
    [b"", b"x" * 39, bytes(40), bytes(100)],
    ids=["nothing", "short", "length 0", "wrong length"],
)
async def test_nonsense_ends_the_lane(backend: FakeBackend, message: bytes) -> None:
    kernel, lane = connect(backend)
    with pytest.RaisesGroup(RemoteProtocolError, flatten_subgroups=True), trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lane.run)
            await kernel.send_raw(message)
    with pytest.raises(EOFError):
        await kernel.reply(1)
    kernel.close()
