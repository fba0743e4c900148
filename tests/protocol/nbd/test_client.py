"""The client's side, against the server's: each is the other's oracle; hostile servers."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd_trio.errors import RemoteProtocolError
from qsd_trio.protocol.nbd.client import ClientNegotiation, ReplyParser
from qsd_trio.protocol.nbd.constants import Mode, ReplyType
from qsd_trio.protocol.nbd.negotiation import ExportChosen, ExportInfo, ServerNegotiation
from qsd_trio.protocol.nbd.transmission import Replies, Request

INFO = ExportInfo("a", 123 * 512, 0x56D, "text", (1, 4096, 1 << 25), ("base:allocation", "qemu:x"))
REQUEST = Request(0, 0, 77, 4096, 5)


class Directory:
    def list(self) -> list[tuple[str, str | None]]:
        return [(INFO.name, None)]

    def find(self, name: str) -> ExportInfo | None:
        return INFO if name == INFO.name else None


@pytest.mark.parametrize("mode", [Mode.SIMPLE, Mode.STRUCTURED, Mode.EXTENDED])
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_client_and_server_agree(mode: int, step: int) -> None:
    server = ServerNegotiation(Directory())
    client = ClientNegotiation("a", mode=mode, contexts=["qemu:x"])
    chosen = None
    while client.result is None:
        event = server.next_event()
        chosen = event if isinstance(event, ExportChosen) else chosen
        data = server.data_to_send()
        for at in range(0, len(data), step):
            client.receive_data(data[at : at + step])
        server.receive_data(client.data_to_send())
    assert chosen is not None
    assert client.result.mode == chosen.mode == mode
    assert client.result.flags == chosen.flags
    assert client.result.size == INFO.size
    assert client.result.description == "text"
    assert client.result.contexts == chosen.contexts == ({1: "qemu:x"} if mode else {})


def test_an_unknown_export_is_an_error() -> None:
    server = ServerNegotiation(Directory())
    client = ClientNegotiation("b", mode=Mode.SIMPLE)
    with pytest.raises(RemoteProtocolError, match="export 'b' not present"):
        for _ in range(10):
            server.next_event()
            client.receive_data(server.data_to_send())
            server.receive_data(client.data_to_send())


@given(st.binary(max_size=200), st.booleans())
def test_any_server_is_understood_or_refused(data: bytes, polite: bool) -> None:
    client = ClientNegotiation("a")
    try:
        client.receive_data((b"NBDMAGICIHAVEOPT\0\3" if polite else b"") + data)
    except RemoteProtocolError:
        return
    assert client.result is None


@given(
    st.sampled_from([Mode.SIMPLE, Mode.STRUCTURED, Mode.EXTENDED]),
    st.sampled_from([0x67446698, 0x668E33EF, 0x6E8A278C, 1]),
    st.binary(max_size=100),
)
@settings(max_examples=150)
def test_any_reply_is_understood_or_refused(mode: int, magic: int, data: bytes) -> None:
    parser = ReplyParser(mode, struct.pack(">I", magic) + data)
    try:
        while parser.next_chunk({}) is not None:
            pass
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize("mode", [Mode.SIMPLE, Mode.STRUCTURED, Mode.EXTENDED])
def test_replies_are_read_as_they_were_meant(mode: int) -> None:
    replies = Replies(mode)
    data = replies.data_header(REQUEST, 4096, 5) + b"hello"
    data += replies.ok(REQUEST) + replies.error(REQUEST, 28, "full")
    if mode:
        data += replies.hole(REQUEST, 4096, 5, done=False) + replies.done(REQUEST)
    parser = ReplyParser(mode)
    chunks = []
    reads = {77: 5}
    for at in range(len(data)):
        parser.receive_data(data[at : at + 1])
        while (chunk := parser.next_chunk(reads)) is not None:
            chunks.append(chunk)
            reads = {}
    offset = struct.pack(">Q", 4096) if mode else b""
    text = b"full" if mode else b""
    expected = [
        (77, ReplyType.OFFSET_DATA, True, offset + b"hello"),
        (77, ReplyType.NONE, True, b""),
        (77, ReplyType.ERROR, True, struct.pack(">IH", 28, len(text)) + text),
    ]
    if mode:
        expected.append((77, ReplyType.OFFSET_HOLE, False, struct.pack(">QI", 4096, 5)))
        expected.append((77, ReplyType.NONE, True, b""))
    assert [tuple(chunk) for chunk in chunks] == expected
