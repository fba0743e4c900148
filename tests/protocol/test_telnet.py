"""Telnet's commands are taken out of the stream, whatever the pieces it comes in."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.protocol.telnet import DO, EOR, IAC, SB, SE, WILL, TelnetServer

SAMPLES = [
    (b"plain", b"plain"),
    (bytes((IAC, IAC)), b"\xff"),
    (b"a" + bytes((IAC, DO, 1)) + b"b", b"ab"),
    (bytes((IAC, WILL, IAC)) + b"x", b"x"),
    (bytes((IAC, SB, 24, 0)) + b"xterm" + bytes((IAC, IAC, IAC, SE)) + b"y", b"y"),
    (bytes((IAC, 241)) + b"nop", b"nop"),
    (bytes((IAC, 243)) + b"brk", b"brk"),
    (b"", b""),
]


@pytest.mark.parametrize(("wire", "data"), SAMPLES)
def test_samples_whole_and_byte_by_byte(wire: bytes, data: bytes) -> None:
    assert TelnetServer().receive_data(wire) == data
    telnet = TelnetServer()
    assert b"".join(telnet.receive_data(wire[at : at + 1]) for at in range(len(wire))) == data


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_escaped_data_comes_back(pieces: list[bytes]) -> None:
    sender, receiver = TelnetServer(), TelnetServer()
    wire = b"".join(sender.escape(piece) for piece in pieces)
    assert receiver.receive_data(wire) == b"".join(pieces)


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_any_split_gives_the_same(wire: bytes, cuts: list[int]) -> None:
    whole, parts = TelnetServer(), TelnetServer()
    edges = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    pieces = [parts.receive_data(wire[a:b]) for a, b in itertools.pairwise(edges)]
    assert b"".join(pieces) == whole.receive_data(wire)


def test_greetings_are_the_real_daemons() -> None:
    assert TelnetServer().greeting().hex() == "fffb01fffb03fffb00fffd00"
    assert TelnetServer(tn3270=True).greeting().hex() == (
        "fffd19fffb19fffd00fffb00fffd18fffa1801fff0"
    )


def test_only_a_3270_front_end_sees_ends_of_records() -> None:
    wire = b"a" + bytes((IAC, EOR)) + b"b"
    assert TelnetServer().receive_data(wire) == b"ab"
    assert TelnetServer(tn3270=True).receive_data(wire) == b"a\xff\xefb"
