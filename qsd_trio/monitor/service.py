"""A monitor: QMP on a character device."""

from __future__ import annotations

import itertools
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, final

import trio

from qsd_trio.errors import QmpError
from qsd_trio.net.address import in_monitor
from qsd_trio.services import Service, run_isolated

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qsd_trio.chardevs.abc import Chardev
    from qsd_trio.daemon import Daemon
    from qsd_trio.monitor.session import Session
    from qsd_trio.qapi import MonitorOptions

# Nobody asks for a monitor by name, and QEMU allows a name twice.
_numbers = itertools.count()


@final
class Monitor(Service):
    """Serves the clients of one chardev, one after the other, each with a fresh session."""

    def __init__(self, daemon: Daemon, chardev: Chardev, *, pretty: bool) -> None:
        self.id = f"monitor{next(_numbers)}"
        self._daemon = daemon
        self._chardev = chardev
        self._pretty = pretty
        self._session: Session | None = None
        self._stopping = False

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        """Claim the chardev."""
        self._chardev.attach(self)
        try:
            yield
        finally:
            self._chardev.detach(self)

    async def serve(self) -> None:
        """Serve until the chardev ends, or ``request_stop``. A crash ends one session only."""
        # Not before the daemon is ready: JSON and the dispatcher take their time to load.
        from qsd_trio.monitor.session import Session

        in_monitor.set(True)
        async with aclosing(self._chardev.sessions()) as streams:
            async for stream in streams:
                self._session = Session(
                    self._daemon,
                    stream,
                    pretty=self._pretty,
                    offers_oob=self._chardev.offers_oob,
                )
                try:
                    await run_isolated("QMP session", self._session.run)
                finally:
                    self._session = None
                    await trio.aclose_forcefully(stream)
                if self._stopping:
                    return

    def request_stop(self) -> bool:
        """End after the output that is queued, if there is a client."""
        self._stopping = True
        if self._session is None:
            return False
        self._session.stop()
        return True


async def add_monitor(daemon: Daemon, options: MonitorOptions) -> None:
    """Start a monitor (``--monitor``); raises QmpError with the real daemon's texts."""
    chardev = daemon.chardevs.get(options.chardev)
    if chardev is None:
        raise QmpError(f'chardev "{options.chardev}" not found')
    if options.mode is not None and options.mode.value != "control":
        raise QmpError("Only QMP is supported")
    await daemon.monitors.start(Monitor(daemon, chardev, pretty=bool(options.pretty)))
