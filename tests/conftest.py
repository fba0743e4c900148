"""What all tests share: requirements, short socket paths, the two daemons."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.oracle")

from tests import oracle, peers  # noqa: E402 -- its asserts are to explain themselves


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--crash-points",
        type=int,
        default=0,
        metavar="N",
        help="how many crashes of each kind of qcow2 image to look at (0: as many as is quick)",
    )
    parser.addoption(
        "--qcow2-combinations",
        default="2",
        metavar="N|all",
        help="of how many qcow2 options every combination occurs (2; minutes: 3, days: all)",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("requires"):
        peers.check(*mark.args)


@pytest.fixture
def sock_dir() -> Iterator[Path]:
    """Give a folder whose path is short enough for unix sockets (108 bytes with the name)."""
    with tempfile.TemporaryDirectory(prefix="q-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(params=["real", "ours"])
def program(request: pytest.FixtureRequest) -> oracle.Program:
    """Run the test once with the real daemon and once with ours."""
    if request.param == "ours":
        return oracle.OURS
    peers.check(oracle.REAL[0])
    return oracle.REAL
