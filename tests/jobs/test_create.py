"""The job behind blockdev-create, with a create function of the test's own."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from qsd_trio.errors import QmpError
from qsd_trio.events import EventBus
from qsd_trio.jobs.abc import Job
from qsd_trio.jobs.create import CreateJob
from qsd_trio.services import ServiceTable, open_service_table


class FakeOpener:
    closed = False

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closed = True


@pytest.mark.parametrize("cancel", [False, True])
async def test_the_opener_is_closed(cancel: bool) -> None:
    opener = FakeOpener()

    async def create(opener: object, options: object) -> None:
        if cancel:
            await trio.sleep_forever()
        raise QmpError("no room")

    table: ServiceTable[Job]
    async with open_service_table(Job, "job") as table:
        job = CreateJob("j", EventBus(), create, opener, None)  # type: ignore[arg-type]  # a fake
        await table.start(job)
        await wait_all_tasks_blocked()
        if cancel:
            assert (job.status, job.progress_current, job.progress_total) == ("running", 0, 1)
            job.user_cancel()
            await wait_all_tasks_blocked()
        assert (job.status, job.progress_current) == ("concluded", 1)
        assert job.error == ("Operation canceled" if cancel else "no room")
        assert opener.closed
