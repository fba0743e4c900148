"""The data plane over real sockets: both paths, all modes, hostile and vanishing clients."""

from __future__ import annotations

import errno
import os
import random
import struct
from functools import partial

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd_trio.block.abc import ReqFlag
from qsd_trio.errors import RemoteProtocolError
from qsd_trio.exports import nbd_status, nbd_transmission
from qsd_trio.exports.nbd_requests import NBD_ERRORS
from qsd_trio.protocol.nbd.constants import Cmd, CmdFlag, Mode, ReplyType, TransmissionFlag
from qsd_trio.protocol.nbd.transmission import Request, pack_request
from qsd_trio.testing.nbd_client import NbdError
from tests.exports.nbd_kit import FakeBackend, Live, client_of, live

MODES = [Mode.SIMPLE, Mode.STRUCTURED, Mode.EXTENDED]
READ_ONLY = TransmissionFlag.HAS_FLAGS | TransmissionFlag.READ_ONLY
SIZE = 1 << 20

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
def backend(request: pytest.FixtureRequest) -> FakeBackend:
    made = FakeBackend(SIZE)
    made.fast = request.param
    made.fill(random.Random(1).randbytes(SIZE))
    return made


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("mode", MODES)
async def test_what_is_written_is_read(backend: FakeBackend, mode: int, tcp: bool) -> None:
    model = bytearray(backend.content)
    rng = random.Random(mode)
    with trio.fail_after(10):
        async with (
            live(backend, mode=mode, tcp=tcp) as connection,
            client_of(connection, mode) as nbd,
        ):
            for length in (1, 512, 4096, 65536, 65537, 131072, 131073, 300_000, 600_001):
                offset = rng.randrange(SIZE - length)
                data = rng.randbytes(length)
                await nbd.pwrite(offset, data, flags=rng.choice([0, CmdFlag.FUA]))
                model[offset : offset + length] = data
                assert backend.content == model
                for flags in (0, CmdFlag.DF if mode else 0, CmdFlag.FUA):
                    offset = rng.randrange(SIZE - length)
                    got = await nbd.pread(offset, length, flags=flags)
                    assert got == model[offset : offset + length]
            assert await nbd.pread(0, SIZE) == model


@pytest.mark.parametrize("mode", MODES)
async def test_many_at_once(backend: FakeBackend, mode: int) -> None:
    """Every request gets its own reply, whichever path it takes, with holes among them."""
    rng = random.Random(5)
    model = backend.content
    backend.holes = {5, 6, 7, 40} if backend.fast else set()
    for hole in backend.holes:
        backend.fill(bytes(4096), hole * 4096)
    model = backend.content

    def sometimes_slow(offset: int, length: int) -> object:
        return None if rng.random() < 0.3 else FakeBackend.map_read(backend, offset, length)

    backend.map_read = sometimes_slow  # type: ignore[method-assign,assignment]

    async def check(nbd: object, offset: int, length: int) -> None:
        assert await nbd.pread(offset, length) == model[offset : offset + length]  # type: ignore[attr-defined]

    with trio.fail_after(20):
        async with live(backend, mode=mode) as connection, client_of(connection, mode) as nbd:
            async with trio.open_nursery() as nursery:
                for _ in range(150):
                    length = rng.choice([1, 4096, 5000, 65536, 70_000, 200_000])
                    nursery.start_soon(check, nbd, rng.randrange(SIZE - length), length)


@pytest.mark.parametrize("mode", [Mode.STRUCTURED, Mode.EXTENDED])
async def test_holes_are_sent_by_name(mode: int) -> None:
    backend = FakeBackend(SIZE)
    backend.fill(random.Random(1).randbytes(SIZE))
    backend.holes = set(range(10, 60))
    for hole in backend.holes:
        backend.fill(bytes(4096), hole * 4096)
    with trio.fail_after(5):
        async with live(backend, mode=mode) as connection, client_of(connection, mode) as nbd:
            chunks = await nbd.request(Cmd.READ, 0, SIZE)
            kinds = [chunk.type for chunk in chunks]
            assert kinds == [ReplyType.OFFSET_DATA, ReplyType.OFFSET_HOLE, ReplyType.OFFSET_DATA]
            assert struct.unpack(">QI", chunks[1].payload) == (10 * 4096, 50 * 4096)
            assert [chunk.done for chunk in chunks] == [False, False, True]
            [chunk] = await nbd.request(Cmd.READ, 0, SIZE, flags=CmdFlag.DF)
            assert chunk.payload[8:] == backend.content


@pytest.mark.parametrize("mode", MODES)
async def test_other_commands(mode: int) -> None:
    backend = FakeBackend(SIZE)
    async with live(backend, mode=mode) as connection, client_of(connection, mode) as nbd:
        with trio.fail_after(5):
            await nbd.flush()
            await nbd.trim(4096, 8192)
            await nbd.trim(0, 512, flags=CmdFlag.FUA)
            await nbd.zero(0, 4096)
            await nbd.zero(0, 4096, flags=CmdFlag.NO_HOLE | CmdFlag.FUA | CmdFlag.FAST_ZERO)
            await nbd.cache(0, 100)
            await nbd.pread(0, 1, flags=CmdFlag.FUA)
    fast_zero = ReqFlag.FUA | ReqFlag.NO_FALLBACK
    assert backend.calls == [
        ("flush", 0),
        ("pdiscard", 4096, 8192),
        ("pdiscard", 0, 512),
        ("flush", 0),
        ("pwrite_zeroes", 0, 4096, ReqFlag.MAY_UNMAP),
        ("pwrite_zeroes", 0, 4096, fast_zero),
        ("prefetch", 0, 100),
        ("flush", 0),
        ("preadv", 0),
    ]


@pytest.mark.parametrize("mode", MODES)
async def test_requests_of_no_bytes(mode: int) -> None:
    async with live(mode=mode) as connection, client_of(connection, mode) as nbd:
        with trio.fail_after(2):
            [chunk] = await nbd.request(Cmd.READ, 0, 0)
            assert (chunk.type, chunk.payload) == (ReplyType.NONE, b"")
            await nbd.pwrite(SIZE, b"")
            await nbd.zero(0, 0)
            await nbd.trim(SIZE, 0)


async def test_writethrough_makes_every_write_durable() -> None:
    backend = FakeBackend(SIZE)
    async with live(backend, writethrough=True) as connection, client_of(connection) as nbd:
        await nbd.pwrite(0, b"x")
        await nbd.pwrite(0, bytes(300_000))
    assert backend.calls == [("pwritev", 0, 1, ReqFlag.FUA), ("pwritev", 0, 300_000, ReqFlag.FUA)]


# -- status ------------------------------------------------------------------------------------------


async def test_block_status() -> None:
    backend = FakeBackend(SIZE)
    backend.holes = {1, 2, 10}
    mode = Mode.EXTENDED
    async with live(backend, mode=mode) as connection, client_of(connection, mode) as nbd:
        status = await nbd.block_status(0, 12 * 4096)
        pieces = [(4096, 0), (2 * 4096, 3), (7 * 4096, 0), (4096, 3), (4096, 0)]
        assert status["base:allocation"] == pieces
        depths = [(size, 2 if flags else 1) for size, flags in pieces]
        assert status["qemu:allocation-depth"] == depths
        one = await nbd.block_status(4096, 12 * 4096, flags=CmdFlag.REQ_ONE)
        assert one["base:allocation"] == [(8192, 3)]
        assert await nbd.block_status(0, 4096, contexts=[1]) == {
            "qemu:allocation-depth": [(4096, 1)]
        }
        assert await nbd.block_status(0, 4096, contexts=[]) == {}
        for contexts, length in (([7], 4096), ([0], 0), ([0], SIZE + 1), ([0], 2**64 - 1)):
            with pytest.raises(NbdError) as error:
                await nbd.block_status(0, length, contexts=contexts)
            assert error.value.errno == errno.EINVAL


async def test_block_status_of_enormous_ranges() -> None:
    """32 bits hold no 2^40 bytes: the extent is cut, the client asks on (CVE-2025-47711, -47712)."""
    size = 2**40
    for mode in (Mode.STRUCTURED, Mode.EXTENDED):
        backend = FakeBackend(1 << 20)
        backend.size = size

        async def status(offset: int, length: int) -> object:
            from qsd_trio.block.abc import BlockStatus, StatusFlag

            return BlockStatus(StatusFlag.DATA, length)

        async def depth(offset: int, length: int) -> tuple[int, int]:
            return 1, min(length, 4096)  # in tiny pieces: answered in part

        backend.block_status_above = status  # type: ignore[method-assign,assignment]
        backend.allocation_depth = depth  # type: ignore[method-assign]
        async with live(backend, mode=mode) as connection, client_of(connection, mode) as nbd:
            length = 2**32 - 1
            got = await nbd.block_status(0, length)
            [(have, flags)] = got["base:allocation"]
            assert flags == 0
            assert 2**31 < have <= length
            [(have, _)] = got["qemu:allocation-depth"]
            assert have == nbd_status.MAX_LOOKS * 4096
            if mode == Mode.EXTENDED:
                got = await nbd.block_status(0, size)
                assert got["base:allocation"] == [(size, 0)]


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "offset", "length", "flags", "code", "text"),
    [
        (
            Cmd.READ,
            SIZE,
            1,
            0,
            errno.EINVAL,
            f"operation past EOF; From: {SIZE}, Len: 1, Size: {SIZE}",
        ),
        (
            Cmd.READ,
            2**64 - 1,
            2,
            0,
            errno.EINVAL,
            f"operation past EOF; From: {2**64 - 1}, Len: 2, Size: {SIZE}",
        ),
        (
            Cmd.READ,
            0,
            2**25 + 1,
            0,
            errno.EINVAL,
            "len (33554433 ) is larger than max len (33554432)",
        ),
        (
            Cmd.READ,
            0,
            2**32 - 1,
            0,
            errno.EINVAL,
            "len (4294967295 ) is larger than max len (33554432)",
        ),
        (
            Cmd.CACHE,
            0,
            2**25 + 1,
            0,
            errno.EINVAL,
            "len (33554433 ) is larger than max len (33554432)",
        ),
        (
            Cmd.WRITE_ZEROES,
            SIZE - 1,
            2,
            0,
            errno.EINVAL,
            f"operation past EOF; From: {SIZE - 1}, Len: 2, Size: {SIZE}",
        ),
        (
            Cmd.TRIM,
            SIZE - 1,
            2,
            0,
            errno.EINVAL,
            f"operation past EOF; From: {SIZE - 1}, Len: 2, Size: {SIZE}",
        ),
        (
            Cmd.READ,
            0,
            1,
            CmdFlag.REQ_ONE,
            errno.EINVAL,
            "unsupported flags for command read (got 0x8)",
        ),
        (
            Cmd.FLUSH,
            0,
            0,
            CmdFlag.DF,
            errno.EINVAL,
            "unsupported flags for command flush (got 0x4)",
        ),
        (
            Cmd.READ,
            0,
            1,
            CmdFlag.PAYLOAD_LEN,
            errno.EINVAL,
            "unsupported flags for command read (got 0x20)",
        ),
        (Cmd.BLOCK_STATUS, 0, 0, 0, errno.EINVAL, "need non-zero length"),
        (Cmd.RESIZE, 0, 0, 0, errno.EINVAL, "invalid request type (8) received"),
        (65535, 0, 0, 0, errno.EINVAL, "invalid request type (65535) received"),
    ],
)
async def test_bad_requests_are_refused(
    kind: int, offset: int, length: int, flags: int, code: int, text: str
) -> None:
    async with live() as connection, client_of(connection) as nbd:
        with trio.fail_after(2):
            with pytest.raises(NbdError) as error:
                await nbd.request(kind, offset, length, flags=flags)
            assert (error.value.errno, error.value.strerror) == (code, text)
            assert await nbd.pread(0, 10) == bytes(10)  # nothing else ends


async def test_a_write_too_long_is_answered_and_ends_the_connection() -> None:
    async with live() as connection, client_of(connection) as nbd:
        with trio.fail_after(2):
            with pytest.raises(NbdError, match="larger than max len"):
                await nbd.request(Cmd.WRITE, 0, 2**25 + 1)
            await connection.over.wait()


@pytest.mark.parametrize("mode", MODES)
async def test_refused_writes_keep_the_stream_in_step(mode: int) -> None:
    async with live(mode=mode) as connection, client_of(connection, mode) as nbd:
        with trio.fail_after(5):
            for length in (1, 100_000, 400_000):
                with pytest.raises(NbdError) as error:
                    await nbd.pwrite(SIZE - length + 1, bytes(length))
                assert error.value.errno == errno.EINVAL
            assert await nbd.pread(0, 4096) == bytes(4096)


async def test_a_read_only_export_refuses_writes() -> None:
    async with live(flags=READ_ONLY) as connection, client_of(connection) as nbd:
        for write in (
            partial(nbd.pwrite, 0, b"x"),
            partial(nbd.pwrite, 0, bytes(300_000)),
            partial(nbd.zero, 0, 1),
            partial(nbd.trim, 0, 1),
        ):
            with pytest.raises(NbdError, match="Export is read-only") as error:
                await write()
            assert error.value.errno == errno.EINVAL
        assert connection.backend.content == bytes(SIZE)


async def test_df_means_nothing_without_structured_replies() -> None:
    async with live(mode=Mode.SIMPLE) as connection, client_of(connection, Mode.SIMPLE) as nbd:
        with pytest.raises(NbdError):
            await nbd.pread(0, 4096, flags=CmdFlag.DF)
        with pytest.raises(NbdError):
            await nbd.request(Cmd.BLOCK_STATUS, 0, 4096)


@pytest.mark.parametrize("number", [*NBD_ERRORS, errno.ENOENT])
async def test_errors_of_the_node(number: int) -> None:
    backend = FakeBackend()
    backend.fast = False

    def fail(name: str, offset: int) -> None:
        if offset == 4096:
            raise OSError(number, "x")

    backend.before = fail
    async with live(backend) as connection, client_of(connection) as nbd:
        for request in (nbd.pread(4096, 10), nbd.pwrite(4096, b"x"), nbd.trim(4096, 1)):
            with pytest.raises(NbdError, match=os.strerror(number)) as error:
                await request
            assert error.value.errno == NBD_ERRORS.get(number, errno.EINVAL)
        assert await nbd.pread(0, 10) == bytes(10)


async def test_a_failing_file_is_an_error_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the fast path meets is reported by the slow path, which meets it too."""
    backend = FakeBackend()

    class Failing:
        can_read_now = can_write_now = True
        fd, read_flags = -1, 0

        def read_now(self, iov: object, offset: int) -> int:
            raise OSError(errno.EIO, "x")

        write_now = read_now

    def fail(name: str, offset: int) -> None:
        raise OSError(errno.EIO, "x")

    backend.before = fail
    backend.map_read = backend.map_write = lambda offset, length: [(Failing(), offset, length)]  # type: ignore
    async with live(backend) as connection, client_of(connection) as nbd:
        for request in (nbd.pread(0, 10), nbd.pwrite(0, b"x"), nbd.pwrite(0, bytes(200_000))):
            with pytest.raises(NbdError) as error:
                await request
            assert error.value.errno == errno.EIO


async def test_a_node_that_shrinks_or_grows() -> None:
    async with live() as connection, client_of(connection) as nbd:
        backend = connection.backend
        backend.resize(SIZE // 2)
        for length in (4096, 100_000, 200_000):
            await nbd.pwrite(SIZE - length, bytes(length))
        assert [call[0] for call in backend.calls] == ["pwritev"] * 3  # never past the gate
        backend.resize(SIZE * 2)
        with pytest.raises(NbdError, match="past EOF"):
            await nbd.pread(SIZE, 1)  # this client knows the old size


# -- buffers, limits, order --------------------------------------------------------------------------


async def test_a_write_on_the_slow_path_keeps_its_own_data() -> None:
    backend = FakeBackend()
    go = trio.Event()
    backend.before = lambda name, offset: go.wait() if offset == 0 else None
    async with live(backend) as connection, client_of(connection) as nbd:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                backend.fast = False
                nursery.start_soon(nbd.pwrite, 0, b"a" * 4096)
                await trio.testing.wait_all_tasks_blocked(0.01)
                for offset in range(4096, 200 * 4096, 4096):  # more than the receive buffer holds
                    await nbd.pwrite(offset, b"b" * 4096)
                go.set()
        assert backend.content[:4097] == b"a" * 4096 + b"b"


async def test_requests_in_flight_are_bounded() -> None:
    backend = FakeBackend()
    backend.fast = False
    go = trio.Event()
    running = peak = 0

    async def wait() -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await go.wait()
        running -= 1

    backend.before = lambda name, offset: wait()
    async with live(backend) as connection, client_of(connection) as nbd:
        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(nbd.pread, 0, 4096)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert peak == nbd_transmission.MAX_REQUESTS_IN_FLIGHT
            go.set()
        assert peak == nbd_transmission.MAX_REQUESTS_IN_FLIGHT
        assert len(backend.calls) == 300


async def test_bytes_in_flight_are_bounded() -> None:
    size = 1 << 26
    backend = FakeBackend(size)
    backend.fast = False
    go = trio.Event()
    backend.before = lambda name, offset: go.wait() if name == "pwritev" else None
    async with live(backend) as connection, client_of(connection) as nbd:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for index in range(5):
                    nursery.start_soon(
                        nbd.pwrite, index << 23, bytes(1 << 24 if index else 1 << 25)
                    )
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert (
                    sum(call[2] for call in backend.calls) <= nbd_transmission.MAX_BYTES_IN_FLIGHT
                )  # type: ignore[misc]
                go.set()
            assert len(backend.calls) == 5


async def test_a_client_that_does_not_read_replies_blocks_only_itself() -> None:
    backend = FakeBackend(SIZE)
    request = pack_request(Request(0, Cmd.READ, 1, 0, SIZE), extended=False)
    async with live(backend, mode=Mode.SIMPLE) as connection:
        sent = 0
        with trio.move_on_after(0.2):
            while True:
                try:
                    sent += connection.raw.send(request * 10)
                except BlockingIOError:
                    await trio.sleep(0.01)
        assert not connection.over.is_set()
        connection.server.stop()
        connection.server.abort()
        with trio.fail_after(2):
            await connection.over.wait()
        assert connection.error is None


async def test_the_loop_gets_its_turn_under_full_load() -> None:
    backend = FakeBackend(SIZE)
    longest = 0.0
    request = pack_request(Request(0, Cmd.READ, 1, 0, 4096), extended=False) * 64
    done = False

    async def flood(connection: Live) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection.raw))

        async def drain() -> None:
            while not done:
                await stream.receive_some(1 << 20)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            while not done:
                await stream.send_all(request)
            nursery.cancel_scope.cancel()

    async with live(backend, mode=Mode.SIMPLE) as connection:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, connection)
            for _ in range(10):
                start = trio.current_time()
                await trio.sleep(0.002)
                longest = max(longest, trio.current_time() - start)
            done = True
            nursery.cancel_scope.cancel()
    assert longest < 0.1


# -- leaving -----------------------------------------------------------------------------------------


async def test_disconnect_waits_for_what_is_in_flight() -> None:
    backend = FakeBackend()
    backend.fast = False
    go = trio.Event()
    backend.before = lambda name, offset: go.wait()
    async with live(backend) as connection, client_of(connection) as nbd:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(nbd.pread, 0, 4096)
                await trio.testing.wait_all_tasks_blocked(0.01)
                await nbd.disconnect()
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not connection.over.is_set()
                go.set()  # the read is answered all the same
            await connection.over.wait()


async def test_stop_finishes_what_is_in_flight_and_takes_no_more() -> None:
    backend = FakeBackend()
    backend.fast = False
    go = trio.Event()
    backend.before = lambda name, offset: go.wait()
    async with live(backend) as connection, client_of(connection) as nbd:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(nbd.pread, 0, 4096)
                await trio.testing.wait_all_tasks_blocked(0.01)
                connection.server.stop()
                go.set()
            await connection.over.wait()
    assert connection.error is None


async def test_cancellation_in_the_middle_of_a_request() -> None:
    backend = FakeBackend()
    backend.fast = False
    never = trio.Event()
    backend.before = lambda name, offset: never.wait()
    with trio.fail_after(5):
        async with live(backend) as connection, client_of(connection) as nbd:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(nbd.pread, 0, 4096)
                await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()
    assert not backend.on_resize  # nothing of the connection is left


async def test_a_client_that_dies_with_requests_in_flight() -> None:
    backend = FakeBackend()
    backend.fast = False
    go = trio.Event()
    backend.before = lambda name, offset: go.wait()
    async with live(backend) as connection:
        request = pack_request(Request(0, Cmd.READ, 1, 0, 4096), extended=False)
        connection.raw.send(request * 20)
        await trio.testing.wait_all_tasks_blocked(0.01)
        connection.raw.close()
        go.set()
        with trio.fail_after(2):
            await connection.over.wait()
        assert connection.error is None
        assert len(backend.calls) == 20


async def test_a_bug_of_ours_comes_out() -> None:
    backend = FakeBackend()
    backend.fast = False

    def crash(name: str, offset: int) -> None:
        raise ZeroDivisionError

    backend.before = crash
    async with live(backend) as connection:
        connection.raw.send(pack_request(Request(0, Cmd.READ, 1, 0, 4096), extended=False))
        with trio.fail_after(2):
            await connection.over.wait()
        assert isinstance(connection.error, ExceptionGroup)


@pytest.mark.parametrize("cut", [1, 27, 28, 29, 28 + 4095, 28 + 200_000])
async def test_a_client_that_leaves_in_the_middle_of_a_write(cut: int) -> None:
    length = 4096 if cut < 5000 else 400_000
    data = pack_request(Request(0, Cmd.WRITE, 1, 0, length), extended=False) + b"x" * length
    async with live() as connection:
        connection.raw.setblocking(True)
        await trio.to_thread.run_sync(connection.raw.sendall, data[:cut])
        connection.raw.close()
        with trio.fail_after(2):
            await connection.over.wait()
        assert connection.error is None


async def test_requests_that_came_with_the_negotiation() -> None:
    request = pack_request(Request(0, Cmd.READ, 9, 0, 16), extended=False)
    async with live(mode=Mode.SIMPLE, received=request * 3 + request[:5]) as connection:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection.raw))
        await stream.send_all(request[5:])
        got = b""
        with trio.fail_after(2):
            while len(got) < 4 * 32:
                got += await stream.receive_some()
        assert got == (struct.pack(">IIQ", 0x67446698, 0, 9) + bytes(16)) * 4


@pytest.mark.parametrize("mode", MODES)
async def test_bad_magic_ends_the_connection(mode: int) -> None:
    async with live(mode=mode) as connection:
        connection.raw.send(b"x" * 32)
        with trio.fail_after(2):
            await connection.over.wait()
        assert "invalid magic" in repr(connection.error)


request_bytes = st.builds(
    lambda flags, kind, cookie, offset, length, payload, extended: (
        pack_request(
            Request(flags, kind, cookie, offset, length % (2**64 if extended else 2**32)),
            extended=extended,
        )
        + payload
    ),
    st.sampled_from([0, 0, 0, 1, 2, 4, 8, 16, 32, 65535]),
    st.integers(0, 9),
    st.integers(0, 2**64 - 1),
    st.one_of(st.integers(0, SIZE), st.integers(0, 2**64 - 1)),
    st.one_of(st.integers(0, 70_000), st.integers(0, 2**64 - 1)),
    st.binary(max_size=64),
    st.booleans(),
)


@given(
    st.sampled_from(MODES),
    st.booleans(),
    st.lists(request_bytes, max_size=6),
    st.binary(max_size=60),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_are_served_or_refused(
    mode: int, fast: bool, requests: list[bytes], tail: bytes
) -> None:
    async def main() -> None:
        backend = FakeBackend(SIZE)
        backend.fast = fast
        async with live(backend, mode=mode) as connection:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection.raw))
            with trio.fail_after(5):
                try:
                    await stream.send_all(b"".join(requests) + tail)
                    await stream.send_eof()
                    while await stream.receive_some(1 << 20):
                        pass
                except trio.BrokenResourceError:
                    pass
                await connection.over.wait()
            error = connection.error
            if isinstance(error, ExceptionGroup):
                _, error = error.split(RemoteProtocolError)
            assert error is None

    trio.run(main)
