"""The client's side of NBD, sans-IO: small, for the test kit and the examples.

It trusts the server no more than a server trusts a client: lengths have limits, what does not fit raises
RemoteProtocolError.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple, final

from qsd_trio.errors import RemoteProtocolError
from qsd_trio.protocol.nbd.constants import (
    EXTENDED_REPLY_MAGIC,
    IHAVEOPT,
    MAX_REQUEST,
    NBDMAGIC,
    OPTION_REPLY_MAGIC,
    REPLY_FLAG_DONE,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    HandshakeFlag,
    Info,
    Mode,
    Opt,
    Rep,
    ReplyType,
)
from qsd_trio.protocol.nbd.negotiation import (
    CLIENT_FLAGS,
    GREETING,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    OPTION,
    OPTION_REPLY,
    U16,
    U32,
)
from qsd_trio.protocol.nbd.transmission import CHUNK, EXTENDED_CHUNK, SIMPLE_REPLY, Chunk

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

MAX_OPTION_REPLY: Final = 64 * 1024
MAX_CHUNK: Final = MAX_REQUEST + 1024


class Negotiated(NamedTuple):
    """What the server has said of the export that was chosen."""

    mode: int
    size: int
    flags: int
    description: str | None
    block_sizes: tuple[int, int, int] | None
    contexts: dict[int, str]


def pack_option(option: int, payload: bytes = b"") -> bytes:
    """Return an option as a client sends it."""
    return OPTION.pack(IHAVEOPT, option, len(payload)) + payload


def pack_name(name: str) -> bytes:
    """Return a string with its length before it."""
    data = name.encode()
    return U32.pack(len(data)) + data


def pack_go(option: int, name: str, wanted: Iterable[int] = ()) -> bytes:
    """Return option INFO or GO."""
    items = [U16.pack(item) for item in wanted]
    return pack_option(option, pack_name(name) + U16.pack(len(items)) + b"".join(items))


def pack_meta_context(option: int, name: str, queries: Sequence[str]) -> bytes:
    """Return option LIST_META_CONTEXT or SET_META_CONTEXT."""
    payload = pack_name(name) + U32.pack(len(queries)) + b"".join(map(pack_name, queries))
    return pack_option(option, payload)


@final
class ClientNegotiation:
    """Negotiates export ``name`` in the best mode up to ``mode``.

    Feed ``receive_data``, send ``data_to_send``, until ``result`` is there.
    """

    def __init__(
        self, name: str, *, mode: int = Mode.EXTENDED, contexts: Sequence[str] = ()
    ) -> None:
        self._name = name
        self._mode = mode
        self._wanted = contexts
        self._buffer = bytearray()
        self._out = bytearray()
        self.result: Negotiated | None = None
        self._steps = self._negotiate()
        next(self._steps)

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the server; RemoteProtocolError if it refuses or talks nonsense."""
        self._buffer += data
        if self.result is None:
            try:
                next(self._steps)
            except StopIteration:
                pass

    def data_to_send(self) -> bytes:
        """Return the bytes to send, once."""
        data = bytes(self._out)
        self._out.clear()
        return data

    @property
    def trailing_data(self) -> bytes:
        """Return what the server sent beyond the negotiation."""
        return bytes(self._buffer)

    def _read(self, length: int) -> Generator[None, None, bytes]:
        while len(self._buffer) < length:
            yield
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return data

    def _reply(self, option: int) -> Generator[None, None, tuple[int, bytes]]:
        magic, about, kind, length = OPTION_REPLY.unpack((yield from self._read(OPTION_REPLY.size)))
        if magic != OPTION_REPLY_MAGIC or about != option or length > MAX_OPTION_REPLY:
            raise RemoteProtocolError("bad option reply")
        return kind, (yield from self._read(length))

    def _ask(self, option: int) -> Generator[None, None, bool]:
        self._out += pack_option(option)
        kind, _ = yield from self._reply(option)
        return kind == Rep.ACK

    def _negotiate(self) -> Generator[None]:
        magic, newstyle, flags = GREETING.unpack((yield from self._read(GREETING.size)))
        if magic != NBDMAGIC or newstyle != IHAVEOPT or not flags & HandshakeFlag.FIXED_NEWSTYLE:
            raise RemoteProtocolError("not a fixed newstyle NBD server")
        self._out += CLIENT_FLAGS.pack(flags & 3)
        mode: int = Mode.SIMPLE
        if self._mode >= Mode.EXTENDED and (yield from self._ask(Opt.EXTENDED_HEADERS)):
            mode = Mode.EXTENDED
        elif self._mode >= Mode.STRUCTURED and (yield from self._ask(Opt.STRUCTURED_REPLY)):
            mode = Mode.STRUCTURED
        contexts: dict[int, str] = {}
        if self._wanted and mode >= Mode.STRUCTURED:
            self._out += pack_meta_context(Opt.SET_META_CONTEXT, self._name, self._wanted)
            while True:
                kind, payload = yield from self._reply(Opt.SET_META_CONTEXT)
                if kind != Rep.META_CONTEXT:
                    break
                contexts[int(U32.unpack(payload[:4])[0])] = payload[4:].decode()
        yield from self._go(mode, contexts)

    def _go(self, mode: int, contexts: dict[int, str]) -> Generator[None]:
        self._out += pack_go(Opt.GO, self._name, [Info.BLOCK_SIZE])
        size = flags = 0
        description = sizes = None
        while True:
            kind, payload = yield from self._reply(Opt.GO)
            if kind == Rep.ACK:
                break
            if kind != Rep.INFO:
                raise RemoteProtocolError(payload.decode(errors="replace"))
            try:
                match U16.unpack(payload[:2])[0]:
                    case Info.EXPORT:
                        _, size, flags = INFO_EXPORT.unpack(payload)
                    case Info.DESCRIPTION:
                        description = payload[2:].decode()
                    case Info.BLOCK_SIZE:
                        _, low, preferred, high = INFO_BLOCK_SIZE.unpack(payload)
                        sizes = (low, preferred, high)
            except (struct.error, UnicodeDecodeError) as exc:
                raise RemoteProtocolError("bad information about the export") from exc
        self.result = Negotiated(mode, size, flags, description, sizes, contexts)


@final
class ReplyParser:
    """Cuts the server's bytes into reply chunks.

    ``expected_data(cookie)`` tells the length of the read that a simple reply answers, 0 for other requests.
    """

    def __init__(self, mode: int, data: bytes = b"") -> None:
        self._mode = mode
        self._buffer = bytearray(data)

    def receive_data(self, data: bytes | memoryview) -> None:
        """Take bytes from the server."""
        self._buffer += data

    def next_chunk(self, reads: dict[int, int]) -> Chunk | None:
        """Return the next chunk, None if it is not all here. ``reads``: cookie -> bytes of reads in flight."""
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        (magic,) = U32.unpack_from(buffer)
        if magic == SIMPLE_REPLY_MAGIC and self._mode < Mode.EXTENDED:
            if len(buffer) < SIMPLE_REPLY.size:
                return None
            _, error, cookie = SIMPLE_REPLY.unpack_from(buffer)
            if error:
                payload = U32.pack(error) + U16.pack(0)
                return self._take(SIMPLE_REPLY.size, 0, cookie, ReplyType.ERROR, True, payload)
            length = reads.get(cookie, 0)
            if length and self._mode == Mode.STRUCTURED:
                raise RemoteProtocolError("simple reply to a read")
            kind = ReplyType.OFFSET_DATA if length else ReplyType.NONE
            return self._take(SIMPLE_REPLY.size, length, cookie, kind, True)
        if magic == STRUCTURED_REPLY_MAGIC and self._mode == Mode.STRUCTURED:
            if len(buffer) < CHUNK.size:
                return None
            _, flags, kind, cookie, length = CHUNK.unpack_from(buffer)
            header = CHUNK.size
        elif magic == EXTENDED_REPLY_MAGIC and self._mode == Mode.EXTENDED:
            if len(buffer) < EXTENDED_CHUNK.size:
                return None
            _, flags, kind, cookie, _, length = EXTENDED_CHUNK.unpack_from(buffer)
            header = EXTENDED_CHUNK.size
        else:
            raise RemoteProtocolError(f"bad reply magic {magic:#x}")
        if length > MAX_CHUNK:
            raise RemoteProtocolError(f"reply chunk of {length} bytes")
        return self._take(header, length, cookie, kind, bool(flags & REPLY_FLAG_DONE))

    def _take(
        self, header: int, length: int, cookie: int, kind: int, done: bool, payload: bytes = b""
    ) -> Chunk | None:
        if len(self._buffer) < header + length:
            return None
        chunk = Chunk(cookie, kind, done, payload or bytes(self._buffer[header : header + length]))
        del self._buffer[: header + length]
        return chunk
