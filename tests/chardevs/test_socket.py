"""The socket backend: servers, clients, reconnecting, protocols on top, waiting at the start."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from qsd_trio.chardevs.abc import Chardev
from qsd_trio.chardevs.socket import SocketChardev
from qsd_trio.errors import QmpError
from qsd_trio.net.address import InetAddress, UnixAddress
from qsd_trio.net.connect import connect
from qsd_trio.testing.chardevs import FakeFrontend, check_chardev, receive_exactly, running
from tests.chardevs.kit import Opener, inet, make, unix


def unix_peer(path: Path) -> object:
    def peer(_chardev: Chardev) -> AbstractAsyncContextManager[trio.abc.Stream]:
        return connected(UnixAddress(path=str(path)))

    return peer


@asynccontextmanager
async def connected(address: UnixAddress | InetAddress) -> AsyncIterator[trio.abc.Stream]:
    async with await connect(address) as stream:
        yield stream


@asynccontextmanager
async def inet_peer(chardev: Chardev) -> AsyncIterator[trio.abc.Stream]:
    assert isinstance(chardev, SocketChardev)
    port = chardev.filename.split(",")[0].rsplit(":", 1)[1]
    async with connected(InetAddress(host="127.0.0.1", port=port)) as stream:
        yield stream


async def test_unix_server(sock_dir: Path) -> None:
    path = sock_dir / "s"
    await check_chardev(lambda: make("socket", addr=unix(path)), unix_peer(path), sessions=3)  # type: ignore[arg-type]
    assert not path.exists()


async def test_inet_server() -> None:
    await check_chardev(lambda: make("socket", addr=inet()), inet_peer)


async def test_abstract_server() -> None:
    name = f"qsd-trio-chardev-{os.getpid()}"

    def peer(_chardev: Chardev) -> AbstractAsyncContextManager[trio.abc.Stream]:
        return connected(UnixAddress(path=name, abstract=True))

    await check_chardev(lambda: make("socket", addr=unix(name, abstract=True)), peer)


async def test_client(sock_dir: Path) -> None:
    path = sock_dir / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)

        @asynccontextmanager
        async def peer(_chardev: Chardev) -> AsyncIterator[trio.abc.Stream]:
            sock, _ = listener.accept()  # the chardev connected when it was opened
            async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
                yield stream

        def client() -> Chardev:
            while True:
                try:
                    listener.accept()[0].close()  # of checks that need no peer
                except BlockingIOError:
                    return make("socket", addr=unix(path), server=False)

        await check_chardev(client, peer, sessions=1)


async def test_passed_descriptor_serves(sock_dir: Path) -> None:
    path = sock_dir / "s"

    def server() -> Chardev:
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen()
        return make("socket", addr={"type": "fd", "data": {"str": str(sock.detach())}})

    await check_chardev(server, unix_peer(path))  # type: ignore[arg-type]


async def test_passed_descriptor_as_client() -> None:
    left, right = socket.socketpair()
    chardev = make("socket", addr={"type": "fd", "data": {"str": str(left.detach())}}, server=False)
    right.setblocking(False)
    async with running(chardev), aclosing(chardev.sessions()) as streams:
        other = trio.SocketStream(trio.socket.from_stdlib_socket(right))
        async with other, await anext(streams) as stream:
            await other.send_all(b"hi")
            assert await receive_exactly(stream, 2) == b"hi"


async def test_clients_wait_in_the_backlog(sock_dir: Path) -> None:
    """The real daemon refuses the third client; here they are served in their turn."""
    path = sock_dir / "s"
    chardev = make("socket", addr=unix(path))
    async with running(chardev):
        clients = [await connect(UnixAddress(path=str(path))) for _ in range(30)]
        async with aclosing(chardev.sessions()) as streams:
            for client in clients:
                await client.send_all(b"x")
                async with await anext(streams) as stream:
                    assert await receive_exactly(stream, 1) == b"x"
                await client.aclose()


async def test_filenames(sock_dir: Path) -> None:
    path = sock_dir / "s"
    chardev = make("socket", addr=unix(path))
    assert chardev.filename == f"disconnected:unix:{path},server=on"
    async with running(chardev), aclosing(chardev.sessions()) as streams:
        async with await connect(UnixAddress(path=str(path))):
            async with await anext(streams):
                assert chardev.filename == f"unix:{path},server=on"
    tcp = make("socket", addr=inet(), telnet=True)
    async with running(tcp), aclosing(tcp.sessions()) as streams:
        name = tcp.filename
        assert name.startswith("disconnected:telnet:127.0.0.1:")
        async with inet_peer(tcp), await anext(streams):
            assert tcp.filename.startswith(name.removeprefix("disconnected:") + " <-> 127.0.0.1:")
    for members, shown in (
        ({"abstract": True}, "unix:a,abstract=on,tight=on"),
        ({"abstract": True, "tight": False}, "unix:a,abstract=on"),
        ({"tight": False}, "unix:a"),
    ):
        assert make("socket", addr=unix("a", **members)).filename == (
            f"disconnected:{shown},server=on"
        )


async def test_waits_for_the_first_client(sock_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = sock_dir / "s"
    chardev = make("socket", addr=unix(path), wait=True)
    with caplog.at_level(logging.WARNING), trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            clients: list[trio.SocketStream] = []
            arrived = trio.Event()

            async def arrive() -> None:
                while not caplog.messages:
                    await trio.lowlevel.checkpoint()
                clients.append(await connect(UnixAddress(path=str(path))))
                arrived.set()

            nursery.start_soon(arrive)
            async with running(chardev), aclosing(chardev.sessions()) as streams:
                await arrived.wait()
                async with await anext(streams) as stream:
                    await clients[0].send_all(b"me")
                    assert await receive_exactly(stream, 2) == b"me"
            await clients[0].aclose()
    assert caplog.messages == [
        f"info: QEMU waiting for connection on: disconnected:unix:{path},server=on"
    ]


async def test_waiting_can_be_cancelled(sock_dir: Path) -> None:
    path = sock_dir / "s"
    with trio.move_on_after(0.01) as scope:
        async with running(make("socket", addr=unix(path), wait=True)):
            raise AssertionError("nobody came")
    assert scope.cancelled_caught
    assert not path.exists()


async def test_reconnects_after_its_pause(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[float] = []
    started = trio.current_time()
    others: list[trio.SocketStream] = []

    async def fake_connect(_address: object) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        attempts.append(trio.current_time() - started)
        if len(attempts) < 4:
            raise QmpError("Failed to connect to 'x': Connection refused")
        left, right = trio.socket.socketpair()
        others.append(trio.SocketStream(right))
        return trio.SocketStream(left)

    monkeypatch.setattr("qsd_trio.chardevs.socket.connect", fake_connect)
    chardev = make("socket", addr=inet(port="1"), server=False, reconnect=5)
    async with running(chardev), aclosing(chardev.sessions()) as streams:
        async with await anext(streams):
            assert attempts == [0, 5, 10, 15]
        async with await anext(streams):
            assert attempts == [0, 5, 10, 15, 20]
    for other in others:
        await other.aclose()
    assert caplog.messages == [  # once, not at each attempt
        "Unable to connect character device c: Failed to connect to 'x': Connection refused"
    ]


@pytest.mark.parametrize(
    ("members", "seconds"), [({"reconnect": 2}, 2), ({"reconnect_ms": 50}, 0.05)]
)
async def test_reconnect_units(members: dict[str, int], seconds: float) -> None:
    chardev = make("socket", addr=inet(), server=False, **members)
    assert isinstance(chardev, SocketChardev)
    assert chardev._reconnect == seconds


async def test_client_without_reconnect_fails_at_once(sock_dir: Path) -> None:
    path = sock_dir / "none"
    with pytest.raises(QmpError, match=r"Failed to connect to '.*none': No such file"):
        async with running(make("socket", addr=unix(path), server=False)):
            pass


async def test_telnet_on_a_server(sock_dir: Path) -> None:
    path = sock_dir / "s"
    chardev = make("socket", addr=unix(path), telnet=True)
    async with running(chardev), aclosing(chardev.sessions()) as streams:
        async with await connect(UnixAddress(path=str(path))) as client:
            assert await receive_exactly(client, 12) == bytes.fromhex("fffb01fffb03fffb00fffd00")
            async with await anext(streams) as stream:
                await client.send_all(b"\xff\xfd\x01ab\xff\xffc")
                assert await receive_exactly(stream, 4) == b"ab\xffc"
                await stream.send_all(b"x\xff")
                assert await receive_exactly(client, 3) == b"x\xff\xff"


async def test_websocket_server_drops_who_does_not_upgrade(sock_dir: Path) -> None:
    path = sock_dir / "s"
    chardev = make("socket", addr=unix(path), websocket=True)
    async with running(chardev), aclosing(chardev.sessions()) as streams:
        async with await connect(UnixAddress(path=str(path))) as bad:
            await bad.send_all(b"GET / HTTP/1.1\r\n\r\n")
            assert (await bad.receive_some()).startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert await bad.receive_some() == b""
        async with await connect(UnixAddress(path=str(path))) as good:
            await good.send_all(
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
                b"\x82\x82\0\0\0\0hi"
            )
            async with await anext(streams) as stream:
                assert await receive_exactly(stream, 2) == b"hi"
                await stream.send_all(b"yo")
                answer = await good.receive_some()
                while not answer.endswith(b"\x82\x02yo"):
                    more = await good.receive_some()
                    assert more
                    answer += more


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"reconnect": 1}, "'reconnect' option is incompatible with socket in server listen mode"),
        ({"reconnect": 0}, "'reconnect' option is incompatible with socket in server listen mode"),
        (
            {"server": False, "wait": False},
            "'wait' option is incompatible with socket in client connect mode",
        ),
        ({"server": False, "websocket": True}, "Websocket client is not implemented"),
        ({"tls_authz": "x"}, "'tls_authz' option requires 'tls_creds' option"),
        ({"tls_creds": "x"}, "No TLS credentials with id 'x'"),
        (
            {"server": False, "reconnect": 1, "reconnect_ms": 1},
            "'reconnect' and 'reconnect-ms' are mutually exclusive",
        ),
    ],
)
def test_contradictions(members: dict[str, object], text: str) -> None:
    with pytest.raises(QmpError) as caught:
        make("socket", Opener(), addr=inet(), **members)
    assert str(caught.value) == text


async def test_a_crash_ends_only_that_chardev(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = sock_dir / "s"
    broken, fine = make("socket", id_="broken", addr=unix(path)), make("null", id_="fine")

    async def crash(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("a bug")

    monkeypatch.setattr(broken, "_serve_connection", crash)
    async with running(broken) as table:
        await table.start(fine)
        broken.attach(FakeFrontend())
        async with await connect(UnixAddress(path=str(path))):
            await table.wait_gone("broken")
        assert table.get("fine") is fine
        assert [stream async for stream in broken.sessions()] == []
    assert "chardev broken crashed" in caplog.text
    assert not path.exists()


async def test_logfile(sock_dir: Path) -> None:
    path, log = sock_dir / "s", sock_dir / "log"
    log.write_bytes(b"old\n")
    for append, before in ((True, b"old\n"), (False, b"")):
        chardev = make("socket", addr=unix(path), logfile=str(log), logappend=append)
        async with running(chardev), aclosing(chardev.sessions()) as streams:
            async with await connect(UnixAddress(path=str(path))) as client:
                async with await anext(streams) as stream:
                    await client.send_all(b"in")
                    await stream.send_all(b"out\n")
                    assert await receive_exactly(client, 4) == b"out\n"
        assert log.read_bytes() == before + b"out\n"
    stamped = make("socket", addr=unix(path), logfile=str(log), logtimestamp=True)
    async with running(stamped), aclosing(stamped.sessions()) as streams:
        async with await connect(UnixAddress(path=str(path))), await anext(streams) as stream:
            await stream.send_all(b"a\nb")
            await stream.send_all(b"c\n")
    lines = log.read_text().splitlines()
    assert [line[24:] for line in lines] == [" a", " bc"]
    assert lines[0][10] == "T"
    bad = str(sock_dir / "no" / "log")
    with pytest.raises(QmpError) as caught:
        async with running(make("null", logfile=bad)):
            pass
    assert str(caught.value) == f"Could not create '{bad}': No such file or directory"
