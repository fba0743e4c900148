"""A job's life, with jobs of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from qsd_trio.errors import LocalProtocolError, QmpError
from qsd_trio.events import EventBus
from qsd_trio.jobs import status as st
from qsd_trio.jobs.abc import Job
from qsd_trio.services import ServiceTable, open_service_table


class TestJob(Job):
    __test__ = False
    type_name: ClassVar[str] = "create"
    failure: Exception | None = None
    steps: int = 1

    def __init__(self, bus: EventBus, *, finalize: bool = True, dismiss: bool = True) -> None:
        super().__init__("j", bus, auto_finalize=finalize, auto_dismiss=dismiss)
        self.calls: list[str] = []
        self.gate = trio.Event()

    async def run(self) -> None:
        for _ in range(self.steps):
            await self.gate.wait()
            await self.pause_point()
        if self.failure is not None:
            raise self.failure

    async def prepare(self) -> None:
        self.calls.append("prepare")

    async def commit(self) -> None:
        self.calls.append("commit")

    async def abort(self) -> None:
        self.calls.append("abort")

    async def clean(self) -> None:
        self.calls.append("clean")


@pytest.fixture
def bus() -> EventBus:
    return EventBus()


@pytest.fixture
def states(bus: EventBus) -> list[str]:
    found: list[str] = []
    bus._subscribers.append(lambda event: found.append(event.data["status"]))
    return found


@pytest.fixture
async def table() -> AsyncIterator[ServiceTable[Job]]:
    table: ServiceTable[Job]
    async with open_service_table(Job, "job") as table:
        yield table


async def test_success(bus: EventBus, states: list[str], table: ServiceTable[Job]) -> None:
    job = TestJob(bus)
    await table.start(job)
    assert states == ["created", "running"]
    job.gate.set()
    await table.wait_gone("j")
    assert states == ["created", "running", "waiting", "pending", "concluded", "null"]
    assert job.calls == ["prepare", "commit", "clean"]


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (QmpError("no"), "no"),
        (OSError(28, "x"), "No space left on device"),
        (ZeroDivisionError("oops"), "Internal error: ZeroDivisionError: oops"),
    ],
)
async def test_failure(
    bus: EventBus, states: list[str], table: ServiceTable[Job], failure: Exception, text: str
) -> None:
    job = TestJob(bus, dismiss=False)
    job.failure = failure
    job.gate.set()
    await table.start(job)
    await wait_all_tasks_blocked()
    assert job.error == text
    assert states == ["created", "running", "aborting", "concluded"]
    assert job.calls == ["abort", "clean"]
    for verb in (job.user_pause, job.user_cancel, job.user_complete, job.user_finalize):
        with pytest.raises(QmpError, match=r"^Job 'j' in state 'concluded' cannot accept command"):
            verb()
    job.user_dismiss()
    await table.wait_gone("j")
    assert states[-1] == "null"


async def test_cancel(bus: EventBus, states: list[str], table: ServiceTable[Job]) -> None:
    job = TestJob(bus)
    await table.start(job)
    job.user_cancel()
    await table.wait_gone("j")
    assert job.error == "Operation canceled"
    assert states == ["created", "running", "aborting", "concluded", "null"]


async def test_pause(bus: EventBus, states: list[str], table: ServiceTable[Job]) -> None:
    job = TestJob(bus)
    await table.start(job)
    with pytest.raises(QmpError, match=r"^Can't resume a job that was not paused$"):
        job.user_resume()
    job.user_pause()
    with pytest.raises(QmpError, match=r"^Job is already paused$"):
        job.user_pause()
    job.gate.set()
    await wait_all_tasks_blocked()
    assert job.status == "paused"
    job.user_resume()
    await table.wait_gone("j")
    assert states[2:4] == ["paused", "running"]


async def test_cancel_while_paused(
    bus: EventBus, states: list[str], table: ServiceTable[Job]
) -> None:
    job = TestJob(bus)
    job.gate.set()
    await table.start(job)
    job.user_pause()
    await wait_all_tasks_blocked()
    job.user_cancel()
    await table.wait_gone("j")
    assert states == ["created", "running", "paused", "running", "aborting", "concluded", "null"]


async def test_manual_finalize(bus: EventBus, table: ServiceTable[Job]) -> None:
    job = TestJob(bus, finalize=False)
    job.gate.set()
    await table.start(job)
    await wait_all_tasks_blocked()
    assert job.status == "pending"
    with pytest.raises(QmpError, match="cannot accept command verb 'dismiss'"):
        job.user_dismiss()
    job.user_finalize()
    await table.wait_gone("j")
    assert job.calls == ["prepare", "commit", "clean"]


async def test_the_end_of_the_daemon(bus: EventBus, states: list[str]) -> None:
    table: ServiceTable[Job]
    async with open_service_table(Job, "job") as table:
        await table.start(TestJob(bus, dismiss=False))
    assert states == ["created", "running", "aborting", "concluded", "null"]


async def test_cut_short(bus: EventBus, states: list[str], table: ServiceTable[Job]) -> None:
    await table.start(TestJob(bus, dismiss=False))
    table.cut_deadlines()
    await table.wait_gone("j")
    assert states[-1] == "null"


def test_illegal_transitions(bus: EventBus) -> None:
    job = TestJob(bus)
    for state, following in st.TRANSITIONS.items():
        for other in st.TRANSITIONS.keys() - following:
            job.status = state
            with pytest.raises(LocalProtocolError):
                job.enter(other)
