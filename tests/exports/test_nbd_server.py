"""The NBD server: limits, stalled and vanishing clients, stop and start, isolation."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trio.testing

import qsd_trio.block.drivers
import qsd_trio.commands  # noqa: F401  # fills the registry
from qsd_trio.daemon import Daemon, open_daemon_tables
from qsd_trio.exports import nbd_server
from qsd_trio.protocol.nbd.client import pack_go, pack_option
from qsd_trio.protocol.nbd.constants import Opt, TransmissionFlag
from qsd_trio.qapi.converter import args_from_qmp
from qsd_trio.registry import commands
from qsd_trio.testing.nbd_client import connect_nbd

CLIENT = b"\0\0\0\3"


async def run(daemon: Daemon, name: str, /, **arguments: object) -> object:
    """Execute a QMP command."""
    given = {key.replace("_", "-"): value for key, value in arguments.items()}
    arg = args_from_qmp(name, given)
    function = commands[name].function
    return await (function(daemon) if arg is None else function(daemon, arg))


@asynccontextmanager
async def serving(folder: Path, **limits: int) -> AsyncIterator[Daemon]:
    """Run a daemon with an NBD server on ``folder/s`` and one writable export ``a``."""
    (folder / "a.img").write_bytes(bytes(1 << 20))
    async with open_daemon_tables() as daemon:
        await run(
            daemon, "blockdev-add", driver="file", node_name="a", filename=str(folder / "a.img")
        )
        await start(daemon, folder, **limits)
        await run(daemon, "block-export-add", type="nbd", id="e", node_name="a", writable=True)
        yield daemon


async def start(daemon: Daemon, folder: Path, **limits: int) -> None:
    address = {"type": "unix", "data": {"path": str(folder / "s")}}
    await run(daemon, "nbd-server-start", addr=address, **limits)


async def connect(folder: Path) -> trio.SocketStream:
    return await trio.open_unix_socket(str(folder / "s"))


async def read_greeting(stream: trio.SocketStream) -> bytes:
    got = b""
    while len(got) < 18:
        data = await stream.receive_some()
        if not data:
            break
        got += data
    return got


async def works(folder: Path) -> bool:
    """Return whether a new client is served."""
    with trio.move_on_after(5):
        async with connect_nbd(folder / "s", "a") as nbd:
            return await nbd.pread(0, 4096) == bytes(4096)
    return False


async def test_a_hundred_stalled_clients_keep_nobody_out(sock_dir: Path) -> None:
    """CVE-2024-7409."""
    async with serving(sock_dir):
        stalled = [await connect(sock_dir) for _ in range(120)]
        for index, stream in enumerate(stalled):
            await stream.send_all((CLIENT + pack_option(Opt.LIST) + b"IHAVE")[: index % 26])
        assert await works(sock_dir)
        for stream in stalled:
            await stream.aclose()


async def test_the_oldest_stalled_client_has_to_go(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd_server, "MAX_NEGOTIATING", 3)
    async with serving(sock_dir):
        stalled = []
        for _ in range(5):
            stalled.append(await connect(sock_dir))
            assert len(await read_greeting(stalled[-1])) == 18
        with trio.fail_after(2):
            assert await stalled[0].receive_some() == b""
            assert await stalled[1].receive_some() == b""
        await stalled[4].send_all(CLIENT + pack_option(Opt.ABORT))
        assert await stalled[4].receive_some()
        for stream in stalled:
            await stream.aclose()
        assert await works(sock_dir)


@pytest.mark.parametrize("heard", [False, True])
async def test_a_stalled_handshake_ends_after_ten_seconds(
    sock_dir: Path,
    autojump_clock: trio.testing.MockClock,
    heard: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    autojump_clock.autojump_threshold = math.inf
    async with serving(sock_dir):
        stream = await connect(sock_dir)
        assert len(await read_greeting(stream)) == 18
        if heard:
            await stream.send_all(CLIENT)
        await trio.testing.wait_all_tasks_blocked(0.01)
        autojump_clock.jump(9.9)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(trio.WouldBlock):
            await poll(stream)
        autojump_clock.jump(0.2)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await poll(stream) == b""
        await stream.aclose()
    assert ("took too long" in caplog.text) == heard  # a port probe is not worth a line


async def poll(stream: trio.SocketStream) -> bytes:
    """Receive without waiting, whatever the clock."""
    result: list[bytes] = []

    async def receive() -> None:
        result.append(bytes(await stream.receive_some()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    if not result:
        raise trio.WouldBlock
    return result[0]


async def test_the_handshake_limit_can_be_lifted(
    sock_dir: Path, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = math.inf
    async with serving(sock_dir, handshake_max_seconds=0):
        stream = await connect(sock_dir)
        await read_greeting(stream)
        autojump_clock.jump(100_000)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await stream.send_all(CLIENT + pack_option(Opt.ABORT))
        assert len(await stream.receive_some()) == 20
        await stream.aclose()


async def test_max_connections_makes_others_wait(sock_dir: Path) -> None:
    async with serving(sock_dir, max_connections=2):
        waiting = None
        async with connect_nbd(sock_dir / "s", "a"):
            async with connect_nbd(sock_dir / "s", "a"):
                waiting = await connect(sock_dir)
                with pytest.raises(trio.TooSlowError):
                    with trio.fail_after(0.1):
                        # At most one is accepted ahead; it gets no further than the negotiation.
                        await waiting.send_all(CLIENT + pack_go(Opt.GO, "a"))
                        await read_greeting(waiting)
                        await waiting.receive_some()
            with trio.fail_after(2):
                assert await waiting.receive_some()  # a place is free now
        await waiting.aclose()


async def test_max_connections_decides_about_multi_conn(sock_dir: Path) -> None:
    async with serving(sock_dir, max_connections=1):
        async with connect_nbd(sock_dir / "s", "a") as nbd:
            assert not nbd.export.flags & TransmissionFlag.CAN_MULTI_CONN


async def test_two_hundred_connections_at_once(sock_dir: Path) -> None:
    async with serving(sock_dir, max_connections=0):

        async def one(index: int) -> None:
            async with connect_nbd(sock_dir / "s", "a") as nbd:
                await nbd.pwrite(index * 4096, bytes([index]) * 4096)
                arrived.append(index)
                if len(arrived) == 200:
                    everybody.set()
                await everybody.wait()
                assert await nbd.pread(index * 4096, 4096) == bytes([index]) * 4096

        arrived: list[int] = []
        everybody = trio.Event()
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for index in range(200):
                    nursery.start_soon(one, index)


async def test_clients_that_leave_after_each_byte_of_the_handshake(sock_dir: Path) -> None:
    """nbd-server's CVE-2013-7441: a client that leaves must not take others along."""
    handshake = CLIENT + pack_option(Opt.STRUCTURED_REPLY) + pack_go(Opt.GO, "a")
    async with serving(sock_dir):
        for length in range(len(handshake) + 1):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(sock_dir / "s"))
                sock.send(handshake[:length])
            await trio.lowlevel.checkpoint()
        assert await works(sock_dir)


async def test_stop_and_start_with_clients_in_the_handshake(sock_dir: Path) -> None:
    """CVE-2024-7409, second half."""
    async with serving(sock_dir) as daemon:
        for _ in range(5):
            streams = [await connect(sock_dir) for _ in range(5)]
            for index, stream in enumerate(streams):
                await stream.send_all((CLIENT + pack_go(Opt.INFO, "a"))[: 9 * index])
            await trio.lowlevel.checkpoint()
            await run(daemon, "nbd-server-stop")
            assert not (sock_dir / "s").exists()
            for stream in streams:
                with trio.fail_after(2):
                    try:
                        while await stream.receive_some():
                            pass
                    except trio.BrokenResourceError:
                        pass
                await stream.aclose()
            await start(daemon, sock_dir)
            await run(daemon, "block-export-add", type="nbd", id="e", node_name="a")
            assert await works(sock_dir)


async def test_stop_ends_the_exports_and_their_clients(sock_dir: Path) -> None:
    events: list[str] = []
    async with serving(sock_dir) as daemon:
        with daemon.events.subscribed(lambda event: events.append(event.name)):
            async with connect_nbd(sock_dir / "s", "a") as nbd:
                await nbd.pread(0, 1)
                await run(daemon, "nbd-server-stop")
                assert await run(daemon, "query-block-exports") == []
                with pytest.raises((ConnectionError, trio.BrokenResourceError)):
                    await nbd.pread(0, 1)
    assert events == ["BLOCK_EXPORT_DELETED"]


async def test_a_bug_in_one_connection_ends_that_one_only(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(sock_dir) as daemon:
        async with connect_nbd(sock_dir / "s", "a") as other:
            export = daemon.exports.get("e")
            assert export is not None
            with monkeypatch.context() as patch:
                patch.setattr(type(export.backend), "flush", None)
                async with connect_nbd(sock_dir / "s", "a") as nbd:
                    with pytest.raises(ConnectionError):
                        await nbd.flush()
            assert await other.pread(0, 4096) == bytes(4096)
            assert await works(sock_dir)
    assert "NBD client crashed" in caplog.text


async def test_a_dead_client_does_not_hold_up_the_end(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsd_trio.exports.nbd.CLIENT_GRACE", 0.1)
    async with serving(sock_dir) as daemon:
        async with connect_nbd(sock_dir / "s", "a") as nbd:
            sock = nbd.stream.socket
            async with trio.open_nursery() as nursery:
                # Reads whose replies nobody takes: the server waits to send.
                for _ in range(20):
                    nursery.start_soon(nbd.pread, 0, 1 << 20)
                await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            del sock
            with trio.fail_after(3):
                await run(daemon, "block-export-del", id="e", mode="hard")
                await daemon.exports.wait_gone("e")


async def test_nothing_is_left_behind(sock_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        async with serving(sock_dir):
            assert await works(sock_dir)
            stream = await connect(sock_dir)
            await read_greeting(stream)
            await stream.aclose()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not (sock_dir / "s").exists()
    assert caplog.text == ""


async def test_resize_is_seen_by_new_clients(sock_dir: Path) -> None:
    async with serving(sock_dir) as daemon:
        async with connect_nbd(sock_dir / "s", "a") as old:
            await run(daemon, "block_resize", node_name="a", size=2 << 20)
            async with connect_nbd(sock_dir / "s", "a") as new:
                assert new.export.size == 2 << 20
                await new.pwrite((2 << 20) - 512, b"x" * 512)
            assert old.export.size == 1 << 20
            assert await old.pread(0, 512) == bytes(512)


async def test_one_node_under_several_names(sock_dir: Path) -> None:
    async with serving(sock_dir) as daemon:
        await run(
            daemon, "block-export-add", type="nbd", id="f", node_name="a", name="b", description="d"
        )
        async with connect_nbd(sock_dir / "s", "a") as one, connect_nbd(sock_dir / "s", "b") as two:
            await one.pwrite(5, b"hello")
            assert await two.pread(5, 5) == b"hello"
            assert two.export.description == "d"
            assert two.export.flags & TransmissionFlag.READ_ONLY
