"""The codecs: the hot path's packers agree with the general ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.protocol.nbd.constants import Mode
from qsd_trio.protocol.nbd.transmission import (
    DATA_PACKERS,
    OK_PACKERS,
    Replies,
    Request,
    pack_request,
    pack_status_payload,
    parse_status_payload,
)

MODES = [Mode.SIMPLE, Mode.STRUCTURED, Mode.EXTENDED]


@pytest.mark.parametrize("mode", MODES)
@given(cookie=st.integers(0, 2**64 - 1), offset=st.integers(0, 2**63), length=st.integers(1, 2**25))
def test_both_ways_of_packing_agree(mode: int, cookie: int, offset: int, length: int) -> None:
    request = Request(0, 0, cookie, offset, length)
    size, pack = DATA_PACKERS[mode]
    out = bytearray(size + 3)
    pack(out, 3, cookie, offset, length)
    assert out[3:] == Replies(mode).data_header(request, offset, length)
    size, pack_ok = OK_PACKERS[mode]
    out = bytearray(size)
    pack_ok(out, 0, cookie, offset)
    assert out == Replies(mode).ok(request)


def test_requests_have_the_sizes_of_the_specification() -> None:
    request = Request(1, 2, 3, 4, 5)
    assert len(pack_request(request, extended=False)) == 28
    assert len(pack_request(request, extended=True)) == 32


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**32 - 1), max_size=5))
def test_status_payload_comes_back(length: int, contexts: list[int]) -> None:
    assert parse_status_payload(pack_status_payload(length, contexts)) == (length, contexts)


@given(st.binary(max_size=40))
def test_malformed_status_payloads(data: bytes) -> None:
    parsed = parse_status_payload(data)
    assert (parsed is None) == (len(data) < 8 or len(data) % 4 != 0)


def test_texts_of_errors_stay_within_a_string() -> None:
    assert (
        len(Replies(Mode.STRUCTURED).error(Request(0, 0, 0, 0, 0), 5, "x" * 9000)) == 20 + 6 + 4096
    )
