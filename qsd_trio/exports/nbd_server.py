"""The daemon's NBD server: listeners, the clients' negotiations, limits.

There is at most one in a daemon. Exports register themselves in ``exports``; once a client has chosen
one, its connection is served by that export, in a task of the server.
"""

from __future__ import annotations

import logging
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio import trace
from qsd_trio.errors import RemoteProtocolError
from qsd_trio.host.spin import Spin
from qsd_trio.protocol.nbd.negotiation import Aborted, ExportChosen, ServerNegotiation, StartTls
from qsd_trio.services import Service, run_isolated

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from qsd_trio.exports.nbd import NbdExport
    from qsd_trio.net.listen import Listener
    from qsd_trio.protocol.nbd.negotiation import ExportInfo
    from qsd_trio.untyped import Options

log = logging.getLogger("qsd_trio.exports.nbd")

_trace_begin = trace.point("nbd_negotiate_begin")
_trace_success = trace.point("nbd_negotiate_success")
_trace_timeout = trace.point("nbd_handshake_timer_cb")

#: Clients that may haggle at the same time. They do not count as connections: a hundred that say nothing
#: would keep everybody out for the whole handshake limit. Beyond this number the oldest has to go.
MAX_NEGOTIATING: Final = 256

#: Socket buffers of unix connections (bytes): the kernel's default holds less than one large reply.
UNIX_BUFFER: Final = 2 * 1024 * 1024

RECEIVE: Final = 64 * 1024


@final
class NbdServer(Service):
    """Accepts NBD clients on an address and hands them to the exports they choose.

    Args:
        address: A SocketAddress or SocketAddressLegacy.
        max_connections: Clients served at once; 0 is no limit. More wait to be accepted.
        handshake_max_seconds: What a negotiation may take; 0 is no limit.
    """

    def __init__(
        self,
        address: Options,
        *,
        max_connections: int = 100,
        handshake_max_seconds: int = 10,
    ) -> None:
        self.id = "nbd"  # there is one in a daemon
        self.exports: dict[str, NbdExport] = {}
        self.max_connections = max_connections
        self.listeners: list[Listener] = []
        self.spin = Spin()
        self._address = address
        self._handshake_limit = float(handshake_max_seconds) or float("inf")
        self._connections = 0
        self._freed = trio.Event()
        self._negotiating: dict[trio.CancelScope, None] = {}  # the oldest first

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        """Listen; QmpError says why that is impossible."""
        from qsd_trio.net.address import from_qapi
        from qsd_trio.net.listen import open_listeners

        self.listeners = await open_listeners(from_qapi(self._address))
        try:
            yield
        finally:
            for listener in self.listeners:
                listener.close()

    async def serve(self) -> None:
        """Accept until cancelled; then drop every client at once (exports stop theirs before)."""
        async with trio.open_nursery() as nursery:
            for listener in self.listeners:
                nursery.start_soon(self._accept, listener, nursery)

    # -- the exports' directory, for the negotiation ---------------------------------------------------

    def list(self) -> Iterable[tuple[str, str | None]]:
        """Return (name, description) of all exports, in order of creation."""
        return [(export.name, export.description) for export in self.exports.values()]

    def find(self, name: str) -> ExportInfo | None:
        """Return what a client is told of export ``name``, or None."""
        export = self.exports.get(name)
        return export.info() if export is not None else None

    # -- clients ---------------------------------------------------------------------------------------

    async def _accept(self, listener: Listener, nursery: trio.Nursery) -> None:
        while True:
            await self._wait_for_room()
            stream = await listener.accept()
            if len(self._negotiating) >= MAX_NEGOTIATING:
                next(iter(self._negotiating)).cancel()
            # The data plane needs the plain socket: one look at it must cost no checkpoint.
            sock = socket.socket(fileno=stream.socket.detach())
            sock.setblocking(False)
            nursery.start_soon(run_isolated, "NBD client", self._serve_client, sock)

    async def _wait_for_room(self) -> None:
        while self.max_connections and self._connections >= self.max_connections:
            self._freed = trio.Event()
            await self._freed.wait()

    async def _serve_client(self, sock: socket.socket) -> None:
        try:
            with sock:
                _tune(sock)
                _trace_begin()
                negotiation = ServerNegotiation(self)
                scope = trio.CancelScope(deadline=trio.current_time() + self._handshake_limit)
                self._negotiating[scope] = None
                try:
                    with scope:
                        chosen = await self._negotiate(sock, negotiation)
                finally:
                    del self._negotiating[scope]
                if scope.cancelled_caught:
                    _trace_timeout()
                    if negotiation.heard:
                        log.warning("NBD client took too long to negotiate")
                elif chosen is not None:
                    _trace_success()
                    await self._transmit(sock, chosen, negotiation)
        except RemoteProtocolError as exc:
            log.warning("NBD client dropped: %s", exc)
        except ConnectionError:
            pass  # it is gone: its right, at any time

    async def _negotiate(
        self, sock: socket.socket, negotiation: ServerNegotiation
    ) -> ExportChosen | None:
        await _send(sock, negotiation.data_to_send())
        while True:
            event = negotiation.next_event()
            if isinstance(event, ExportChosen):
                return event
            await _send(sock, negotiation.data_to_send())
            if isinstance(event, Aborted | StartTls):
                return None
            if event is None:
                data = await _receive(sock)
                if not data:
                    return None
                negotiation.receive_data(data)

    async def _transmit(
        self, sock: socket.socket, chosen: ExportChosen, negotiation: ServerNegotiation
    ) -> None:
        # Those accepted at the same time may be too many by now: the last ones wait for their answer.
        await self._wait_for_room()
        self._connections += 1
        try:
            with trio.move_on_after(self._handshake_limit) as scope:
                await _send(sock, negotiation.data_to_send())
            export = self.exports.get(chosen.info.name)
            if scope.cancelled_caught or export is None:
                return
            await export.serve_client(sock, chosen, negotiation.trailing_data)
        finally:
            self._connections -= 1
            self._freed.set()


def _tune(sock: socket.socket) -> None:
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNIX_BUFFER)
    elif sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def _send(sock: socket.socket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)


async def _receive(sock: socket.socket) -> bytes:
    while True:
        try:
            return sock.recv(RECEIVE)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
