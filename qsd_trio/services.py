"""Services: how anything long-lived becomes a supervised task of the daemon's tree."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar, final

import trio

from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

log = logging.getLogger("qsd_trio.services")

#: Seconds that services get to finish what is in flight when their table closes. A guest's
#: request that the storage has not answered by then will not be answered.
STOP_GRACE = 30.0


class Service(ABC):
    """A supervised task with a name: an export, a job, a chardev, a monitor.

    The life of a service: ``opened()`` is entered (what fails there is the caller's error),
    ``serve()`` runs until it returns, is asked to stop, or crashes; ``opened()`` is left;
    ``gone()`` is called.
    """

    id: str

    @abstractmethod
    def opened(self) -> AbstractAsyncContextManager[None]:
        """Acquire what the service needs; release it on the way out, also under cancellation."""

    @abstractmethod
    async def serve(self) -> None:
        """Do the work. Returning ends the service."""

    def request_stop(self) -> bool:
        """Begin to stop gracefully. Return False to be cancelled at once instead.

        A service that returns True has ``STOP_GRACE`` seconds until it is cancelled. May be called twice.
        """
        return False

    def gone(self) -> None:  # a hook: most services have nothing to add
        """Run when the service has ended and its resources are released (emit events here)."""


S = TypeVar("S", bound=Service)


@final
class ServiceTable(Generic[S]):
    """The services of one kind, by id. The only holder of a nursery besides its own task."""

    def __init__(self, kind: str, nursery: trio.Nursery, serving: trio.Event) -> None:
        self._kind = kind
        self._nursery = nursery
        self._serving = serving
        self._services: dict[str, S] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._gone: dict[str, trio.Event] = {}
        self._gone_before: dict[str, trio.Event] = {}  # whose end must come before one's own
        self._deadlines_cut = False

    def __iter__(self) -> Iterator[S]:
        return iter(tuple(self._services.values()))

    def __len__(self) -> int:
        return len(self._services)

    def __contains__(self, id_: str) -> bool:
        return id_ in self._services

    def get(self, id_: str) -> S | None:
        """Return the service ``id_`` or None."""
        return self._services.get(id_)

    async def start(self, service: S) -> None:
        """Run ``service``; return when it is open, raise what its opening raised.

        If the caller is cancelled meanwhile the service is closed again.
        """
        if service.id in self._services:
            raise ValueError(f"{self._kind} '{service.id}' is already there")
        self._services[service.id] = service
        self._gone[service.id] = trio.Event()
        failure: list[BaseException] = []
        await self._nursery.start(self._supervise, service, failure)
        if failure:
            raise failure[0]

    async def _supervise(
        self,
        service: S,
        failure: list[BaseException],
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        started = False
        try:
            with trio.CancelScope() as scope:
                self._scopes[service.id] = scope
                async with service.opened():
                    started = True
                    task_status.started()
                    try:
                        await self._serving.wait()
                        await service.serve()
                    except Exception:
                        log.exception("%s %s crashed", self._kind, service.id)
        except Exception as exc:
            if started:
                log.exception("%s %s failed to close", self._kind, service.id)
            else:
                failure.append(exc)  # the caller's, not the nursery's: it must not end the table
        finally:
            before = self._gone_before.pop(service.id, None)
            if before is not None:
                with trio.CancelScope(shield=True):
                    await before.wait()  # the events of their end come in order
            self._services.pop(service.id, None)
            self._scopes.pop(service.id, None)
            if started:
                service.gone()
            self._gone.pop(service.id).set()
        if not started:
            if not failure:
                failure.append(QmpError(f"{self._kind} '{service.id}' was stopped at its start"))
            task_status.started()

    def request_stop(self, id_: str) -> None:
        """Begin to stop a service: gracefully if it can, within ``STOP_GRACE`` seconds."""
        service = self._services[id_]
        scope = self._scopes[id_]
        graceful = service.request_stop()
        # One that has not begun to serve has nothing to finish.
        if graceful and self._serving.is_set() and not self._deadlines_cut:
            scope.deadline = min(scope.deadline, trio.current_time() + STOP_GRACE)
        else:
            scope.cancel()

    async def wait_gone(self, id_: str) -> None:
        """Return when no service ``id_`` is left. Cancelling the wait stops nothing."""
        event = self._gone.get(id_)
        if event is None:
            await trio.lowlevel.checkpoint()
        else:
            await event.wait()

    async def stop_all(self, matching: Callable[[S], bool] = lambda _: True) -> None:
        """Stop every service that ``matching`` accepts and wait until they are gone, eldest first."""
        before: trio.Event | None = None
        for service in self:
            if matching(service) and service.id in self._scopes:
                if before is not None:
                    self._gone_before[service.id] = before
                before = self._gone[service.id]
                self.request_stop(service.id)
        for service in self:
            if matching(service):
                await self.wait_gone(service.id)

    def cut_deadlines(self) -> None:
        """Cancel what is stopping or will be asked to stop from now on, without grace."""
        self._deadlines_cut = True
        for scope in tuple(self._scopes.values()):
            scope.cancel()


async def run_isolated(
    name: str, function: Callable[[Unpack[Ts]], Awaitable[None]], *args: *Ts
) -> Exception | None:
    """Run ``function(*args)``, a task for one client of a service: a bug in it ends that client alone.

    Logs and returns the exception, if any.
    """
    crash: Exception | None = None
    try:
        await function(*args)
    except* Exception as group:
        log.exception("%s crashed", name)
        crash = group if len(group.exceptions) > 1 else group.exceptions[0]
    return crash


@asynccontextmanager
async def running_beside(function: Callable[[], Awaitable[None]]) -> AsyncGenerator[None]:
    """Run ``function``, which only a cancellation ends, while the context is open.

    What leaves the context is not wrapped in a group: the task has no part in it.
    """
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(function)
        try:
            yield
        except BaseException as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@asynccontextmanager
async def open_service_table(
    of: type[S], kind: str, serving: trio.Event | None = None
) -> AsyncGenerator[ServiceTable[S]]:
    """Open a table of services of class ``of``, called ``kind``; leaving it stops them all and waits for them.

    Services are opened when they are started, but ``serve()`` waits for ``serving``, if there is one.
    Left normally, services get ``STOP_GRACE`` seconds to finish what is in flight. Left by an
    exception or a cancellation, they are cancelled.
    """
    if serving is None:
        serving = trio.Event()
        serving.set()
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        table: ServiceTable[S] = ServiceTable(kind, nursery, serving)
        try:
            yield table
        except BaseException as exc:
            failure = exc
            nursery.cancel_scope.cancel()
        else:
            await table.stop_all()
    if failure is not None:
        # Raised here, it is not wrapped in a group: the services have no part in it.
        raise failure
