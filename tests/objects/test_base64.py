"""Base64 as the real daemon reads it."""

from __future__ import annotations

import base64 as stdlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.errors import QmpError
from qsd_trio.objects import base64


@given(st.binary())
def test_what_is_well_formed_decodes_as_usual(data: bytes) -> None:
    assert base64.decode(stdlib.b64encode(data).decode()) == data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", b""),
        ("aGVs\nbG8=\n", b"hello"),
        ("aGVsbG8", b"hel"),  # an unfinished group is dropped
        ("=", b""),
        ("aGVsbG8=x", b"hello"),
    ],
)
def test_what_is_not(text: str, expected: bytes) -> None:
    assert base64.decode(text) == expected


@pytest.mark.parametrize("text", ["$", "aGVs bG8=", "aGVs\rbG8=", "é", "\0"])
def test_foreign_characters(text: str) -> None:
    with pytest.raises(QmpError, match="Base64 data contains invalid characters"):
        base64.decode(text)
