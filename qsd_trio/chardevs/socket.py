"""Chardev backend ``socket``: a stream socket, listening or connecting, perhaps with a protocol on it."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio.chardevs._streams import HANDSHAKE_TIMEOUT, TelnetStream, WebSocketStream
from qsd_trio.chardevs.abc import Chardev, chardev_backend
from qsd_trio.errors import QmpError
from qsd_trio.net.address import FdAddress, InetAddress, UnixAddress, from_qapi, of_socket
from qsd_trio.net.connect import connect
from qsd_trio.net.listen import accept_any, open_listeners

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from qsd_trio.chardevs.abc import ChardevOpener
    from qsd_trio.net.address import Address
    from qsd_trio.net.listen import Listener
    from qsd_trio.untyped import Json, Options

log = logging.getLogger("qsd_trio.chardevs")

#: Seconds between two handshakes that failed, so that a peer in a loop cannot keep the daemon busy.
_FAILED_PAUSE: Final = 0.01


@final
@chardev_backend("socket")
class SocketChardev(Chardev):
    """A server that serves one client after the other, or a client that may reconnect."""

    def __init__(self, id_: str, options: Options) -> None:
        super().__init__(id_, options)
        self._is_server: bool = options.server is not False
        self._address: Address = from_qapi(options.addr)
        self._reconnect = _reconnect_seconds(options)
        self._listeners: list[Listener] = []
        self._stream: trio.SocketStream | None = None
        self._connected_as: str | None = None

    @classmethod
    def create(cls, id_: str, options: Options, opener: ChardevOpener) -> SocketChardev:
        """Check what the schema cannot say."""
        _validate(options)
        if options.tls_creds is not None:
            _refuse_tls(options, opener)
        return cls(id_, options)

    @property
    def filename(self) -> str:
        """Where the peer is, or where one is expected."""
        if self._connected_as is not None:
            return self._connected_as
        return f"disconnected:{self._describe(self._address)}"

    def get_property(self, name: str) -> Json:
        """Return ``connected``, or ``addr``: a SocketAddress with the port that was found."""
        if name == "connected":
            return self._connected_as is not None
        from qsd_trio.qapi.converter import to_qmp

        given = to_qmp(self.options.addr)
        shown = {"type": given["type"], **given["data"]}
        if isinstance(self._address, InetAddress):
            shown["port"] = self._address.port
        return shown

    def _describe(self, address: Address) -> str:
        suffix = ",server=on" if self._is_server else ""
        match address:
            case InetAddress():
                return f"{self._protocol}:{address}{suffix}"
            case UnixAddress():
                abstract = ",abstract=on" if address.abstract else ""
                tight = ",tight=on" if address.abstract and address.tight else ""
                return f"unix:{address}{abstract}{tight}{suffix}"
            case FdAddress():
                return f"fd:{address}{suffix}"
            case _:
                return f"vsock:{address}{suffix}"

    @property
    def _protocol(self) -> str:
        if self.options.telnet:
            return "telnet"
        return "websocket" if self.options.websocket else "tcp"

    def _describe_connection(self, stream: trio.SocketStream) -> str:
        suffix = ",server=on" if self._is_server else ""
        sock = stream.socket
        local = of_socket(sock)  # type: ignore[arg-type]  # trio's sockets have the same two methods
        peer = of_socket(sock, peer=True)  # type: ignore[arg-type]
        if isinstance(local, InetAddress) and isinstance(peer, InetAddress):
            ends = [
                f"[{end.host}]:{end.port}" if ":" in end.host else str(end) for end in (local, peer)
            ]
            return f"{self._protocol}:{ends[0]}{suffix} <-> {ends[1]}"
        if isinstance(local, UnixAddress):
            # As the real daemon has it: our end, and an abstract name is not shown.
            return f"unix:{'' if local.abstract else local.path}{suffix}"
        return f"vsock:{local}{suffix} <-> {peer}"

    def backend_opened(self) -> AbstractAsyncContextManager[None]:
        """Listen, or connect unless that is tried again and again anyway."""
        return self._server_opened() if self._is_server else self._client_opened()

    @asynccontextmanager
    async def _server_opened(self) -> AsyncGenerator[None]:
        self._listeners = await open_listeners(self._address)
        try:
            self._address = self._listeners[0].address or self._address
            if self.options.wait:
                log.warning("info: QEMU waiting for connection on: %s", self.filename)
                self._stream = await accept_any(self._listeners)
            yield
        finally:
            self._close_stream()
            for listener in self._listeners:
                listener.close()

    @asynccontextmanager
    async def _client_opened(self) -> AsyncGenerator[None]:
        if not self._reconnect:
            self._stream = await connect(self._address)
        try:
            yield
        finally:
            self._close_stream()

    def _close_stream(self) -> None:
        # Not aclose(): a checkpoint on the way out may end the way.
        if self._stream is not None:
            self._stream.socket.close()
            self._stream = None

    async def serve(self) -> None:
        """Hand one connection after the other to the front-end."""
        if self._is_server:
            await self._serve_clients()
        elif self._reconnect:
            await self._keep_connected(self._reconnect)
        else:
            assert self._stream is not None
            await self._serve_connection(self._stream)
            await trio.sleep_forever()

    async def _serve_clients(self) -> None:
        while True:
            if self._stream is None:
                self._stream = await accept_any(self._listeners)
            await self._serve_connection(self._stream)

    async def _keep_connected(self, pause: float) -> None:
        reported = False
        while True:
            try:
                self._stream = await connect(self._address)
            except QmpError as exc:
                if not reported:
                    log.warning("Unable to connect character device %s: %s", self.id, exc)
                reported = True
            else:
                reported = False
                await self._serve_connection(self._stream)
            await trio.sleep(pause)

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        """Do the handshake and offer the connection; afterwards it is closed."""
        try:
            try:
                with trio.fail_after(HANDSHAKE_TIMEOUT):
                    session = await self._wrap(stream)
            except (trio.TooSlowError, trio.BrokenResourceError):
                await trio.sleep(_FAILED_PAUSE)
                return
            self._connected_as = self._describe_connection(stream)
            await self.offer(session)
        finally:
            self._connected_as = None
            self._close_stream()

    async def _wrap(self, stream: trio.SocketStream) -> trio.abc.Stream:
        if self.options.websocket and self._is_server:
            from qsd_trio.protocol.websocket import WebSocketServer

            websocket = WebSocketStream(stream, WebSocketServer())
            await websocket.handshake()
            return websocket
        if self.options.telnet or self.options.tn3270:
            from qsd_trio.protocol.telnet import TelnetServer

            telnet = TelnetStream(stream, TelnetServer(tn3270=bool(self.options.tn3270)))
            if self._is_server:
                await telnet.handshake()
            return telnet
        return stream


def _reconnect_seconds(options: Options) -> float:
    if options.reconnect_ms is not None:
        return max(float(options.reconnect_ms), 0) / 1000
    return max(float(options.reconnect or 0), 0)


def _validate(options: Options) -> None:
    is_server = options.server is not False
    reconnect = options.reconnect is not None or options.reconnect_ms is not None
    kind = options.addr.type.value
    if options.reconnect is not None and options.reconnect_ms is not None:
        raise QmpError("'reconnect' and 'reconnect-ms' are mutually exclusive")
    if kind == "fd" and reconnect:
        raise QmpError("'reconnect' option is incompatible with 'fd' address type")
    if kind == "fd" and options.tls_creds is not None and not is_server:
        raise QmpError("'tls_creds' option is incompatible with 'fd' address type as client")
    if kind == "vsock" and options.telnet:
        raise QmpError("'telnet' option is incompatible with 'vsock' address type")
    if kind == "vsock" and options.tn3270:
        raise QmpError("'tn3270' option is incompatible with 'vsock' address type")
    if options.tls_authz is not None and options.tls_creds is None:
        raise QmpError("'tls_authz' option requires 'tls_creds' option")
    if is_server:
        if reconnect:
            raise QmpError("'reconnect' option is incompatible with socket in server listen mode")
        return
    if options.websocket:
        raise QmpError("Websocket client is not implemented")
    if options.wait is not None:
        raise QmpError("'wait' option is incompatible with socket in client connect mode")


def _refuse_tls(options: Options, opener: ChardevOpener) -> None:
    found = opener.objects.get(options.tls_creds)
    if found is None:
        raise QmpError(f"No TLS credentials with id '{options.tls_creds}'")
    if not found.type_name.startswith("tls-creds-"):
        raise QmpError(f"Object with id '{options.tls_creds}' is not TLS credentials")
    raise QmpError("TLS on a socket chardev is not supported by this version of qsd-trio yet")
