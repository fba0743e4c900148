"""JSON out, to the byte."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.protocol.qmp import dump_json
from tests.protocol.qmp.test_parser import VALUES


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "{}"),
        ([], "[]"),
        ({"return": {}}, '{"return": {}}'),
        ([1, [2, {}], None, True, False], "[1, [2, {}], null, true, false]"),
        (2**64 - 1, "18446744073709551615"),
        (0.1, "0.10000000000000001"),
        (1e100, "1e+100"),
        (-0.0, "-0"),
        ("é\n\t\x01\x7f\"\\/\U0001f600", '"\\u00E9\\n\\t\\u0001\\u007F\\"\\\\/\\uD83D\\uDE00"'),
        ("\udcff\ufffe", '"\\uFFFD\\uFFFD"'),  # a file name that is no UTF-8
        # QEMU's order: that of its hash table.
        ({"id": 1, "return": {}}, '{"return": {}, "id": 1}'),
        ({"error": {"class": "a", "desc": "b"}, "id": 1}, '{"id": 1, "error": {"class": "a", "desc": "b"}}'),
        ({"major": 7, "minor": 2, "micro": 22}, '{"micro": 22, "minor": 2, "major": 7}'),
    ],
)  # fmt: skip
def test_compact(value: object, text: str) -> None:
    assert dump_json(value) == text


def test_pretty() -> None:
    assert dump_json({"return": {"a": [1, {}], "c": []}}, pretty=True).split("\n") == [
        "{",
        '    "return": {',
        '        "a": [',
        "            1,",
        "            {",
        "            }",
        "        ],",
        '        "c": [',
        "        ]",
        "    }",
        "}",
    ]


@given(VALUES, st.booleans())
def test_json_reads_what_is_written(value: object, pretty: bool) -> None:
    assert json.loads(dump_json(value, pretty=pretty)) == value


def test_depth_is_not_pythons() -> None:
    value: object = 1
    for _ in range(5000):
        value = [value]
    assert dump_json(value) == "[" * 5000 + "1" + "]" * 5000


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(TypeError):
        dump_json({"a": object()})
