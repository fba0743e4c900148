"""The contract of a character device."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from qsd_trio.registry import chardev_backends
from qsd_trio.services import Service

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    import trio


class Frontend(Protocol):
    """What uses a chardev: a monitor. A chardev has at most one (a mux or hub has several)."""


class Chardev(Service):
    """A byte stream to the outside whose peer may come and go.

    ``serve()`` keeps the connection side going (accepting, reconnecting); the front-end
    reads and writes one session at a time.
    """

    backend_name: ClassVar[str]
    frontend: Frontend | None = None

    @abstractmethod
    def sessions(self) -> AsyncGenerator[trio.abc.Stream]:
        """Yield a stream for each time a peer is there, one after the other.

        A stdio, file, pty ... chardev yields once; a server socket yields each client; the stream is closed by
        the consumer when it is done with it. Ends when the chardev ends.
        """

    @property
    @abstractmethod
    def filename(self) -> str:
        """The ``filename`` that query-chardev shows ('unix:path,server=on', 'disconnected:...')."""

    @property
    def frontend_open(self) -> bool:
        """``frontend-open`` of query-chardev."""
        return self.frontend is not None

    def send_break(self) -> None:  # most have no break to send, as in QEMU
        """Send a break, where the device knows such a thing (serial, mux)."""


ChardevT = TypeVar("ChardevT", bound=type[Chardev])


def chardev_backend(*names: str) -> Callable[[ChardevT], ChardevT]:
    """Register a chardev class under its QAPI name(s)."""

    def decorate(cls: ChardevT) -> ChardevT:
        cls.backend_name = names[0]
        return chardev_backends.register(*names)(cls)

    return decorate
