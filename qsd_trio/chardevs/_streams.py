"""Streams that chardevs are made of: protocols over a stream, and plain descriptors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio.errors import RemoteProtocolError

if TYPE_CHECKING:
    from qsd_trio.protocol.telnet import TelnetServer
    from qsd_trio.protocol.websocket import WebSocketServer

#: Bytes asked for at once. Chardevs carry commands and text.
RECEIVE_SIZE: Final = 65536

#: Seconds a peer gets to finish a handshake, so that one that says nothing keeps out others only so long.
HANDSHAKE_TIMEOUT: Final = 10.0


@final
class TelnetStream(trio.abc.Stream):
    """Telnet over a stream."""

    def __init__(self, stream: trio.abc.Stream, protocol: TelnetServer) -> None:
        self._stream = stream
        self._protocol = protocol

    async def handshake(self) -> None:
        """Send the options asked for; their answers come with the data."""
        await self._stream.send_all(self._protocol.greeting())

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``, IAC bytes doubled."""
        await self._stream.send_all(self._protocol.escape(data))

    async def wait_send_all_might_not_block(self) -> None:
        """Return when sending may go on."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what the peer sent, without telnet's commands."""
        while True:
            raw = await self._stream.receive_some(max_bytes or RECEIVE_SIZE)
            if not raw:
                return b""
            data = self._protocol.receive_data(raw)
            if data:
                return data

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()


@final
class WebSocketStream(trio.abc.Stream):
    """A WebSocket server's side of a connection."""

    def __init__(self, stream: trio.abc.Stream, protocol: WebSocketServer) -> None:
        self._stream = stream
        self._protocol = protocol
        self._ready = bytearray()
        self._send_lock = trio.Lock()

    async def handshake(self) -> None:
        """Let the peer upgrade to WebSocket; BrokenResourceError if it does not."""
        while not self._protocol.handshake_done:
            if not await self._receive():
                raise trio.BrokenResourceError

    async def _receive(self) -> bool:
        raw = await self._stream.receive_some(RECEIVE_SIZE)
        if not raw:
            return False
        try:
            self._ready += self._protocol.receive_data(raw)
        except RemoteProtocolError as exc:
            await self._flush()
            raise trio.BrokenResourceError from exc
        await self._flush()
        return True

    async def _flush(self) -> None:
        # A pong from the reader's side must not come between the halves of a message.
        async with self._send_lock:
            data = self._protocol.data_to_send()
            if data:
                await self._stream.send_all(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data`` as one message."""
        self._protocol.send_data(data)
        await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """Return when sending may go on."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return payload of the peer's messages; b"" when it said goodbye."""
        while not self._ready:
            if self._protocol.closed or not await self._receive():
                return b""
        length = len(self._ready) if max_bytes is None else max_bytes
        data = bytes(self._ready[:length])
        del self._ready[:length]
        return data

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()


@final
class FdPairStream(trio.abc.Stream):
    """A stream of a descriptor to read and one to write; each may be missing.

    Without a descriptor to read from nothing ever arrives; without one to write to nothing is sent.
    Both are closed with the stream and get the blocking mode back that they came with.
    """

    def __init__(self, read_fd: int | None, write_fd: int | None) -> None:
        self._reader = None if read_fd is None else trio.lowlevel.FdStream(read_fd)
        if write_fd is None:
            self._writer = None
        elif write_fd == read_fd:
            self._writer = self._reader
        else:
            self._writer = trio.lowlevel.FdStream(write_fd)
        self._closed = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write ``data``."""
        if self._writer is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._writer.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Return when writing may go on."""
        if self._writer is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._writer.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return what can be read; b"" at the end of the file."""
        if self._reader is None:
            await self._closed.wait()
            raise trio.ClosedResourceError
        return await self._reader.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Close the descriptors."""
        self._closed.set()
        # The last opened first: both may be one terminal, whose mode the first one found.
        for side in (self._writer, self._reader):
            if side is not None:
                side.close()
        await trio.lowlevel.checkpoint()
