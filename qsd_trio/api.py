"""The daemon inside another trio program."""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, final

import trio

from qsd_trio.daemon import open_daemon_tables
from qsd_trio.monitor.dispatcher import run_command

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from qsd_trio.daemon import Daemon
    from qsd_trio.events import Event
    from qsd_trio.untyped import Json


@final
class EventStream:
    """The events since it was made, as an async iterator; ends with the daemon.

    Events that nobody takes are kept: ``close()`` it, or leave its ``with`` block, when done.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._queue: deque[Event] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._closed = False
        self._subscription = daemon.events.subscribed(self._take)
        self._subscription.__enter__()

    def _take(self, event: Event) -> None:
        self._queue.append(event)
        self._arrived.unpark_all()

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        """Return the next event. Cancelled: no event is lost."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            await self._arrived.park()
        return self._queue.popleft()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no more events; those already there can still be read."""
        if not self._closed:
            self._closed = True
            self._subscription.__exit__(None, None, None)
            self._arrived.unpark_all()


@final
class EmbeddedDaemon:
    """A daemon and the one way in: QMP commands, without a socket."""

    def __init__(self, tables: Daemon) -> None:
        #: The daemon's tables, for what QMP does not offer.
        self.tables = tables
        self._streams: list[EventStream] = []

    async def qmp(self, command: str, arguments: Mapping[str, Json] | None = None) -> Json:
        """Run a QMP command and return its result as JSON data; raises QmpError.

        Cancelling cancels the command, which leaves things as a failure would.
        """
        return await run_command(self.tables, command, arguments or {})

    def events(self) -> EventStream:
        """Return the events from now on, as an async iterator of ``Event`` (name, data, timestamp)."""
        stream = EventStream(self.tables)
        self._streams.append(stream)
        return stream

    def _close(self) -> None:
        for stream in self._streams:
            stream.close()


@asynccontextmanager
async def open_daemon() -> AsyncGenerator[EmbeddedDaemon]:
    """Run a daemon while the context is open; leaving it ends exports, jobs and nodes in order.

    Several may be open at once; they share nothing.
    """
    # The rooms' indexes fill the registries.
    import qsd_trio.block.drivers
    import qsd_trio.chardevs
    import qsd_trio.commands
    import qsd_trio.exports
    import qsd_trio.objects  # noqa: F401

    embedded: EmbeddedDaemon | None = None
    try:
        async with open_daemon_tables() as tables:
            embedded = EmbeddedDaemon(tables)
            yield embedded
    finally:
        if embedded is not None:
            embedded._close()
