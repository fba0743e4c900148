"""The shape of a request."""

from __future__ import annotations

import pytest

from qsd_trio.errors import QmpError
from qsd_trio.protocol.qmp import Request, check_request, is_oob


def test_requests() -> None:
    assert check_request({"execute": "a"}, allow_oob=False) == Request("a", {})
    assert check_request({"execute": "a", "arguments": {"b": 1}, "id": []}, allow_oob=True) == (
        Request("a", {"b": 1})
    )
    assert check_request({"exec-oob": "a"}, allow_oob=True) == Request("a", {}, oob=True)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ([], "QMP input must be a JSON object"),
        ({}, "QMP input lacks member 'execute'"),
        ({"id": 1}, "QMP input lacks member 'execute'"),
        ({"execute": 5}, "QMP input member 'execute' must be a string"),
        ({"execute": "a", "foo": 1}, "QMP input member 'foo' is unexpected"),
        ({"execute": "a", "arguments": None}, "QMP input member 'arguments' must be an object"),
        ({"exec-oob": "a"}, "QMP input member 'exec-oob' is unexpected"),
    ],
)
def test_bad_requests(value: object, error: str) -> None:
    with pytest.raises(QmpError) as caught:
        check_request(value, allow_oob=False)
    assert str(caught.value) == error


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"exec-oob": 5}, "QMP input member 'exec-oob' must be a string"),
        ({"execute": "a", "exec-oob": "b"}, "QMP input member 'execute' clashes with 'exec-oob'"),
    ],
)
def test_bad_oob_requests(value: object, error: str) -> None:
    with pytest.raises(QmpError) as caught:
        check_request(value, allow_oob=True)
    assert str(caught.value) == error


def test_what_is_out_of_band() -> None:
    assert is_oob({"exec-oob": 1})
    assert not is_oob({"exec-oob": 1, "execute": 1})
    assert not is_oob([])
