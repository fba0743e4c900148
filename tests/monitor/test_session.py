"""A QMP session on a memory stream."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from qsd_trio.daemon import Daemon
from qsd_trio.monitor import session as session_module
from qsd_trio.monitor.session import Session
from tests.monitor.conftest import Talking

QUERY = '{"execute": "query-jobs"}'
OwnCommand = Callable[[Callable[..., Awaitable[Any]]], None]


async def test_greeting_and_negotiation(talking: Talking) -> None:
    async with talking(negotiate=False) as talk:
        greeting = await talk.next()
        assert greeting["QMP"]["capabilities"] == ["oob"]
        assert greeting["QMP"]["version"]["qemu"] == {"major": 7, "minor": 2, "micro": 22}
        reply = await talk.ask(QUERY)
        assert reply["error"] == {
            "class": "CommandNotFound",
            "desc": "Expecting capabilities negotiation with 'qmp_capabilities'",
        }
        assert await talk.ask('{"execute": "qmp_capabilities", "id": {"a": []}}') == {
            "return": {},
            "id": {"a": []},
        }
        reply = await talk.ask('{"execute": "qmp_capabilities"}')
        assert reply["error"] == {
            "class": "CommandNotFound",
            "desc": "Capabilities negotiation is already complete, command ignored",
        }


async def test_unknown_and_unbuilt_commands(talking: Talking) -> None:
    async with talking() as talk:
        reply = await talk.ask('{"execute": "nope", "id": null}')
        assert reply == {
            "id": None,
            "error": {"class": "CommandNotFound", "desc": "The command nope has not been found"},
        }
        reply = await talk.ask('{"execute": "drive-mirror"}')
        assert reply["error"]["class"] == "GenericError"
        assert "not supported by this version of qsd-trio yet" in reply["error"]["desc"]


async def test_a_bug_in_a_command_is_answered_and_logged(
    talking: Talking, own_command: OwnCommand, caplog: pytest.LogCaptureFixture
) -> None:
    async def crash(daemon: Daemon) -> None:
        raise ZeroDivisionError("oops")

    own_command(crash)
    async with talking() as talk:
        reply = await talk.ask(QUERY)
        assert reply["error"] == {
            "class": "GenericError",
            "desc": "Internal error: ZeroDivisionError: oops",
        }
        assert "return" in await talk.ask('{"execute": "query-version"}')
    assert [record.getMessage() for record in caplog.records] == ["QMP command crashed"]


async def test_an_oserror_is_the_systems_text(talking: Talking, own_command: OwnCommand) -> None:
    async def fail(daemon: Daemon) -> None:
        raise FileNotFoundError(2, "x", "y")

    own_command(fail)
    async with talking() as talk:
        reply = await talk.ask(QUERY)
        assert reply["error"]["desc"] == "No such file or directory"


async def test_commands_of_all_monitors_run_one_at_a_time(
    talking: Talking, own_command: OwnCommand
) -> None:
    running = 0

    async def slow(daemon: Daemon) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await wait_all_tasks_blocked()
        running -= 1

    own_command(slow)
    async with talking() as one, talking() as two:
        await one.send(QUERY * 3)
        await two.send(QUERY * 3)
        for talk in (one, two):
            for _ in range(3):
                assert await talk.next() == {"return": {}}


async def test_without_oob_commands_are_read_one_by_one(
    talking: Talking, own_command: OwnCommand
) -> None:
    gate = trio.Event()

    async def wait(daemon: Daemon) -> None:
        await gate.wait()

    own_command(wait)
    async with talking() as talk:
        await talk.send(QUERY + '{"exec-oob": "nope"}')
        with trio.move_on_after(0.01) as waited:
            await talk.next()
        assert waited.cancelled_caught
        gate.set()
        assert await talk.next() == {"return": {}}
        assert (await talk.next())["error"]["desc"] == "QMP input member 'exec-oob' is unexpected"


async def test_with_oob_eight_commands_wait_and_oob_overtakes(
    talking: Talking, own_command: OwnCommand
) -> None:
    gate = trio.Event()

    async def wait(daemon: Daemon) -> None:
        await gate.wait()

    own_command(wait)
    async with talking(negotiate=False) as talk:
        await talk.negotiate(oob=True)
        # One runs, eight wait; the ninth in the queue stops the reading.
        await talk.send(QUERY * 8 + '{"exec-oob": "query-version", "id": 7}')
        reply = await talk.next()
        assert reply["id"] == 7
        assert reply["error"]["desc"] == "The command query-version does not support OOB"
        await talk.send(QUERY * 3 + '{"exec-oob": "nope", "id": 8}')
        await wait_all_tasks_blocked()
        assert talk.session._pending == 9
        gate.set()
        replies = [await talk.next() for _ in range(12)]
        assert replies.count({"return": {}}) == 11
        assert [reply["id"] for reply in replies if "id" in reply] == [8]


async def test_events_go_to_those_who_negotiated(daemon: Daemon, talking: Talking) -> None:
    async with talking() as one, talking(negotiate=False) as two:
        daemon.events.emit("BLOCK_EXPORT_DELETED", id="e")
        event = await one.next()
        assert (event["event"], event["data"]) == ("BLOCK_EXPORT_DELETED", {"id": "e"})
        assert set(event["timestamp"]) == {"seconds", "microseconds"}
        await two.negotiate()  # its first messages are the greeting and the reply


async def test_frequent_events_are_limited(
    daemon: Daemon, talking: Talking, autojump_clock: MockClock
) -> None:
    async with talking() as talk:
        start = trio.current_time()
        for number in range(100):
            daemon.events.emit("QUORUM_REPORT_BAD", node_name="q", sector_num=number)
        assert (await talk.next())["data"]["sector-num"] == 0
        assert (await talk.next())["data"]["sector-num"] == 99
        assert trio.current_time() - start == pytest.approx(1.0)
        with pytest.raises(trio.TooSlowError), trio.fail_after(5):
            await talk.next()


async def test_pretty(talking: Talking) -> None:
    async with talking(pretty=True) as talk:
        await talk.send(QUERY)
        assert await talk.stream.receive_some() == b'{\r\n    "return": [\r\n    ]\r\n}\r\n'


async def test_compact_lines(talking: Talking) -> None:
    async with talking() as talk:
        await talk.send(QUERY)
        assert await talk.stream.receive_some() == b'{"return": []}\r\n'


async def test_commands_before_the_end_of_input_are_carried_out(
    daemon: Daemon, own_command: OwnCommand
) -> None:
    ran = 0

    async def count(daemon: Daemon) -> None:
        nonlocal ran
        ran += 1
        await trio.lowlevel.checkpoint()

    own_command(count)
    client, server = memory_stream_pair()
    await client.send_all(b'{"execute": "qmp_capabilities"}' + QUERY.encode() * 5 + b'{"exe')
    await client.aclose()
    await Session(daemon, server).run()
    assert ran == 5


async def test_quit_is_answered_and_nothing_after_it(daemon: Daemon, talking: Talking) -> None:
    async with talking() as talk:
        await talk.send('{"execute": "quit", "id": 1}' + '{"execute": "query-version"}' * 3)
        assert await talk.next() == {"return": {}, "id": 1}
        assert daemon.quit_requested
        await wait_all_tasks_blocked()
        daemon.events.emit("BLOCK_EXPORT_DELETED", id="e")  # of the teardown
        assert (await talk.next())["event"] == "BLOCK_EXPORT_DELETED"
        talk.session.stop()
        with pytest.raises(EOFError):
            await talk.next()


async def test_a_client_that_does_not_read_cannot_hold_up_the_end(
    daemon: Daemon, autojump_clock: MockClock
) -> None:
    client, server = memory_stream_pair()

    async def never() -> None:
        await trio.sleep_forever()

    server.send_stream.send_all_hook = never
    session = Session(daemon, server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        await client.send_all(b'{"execute": "qmp_capabilities"}{"execute": "quit"}')
        await wait_all_tasks_blocked()
        assert daemon.quit_requested
        session.stop()
    assert trio.current_time() == session_module.FLUSH_GRACE


async def test_a_client_that_does_not_read_is_not_served(
    daemon: Daemon,
    own_command: OwnCommand,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(session_module, "OUTPUT_PAUSE", 1000)
    monkeypatch.setattr(session_module, "OUTPUT_LIMIT", 2000)
    ran = 0

    async def big(daemon: Daemon) -> str:
        nonlocal ran
        ran += 1
        return "x" * 600

    own_command(big)
    client, server = memory_stream_pair()
    reading = trio.Event()
    server.send_stream.send_all_hook = reading.wait
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Session(daemon, server).run)
        await client.send_all(b'{"execute": "qmp_capabilities"}' + QUERY.encode() * 10)
        await wait_all_tasks_blocked()
        assert ran == 2
        with caplog.at_level(logging.WARNING):
            for _ in range(50):
                daemon.events.emit("BLOCK_EXPORT_DELETED", id="e")
        assert len(caplog.records) == 1
        reading.set()
        await wait_all_tasks_blocked()
        assert ran == 10
        await client.aclose()


async def test_cancelling_cancels_the_command(daemon: Daemon, own_command: OwnCommand) -> None:
    cleaned = trio.Event()

    async def forever(daemon: Daemon) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cleaned.set()

    own_command(forever)
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Session(daemon, server).run)
        await client.send_all(b'{"execute": "qmp_capabilities"}' + QUERY.encode())
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert cleaned.is_set()
    assert not daemon.command_lock.locked()
