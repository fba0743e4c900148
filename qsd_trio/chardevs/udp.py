"""Chardev backend ``udp``: datagrams to and from one peer."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio.chardevs.abc import Chardev, chardev_backend
from qsd_trio.errors import QmpError, with_errno
from qsd_trio.net.address import InetAddress, from_qapi
from qsd_trio.net.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qsd_trio.chardevs.abc import ChardevOpener
    from qsd_trio.untyped import Options

#: The longest datagram that UDP can carry.
_MAX_DATAGRAM: Final = 65535


@final
@chardev_backend("udp")
class UdpChardev(Chardev):
    """The one session begins with the first datagram: before, nobody is known to be there."""

    @classmethod
    def create(cls, id_: str, options: Options, opener: ChardevOpener) -> UdpChardev:
        """The addresses are checked when they are used."""
        return cls(id_, options)

    @property
    def filename(self) -> str:
        """Always 'udp'."""
        return "udp"

    @asynccontextmanager
    async def backend_opened(self) -> AsyncGenerator[None]:
        """Bind to the local address and connect to the remote one."""
        local = None if self.options.local is None else from_qapi(self.options.local)
        sock = await _open_socket(from_qapi(self.options.remote), local)
        with sock:
            self._socket = sock
            yield

    async def serve(self) -> None:
        """Offer the session."""
        await trio.lowlevel.wait_readable(self._socket)
        await self.offer(_DatagramStream(self._socket))
        await trio.sleep_forever()


async def _open_socket(remote: object, local: object) -> trio.socket.SocketType:
    if not isinstance(remote, InetAddress):
        raise QmpError("socket type unsupported for datagram")
    if not remote.port:
        raise QmpError("remote port not specified")
    peers = await resolve(remote, passive=False, kind=socket.SOCK_DGRAM)
    family, peer = peers[0]
    if local is None:
        local = InetAddress(host="", port="0")
    elif not isinstance(local, InetAddress):
        raise QmpError(f"address resolution failed for {local}:0: Name or service not known")
    wanted = InetAddress(
        host=local.host,
        port=local.port,
        ipv4=True if family == socket.AF_INET else None,
        ipv6=True if family == socket.AF_INET6 else None,
    )
    own = (await resolve(wanted, passive=True, kind=socket.SOCK_DGRAM))[0][1]
    sock = trio.socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            await sock.bind(own)
        except OSError as exc:
            raise with_errno("Failed to bind socket", exc) from None
        try:
            await sock.connect(peer)
        except OSError as exc:
            raise with_errno(f"Failed to connect to '{remote}'", exc) from None
    except BaseException:
        sock.close()
        raise
    return sock


@final
class _DatagramStream(trio.abc.Stream):
    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._socket = sock

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        for start in range(0, len(data), _MAX_DATAGRAM):
            try:
                await self._socket.send(data[start : start + _MAX_DATAGRAM])
            except ConnectionRefusedError:
                pass  # about an earlier datagram, and datagrams may be lost
            except OSError as exc:
                raise trio.BrokenResourceError from exc

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while True:
            try:
                data = await self._socket.recv(_MAX_DATAGRAM)
            except ConnectionRefusedError:
                continue
            except OSError as exc:
                raise trio.ClosedResourceError from exc
            if data:  # an empty datagram is no end of file
                return data

    async def aclose(self) -> None:
        self._socket.close()
        await trio.lowlevel.checkpoint()
