"""A QMP client for tests and programs, over any trio stream."""

from __future__ import annotations

import itertools
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar, final

import trio

from qsd_trio import errors
from qsd_trio.protocol.qmp import JsonError, JsonStream, dump_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from qsd_trio.untyped import Json

_ERRORS: dict[str, type[errors.QmpError]] = {
    kind.qmp_class: kind
    for kind in (
        errors.QmpError,
        errors.CommandNotFound,
        errors.DeviceNotActive,
        errors.DeviceNotFound,
    )
}


@final
class QmpClient:
    """One session. Replies are told apart by id, so several tasks may ask at the same time."""

    READ_SIZE: ClassVar[int] = 65536

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._parser = JsonStream()
        self._ids = itertools.count()
        self._replies: dict[Json, Json] = {}
        self._events: deque[Json] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._closed = False
        self._sending = trio.Lock()
        #: What the server said first: its version and capabilities.
        self.greeting: Json = None

    async def execute(self, command: str, arguments: Json = None, *, oob: bool = False) -> Json:
        """Run a command and return its result; raise QmpError, or EOFError if the server is gone.

        Cancelled: the command may or may not be carried out; its reply is dropped.
        """
        id_ = f"qsd-trio-{next(self._ids)}"
        request = {"exec-oob" if oob else "execute": command, "id": id_}
        if arguments is not None:
            request["arguments"] = arguments
        async with self._sending:
            await self._stream.send_all(dump_json(request).encode() + b"\n")
        while id_ not in self._replies:
            if self._closed:
                raise EOFError("the QMP server has hung up")
            await self._arrived.park()
        reply = self._replies.pop(id_)
        if "error" in reply:
            error = reply["error"]
            raise _ERRORS.get(error["class"], errors.QmpError)(error["desc"])
        return reply["return"]

    async def next_event(self) -> Json:
        """Return the next event as its JSON object; EOFError when the server has hung up."""
        while not self._events:
            if self._closed:
                raise EOFError("the QMP server has hung up")
            await self._arrived.park()
        return self._events.popleft()

    async def events(self) -> AsyncGenerator[Json]:
        """Yield events as they come; ends when the server hangs up."""
        while True:
            try:
                event = await self.next_event()
            except EOFError:
                return
            yield event

    async def wait_event(self, name: str) -> Json:
        """Return the next event ``name``; earlier events are dropped."""
        while True:
            event = await self.next_event()
            if event["event"] == name:
                return event

    async def _receive(self) -> None:
        try:
            while data := await self._stream.receive_some(self.READ_SIZE):
                for message in self._parser.feed(bytes(data)):
                    self._take(message)
                self._arrived.unpark_all()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._closed = True
            self._arrived.unpark_all()

    def _take(self, message: Json) -> None:
        if isinstance(message, JsonError):
            raise errors.RemoteProtocolError(str(message))
        if "event" in message:
            self._events.append(message)
        elif "QMP" in message:
            self.greeting = message["QMP"]
        else:
            self._replies[message.get("id")] = message


@asynccontextmanager
async def open_qmp_client(
    stream: trio.abc.Stream, *, enable: Sequence[str] = ()
) -> AsyncGenerator[QmpClient]:
    """Talk QMP over ``stream``: negotiate, yield the client, close the stream at the end."""
    client = QmpClient(stream)
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(client._receive)
        await client.execute("qmp_capabilities", {"enable": list(enable)} if enable else None)
        yield client
        nursery.cancel_scope.cancel()
