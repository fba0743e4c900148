"""keyval trees; its errors are compared with the C daemon's in tests/interop."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd_trio.errors import QmpError
from qsd_trio.qapi import BlockdevOptions, BlockdevOptions_null_co
from qsd_trio.qapi.keyval import parse_keyval, parse_keyval_help, parse_option


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("", {}),
        ("file", {"driver": "file"}),
        ("file,", {"driver": "file"}),
        ("driver=file", {"driver": "file"}),
        ("file,filename=a,,b", {"driver": "file", "filename": "a,b"}),
        ("file,filename=a,,", {"driver": "file", "filename": "a,"}),
        ("file,filename=,,,,", {"driver": "file", "filename": ",,"}),
        ("file,filename=a=b", {"driver": "file", "filename": "a=b"}),
        ("file,filename=", {"driver": "file", "filename": ""}),
        ("a=1,a=2", {"a": "2"}),
        ("a.b.c=1,a.b.d=2", {"a": {"b": {"c": "1", "d": "2"}}}),
        ("a.0=x,a.1.b=y", {"a": ["x", {"b": "y"}]}),
        ("a.1=y,a.0=x", {"a": ["x", "y"]}),
        ("a.0.0=x,a.0.1=y", {"a": [["x", "y"]]}),
        ("a.00=x", {"a": ["x"]}),
        ("__com.example_x=1", {"__com.example_x": "1"}),
    ],
)
def test_trees(text: str, tree: Any) -> None:
    assert parse_keyval(text, "driver") == tree


def test_without_implied_key_the_first_needs_its_name() -> None:
    with pytest.raises(QmpError, match=r"^Expected '=' after parameter 'file'$"):
        parse_keyval("file")


@pytest.mark.parametrize(("text", "tree"), [("help", {}), ("iothread,help", {"t": "iothread"})])
def test_help(text: str, tree: Any) -> None:
    assert parse_keyval_help(text, "t") == (tree, True)
    assert parse_keyval_help(text.replace("help", "?"), "t") == (tree, True)


def test_json_where_it_begins_with_a_brace() -> None:
    text = '{"driver": "null-co", "size": 5}'
    options = parse_option(BlockdevOptions, text, "driver", json.loads)
    assert options == BlockdevOptions_null_co(size=5)
    with pytest.raises(QmpError, match="expected: integer"):
        parse_option(BlockdevOptions, text.replace("5", '"5"'), "driver", json.loads)
    text = "null-co,size=5"
    assert parse_option(BlockdevOptions, text, "driver", json.loads) == options


NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,5}", fullmatch=True)
TREES = st.recursive(
    st.text(st.characters(codec="utf-8"), max_size=6),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(NAMES, inner, min_size=1, max_size=3)
    ),
    max_leaves=6,
)


def flatten(value: Any, key: str) -> list[str]:
    if isinstance(value, str):
        return [f"{key}={value.replace(',', ',,')}"]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [
        text for name, item in items for text in flatten(item, f"{key}.{name}" if key else name)
    ]


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(NAMES, TREES, max_size=4))
def test_every_tree_survives_its_writing(tree: Any) -> None:
    assert parse_keyval(",".join(flatten(tree, ""))) == tree


@given(st.text(st.sampled_from("ab.,=01_-? help"), max_size=30))
def test_any_text_is_taken_or_refused(text: str) -> None:
    try:
        tree = parse_keyval(text, "implied")
    except QmpError:
        return
    assert parse_keyval(",".join(flatten(tree, ""))) == tree
