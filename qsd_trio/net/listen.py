"""Listening sockets."""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import tempfile
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio.errors import QmpError, with_errno
from qsd_trio.net.address import (
    FdAddress,
    InetAddress,
    UnixAddress,
    VsockAddress,
    keep_alive_options,
    of_socket,
)
from qsd_trio.net.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsd_trio.net.address import Address
    from qsd_trio.net.resolve import SocketName

log = logging.getLogger("qsd_trio.net")

#: Connections that the kernel holds until we accept them. The real daemon asks for 1, so that a client that is
#: tried at the wrong moment is refused; the kernel caps this at net.core.somaxconn.
BACKLOG: Final = 1024

#: Seconds to wait when the process is out of descriptors or memory, before accepting again.
ACCEPT_PAUSE: Final = 0.1

#: Seconds between two warnings of that.
COMPLAINT_PAUSE: Final = 60.0

_OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_LISTENER_FAULTS: Final = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP)


@final
class Listener(trio.abc.Listener[trio.SocketStream]):
    """A listening socket. Closing it removes the path that it was bound to, if it still is its own."""

    def __init__(
        self, sock: socket.socket, *, unlink: str | None = None, address: Address | None = None
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.socket = trio.socket.from_stdlib_socket(sock)
        #: Where it really listens: a port 0 is replaced.
        self.address: Address | None = address if address is not None else of_socket(sock)
        # Absolute: a daemon in the background leaves its working directory.
        self._next_complaint = -math.inf
        self._path = os.path.abspath(unlink) if unlink is not None else None
        self._identity = _identity(self._path) if self._path is not None else None

    async def accept(self) -> trio.SocketStream:
        """Return the next connection; waits while the process is out of resources.

        Cancelling loses no connection.
        """
        return await accept_any((self,))

    def accept_nowait(self) -> trio.SocketStream | None:
        """Return the next connection, None if there is none. OSError: nothing can be accepted."""
        try:
            sock, _ = self._sock.accept()
        except OSError as exc:
            if exc.errno in (*_OUT_OF_RESOURCES, *_LISTENER_FAULTS):
                raise
            return None  # about one connection, which is gone
        sock.setblocking(False)
        return trio.SocketStream(trio.socket.from_stdlib_socket(sock))

    def complain(self, errno_: int) -> None:
        """Warn that nothing can be accepted, but not again and again."""
        now = trio.current_time()
        if now >= self._next_complaint:
            self._next_complaint = now + COMPLAINT_PAUSE
            log.warning("warning: cannot accept a connection: %s", os.strerror(errno_))

    async def aclose(self) -> None:
        """Stop listening."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()
        if self._path is not None:
            # Someone may have put a socket of his own there meanwhile.
            if self._identity is not None and _identity(self._path) == self._identity:
                try:
                    os.unlink(self._path)
                except OSError as exc:
                    log.warning(
                        "Failed to unlink socket %s: %s", self._path, os.strerror(exc.errno or 0)
                    )
            self._path = None


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


async def open_listeners(address: Address, *, backlog: int = BACKLOG) -> list[Listener]:
    """Listen on ``address``; a host name with several addresses gives several listeners.

    Raises QmpError. If cancelled, nothing listens.
    """
    match address:
        case InetAddress():
            return await _listen_inet(address, backlog)
        case UnixAddress():
            await trio.lowlevel.checkpoint()
            return [_listen_unix(address, backlog)]
        case VsockAddress():
            await trio.lowlevel.checkpoint()
            return [_listen_vsock(address, backlog)]
        case FdAddress():
            await trio.lowlevel.checkpoint()
            return [_listen_fd(address, backlog)]


def _listen_unix(address: UnixAddress, backlog: int) -> Listener:
    if not address.path and not address.abstract:
        # A name nobody has: mkstemp() makes it, bind() wants it gone.
        handle, path = tempfile.mkstemp(prefix="qemu-socket-")
        os.close(handle)
        address = UnixAddress(path=path)
    name = address.to_socket()
    if not address.abstract:
        try:
            os.unlink(address.path)
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise with_errno(f"Failed to unlink socket {address.path}", exc) from None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound = False
    try:
        try:
            sock.bind(name)
        except OSError as exc:
            raise with_errno(f"Failed to bind socket to {address.path}", exc) from None
        bound = True
        try:
            sock.listen(backlog)
        except OSError as exc:
            raise with_errno("Failed to listen on socket", exc) from None
    except BaseException:
        sock.close()
        if bound and not address.abstract:
            os.unlink(address.path)
        raise
    return Listener(sock, unlink=None if address.abstract else address.path, address=address)


def _listen_vsock(address: VsockAddress, backlog: int) -> Listener:
    name = address.to_socket()
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as exc:
        raise with_errno("Failed to create a socket", exc) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(name)
        except OSError as exc:
            raise with_errno("Failed to bind socket", exc) from None
        try:
            sock.listen(backlog)
        except OSError as exc:
            raise with_errno("Failed to listen on socket", exc) from None
    except BaseException:
        sock.close()
        raise
    return Listener(sock)


def _listen_fd(address: FdAddress, backlog: int) -> Listener:
    sock = address.take()
    try:
        sock.listen(backlog)
    except OSError as exc:
        sock.detach()  # refused, so it stays its owner's
        raise with_errno("Failed to listen on fd socket", exc) from None
    return Listener(sock)


async def _listen_inet(address: InetAddress, backlog: int) -> list[Listener]:
    listeners: list[Listener] = []
    failure: QmpError | None = None
    port = 0
    for family, name in await resolve(address, passive=True):
        # With port 0 all addresses of a name get the same port, where it is free.
        attempts = (name,) if name[1] or not port else (_with_port(name, port), name)
        for attempt in attempts:
            try:
                sock = _bind_first_free(address, family, attempt, backlog)
            except QmpError as exc:
                failure = failure or exc
            else:
                listeners.append(Listener(sock))
                port = sock.getsockname()[1]
                break
    if not listeners:
        raise failure or QmpError("Failed to find an available port")
    return listeners


def _with_port(name: SocketName, port: int) -> SocketName:
    return (name[0], port) if len(name) == 2 else (name[0], port, name[2], name[3])


def _bind_first_free(
    address: InetAddress, family: int, name: SocketName, backlog: int
) -> socket.socket:
    """Return a socket that listens on the first free port from the address' to ``address.to``."""
    first = name[1]
    last = address.to if address.to is not None else first
    if address.to is not None and not first <= last <= 65535:
        raise QmpError("Failed to create a socket")
    in_use: OSError | None = None
    for port in range(first, last + 1):
        sock = _inet_socket(address, family)
        try:
            _bind_inet(address, sock, _with_port(name, port))
            try:
                sock.listen(backlog)
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise with_errno("Failed to listen on socket", exc) from None
                raise
        except OSError as exc:  # the port is taken, try the next
            sock.close()
            in_use = exc
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    assert in_use is not None
    raise with_errno("Failed to find an available port", in_use)


def _inet_socket(address: InetAddress, family: int) -> socket.socket:
    protocol = getattr(socket, "IPPROTO_MPTCP", 262) if address.mptcp else 0
    try:
        sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    except OSError as exc:
        raise with_errno("Failed to create a socket", exc) from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        for option in keep_alive_options(address):  # accepted sockets inherit them
            sock.setsockopt(*option)
    except OSError as exc:
        sock.close()
        raise with_errno("Unable to set keep-alive option on socket", exc) from None
    return sock


def _bind_inet(address: InetAddress, sock: socket.socket, name: SocketName) -> None:
    """Bind; an OSError that comes out of here means that the port is in use."""
    # An IPv6 socket takes IPv4 too, unless that is excluded or has a socket of its own.
    dual = sock.family == socket.AF_INET6 and address.ipv4 is not False
    for v6_only in (0, 1) if dual else (1,):
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
        try:
            sock.bind(name)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise with_errno("Failed to bind socket", exc) from None
            if v6_only or not dual:
                raise
        else:
            return


async def accept_any(listeners: Sequence[Listener]) -> trio.SocketStream:
    """Accept one connection from whichever listener has one first.

    Waits while the process is out of resources. Cancelling loses no connection.
    """
    await trio.lowlevel.checkpoint()
    while True:
        try:
            for listener in listeners:
                stream = listener.accept_nowait()
                if stream is not None:
                    return stream
        except OSError as exc:
            if exc.errno not in _OUT_OF_RESOURCES:
                raise
            listeners[0].complain(exc.errno)
            await trio.sleep(ACCEPT_PAUSE)
        await _wait_any(listeners)


async def _wait_any(listeners: Sequence[Listener]) -> None:
    if len(listeners) == 1:
        await trio.lowlevel.wait_readable(listeners[0].socket)
        return

    async def wait(listener: Listener) -> None:
        await trio.lowlevel.wait_readable(listener.socket)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(wait, listener)


async def close_all(listeners: Sequence[Listener]) -> None:
    """Close ``listeners``; does not wait."""
    for listener in listeners:
        listener.close()
    await trio.lowlevel.checkpoint()
