"""The transmission phase's codecs, for both sides, sans-IO.

The server's hot path unpacks and packs with the Structs directly; the rest goes through ``Replies``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple, final

from qsd_trio.protocol.nbd.constants import (
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REQUEST_MAGIC,
    MAX_STRING,
    REPLY_FLAG_DONE,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Mode,
    ReplyType,
)

if TYPE_CHECKING:
    import mmap
    from collections.abc import Sequence

    Writable = bytearray | memoryview | mmap.mmap

# magic, command flags, type, cookie, offset, length
REQUEST = struct.Struct(">IHHQQI")
EXTENDED_REQUEST = struct.Struct(">IHHQQQ")
# magic, error, cookie
SIMPLE_REPLY = struct.Struct(">IIQ")
# magic, flags, type, cookie, payload length
CHUNK = struct.Struct(">IHHQI")
# magic, flags, type, cookie, the request's offset, payload length
EXTENDED_CHUNK = struct.Struct(">IHHQQQ")
# The chunk headers of OFFSET_DATA, with the data's offset.
DATA_CHUNK = struct.Struct(">IHHQIQ")
EXTENDED_DATA_CHUNK = struct.Struct(">IHHQQQQ")

_HOLE = struct.Struct(">QI")
_ERROR = struct.Struct(">IH")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_STATUS_EXT = struct.Struct(">II")
_DESCRIPTOR = struct.Struct(">II")
_DESCRIPTOR_EXT = struct.Struct(">QQ")


class Request(NamedTuple):
    """A request's header."""

    flags: int
    type: int
    cookie: int
    offset: int
    length: int


@final
class Replies:
    """Builds a connection's replies in the form that ``mode`` (see ``Mode``) prescribes."""

    def __init__(self, mode: int) -> None:
        self._mode = mode

    def ok(self, request: Request) -> bytes:
        """Return the reply of a request that succeeded and carries no payload."""
        if self._mode == Mode.EXTENDED:
            return self._chunk(request, ReplyType.NONE, 0, done=True)
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie)

    def error(self, request: Request, error: int, text: str = "") -> bytes:
        """Return the reply of a request that failed; ``text`` is for humans."""
        if self._mode == Mode.SIMPLE:
            return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, request.cookie)
        message = text.encode()[:MAX_STRING]
        payload = _ERROR.pack(error, len(message)) + message
        return self._chunk(request, ReplyType.ERROR, len(payload), done=True) + payload

    def data_header(
        self, request: Request, offset: int, length: int, *, done: bool = True
    ) -> bytes:
        """Return what precedes ``length`` bytes of data read from ``offset``."""
        if self._mode == Mode.SIMPLE:
            return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie)
        header = self._chunk(request, ReplyType.OFFSET_DATA, length + 8, done=done)
        return header + _U64.pack(offset)

    def hole(self, request: Request, offset: int, length: int, *, done: bool) -> bytes:
        """Return the chunk that stands for ``length`` zero bytes (not in simple mode)."""
        header = self._chunk(request, ReplyType.OFFSET_HOLE, _HOLE.size, done=done)
        return header + _HOLE.pack(offset, length)

    def done(self, request: Request) -> bytes:
        """Return the last chunk of a reply that has sent all it had to (not in simple mode)."""
        return self._chunk(request, ReplyType.NONE, 0, done=True)

    def block_status(
        self, request: Request, context: int, extents: Sequence[tuple[int, int]], *, done: bool
    ) -> bytes:
        """Return the status chunk of one metadata context; ``extents`` are (length, flags)."""
        if self._mode == Mode.EXTENDED:
            kind = ReplyType.BLOCK_STATUS_EXT
            head = _STATUS_EXT.pack(context, len(extents))
            payload = head + b"".join([_DESCRIPTOR_EXT.pack(*extent) for extent in extents])
        else:
            kind = ReplyType.BLOCK_STATUS
            head = _U32.pack(context)
            payload = head + b"".join([_DESCRIPTOR.pack(*extent) for extent in extents])
        return self._chunk(request, kind, len(payload), done=done) + payload

    def _chunk(self, request: Request, kind: int, length: int, *, done: bool) -> bytes:
        flags = REPLY_FLAG_DONE if done else 0
        if self._mode == Mode.EXTENDED:
            return EXTENDED_CHUNK.pack(
                EXTENDED_REPLY_MAGIC, flags, kind, request.cookie, request.offset, length
            )
        return CHUNK.pack(STRUCTURED_REPLY_MAGIC, flags, kind, request.cookie, length)


# The hot path's replies, packed into the buffer ``out`` at ``at``.


def _simple_data(out: Writable, at: int, cookie: int, offset: int, length: int) -> None:
    SIMPLE_REPLY.pack_into(out, at, SIMPLE_REPLY_MAGIC, 0, cookie)


def _structured_data(out: Writable, at: int, cookie: int, offset: int, length: int) -> None:
    DATA_CHUNK.pack_into(
        out,
        at,
        STRUCTURED_REPLY_MAGIC,
        REPLY_FLAG_DONE,
        ReplyType.OFFSET_DATA,
        cookie,
        length + 8,
        offset,
    )


def _extended_data(out: Writable, at: int, cookie: int, offset: int, length: int) -> None:
    EXTENDED_DATA_CHUNK.pack_into(
        out,
        at,
        EXTENDED_REPLY_MAGIC,
        REPLY_FLAG_DONE,
        ReplyType.OFFSET_DATA,
        cookie,
        offset,
        length + 8,
        offset,
    )


def _simple_ok(out: Writable, at: int, cookie: int, offset: int) -> None:
    SIMPLE_REPLY.pack_into(out, at, SIMPLE_REPLY_MAGIC, 0, cookie)


def _extended_ok(out: Writable, at: int, cookie: int, offset: int) -> None:
    EXTENDED_CHUNK.pack_into(
        out, at, EXTENDED_REPLY_MAGIC, REPLY_FLAG_DONE, ReplyType.NONE, cookie, offset, 0
    )


#: By mode: size and packer of what precedes a read's data in a reply of one piece.
DATA_PACKERS: Final = (
    (SIMPLE_REPLY.size, _simple_data),
    (DATA_CHUNK.size, _structured_data),
    (EXTENDED_DATA_CHUNK.size, _extended_data),
)
#: By mode: size and packer of the reply of a request that succeeded and carries no payload.
OK_PACKERS: Final = (
    (SIMPLE_REPLY.size, _simple_ok),
    (SIMPLE_REPLY.size, _simple_ok),
    (EXTENDED_CHUNK.size, _extended_ok),
)


def parse_status_payload(payload: bytes | bytearray | memoryview) -> tuple[int, list[int]] | None:
    """Return (effect length, context ids) of a BLOCK_STATUS payload, None if it is malformed."""
    if len(payload) < 8 or len(payload) % 4:
        return None
    (length,) = _U64.unpack_from(payload, 0)
    return length, [int(id_) for (id_,) in _U32.iter_unpack(payload[8:])]


def pack_request(request: Request, *, extended: bool) -> bytes:
    """Return a request as a client sends it (in extended mode a payload wants PAYLOAD_LEN)."""
    if extended:
        return EXTENDED_REQUEST.pack(EXTENDED_REQUEST_MAGIC, *request)
    return REQUEST.pack(REQUEST_MAGIC, *request)


def pack_status_payload(length: int, contexts: Sequence[int]) -> bytes:
    """Return the payload of a BLOCK_STATUS request with ``CmdFlag.PAYLOAD_LEN``."""
    return _U64.pack(length) + b"".join([_U32.pack(id_) for id_ in contexts])


class Chunk(NamedTuple):
    """A reply as a client receives it; a simple reply is one chunk that is done."""

    cookie: int
    type: int
    done: bool
    payload: bytes
