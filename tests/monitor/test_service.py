"""A monitor on a chardev: sessions one after the other, each on its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from qsd_trio.daemon import Daemon
from qsd_trio.errors import QmpError
from qsd_trio.monitor.service import Monitor, add_monitor
from qsd_trio.monitor.session import Session
from qsd_trio.qapi import MonitorMode, MonitorOptions
from qsd_trio.testing.qmp import open_qmp_client


class FakeChardev:
    """Hands out the streams that a test makes."""

    offers_oob = True

    def __init__(self) -> None:
        self.frontend: object = None
        self._offers, self._streams = trio.open_memory_channel[trio.abc.Stream](9)

    def attach(self, frontend: object) -> None:
        if self.frontend is not None:
            raise QmpError("Device 'c' is in use")
        self.frontend = frontend

    def detach(self, frontend: object) -> None:
        assert self.frontend is frontend
        self.frontend = None

    async def sessions(self) -> AsyncIterator[trio.abc.Stream]:
        async for stream in self._streams:
            yield stream

    def connect(self) -> trio.abc.Stream:
        client, server = memory_stream_pair()
        self._offers.send_nowait(server)
        return client


@pytest.fixture
def chardev(daemon: Daemon) -> FakeChardev:
    return FakeChardev()


def monitor(daemon: Daemon, chardev: Any, *, pretty: bool = False) -> Monitor:
    return Monitor(daemon, chardev, pretty=pretty)


async def test_each_client_gets_a_fresh_session(daemon: Daemon, chardev: FakeChardev) -> None:
    await daemon.monitors.start(monitor(daemon, chardev))
    for _ in range(2):
        async with open_qmp_client(chardev.connect()) as client:
            assert await client.execute("query-jobs") == []
            with pytest.raises(QmpError, match="already complete"):
                await client.execute("qmp_capabilities")


async def test_a_chardev_has_one_monitor(daemon: Daemon, chardev: FakeChardev) -> None:
    await daemon.monitors.start(monitor(daemon, chardev))
    with pytest.raises(QmpError, match="Device 'c' is in use"):
        await daemon.monitors.start(monitor(daemon, chardev))
    await daemon.monitors.stop_all()
    assert chardev.frontend is None


async def test_a_crash_ends_one_session(
    daemon: Daemon,
    chardev: FakeChardev,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await daemon.monitors.start(monitor(daemon, chardev))

    async def crash(self: Session) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Session, "run", crash)
        assert await chardev.connect().receive_some() == b""
    assert [record.getMessage() for record in caplog.records] == ["QMP session crashed"]
    async with open_qmp_client(chardev.connect()) as client:
        assert await client.execute("query-jobs") == []


async def test_cancelled_it_lets_go(daemon: Daemon, chardev: FakeChardev) -> None:
    await daemon.monitors.start(monitor(daemon, chardev))
    client = chardev.connect()
    await wait_all_tasks_blocked()
    daemon.monitors.cut_deadlines()
    while data := await client.receive_some():
        assert data.startswith(b'{"QMP"')
    await wait_all_tasks_blocked()
    assert chardev.frontend is None
    assert len(daemon.monitors) == 0


async def test_unknown_chardev(daemon: Daemon) -> None:
    with pytest.raises(QmpError, match=r'^chardev "x" not found$'):
        await add_monitor(daemon, MonitorOptions(chardev="x", mode=MonitorMode.READLINE))
