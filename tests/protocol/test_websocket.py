"""WebSocket: the handshake with its refusals, frames whole and in pieces, and hostile ones."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.errors import RemoteProtocolError
from qsd_trio.protocol.websocket import MAX_HANDSHAKE, Opcode, WebSocketServer

HEADERS = {
    "Host": "x",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "chat, binary",
}


def request(first: str = "GET / HTTP/1.1", **changes: str | None) -> bytes:
    headers = {**HEADERS, **{name.replace("_", "-"): value for name, value in changes.items()}}
    lines = [first, *(f"{name}: {value}" for name, value in headers.items() if value is not None)]
    return "\r\n".join([*lines, "", ""]).encode()


def frame(
    opcode: int, payload: bytes, *, fin: bool = True, mask: bytes | None = b"\1\2\3\4", rsv: int = 0
) -> bytes:
    length = len(payload)
    masked = 0x80 if mask is not None else 0
    head = bytes([fin << 7 | rsv << 4 | opcode])
    if length < 126:
        head += bytes([masked | length])
    elif length < 1 << 16:
        head += struct.pack("!BH", masked | 126, length)
    else:
        head += struct.pack("!BQ", masked | 127, length)
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def upgraded() -> WebSocketServer:
    server = WebSocketServer()
    assert server.receive_data(request()) == b""
    assert server.data_to_send().startswith(b"HTTP/1.1 101 ")
    assert server.handshake_done
    return server


def test_the_key_of_the_rfc_is_accepted() -> None:
    server = WebSocketServer()
    server.receive_data(request())
    answer = server.data_to_send()
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer  # RFC 6455, 1.3
    assert b"Sec-WebSocket-Protocol: binary\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_no_subprotocol_asked_none_answered() -> None:
    server = WebSocketServer()
    server.receive_data(request(Sec_WebSocket_Protocol=None))
    assert b"Protocol:" not in server.data_to_send()


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (request("POST / HTTP/1.1"), b"400"),
        (request("GET / HTTP/1.0"), b"400"),
        (request("GET /"), b"400"),
        (request("GET /foo HTTP/1.1"), b"404"),
        (request(Upgrade="h2c"), b"400"),
        (request(Connection="close"), b"400"),
        (request(Sec_WebSocket_Version="8"), b"400"),
        (request(Sec_WebSocket_Key="short"), b"400"),
        (request(Sec_WebSocket_Protocol="chat"), b"400"),
        (request().replace(b"Host: x", b"Host x"), b"400"),
        (b"x" * (MAX_HANDSHAKE + 1), b"403"),
        (b"\r\n\r\n", b"400"),
    ],
)
def test_bad_requests_are_refused_with_a_reason(text: bytes, status: bytes) -> None:
    server = WebSocketServer()
    with pytest.raises(RemoteProtocolError):
        server.receive_data(text)
    assert server.data_to_send().startswith(b"HTTP/1.1 " + status + b" ")
    assert not server.handshake_done


@given(
    st.lists(st.tuples(st.binary(max_size=300), st.binary(min_size=4, max_size=4)), max_size=5),
    st.lists(st.integers(0, 2000), max_size=8),
)
def test_any_split_gives_the_payload(messages: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    wire = request() + b"".join(frame(2, data, mask=mask) for data, mask in messages)
    server = WebSocketServer()
    edges = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    payload = b"".join(server.receive_data(wire[a:b]) for a, b in itertools.pairwise(edges))
    assert payload == b"".join(data for data, _ in messages)


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65535, 65536, 70001])
def test_lengths(length: int) -> None:
    payload = bytes(at * 7 & 0xFF for at in range(length))
    server = upgraded()
    assert server.receive_data(frame(2, payload)) == payload
    server.send_data(payload)
    assert server.data_to_send() == frame(2, payload, mask=None)


def test_fragments_with_a_ping_between_them() -> None:
    server = upgraded()
    wire = frame(2, b"one ", fin=False) + frame(9, b"hi") + frame(0, b"two")
    assert server.receive_data(wire) == b"one two"
    assert server.data_to_send() == frame(Opcode.PONG, b"hi", mask=None)


def test_goodbye_is_answered_and_ends_the_input() -> None:
    server = upgraded()
    assert server.receive_data(frame(2, b"x") + frame(8, b"\x03\xe8") + b"rest") == b"x"
    assert server.closed
    assert server.data_to_send() == frame(8, b"\x03\xe8", mask=None)


@pytest.mark.parametrize(
    "wire",
    [
        frame(2, b"x", mask=None),
        frame(2, b"x", rsv=1),
        frame(1, b"text"),
        frame(3, b""),
        frame(9, bytes(126)),
        frame(8, b"", fin=False),
        frame(0, b"no message begun"),
        frame(2, b"a", fin=False) + frame(2, b"b"),
        b"\x82\xff" + b"\xff" * 8 + bytes(4),
    ],
)
def test_bad_frames_close_the_connection(wire: bytes) -> None:
    server = upgraded()
    with pytest.raises(RemoteProtocolError):
        server.receive_data(wire)
    assert server.data_to_send()[0] == 0x88


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(wire: bytes) -> None:
    server = upgraded()
    try:
        server.receive_data(wire)
    except RemoteProtocolError:
        assert server.data_to_send()
