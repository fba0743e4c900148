"""Numbers and sizes as texts; what is refused is compared with the C daemon in tests/interop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.qapi.numbers import (
    SizeError,
    parse_bool,
    parse_int,
    parse_number,
    parse_size,
    parse_uint,
    parse_unsigned,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1b", 1),
        ("1k", 1 << 10),
        ("1K", 1 << 10),
        ("1M", 1 << 20),
        ("1G", 1 << 30),
        ("1T", 1 << 40),
        ("1P", 1 << 50),
        ("1E", 1 << 60),
        ("1.5k", 1536),
        ("1.", 1),
        ("0.1k", 102),
        ("0x10", 16),
        ("0x10b", 0x10B),
        ("0x10k", 0x4000),
        ("010", 10),
        ("18446744073709551615", 2**64 - 1),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "-1", ".5k", "1.5", "1e3", "1kb", "0x1.8", "1 ", "0x"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(SizeError, match="not a number"):
        parse_size(text)


@pytest.mark.parametrize("text", ["16E", "18446744073709551616", "9" * 5000, "0x1" + "0" * 5000])
def test_sizes_too_large(text: str) -> None:
    with pytest.raises(SizeError, match="too large"):
        parse_size(text)


def test_numbers_too_large() -> None:
    with pytest.raises(SizeError, match="too large"):
        parse_unsigned("9" * 5000)
    assert parse_int("9" * 5000) is None
    assert parse_number("1e999") is None
    assert parse_number("0x1p9999") is None


def test_switches() -> None:
    assert [parse_bool(text) for text in ("on", "yes", "true", "y")] == [True] * 4
    assert [parse_bool(text) for text in ("off", "no", "false", "n")] == [False] * 4
    assert [parse_bool(text) for text in ("", "ON", "1", "0", "Y")] == [None] * 5


def test_numbers() -> None:
    assert (parse_int("-0x10"), parse_int("010"), parse_int("08")) == (-16, 8, None)
    assert (parse_uint("-1"), parse_uint("1x")) == (2**64 - 1, None)
    assert (parse_number("1.5e3"), parse_number("0x10"), parse_number("x")) == (1500.0, 16.0, None)


@given(st.integers(-(2**63), 2**63 - 1))
def test_int64_survives_its_writing(value: int) -> None:
    assert parse_int(str(value)) == value
    assert parse_uint(str(value)) == value % 2**64


@given(st.text(st.sampled_from("0123456789.xXkKmMeEbB+- "), max_size=12))
def test_any_text_is_a_size_or_none(text: str) -> None:
    try:
        assert 0 <= parse_size(text) < 2**64
    except SizeError:
        pass
