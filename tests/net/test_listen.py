"""Listeners: what they bind, what they leave behind, and their errors in the real daemon's words."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
import trio

from qsd_trio.errors import QmpError
from qsd_trio.net.address import (
    FdAddress,
    InetAddress,
    UnixAddress,
    VsockAddress,
    in_monitor,
    of_socket,
)
from qsd_trio.net.connect import connect
from qsd_trio.net.listen import accept_any, close_all, open_listeners


async def refused(coroutine: object) -> str:
    with pytest.raises(QmpError) as caught:
        await coroutine  # type: ignore[misc]
    return str(caught.value)


async def test_unix_socket_is_made_and_removed(sock_dir: Path) -> None:
    path = sock_dir / "s"
    path.write_bytes(b"stale")
    [listener] = await open_listeners(UnixAddress(path=str(path)))
    assert path.is_socket()
    async with await connect(UnixAddress(path=str(path))) as client:
        async with await listener.accept() as server:
            await client.send_all(b"hello")
            assert await server.receive_some() == b"hello"
    await listener.aclose()
    assert not path.exists()


async def test_someone_elses_socket_at_our_path_stays(sock_dir: Path) -> None:
    path = sock_dir / "s"
    [listener] = await open_listeners(UnixAddress(path=str(path)))
    path.unlink()
    path.write_bytes(b"not ours")
    await listener.aclose()
    assert path.read_bytes() == b"not ours"


async def test_unix_errors(sock_dir: Path) -> None:
    missing = str(sock_dir / "no" / "s")
    assert await refused(open_listeners(UnixAddress(path=missing))) == (
        f"Failed to bind socket to {missing}: No such file or directory"
    )
    assert await refused(open_listeners(UnixAddress(path=str(sock_dir)))) == (
        f"Failed to unlink socket {sock_dir}: Is a directory"
    )
    long = "x" * 109
    with pytest.raises(QmpError) as caught:
        await open_listeners(UnixAddress(path=long))
    assert str(caught.value) == f"UNIX socket path '{long}' is too long"
    assert caught.value.__notes__ == ["Path must be less than 108 bytes"]
    assert await refused(connect(UnixAddress(path=missing))) == (
        f"Failed to connect to '{missing}': No such file or directory"
    )


@pytest.mark.parametrize("tight", [True, False])
async def test_abstract_names(tight: bool) -> None:
    address = UnixAddress(path=f"qsd-trio-test-{os.getpid()}-{tight}", abstract=True, tight=tight)
    [listener] = await open_listeners(address)
    assert of_socket(listener.socket) == address  # type: ignore[arg-type]
    assert await refused(open_listeners(address)) == (
        f"Failed to bind socket to {address.path}: Address already in use"
    )
    client = await connect(address)
    server = await listener.accept()
    await close_all([listener])
    await client.aclose()
    await server.aclose()


async def test_inet_port_zero_and_range() -> None:
    [first] = await open_listeners(InetAddress(host="127.0.0.1", port="0"))
    assert isinstance(first.address, InetAddress)
    port = first.address.port
    assert port != "0"
    taken = InetAddress(host="127.0.0.1", port=port)
    assert await refused(open_listeners(taken)) == (
        "Failed to find an available port: Address already in use"
    )
    [second] = await open_listeners(
        InetAddress(host="127.0.0.1", port=port, to=min(int(port) + 50, 65535))
    )
    assert isinstance(second.address, InetAddress)
    assert second.address.port != port
    await close_all([first, second])


async def test_all_addresses_share_a_port() -> None:
    listeners = await open_listeners(InetAddress(host="", port="0"))
    ports = {listener.address.port for listener in listeners}  # type: ignore[union-attr]
    assert len(ports) == 1
    client = await connect(InetAddress(host="127.0.0.1", port=ports.pop()))
    server = await accept_any(listeners)
    await client.send_all(b"x")
    assert await server.receive_some() == b"x"
    await client.aclose()
    await server.aclose()
    await close_all(listeners)


async def test_inet_errors() -> None:
    both_off = InetAddress(host="127.0.0.1", port="0", ipv4=False, ipv6=False)
    assert await refused(open_listeners(both_off)) == "Cannot disable IPv4 and IPv6 at same time"
    v6 = InetAddress(host="127.0.0.1", port="0", ipv6=True)
    assert await refused(open_listeners(v6)) == (
        "address resolution failed for 127.0.0.1:0: Address family for hostname not supported"
    )
    foreign = InetAddress(host="192.0.2.1", port="5")
    assert await refused(open_listeners(foreign)) == (
        "Failed to bind socket: Cannot assign requested address"
    )
    name = InetAddress(host="localhost", port="0", numeric=True)
    assert await refused(open_listeners(name)) == (
        "address resolution failed for localhost:0: Name or service not known"
    )


async def test_connection_refused() -> None:
    [listener] = await open_listeners(InetAddress(host="127.0.0.1", port="0"))
    address = listener.address
    assert address is not None
    await listener.aclose()
    assert await refused(connect(address)) == (
        f"Failed to connect to '{address}': Connection refused"
    )


async def test_vsock_numbers() -> None:
    assert await refused(open_listeners(VsockAddress(cid="x", port="1"))) == (
        "Failed to parse cid 'x'"
    )
    assert await refused(open_listeners(VsockAddress(cid="1", port="y"))) == (
        "Failed to parse port 'y'"
    )


async def test_passed_descriptors(sock_dir: Path) -> None:
    path = str(sock_dir / "s")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    number = sock.detach()
    [listener] = await open_listeners(FdAddress(name=str(number)))
    client = await connect(UnixAddress(path=path))
    server = await listener.accept()
    await client.aclose()
    await server.aclose()
    await listener.aclose()
    assert stat.S_ISSOCK(os.lstat(path).st_mode), "a path that is not ours was removed"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


async def test_descriptors_that_are_refused_stay_open() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert await refused(open_listeners(FdAddress(name=str(left.fileno())))) == (
            "Failed to listen on fd socket: Invalid argument"
        )
        left.send(b"still there")
        assert right.recv(20) == b"still there"
    with open(os.devnull) as file:  # noqa: ASYNC230
        number = file.fileno()
        assert await refused(open_listeners(FdAddress(name=str(number)))) == (
            f"File descriptor '{number}' is not a socket"
        )
        os.fstat(number)
    for text in ("", "abc", "1x", "99999999999"):
        assert await refused(open_listeners(FdAddress(name=text))) == (
            f"Unable to parse FD number {text}"
        )
    assert await refused(open_listeners(FdAddress(name="-1"))) == (
        "File descriptor '-1' is not a socket"
    )


async def test_a_monitor_may_not_name_descriptors() -> None:
    left, right = socket.socketpair()
    token = in_monitor.set(True)
    try:
        with left, right:
            assert await refused(connect(FdAddress(name=str(left.fileno())))) == (
                "only QEMU supports file descriptor passing"
            )
    finally:
        in_monitor.reset(token)


async def test_cancelled_accept_loses_nobody(sock_dir: Path) -> None:
    address = UnixAddress(path=str(sock_dir / "s"))
    [listener] = await open_listeners(address)
    with trio.move_on_after(0):
        await listener.accept()
    clients = [await connect(address) for _ in range(20)]  # the backlog holds them all
    for client in clients:
        server = await listener.accept()
        await server.aclose()
        await client.aclose()
    await listener.aclose()
