"""Chardev backend ``mux``: several front-ends share one chardev, and Ctrl-A c switches the input."""

from __future__ import annotations

import time
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio.chardevs.abc import Chardev, chardev_backend, is_open
from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from qsd_trio.chardevs.abc import ChardevOpener, Frontend
    from qsd_trio.untyped import Options

#: The real daemon's limit.
MAX_FRONTENDS: Final = 4
#: Ctrl-A begins a command.
ESCAPE: Final = 0x01

_HELP: Final = (
    "\n\r"
    "C-a h    print this help\n\r"
    "C-a x    end the daemon\n\r"
    "C-a t    switch time stamps on and off\n\r"
    "C-a b    send a break (has no effect here)\n\r"
    "C-a c    give the keyboard to the next front-end\n\r"
    "C-a C-a  send C-a\n\r"
)


@final
class _Port(trio.abc.Stream):
    """One front-end's view of the session."""

    def __init__(
        self,
        send: Callable[[bytes | bytearray | memoryview], Awaitable[None]],
        done: Callable[[_Port], None],
    ) -> None:
        self._send = send
        self._done = done
        self._feed, self._food = trio.open_memory_channel[bytes](0)

    async def feed(self, data: bytes) -> None:
        try:
            await self._feed.send(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the front-end is done, but has still the focus

    def end_input(self) -> None:
        self._feed.close()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._send(data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return await self._food.receive()
        except trio.EndOfChannel:
            return b""

    async def aclose(self) -> None:
        self._food.close()
        self._done(self)
        await trio.lowlevel.checkpoint()


@final
@chardev_backend("mux")
class MuxChardev(Chardev):
    """The front-end that came last has the input; the output of all goes to the base."""

    def __init__(self, id_: str, options: Options, opener: ChardevOpener) -> None:
        super().__init__(id_, options)
        self._opener = opener
        self._frontends: list[Frontend] = []
        # What each front-end's sessions() gets its ports from.
        self._queues: list[trio.MemorySendChannel[trio.abc.Stream]] = []
        self._ports: dict[trio.MemorySendChannel[trio.abc.Stream], _Port] = {}
        self._focus = -1
        self._stream: trio.abc.Stream | None = None
        self._send_lock = trio.Lock()
        self._all_closed = trio.Event()
        self._escaped = False
        self._stamps_since: float | None = None
        self._at_line_start = True

    @classmethod
    def create(cls, id_: str, options: Options, opener: ChardevOpener) -> MuxChardev:
        """Nothing can contradict here."""
        return cls(id_, options, opener)

    @property
    def filename(self) -> str:
        """Always 'mux'."""
        return "mux"

    @property
    def frontend_open(self) -> bool:
        """Whether anyone is there."""
        return any(is_open(frontend) for frontend in self._frontends)

    @property
    def busy(self) -> bool:
        """A mux cannot be removed, as in the real daemon."""
        return True

    def attach(self, frontend: Frontend) -> None:
        """Claim one of the places."""
        if len(self._frontends) >= MAX_FRONTENDS:
            raise QmpError(f"Device '{self.id}' is in use")
        self._frontends.append(frontend)

    def detach(self, frontend: Frontend) -> None:
        """Give the place back."""
        if frontend in self._frontends:
            self._frontends.remove(frontend)

    @asynccontextmanager
    async def backend_opened(self) -> AsyncGenerator[None]:
        """Claim the base."""
        name = self.options.chardev
        base = self._opener.chardevs.get(name)
        if base is None:
            raise QmpError(f"mux: base chardev {name} not found")
        base.attach(self)
        self._base = base
        try:
            yield
        finally:
            base.detach(self)
            for queue in self._queues:
                queue.close()

    async def sessions(self) -> AsyncGenerator[trio.abc.Stream]:
        """Yield a port for each session of the base. Each call is another front-end."""
        queue, ports = trio.open_memory_channel[trio.abc.Stream](1)
        self._queues.append(queue)
        self._focus = len(self._queues) - 1
        if self._stream is not None:
            self._open_port(queue)
        try:
            async for port in ports:
                yield port
        finally:
            self._queues.remove(queue)
            self._focus = len(self._queues) - 1
            left = self._ports.get(queue)
            if left is not None:
                await trio.aclose_forcefully(left)

    def _open_port(self, queue: trio.MemorySendChannel[trio.abc.Stream]) -> None:
        port = _Port(self._send, self._port_closed)
        self._ports[queue] = port
        queue.send_nowait(port)

    def _port_closed(self, port: _Port) -> None:
        for queue, candidate in tuple(self._ports.items()):
            if candidate is port:
                del self._ports[queue]
        if not self._ports:
            self._all_closed.set()

    async def serve(self) -> None:
        """Carry the sessions of the base, one after the other."""
        async with aclosing(self._base.sessions()) as sessions:
            async for stream in sessions:
                self._stream = stream
                try:
                    await self._serve_session(stream)
                finally:
                    self._stream = None
                    await trio.aclose_forcefully(stream)
        await trio.sleep_forever()

    async def _serve_session(self, stream: trio.abc.Stream) -> None:
        for queue in self._queues:
            self._open_port(queue)
        try:
            while data := await stream.receive_some():
                await self._on_input(bytes(data))
        except trio.BrokenResourceError:
            pass
        finally:
            for port in self._ports.values():
                port.end_input()
        self._all_closed = trio.Event()
        if self._ports:
            await self._all_closed.wait()

    async def _on_input(self, data: bytes) -> None:
        plain = bytearray()
        for byte in data:
            if self._escaped:
                self._escaped = False
                if byte == ESCAPE:
                    plain.append(byte)
                else:
                    await self._feed(plain)
                    plain.clear()
                    await self._on_command(chr(byte))
            elif byte == ESCAPE:
                self._escaped = True
            else:
                plain.append(byte)
        await self._feed(plain)

    async def _feed(self, data: bytearray) -> None:
        if data and 0 <= self._focus < len(self._queues):
            port = self._ports.get(self._queues[self._focus])
            if port is not None:
                await port.feed(bytes(data))

    async def _on_command(self, letter: str) -> None:
        match letter:
            case "h" | "?":
                await self._say(_HELP)
            case "x":
                await self._say("QEMU: Terminated\n\r")
                self._opener.request_quit()
            case "t":
                on = self._stamps_since is None
                self._stamps_since = time.monotonic() if on else None
                self._at_line_start = False
            case "c" if self._queues:
                self._focus = (self._focus + 1) % len(self._queues)

    async def _say(self, text: str) -> None:
        async with self._send_lock:
            if self._stream is not None:
                await self._stream.send_all(text.encode())

    async def _send(self, data: bytes | bytearray | memoryview) -> None:
        async with self._send_lock:
            if self._stream is None:
                raise trio.BrokenResourceError
            stamped = data if self._stamps_since is None else self._stamp(bytes(data))
            await self._stream.send_all(stamped)

    def _stamp(self, data: bytes) -> bytes:
        assert self._stamps_since is not None
        milliseconds = int((time.monotonic() - self._stamps_since) * 1000)
        seconds = milliseconds // 1000
        stamp = f"[{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{milliseconds % 1000:03}] "
        out = bytearray()
        for line in data.splitlines(keepends=True):
            if self._at_line_start:
                out += stamp.encode()
            out += line
            self._at_line_start = line.endswith(b"\n")
        return bytes(out)
