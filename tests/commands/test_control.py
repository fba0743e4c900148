"""Commands about the daemon itself, and the embedding API that runs them."""

from __future__ import annotations

import pytest
import trio

import qsd_trio
from qsd_trio.registry import commands


async def test_version_and_commands() -> None:
    async with qsd_trio.open_daemon() as daemon:
        version = await daemon.qmp("query-version")
        assert version["package"] == f"qsd-trio {qsd_trio.__version__}"
        names = [entry["name"] for entry in await daemon.qmp("query-commands")]
        assert sorted(names) == sorted(commands)


async def test_errors_are_raised() -> None:
    async with qsd_trio.open_daemon() as daemon:
        with pytest.raises(qsd_trio.QmpError, match=r"^The command nope has not been found$"):
            await daemon.qmp("nope")
        with pytest.raises(qsd_trio.QmpError, match=r"^Parameter 'id' is missing$"):
            await daemon.qmp("job-dismiss")
        with pytest.raises(qsd_trio.QmpError, match=r"^Capabilities negotiation is already"):
            await daemon.qmp("qmp_capabilities")


async def test_events_from_now_on() -> None:
    async with qsd_trio.open_daemon() as daemon, trio.open_nursery() as nursery:
        daemon.tables.events.emit("BLOCK_EXPORT_DELETED", id="before")
        found = []
        events = daemon.events()

        async def collect() -> None:
            async for event in events:
                found.append(event.data["id"])

        nursery.start_soon(collect)
        for id_ in "ab":
            daemon.tables.events.emit("BLOCK_EXPORT_DELETED", id=id_)
        events.close()
        daemon.tables.events.emit("BLOCK_EXPORT_DELETED", id="after")
    assert found == ["a", "b"]


async def test_events_end_with_the_daemon() -> None:
    async with qsd_trio.open_daemon() as daemon:
        events = daemon.events()
    assert [event async for event in events] == []


async def test_two_daemons_know_nothing_of_each_other() -> None:
    async with qsd_trio.open_daemon() as one, qsd_trio.open_daemon() as two:
        node = {"driver": "null-co", "node-name": "n", "read-zeroes": True}
        await one.qmp("blockdev-add", node)
        await two.qmp("blockdev-add", node)
        assert len(await one.qmp("query-named-block-nodes")) == 1
        await one.qmp("blockdev-del", {"node-name": "n"})
        assert len(await two.qmp("query-named-block-nodes")) == 1


async def test_after_quit_nothing_is_carried_out() -> None:
    async with qsd_trio.open_daemon() as daemon:
        assert await daemon.qmp("quit") == {}
        with pytest.raises(qsd_trio.QmpError, match="shutting down"):
            await daemon.qmp("query-version")


async def test_the_schema_knows_every_command() -> None:
    async with qsd_trio.open_daemon() as daemon:
        schema = await daemon.qmp("query-qmp-schema")
        known = {entry["name"] for entry in schema if entry["meta-type"] == "command"}
        assert set(commands) <= known
