"""A daemon's tables, commands of the test's own, and a session on a memory stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import memory_stream_pair

import qsd_trio.commands  # noqa: F401  # the index
from qsd_trio.commands.abc import Command
from qsd_trio.daemon import Daemon, open_daemon_tables
from qsd_trio.monitor.session import Session
from qsd_trio.protocol.qmp import JsonStream
from qsd_trio.registry import commands


class Talk:
    """The client's side of a session."""

    def __init__(self, stream: trio.abc.Stream, session: Session) -> None:
        self.stream = stream
        self.session = session
        self._parser = JsonStream()
        self._messages: list[Any] = []

    async def send(self, text: str | bytes) -> None:
        await self.stream.send_all(text.encode() if isinstance(text, str) else text)

    async def next(self) -> Any:
        while not self._messages:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError
            self._messages += self._parser.feed(bytes(data))
        return self._messages.pop(0)

    async def ask(self, text: str) -> Any:
        await self.send(text)
        return await self.next()

    async def negotiate(self, *, oob: bool = False) -> None:
        assert "QMP" in await self.next()
        enable = ', "arguments": {"enable": ["oob"]}' if oob else ""
        assert await self.ask(f'{{"execute": "qmp_capabilities"{enable}}}') == {"return": {}}


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    async with open_daemon_tables() as daemon:
        yield daemon


Talking = Callable[..., AbstractAsyncContextManager[Talk]]


@pytest.fixture
def talking(daemon: Daemon) -> Talking:
    """Give a context manager that runs a session and closes it."""

    @asynccontextmanager
    async def talk(*, negotiate: bool = True, pretty: bool = False) -> AsyncIterator[Talk]:
        client, server = memory_stream_pair()
        session = Session(daemon, server, pretty=pretty)
        talk = Talk(client, session)

        async def serve() -> None:
            await session.run()
            await server.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            if negotiate:
                await talk.negotiate()
            yield talk
            await client.aclose()

    return talk


@pytest.fixture
def own_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Awaitable[Any]]], None]:
    """Put a function in the place of query-jobs, which takes no arguments."""

    def put(function: Callable[..., Awaitable[Any]]) -> None:
        commands["query-jobs"]  # the index has loaded it
        monkeypatch.setitem(
            commands._items, "query-jobs", Command(name="query-jobs", function=function)
        )

    return put
