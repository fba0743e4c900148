"""The QMP client of the public kit, against a session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import trio
from trio.testing import memory_stream_pair

import qsd_trio.commands  # noqa: F401  # the index
from qsd_trio.daemon import Daemon, open_daemon_tables
from qsd_trio.errors import CommandNotFound, QmpError
from qsd_trio.monitor.session import Session
from qsd_trio.testing.qmp import QmpClient, open_qmp_client


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    async with open_daemon_tables() as daemon:
        yield daemon


@pytest.fixture
async def client(daemon: Daemon, nursery: trio.Nursery) -> AsyncIterator[QmpClient]:
    ours, theirs = memory_stream_pair()
    nursery.start_soon(Session(daemon, theirs).run)
    async with open_qmp_client(ours, enable=["oob"]) as client:
        yield client


async def test_commands_and_errors(client: QmpClient) -> None:
    assert client.greeting["capabilities"] == ["oob"]
    assert await client.execute("query-jobs") == []
    with pytest.raises(CommandNotFound, match=r"^The command x has not been found$"):
        await client.execute("x", {"y": 1})
    with pytest.raises(QmpError, match="does not support OOB"):
        await client.execute("query-jobs", oob=True)


async def test_several_tasks_ask_at_once(client: QmpClient) -> None:
    async def ask() -> None:
        assert "qemu" in await client.execute("query-version")

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)


async def test_events(daemon: Daemon, client: QmpClient) -> None:
    daemon.events.emit("BLOCK_EXPORT_DELETED", id="a")
    daemon.events.emit("JOB_STATUS_CHANGE", id="j", status="created")
    event = await client.wait_event("JOB_STATUS_CHANGE")
    assert event["data"] == {"id": "j", "status": "created"}
    daemon.events.emit("BLOCK_EXPORT_DELETED", id="b")
    async with aclosing(client.events()) as events:
        async for event in events:
            assert event["data"] == {"id": "b"}
            break


async def test_a_server_that_hangs_up() -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def refuse() -> None:
            await theirs.receive_some()
            await theirs.aclose()

        nursery.start_soon(refuse)
        with pytest.raises(ExceptionGroup) as caught:
            async with open_qmp_client(ours):
                raise AssertionError("not reached")
        assert caught.group_contains(EOFError)
