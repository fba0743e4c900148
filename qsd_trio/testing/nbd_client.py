"""An NBD client on trio, for tests and examples. Clear rather than fast; requests may overlap."""

from __future__ import annotations

import os
import struct
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, final

import attrs
import trio

from qsd_trio.errors import RemoteProtocolError
from qsd_trio.protocol.nbd.client import ClientNegotiation, ReplyParser
from qsd_trio.protocol.nbd.constants import Cmd, CmdFlag, Mode, ReplyType
from qsd_trio.protocol.nbd.transmission import Request, pack_request, pack_status_payload

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from qsd_trio.protocol.nbd.client import Negotiated
    from qsd_trio.protocol.nbd.transmission import Chunk


@final
class NbdError(OSError):
    """The server answered with an error: ``errno`` is the wire code, ``strerror`` the server's text."""


@final
@attrs.define(eq=False)
class _Pending:
    """A request without a complete reply."""

    chunks: list[Chunk] = attrs.field(factory=list)
    done: trio.Event = attrs.field(factory=trio.Event)
    broken: bool = False


@final
class NbdClient:
    """A connection in the transmission phase; made by ``connect_nbd``."""

    def __init__(self, stream: trio.SocketStream, export: Negotiated, received: bytes) -> None:
        self.export = export
        self.stream = stream
        self._parser = ReplyParser(export.mode, received)
        self._cookies = count(1)
        self._pending: dict[int, _Pending] = {}
        self._reads: dict[int, int] = {}
        self._send_lock = trio.StrictFIFOLock()

    async def run(self) -> None:
        """Take replies in until the server closes the connection."""
        try:
            while True:
                while (chunk := self._parser.next_chunk(self._reads)) is not None:
                    pending = self._pending.get(chunk.cookie)
                    if pending is None:
                        raise RemoteProtocolError(f"reply to unknown cookie {chunk.cookie}")
                    pending.chunks.append(chunk)
                    if chunk.done:
                        pending.done.set()
                data = await self.stream.receive_some(256 * 1024)
                if not data:
                    return
                self._parser.receive_data(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            for pending in self._pending.values():
                pending.broken = not pending.done.is_set()
                pending.done.set()

    async def request(
        self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, payload: bytes = b""
    ) -> list[Chunk]:
        """Send a request and return the chunks of its reply; NbdError if it failed."""
        cookie = next(self._cookies)
        extended = self.export.mode == Mode.EXTENDED
        if payload and extended:
            flags |= CmdFlag.PAYLOAD_LEN
        pending = self._pending[cookie] = _Pending()
        if kind == Cmd.READ:
            self._reads[cookie] = length
        try:
            header = pack_request(Request(flags, kind, cookie, offset, length), extended=extended)
            async with self._send_lock:
                await self.stream.send_all(header + payload)
            await pending.done.wait()
        finally:
            del self._pending[cookie]
            self._reads.pop(cookie, None)
        if pending.broken:
            raise ConnectionResetError("the server closed the connection")
        for chunk in pending.chunks:
            if chunk.type & ReplyType.ERROR & ~1:
                code, size = struct.unpack_from(">IH", chunk.payload)
                raise NbdError(code, chunk.payload[6 : 6 + size].decode() or os.strerror(code))
        return pending.chunks

    async def pread(self, offset: int, length: int, *, flags: int = 0) -> bytes:
        """Read."""
        data = bytearray(length)
        covered = 0
        for chunk in await self.request(Cmd.READ, offset, length, flags=flags):
            payload = chunk.payload
            if chunk.type == ReplyType.OFFSET_HOLE:
                _, size = struct.unpack(">QI", payload)
                covered += size
            elif chunk.type == ReplyType.OFFSET_DATA:
                at = 0
                if self.export.mode != Mode.SIMPLE:
                    at = struct.unpack_from(">Q", payload)[0] - offset
                    payload = payload[8:]
                data[at : at + len(payload)] = payload
                covered += len(payload)
        if covered != length or len(data) != length:
            raise RemoteProtocolError(f"{covered} bytes in reply to a read of {length}")
        return bytes(data)

    async def pwrite(self, offset: int, data: bytes, *, flags: int = 0) -> None:
        """Write."""
        await self.request(Cmd.WRITE, offset, len(data), flags=flags, payload=data)

    async def flush(self) -> None:
        """Put on stable storage what has been written."""
        await self.request(Cmd.FLUSH)

    async def trim(self, offset: int, length: int, *, flags: int = 0) -> None:
        """Discard."""
        await self.request(Cmd.TRIM, offset, length, flags=flags)

    async def zero(self, offset: int, length: int, *, flags: int = 0) -> None:
        """Write zeroes."""
        await self.request(Cmd.WRITE_ZEROES, offset, length, flags=flags)

    async def cache(self, offset: int, length: int) -> None:
        """Prefetch."""
        await self.request(Cmd.CACHE, offset, length)

    async def block_status(
        self, offset: int, length: int, *, flags: int = 0, contexts: Sequence[int] | None = None
    ) -> dict[str, list[tuple[int, int]]]:
        """Return context name -> (length, flags) of the extents from ``offset`` on."""
        payload = b""
        if contexts is not None:
            payload = pack_status_payload(length, contexts)
            length = len(payload)
        chunks = await self.request(Cmd.BLOCK_STATUS, offset, length, flags=flags, payload=payload)
        answer: dict[str, list[tuple[int, int]]] = {}
        for chunk in chunks:
            if chunk.type == ReplyType.NONE:
                continue
            if chunk.type == ReplyType.BLOCK_STATUS_EXT:
                head, extent = 8, struct.Struct(">QQ")
            else:
                head, extent = 4, struct.Struct(">II")
            (context,) = struct.unpack_from(">I", chunk.payload)
            extents = list(extent.iter_unpack(chunk.payload[head:]))
            answer[self.export.contexts[context]] = [(int(a), int(b)) for a, b in extents]
        return answer

    async def disconnect(self) -> None:
        """Say goodbye; the server answers what is in flight and closes."""
        header = pack_request(
            Request(0, Cmd.DISC, 0, 0, 0), extended=self.export.mode == Mode.EXTENDED
        )
        async with self._send_lock:
            await self.stream.send_all(header)


async def negotiate_nbd(
    stream: trio.SocketStream,
    export: str = "",
    *,
    mode: int = Mode.EXTENDED,
    contexts: Sequence[str] = (),
) -> NbdClient:
    """Negotiate over ``stream``; run the client's ``run()`` next to what uses it."""
    negotiation = ClientNegotiation(export, mode=mode, contexts=contexts)
    while negotiation.result is None:
        data = await stream.receive_some()
        if not data:
            raise ConnectionResetError("the server closed the connection while negotiating")
        negotiation.receive_data(bytes(data))
        await stream.send_all(negotiation.data_to_send())
    return NbdClient(stream, negotiation.result, negotiation.trailing_data)


@asynccontextmanager
async def connect_nbd(
    where: str | os.PathLike[str] | trio.SocketStream,
    export: str = "",
    *,
    mode: int = Mode.EXTENDED,
    contexts: Sequence[str] = (),
) -> AsyncGenerator[NbdClient]:
    """Connect to an export: ``where`` is a unix socket's path or a connected stream.

    Leaving says goodbye and closes.
    """
    if isinstance(where, trio.SocketStream):
        stream = where
    else:
        stream = await trio.open_unix_socket(os.fspath(where))
    async with stream:
        client = await negotiate_nbd(stream, export, mode=mode, contexts=contexts)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            yield client
            with trio.move_on_after(1):
                try:
                    await client.disconnect()
                except trio.BrokenResourceError:
                    pass
            nursery.cancel_scope.cancel()
