"""The contract of a character device, and what all of them share."""

from __future__ import annotations

import errno
from abc import abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar, final

import trio

from qsd_trio.chardevs.logfile import LogFile
from qsd_trio.errors import QmpError
from qsd_trio.registry import chardev_backends
from qsd_trio.services import Service

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager
    from typing import Self

    from qsd_trio.objects.abc import ObjectTable
    from qsd_trio.services import ServiceTable
    from qsd_trio.untyped import Json, Options


class Frontend(Protocol):
    """What uses a chardev: a monitor. A chardev has at most one (a mux has several)."""


class Chardev(Service):
    """A byte stream to the outside whose peer may come and go.

    ``serve()`` keeps the connection side going (accepting, reconnecting) and hands each peer to the
    front-end through ``offer()``; the front-end reads and writes one session at a time.
    """

    backend_name: ClassVar[str]
    #: Whether a monitor on it offers out-of-band execution, as the real daemon has it.
    offers_oob: ClassVar[bool] = True

    def __init__(self, id_: str, options: Options) -> None:
        self.id = id_
        #: The generated Chardev... struct of the backend.
        self.options = options
        self.frontend: Frontend | None = None
        self._log_file = LogFile(options)
        self._offers, self._sessions = trio.open_memory_channel[trio.abc.Stream](0)
        self._current: Session | None = None

    @classmethod
    @abstractmethod
    def create(cls, id_: str, options: Options, opener: ChardevOpener) -> Self:
        """Make the chardev from its generated options; QmpError if they contradict each other.

        Nothing is opened before ``opened()``.
        """

    @property
    @abstractmethod
    def filename(self) -> str:
        """The ``filename`` that query-chardev shows ('unix:path,server=on', 'disconnected:...')."""

    def attach(self, frontend: Frontend) -> None:
        """Claim the chardev; QmpError if it has a front-end already."""
        if self.frontend is not None:
            raise QmpError(f"Device '{self.id}' is in use")
        self.frontend = frontend

    def detach(self, frontend: Frontend) -> None:
        """Give the chardev back, which ends a session; no-op if ``frontend`` does not hold it."""
        if self.frontend is frontend:
            self.frontend = None
            if self._current is not None:
                self._current.closed.set()

    def get_property(self, name: str) -> Json:
        """Return a QOM property besides ``type``; its name stands in objects/qom.py."""
        raise KeyError(name)

    #: The path of the terminal's other side, where the chardev is one.
    pty: str | None = None

    @property
    def frontend_open(self) -> bool:
        """``frontend-open`` of query-chardev; a mux or hub is as open as its own front-end."""
        return self.frontend is not None and is_open(self.frontend)

    @property
    def busy(self) -> bool:
        """Whether chardev-remove has to refuse."""
        return self.frontend is not None

    async def sessions(self) -> AsyncGenerator[trio.abc.Stream]:
        """Yield a stream for each time a peer is there, one after the other.

        The consumer closes the stream when it is done with it; the next one comes only then.
        Ends when the chardev ends.
        """
        async with self._sessions.clone() as sessions:
            async for stream in sessions:
                yield stream

    async def offer(self, stream: trio.abc.Stream) -> None:
        """Hand ``stream`` to the front-end, once there is one, and wait until it is closed.

        Cancelling closes the stream.
        """
        session = self._current = Session(stream, self._log_file)
        try:
            await self._offers.send(session)
            await session.closed.wait()
        finally:
            self._current = None
            await trio.aclose_forcefully(stream)

    async def send_break(self) -> None:
        """Send a break, where the device knows such a thing (serial)."""
        await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        """Open the log file and the backend; close them on the way out."""
        async with self._log_file.opened(), self.backend_opened():
            try:
                yield
            finally:
                self._offers.close()

    @abstractmethod
    def backend_opened(self) -> AbstractAsyncContextManager[None]:
        """Acquire what the backend needs; release it on the way out, also under cancellation."""


def is_open(frontend: Frontend) -> bool:
    """Return whether a front-end counts: a mux or hub only if it has one itself."""
    return not isinstance(frontend, Chardev) or frontend.frontend_open


@final
class Session(trio.abc.Stream):
    """What the front-end holds of a peer: the backend's stream, its output logged."""

    def __init__(self, stream: trio.abc.Stream, log_file: LogFile) -> None:
        self._stream = stream
        self._log_file = log_file
        self.closed = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data`` to the peer, and to the log file if there is one."""
        if self._log_file.wanted:
            await self._log_file.write(data)
        try:
            await self._stream.send_all(data)
        except OSError as exc:  # not what trio maps by itself: a plain file that cannot be written
            raise trio.BrokenResourceError from exc

    async def wait_send_all_might_not_block(self) -> None:
        """Return when sending may go on."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return what the peer sent; b"" if it will send no more."""
        try:
            return await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError as exc:
            if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EIO:
                return b""  # a terminal whose other side was closed
            raise

    async def aclose(self) -> None:
        """End the session."""
        try:
            await self._stream.aclose()
        finally:
            self.closed.set()


class ChardevOpener(Protocol):
    """What a chardev may ask the daemon for while it is created."""

    @property
    def objects(self) -> ObjectTable:
        """The user-creatable objects."""

    @property
    def chardevs(self) -> ServiceTable[Chardev]:
        """The other chardevs."""

    def request_quit(self) -> None:
        """Ask the daemon to end."""


class SingleSessionChardev(Chardev):
    """A chardev whose peer is there from the start, until it is gone for good."""

    @abstractmethod
    async def open_stream(self) -> trio.abc.Stream:
        """Open what the chardev stands for; raises QmpError."""

    @asynccontextmanager
    async def backend_opened(self) -> AsyncGenerator[None]:
        """Open the stream; close it on the way out."""
        self._stream = await self.open_stream()
        try:
            yield
        finally:
            await trio.aclose_forcefully(self._stream)

    async def serve(self) -> None:
        """Hand out the one session; then idle, as the chardev stays."""
        await self.offer(self._stream)
        await trio.sleep_forever()


ChardevT = TypeVar("ChardevT", bound=type[Chardev])


def chardev_backend(*names: str) -> Callable[[ChardevT], ChardevT]:
    """Register a chardev class under its QAPI name(s)."""

    def decorate(cls: ChardevT) -> ChardevT:
        cls.backend_name = names[0]
        return chardev_backends.register(*names)(cls)

    return decorate
