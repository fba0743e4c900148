"""JSON in, as the real daemon reads it (tests/interop/test_qmp_input.py asks the real one)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.protocol.qmp import JsonError, JsonStream, parse_json
from qsd_trio.protocol.qmp.parser import MAX_NESTING, MAX_TOKEN_COUNT

ERR = "JSON parse error, "

# What a stream gives for an input: values, and errors as their text after "JSON parse error, ".
SAMPLES: list[tuple[bytes, list[object]]] = [
    (b"", []),
    (b"{}[]", [{}, []]),
    (b'{"a": [1, -2, {"b": null}]} ', [{"a": [1, -2, {"b": None}]}]),
    (b"{'single': 'quo\"ted'}", [{"single": 'quo"ted'}]),
    (b"true false null ", [True, False, None]),
    (b'"a""b"', ["a", "b"]),
    (b"1 ", [1]),
    (b"12", []),  # more digits may come
    (b"-0 ", [0]),
    (b"-0.0 1.5e3 2E-1 ", [-0.0, 1500.0, 0.2]),
    (b"9223372036854775808 18446744073709551615 ", [2**63, 2**64 - 1]),
    (b"18446744073709551616 -9223372036854775809 ", [2.0**64, -(2.0**63)]),
    (b"01 ", ["!stray '01'"]),
    (b"0e5 ", [0, "!invalid keyword 'e'", 5]),
    (b"1. ", ["!stray '1. '"]),
    (b"-a", ["!stray '-a'"]),
    (b"+1", ["!stray '+'"]),
    (b"nul ", ["!invalid keyword 'nul'"]),
    (b"Foo", ["!stray 'F'"]),
    (b"%d", ["!stray '%'"]),
    (b"}", ["!expecting value"]),
    (b"[}", ["!expecting value"]),
    (b"{]", ["!expecting value"]),
    (b"[1}", ["!expected separator in list"]),
    (b'{"a":1]', ["!expected separator in dict"]),
    (b'{"a" 1}', ["!missing : in object pair"]),
    (b"{1: 2}", ["!key is not a string in object"]),
    (b"{[1, {}]: 2}", ["!key is not a string in object"]),
    (b'{"a":1,}', ["!expecting value"]),
    (b"[1,]", ["!expecting value"]),
    (b'{"a":1,"a":2}', ["!duplicate key"]),
    (b"\xff", ["!stray '\ufffd'"]),
    (b'{"a": \xff{}', ["!stray '\ufffd'", {}]),
    (b'"a\x01b"', ["!stray '\"a\x01'"]),  # the rest is skipped
    (b'"a\nb"', ["!stray '\"a\n'"]),
    (b"@ x \"y\" \t 'z' [1]", ["!stray '@'", [1]]),  # skipped up to the bracket
    (b"@ x \n [1]", ["!stray '@'", [1]]),
    (b'"\\"\\\'\\\\\\/\\b\\f\\n\\r\\t"', ["\"'\\/\b\f\n\r\t"]),
    (b'"\\x"', ["!invalid escape sequence in string"]),
    (b'"\\u00e9\\uD83D\\uDE00\\u0000"', ["é\U0001f600\0"]),
    (b'"\\u12"', ['!\\u12" is not a valid Unicode character']),
    (b'"\\ud800"', ["!\\ud800 is not a valid Unicode character"]),
    (b'"\\udc00x"', ["!\\udc00 is not a valid Unicode character"]),
    (b'"\\ufdd0"', ["!\\ufdd0 is not a valid Unicode character"]),
    ('"é\U0001f600"'.encode(), ["é\U0001f600"]),
    (b'"\xc0\x80"', ["\0"]),
    (b'"\xed\xa0\x80"', ["!invalid UTF-8 sequence in string"]),
    (b'"\xef\xbf\xbf"', ["!invalid UTF-8 sequence in string"]),
    (b'"\xc3"', ["!invalid UTF-8 sequence in string"]),
    (b'"\xe2\x82\x01', ["!stray '\"\ufffd\x01'"]),
]


def expected(result: list[object]) -> list[object]:
    return [
        ERR + item[1:] if isinstance(item, str) and item.startswith("!") else item
        for item in result
    ]


def fed(stream: JsonStream, *pieces: bytes) -> list[object]:
    found = [value for piece in pieces for value in stream.feed(piece)]
    return [str(value) if isinstance(value, JsonError) else value for value in found]


@pytest.mark.parametrize(("data", "result"), SAMPLES)
def test_sample_whole_split_and_followed(data: bytes, result: list[object]) -> None:
    assert fed(JsonStream(), data) == expected(result)
    assert fed(JsonStream(), *(data[i : i + 1] for i in range(len(data)))) == expected(result)
    # 0xFF ends whatever is unfinished: what follows is read as if nothing had been before.
    assert fed(JsonStream(), data + b"\xff", b"{}")[-1] == {}


@given(st.binary(max_size=40), st.integers(0, 40))
def test_any_bytes_any_split(data: bytes, cut: int) -> None:
    whole = fed(JsonStream(), data)
    assert repr(fed(JsonStream(), data[:cut], data[cut:])) == repr(whole)
    assert fed(JsonStream(), data, b"\xff{}")[-1] == {}


TEXT = st.text(
    st.characters(
        exclude_categories=["Cs"],
        exclude_characters=[chr(p << 16 | 0xFFFE | b) for p in range(17) for b in (0, 1)]
        + [chr(c) for c in range(0xFDD0, 0xFDF0)],
    )
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(VALUES, st.booleans(), st.sampled_from([None, 2]))
def test_what_json_writes_is_read(value: object, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert parse_json(text) == value


def test_nesting_has_a_limit() -> None:
    deep = b"[" * MAX_NESTING + b"]" * MAX_NESTING
    (value,) = fed(JsonStream(), deep)
    for _ in range(MAX_NESTING - 1):
        assert isinstance(value, list)
        (value,) = value
    assert value == []
    found = fed(JsonStream(), b"[" + deep + b"\xff")
    assert found[0] == "JSON nesting depth limit exceeded"


def test_size_has_a_limit() -> None:
    stream = JsonStream(max_token_size=20)
    assert fed(stream, b'"' + b"x" * 17 + b'"') == ["x" * 17]
    assert fed(stream, b'"' + b"x" * 18 + b'"') == ["JSON token size limit exceeded"]
    # The limit holds for all tokens of a value, and before their end is seen.
    assert fed(stream, b'["x","x","x","x"]') == ["JSON token size limit exceeded", ERR + "expecting value"]  # fmt: skip
    stream = JsonStream(max_token_size=20)
    assert fed(stream, b'"', b"x" * 10, b"x" * 9, b"x" * 50)[0] == "JSON token size limit exceeded"


def test_token_count_has_a_limit() -> None:
    stream = JsonStream()
    assert fed(stream, b"[" * MAX_NESTING) == []
    stream._tokens *= MAX_TOKEN_COUNT // MAX_NESTING  # writing them all takes seconds
    assert fed(stream, b"1 ") == ["JSON token count limit exceeded"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "Expecting a JSON value"),
        ("{", ERR + "premature EOI"),
        ('{"a":', ERR + "premature EOI"),
        ('{"a', ERR + "stray '\"a'"),
        ("{}{}", "Expecting at most one JSON value"),
        ("{} x", "Expecting at most one JSON value"),
        ("{}}", "Expecting at most one JSON value"),
        ("-", ERR + "stray '-'"),
        ('"\udcff"', ERR + "stray '\"\ufffd'"),
    ],
)
def test_one_value_from_the_command_line(text: str, error: str) -> None:
    with pytest.raises(JsonError) as caught:
        parse_json(text)
    assert str(caught.value) == error


def test_the_end_of_a_text_ends_a_number() -> None:
    assert parse_json("12") == 12
    assert parse_json("true") is True
