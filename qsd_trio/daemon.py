"""The composition root: the tables of one daemon and how they nest. It knows no command."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast, final

import trio

from qsd_trio.block.graph import BlockGraph, open_block_graph
from qsd_trio.chardevs.abc import Chardev
from qsd_trio.events import EventBus
from qsd_trio.exports.abc import Export
from qsd_trio.jobs.abc import Job
from qsd_trio.objects.abc import ObjectTable, open_object_table
from qsd_trio.services import STOP_GRACE, Service, ServiceTable, open_service_table

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qsd_trio.exports.nbd_server import NbdServer


@final
class Daemon:
    """One storage daemon: its nodes, exports, jobs, chardevs, monitors and objects.

    Several live in one process without knowing of each other.
    """

    def __init__(
        self,
        *,
        events: EventBus,
        objects: ObjectTable,
        chardevs: ServiceTable[Chardev],
        monitors: ServiceTable[Service],
        graph: BlockGraph,
        jobs: ServiceTable[Job],
        exports: ServiceTable[Export],
        servers: ServiceTable[Service],
        serving: trio.Event,
    ) -> None:
        self.events = events
        self.objects = objects
        self.chardevs = chardevs
        self.monitors = monitors
        self.graph = graph
        self.jobs = jobs
        self.exports = exports
        #: Listeners that exports share; the NBD server is the only one.
        self.servers = servers
        #: In-band commands of all monitors run one at a time, as on QEMU's main loop.
        self.command_lock = trio.Lock()
        self._quit = trio.Event()
        self._serving = serving

    def start_serving(self) -> None:
        """Let the services serve that were only opened until now (see ``open_daemon_tables``)."""
        self._serving.set()

    @property
    def nbd_server(self) -> NbdServer | None:
        """The NBD server, while there is one."""
        return cast("NbdServer | None", self.servers.get("nbd"))

    def request_quit(self) -> None:
        """Ask the daemon to end; the second time, without waiting for what is in flight."""
        if self._quit.is_set():
            for table in (self.exports, self.servers, self.jobs, self.monitors, self.chardevs):
                table.cut_deadlines()
        self._quit.set()

    @property
    def quit_requested(self) -> bool:
        """Whether the daemon is on its way out."""
        return self._quit.is_set()

    async def wait_quit_requested(self) -> None:
        """Return when ``request_quit`` was called."""
        await self._quit.wait()


@asynccontextmanager
async def open_daemon_tables(*, held: bool = False) -> AsyncGenerator[Daemon]:
    """Open a daemon's tables; leaving ends everything from the inside out.

    ``held``: services are opened, so that sockets listen, but nobody is served before ``start_serving()``:
    no client sees a daemon whose command line is half done.
    Left normally: exports finish what is in flight, jobs are cancelled, nodes flush and close, monitors
    send what they have queued, chardevs and objects go. Cancelled: the same, without the grace.
    """
    events = EventBus()
    serving = trio.Event()
    if not held:
        serving.set()
    async with (  # nesting is the shutdown order, read from the inside out
        open_object_table() as objects,
        open_service_table(Chardev, "chardev", serving) as chardevs,
        open_service_table(Service, "monitor", serving) as monitors,
        open_block_graph(events, objects) as graph,
        open_service_table(Job, "job", serving) as jobs,
        open_service_table(Service, "server", serving) as servers,
        open_service_table(Export, "export", serving) as exports,
    ):
        daemon = Daemon(
            events=events,
            objects=objects,
            chardevs=chardevs,
            monitors=monitors,
            graph=graph,
            jobs=jobs,
            exports=exports,
            servers=servers,
            serving=serving,
        )
        try:
            yield daemon
        finally:
            if not daemon.quit_requested:  # the second request would cut the deadlines
                daemon.request_quit()
        # A command that is being carried out ends before what it works on closes.
        with trio.move_on_after(STOP_GRACE):
            async with daemon.command_lock:
                pass
