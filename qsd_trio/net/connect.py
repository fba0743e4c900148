"""Outgoing connections."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import trio

from qsd_trio.errors import QmpError, with_errno
from qsd_trio.net.address import (
    FdAddress,
    InetAddress,
    UnixAddress,
    VsockAddress,
    keep_alive_options,
)
from qsd_trio.net.resolve import resolve

if TYPE_CHECKING:
    from qsd_trio.net.address import Address


async def connect(address: Address) -> trio.SocketStream:
    """Connect to ``address``; QmpError if that fails. A cancelled attempt leaves nothing open."""
    match address:
        case InetAddress():
            return await _connect_inet(address)
        case UnixAddress():
            if not address.path and not address.abstract:
                raise QmpError("UNIX socket path cannot be empty")
            return await _connect(address, socket.AF_UNIX, 0, address.to_socket())
        case VsockAddress():
            return await _connect(address, socket.AF_VSOCK, 0, address.to_socket())
        case FdAddress():
            await trio.lowlevel.checkpoint()
            sock = address.take()
            sock.setblocking(False)
            try:
                return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            except ValueError:
                sock.detach()  # refused, so it stays its owner's
                raise QmpError(f"File descriptor '{address}' is not a stream socket") from None


async def _connect(
    address: Address, family: int, protocol: int, name: bytes | tuple[str | int, ...]
) -> trio.SocketStream:
    try:
        sock = trio.socket.socket(family, socket.SOCK_STREAM, protocol)
    except OSError as exc:
        raise with_errno("Failed to create socket", exc) from None
    try:
        await sock.connect(name)
    except OSError as exc:
        sock.close()
        text = os.strerror(exc.errno) if exc.errno is not None else str(exc)
        raise QmpError(f"Failed to connect to '{address}': {text}") from None
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def _connect_inet(address: InetAddress) -> trio.SocketStream:
    if not address.host and not address.port:
        raise QmpError("host and/or port not specified")
    protocol = getattr(socket, "IPPROTO_MPTCP", 262) if address.mptcp else 0
    failure: QmpError | None = None
    for family, name in await resolve(address, passive=False):
        try:
            stream = await _connect(address, family, protocol, name)
        except QmpError as exc:
            failure = exc
            continue
        try:
            for option in keep_alive_options(address):
                stream.setsockopt(*option)
        except OSError as exc:
            await stream.aclose()
            raise with_errno("Unable to set KEEPALIVE", exc) from None
        return stream
    raise failure or QmpError(f"Failed to connect to '{address}'")
