"""FUSE messages: every length is checked, and what is read is what was written."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.errors import RemoteProtocolError
from qsd_trio.protocol import fuse
from qsd_trio.protocol.fuse import Init, InitFlag, Opcode

HEADER = struct.Struct("=IIQQIIIHH")
ARGUMENTS = [
    (fuse.parse_init, "=IIII"),
    (fuse.parse_open, "=II"),
    (fuse.parse_read, "=QQIIQII"),
    (fuse.parse_setattr, "=IIQQQQQQIIIIIIII"),
    (fuse.parse_fallocate, "=QQQII"),
    (fuse.parse_lseek, "=QQII"),
]


def message(opcode: int, body: bytes, *, length: int | None = None) -> memoryview:
    size = HEADER.size + len(body) if length is None else length
    return memoryview(HEADER.pack(size, opcode, 7, 1, 1000, 1001, 42, 0, 0) + body)


def test_header() -> None:
    request = fuse.parse(message(Opcode.GETATTR, b"body"))
    assert request[:6] == (Opcode.GETATTR, 7, 1, 1000, 1001, 42)
    assert bytes(request.body) == b"body"


@pytest.mark.parametrize("length", [0, 39, 43, 45, 2**32 - 1])
def test_a_length_that_lies(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=str(length)):
        fuse.parse(message(Opcode.GETATTR, b"body", length=length))


@pytest.mark.parametrize(("parse", "form"), ARGUMENTS)
def test_arguments_cut_short(parse: object, form: str) -> None:
    size = struct.calcsize(form)
    parse(fuse.parse(message(1, bytes(size))))  # type: ignore[operator]
    parse(fuse.parse(message(1, bytes(size + 8))))  # type: ignore[operator]  # a later minor version
    for short in range(size):
        with pytest.raises(RemoteProtocolError):
            parse(fuse.parse(message(1, bytes(short))))  # type: ignore[operator]


def test_read_and_write() -> None:
    body = struct.pack("=QQIIQII", 0, 1 << 40, 5, 0, 0, 0, 0)
    assert fuse.parse_read(fuse.parse(message(Opcode.READ, body)))[:2] == (1 << 40, 5)
    wanted = fuse.parse_write(fuse.parse(message(Opcode.WRITE, body + b"bytes")))
    assert (*wanted[:2], bytes(wanted.data)) == (1 << 40, 5, b"bytes")
    for data in (b"", b"byte", b"bytes!"):
        with pytest.raises(RemoteProtocolError):
            fuse.parse_write(fuse.parse(message(Opcode.WRITE, body + data)))


def test_a_read_of_more_than_was_negotiated() -> None:
    body = struct.pack("=QQIIQII", 0, 0, fuse.MAX_IO + 1, 0, 0, 0, 0)
    with pytest.raises(RemoteProtocolError):
        fuse.parse_read(fuse.parse(message(Opcode.READ, body)))


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Accepted or refused, and nothing else."""
    for body in (memoryview(data), message(1, data)):
        for parse, _ in ARGUMENTS:
            try:
                parse(fuse.parse(body))
            except RemoteProtocolError:
                pass


def test_replies_say_their_length() -> None:
    pieces = fuse.reply(9, b"abc", memoryview(b"de"))
    data = b"".join(pieces)
    assert struct.unpack_from("=IiQ", data) == (len(data), 0, 9)
    assert data[16:] == b"abcde"
    assert struct.unpack(b"=IiQ", b"".join(fuse.error_reply(9, 5))) == (16, -5, 9)


def test_init_takes_only_what_is_offered() -> None:
    out = fuse.init_out(Init(7, 31, 131072, InitFlag.ASYNC_READ | 1 << 9), max_background=64)
    major, _, readahead, flags = struct.unpack_from("=IIII", out)
    assert (major, readahead, flags) == (7, 131072, InitFlag.ASYNC_READ)
    assert struct.unpack_from("=HH", out, 16) == (64, 48)
    assert len(out) == 64


def test_init_of_other_versions() -> None:
    assert len(fuse.init_out(Init(7, 22, 0, 0), max_background=1)) == 24
    newer = fuse.init_out(Init(8, 0, 0, 2**32 - 1), max_background=1)
    assert struct.unpack_from("=IIII", newer)[::3] == (7, 0)  # it asks again, with our version
    with pytest.raises(RemoteProtocolError):
        fuse.init_out(Init(6, 99, 0, 0), max_background=1)
