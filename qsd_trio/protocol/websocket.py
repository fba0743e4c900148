"""The server's side of WebSocket (RFC 6455), without I/O: the opening handshake and frames.

What a character device needs and no more: the binary subprotocol, no extensions. Messages carry a byte
stream, so their borders mean nothing and fragments are passed on as they come.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import struct
from email.utils import formatdate
from typing import Final, NoReturn, final

from qsd_trio.errors import RemoteProtocolError

#: Bytes of request line and headers; the real daemon's limit.
MAX_HANDSHAKE: Final = 4096
#: RFC 6455, 5.5: control frames are not longer.
MAX_CONTROL: Final = 125
#: RFC 6455, 1.3.
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: RFC 6455, 4.2.2: a base64 key of 16 bytes.
_KEY_LENGTH: Final = 24


class Opcode(enum.IntEnum):
    """RFC 6455, 11.8."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


@final
class WebSocketServer:
    """One connection: feed what arrives, send what ``data_to_send`` returns."""

    def __init__(self) -> None:
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._handshake_done = False
        self._closed = False
        # Of the frame whose payload is being read: what is missing, and the mask, turned.
        self._missing = 0
        self._mask = b""
        self._in_message = False

    @property
    def handshake_done(self) -> bool:
        """Whether frames may come and go."""
        return self._handshake_done

    @property
    def closed(self) -> bool:
        """Whether the peer said that it will send no more."""
        return self._closed

    def data_to_send(self) -> bytes:
        """Return and forget what has to go to the peer; also after an error, which it explains."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def receive_data(self, data: bytes | bytearray) -> bytes:
        """Take in what arrived and return the payload that was in it.

        Raises RemoteProtocolError if the peer broke the rules; nothing may be fed after that.
        """
        self._incoming += data
        if not self._handshake_done and not self._read_request():
            return b""
        payload = bytearray()
        while not self._closed:
            if self._missing:
                if not self._incoming:
                    break
                payload += self._take_payload()
            elif not self._read_frame_header():
                break
        return bytes(payload)

    def send_data(self, data: bytes | bytearray | memoryview) -> None:
        """Queue ``data`` as one binary message."""
        self._send_frame(Opcode.BINARY, data)

    def send_close(self, code: int = 1000) -> None:
        """Queue the goodbye."""
        self._send_frame(Opcode.CLOSE, struct.pack("!H", code))

    # Handshake (RFC 6455, 4.2).

    def _read_request(self) -> bool:
        end = self._incoming.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HANDSHAKE:
            if len(self._incoming) >= MAX_HANDSHAKE:
                self._refuse(
                    "403 Request Entity Too Large", "end of headers not found in first 4096 bytes"
                )
            return False
        request = bytes(self._incoming[:end])
        del self._incoming[: end + 4]
        key, has_protocol = self._check_request(request)
        accept = base64.b64encode(
            hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
        ).decode()
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Server: qsd-trio",
            f"Date: {formatdate(usegmt=True)}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept}",
        ]
        if has_protocol:
            lines.append("Sec-WebSocket-Protocol: binary")
        self._outgoing += ("\r\n".join(lines) + "\r\n\r\n").encode()
        self._handshake_done = True
        return True

    def _check_request(self, request: bytes) -> tuple[bytes, bool]:
        """Return the key and whether a subprotocol was offered."""
        first, *rest = request.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3:
            self._refuse("400 Bad Request", "the request line is none")
        method, path, version = words
        headers: dict[str, str] = {}
        for line in rest:
            name, colon, value = line.partition(":")
            if not colon:
                self._refuse("400 Bad Request", f"a header line is none: {line[:80]!r}")
            headers[name.strip().lower()] = value.strip()
        if method != "GET":
            self._refuse("400 Bad Request", f"unsupported method {method[:20]!r}")
        if path != "/":
            self._refuse("404 Not Found", f"unexpected path {path[:80]!r}")
        if version != "HTTP/1.1":
            self._refuse("400 Bad Request", f"unsupported version {version[:20]!r}")
        protocols = headers.get("sec-websocket-protocol")
        faults = (
            (not headers.get("host"), "no Host header"),
            ("websocket" not in headers.get("upgrade", "").lower(), "no upgrade to websocket"),
            ("upgrade" not in headers.get("connection", "").lower(), "no Connection: Upgrade"),
            (headers.get("sec-websocket-version") != "13", "the version is not 13"),
            (len(headers.get("sec-websocket-key", "")) != _KEY_LENGTH, "bad Sec-WebSocket-Key"),
            (
                protocols is not None and "binary" not in (p.strip() for p in protocols.split(",")),
                "the subprotocol 'binary' is not offered",
            ),
        )
        for is_fault, text in faults:
            if is_fault:
                self._refuse("400 Bad Request", text)
        return headers["sec-websocket-key"].encode("latin-1"), protocols is not None

    def _refuse(self, status: str, reason: str) -> NoReturn:
        lines = [
            f"HTTP/1.1 {status}",
            "Server: qsd-trio",
            f"Date: {formatdate(usegmt=True)}",
            "Connection: close",
        ]
        if status.startswith("400"):
            lines.append("Sec-WebSocket-Version: 13")
        self._outgoing += ("\r\n".join(lines) + "\r\n\r\n").encode()
        raise RemoteProtocolError(f"websocket handshake: {reason}")

    # Frames (RFC 6455, 5.2).

    def _read_frame_header(self) -> bool:
        """Read a header (of a control frame: all of it); return False if there is not enough."""
        incoming = self._incoming
        if len(incoming) < 2:
            return False
        first, second = incoming[0], incoming[1]
        final_fragment, opcode = first >> 7, first & 0x0F
        if first & 0x70:
            self._fail(1002, "reserved bits are set")
        if not second & 0x80:
            self._fail(1002, "a frame of a client is not masked")
        length = second & 0x7F
        at = 2
        if opcode >= Opcode.CLOSE:
            if length > MAX_CONTROL or not final_fragment:
                self._fail(1002, "a control frame is long or in fragments")
        elif length == 126:
            if len(incoming) < 4:
                return False
            (length,) = struct.unpack_from("!H", incoming, 2)
            at = 4
        elif length == 127:
            if len(incoming) < 10:
                return False
            (length,) = struct.unpack_from("!Q", incoming, 2)
            at = 10
            if length >> 63:
                self._fail(1002, "a length has its highest bit set")
        if len(incoming) < at + 4 or (opcode >= Opcode.CLOSE and len(incoming) < at + 4 + length):
            return False
        self._mask = bytes(incoming[at : at + 4])
        del incoming[: at + 4]
        self._missing = length
        match opcode:
            case Opcode.CONTINUATION | Opcode.BINARY:
                if (opcode == Opcode.CONTINUATION) != self._in_message:
                    self._fail(1002, "fragments out of order")
                self._in_message = not final_fragment
            case Opcode.CLOSE:
                self._take_payload()
                self.send_close()
                self._closed = True
            case Opcode.PING:
                self._send_frame(Opcode.PONG, self._take_payload())
            case Opcode.PONG:
                self._take_payload()
            case _:
                self._fail(1003, f"unsupported opcode {opcode}")
        return True

    def _take_payload(self) -> bytes:
        length = min(self._missing, len(self._incoming))
        chunk = bytes(self._incoming[:length])
        del self._incoming[:length]
        self._missing -= length
        words = -(-length // 4)
        key = int.from_bytes(self._mask * words, "big")
        padded = int.from_bytes(chunk.ljust(words * 4, b"\0"), "big")
        turn = length % 4
        self._mask = self._mask[turn:] + self._mask[:turn]
        return (padded ^ key).to_bytes(words * 4, "big")[:length]

    def _send_frame(self, opcode: Opcode, payload: bytes | bytearray | memoryview) -> None:
        length = len(payload)
        if length < 126:
            self._outgoing += struct.pack("!BB", 0x80 | opcode, length)
        elif length < 1 << 16:
            self._outgoing += struct.pack("!BBH", 0x80 | opcode, 126, length)
        else:
            self._outgoing += struct.pack("!BBQ", 0x80 | opcode, 127, length)
        self._outgoing += payload

    def _fail(self, code: int, reason: str) -> NoReturn:
        self.send_close(code)
        raise RemoteProtocolError(f"websocket: {reason}")
