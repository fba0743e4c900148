"""A QMP session: one client, from the greeting until it hangs up or the daemon ends."""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio import trace
from qsd_trio._version import PACKAGE, QEMU_VERSION
from qsd_trio.monitor.dispatcher import dispatch
from qsd_trio.monitor.ratelimit import RateLimiter
from qsd_trio.protocol.qmp import JsonStream, dump_json, is_oob

if TYPE_CHECKING:
    from qsd_trio.daemon import Daemon
    from qsd_trio.events import Event
    from qsd_trio.untyped import Json

log = logging.getLogger("qsd_trio.monitor")

#: Small, as parsing keeps the event loop: densest JSON takes 2 µs a byte.
READ_SIZE: Final = 8192
#: QEMU's: with oob, reading stops when so many in-band commands wait. Without, each command is
#: answered before more is read.
MAX_QUEUED: Final = 8
#: Bytes of unread output at which no further command is carried out: a client that asks and never
#: reads must not fill the memory. (QEMU has no bound.)
OUTPUT_PAUSE: Final = 4 << 20
#: Bytes of unread output at which events are dropped; far beyond what a living client leaves unread.
OUTPUT_LIMIT: Final = 64 << 20
#: Seconds for the last output to leave when the daemon ends: a client that does not read cannot hold it up.
FLUSH_GRACE: Final = 1.0

_trace_request = trace.point("handle_qmp_command")
_trace_respond = trace.point("monitor_qmp_respond")
_trace_event = trace.point("monitor_protocol_event_emit")


def version() -> dict[str, Json]:
    """Return the value of query-version, which the greeting shows as well.

    The numbers are those of the QEMU whose behaviour we follow: clients decide by them what they may ask for.
    """
    major, minor, micro = QEMU_VERSION
    return {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": PACKAGE}


@final
class Session:
    """Talks QMP over ``stream``. The caller closes the stream after ``run()``."""

    def __init__(
        self,
        daemon: Daemon,
        stream: trio.abc.Stream,
        *,
        pretty: bool = False,
        offers_oob: bool = True,
    ) -> None:
        self.negotiated = False
        self.oob_enabled = False
        self._daemon = daemon
        self._stream = stream
        self._pretty = pretty
        self._offers_oob = offers_oob
        self._parser = JsonStream()
        self._limiter = RateLimiter()
        self._limited = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        self._stopping = trio.Event()
        # In-band requests received and not yet answered, the one being carried out included.
        self._pending = 0
        self._answered = trio.lowlevel.ParkingLot()
        self._output: deque[bytes] = deque()
        self._unsent = 0
        self._output_changed = trio.lowlevel.ParkingLot()
        self._receiving = trio.CancelScope()
        self._writing = False
        self._finishing = False
        self._broken = False
        self._dropping = False

    def negotiate(self, enable: list[str]) -> None:
        """Leave negotiation mode, with these capabilities."""
        self.oob_enabled = "oob" in enable
        self.negotiated = True

    def stop(self) -> None:
        """Send what is queued, for a short time, and end."""
        self._stopping.set()
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + FLUSH_GRACE)

    async def run(self) -> None:
        """Serve the client until it hangs up, or after the daemon's end until ``stop()``.

        A command that is being carried out when the client hangs up is completed, and so are those received
        before. Cancelled: the command is cancelled, queued output is lost.
        """
        with self._scope, self._daemon.events.subscribed(self._on_event):
            capabilities = ["oob"] if self._offers_oob else []
            self._send({"QMP": {"version": version(), "capabilities": capabilities}})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_limited)
                async with trio.open_nursery() as writing:
                    writing.start_soon(self._write)
                    await self._converse()
                    self._finishing = True
                    self._output_changed.unpark_all()
                nursery.cancel_scope.cancel()

    # -- input -------------------------------------------------------------------------------------

    async def _converse(self) -> None:
        """Read and carry out commands until the client hangs up or the daemon has ended."""
        queue, requests = trio.open_memory_channel[object](MAX_QUEUED + 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._answer_all, requests)
            async with queue, trio.open_nursery() as reading:
                reading.start_soon(self._at_quit)
                await self._read(queue)
                reading.cancel_scope.cancel()
        if self._daemon.quit_requested and not self._broken:
            # No more input, but the client hears how things end.
            await self._stopping.wait()

    async def _at_quit(self) -> None:
        await self._daemon.wait_quit_requested()
        self._receiving.cancel()  # not the command that is being carried out

    async def _read(self, queue: trio.MemorySendChannel[object]) -> None:
        while not self._daemon.quit_requested:
            data: bytes | bytearray = b""
            with trio.CancelScope() as self._receiving:
                try:
                    data = await self._stream.receive_some(READ_SIZE)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
            if not data:
                return
            for value in self._parser.feed(bytes(data)):
                if _trace_request.on:
                    _trace_request(id(self), dump_json(value) if isinstance(value, dict) else value)
                if self._daemon.quit_requested:
                    return  # as QEMU: nothing after quit
                if not self.oob_enabled or is_oob(value):
                    # Without oob one is answered before the next is read. With it, those that wait
                    # are overtaken.
                    await self._answer(value)
                    self._write_now()
                    continue
                self._pending += 1
                await queue.send(value)
                # One more than may wait: one is being carried out.
                while self._pending > MAX_QUEUED:
                    await self._answered.park()

    async def _answer_all(self, requests: trio.MemoryReceiveChannel[object]) -> None:
        async for value in requests:
            if self._daemon.quit_requested:
                return  # as QEMU: nothing after quit
            await self._answer(value)
            self._pending -= 1
            self._answered.unpark_all()

    async def _answer(self, value: object) -> None:
        while self._unsent > OUTPUT_PAUSE and not self._broken:
            await self._output_changed.park()
        reply = await dispatch(self._daemon, value, self)
        if _trace_respond.on:
            _trace_respond(id(self), dump_json(reply))
        self._send(reply)

    # -- output ------------------------------------------------------------------------------------

    def _send(self, message: dict[str, Json]) -> None:
        if self._broken:
            return
        text = dump_json(message, pretty=self._pretty) + "\n"
        data = text.replace("\n", "\r\n").encode("ascii")
        self._output.append(data)
        self._unsent += len(data)
        self._output_changed.unpark_all()

    async def _write(self) -> None:
        while True:
            if self._output:
                data = b"".join(self._output)
                self._output.clear()
                self._writing = True
                try:
                    await self._stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._broken = True  # whoever reads the other direction finds out by itself
                    self._output.clear()
                    self._unsent = 0
                    self._output_changed.unpark_all()
                    return
                self._writing = False
                self._unsent -= len(data)
                self._output_changed.unpark_all()
            elif self._finishing:
                return
            else:
                await self._output_changed.park()

    def _write_now(self) -> None:
        """Write what a socket takes at once.

        The writing task has its turn after everybody else's: under load that is milliseconds later.
        """
        if self._writing or not self._output or not isinstance(self._stream, trio.SocketStream):
            return
        data = b"".join(self._output)
        try:
            sent = os.write(self._stream.socket.fileno(), data)
        except OSError:  # full, or broken: the writing task's to find out
            return
        self._output.clear()
        if sent < len(data):
            self._output.append(data[sent:])
        self._unsent -= sent

    def _on_event(self, event: Event) -> None:
        if not self.negotiated:
            return
        if self._limiter.offer(event, trio.current_time()):
            self._emit(event)
        else:
            self._limited.unpark_all()

    def _emit(self, event: Event) -> None:
        if self._unsent > OUTPUT_LIMIT:
            if not self._dropping:
                log.warning("a QMP client does not read: dropping events")
                self._dropping = True
            return
        self._dropping = False
        message = event.to_qmp()
        if _trace_event.on:
            _trace_event(event.name, dump_json(message.get("data", {})))
        self._send(message)

    async def _send_limited(self) -> None:
        """Send the events that the rate limit held back, when their time has come."""
        while True:
            with trio.move_on_at(self._limiter.next_deadline()):
                await self._limited.park()
            for event in self._limiter.due(trio.current_time()):
                self._emit(event)
