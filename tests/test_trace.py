"""Trace points: patterns, warnings, where lines go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd_trio import trace

COMMANDS = ["query-jobs", "quit"]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    trace.reset()


def enable(pattern: str) -> str | None:
    return trace.enable(pattern, lambda: COMMANDS)


def test_a_point_that_is_off_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    trace.point("nbd_negotiate_begin")()
    trace.qmp_enter("quit", "{}")
    assert capsys.readouterr() == ("", "")


def test_a_point_writes_its_name_and_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert enable("monitor_qmp_cmd*") is None
    point = trace.point("monitor_qmp_cmd_in_band")
    assert point.on
    assert not trace.point("nbd_negotiate_begin").on
    point("7")
    assert capsys.readouterr().err == "monitor_qmp_cmd_in_band 7\n"


def test_a_minus_disables(capsys: pytest.CaptureFixture[str]) -> None:
    enable("*")
    enable("-nbd_negotiate_begin")
    trace.point("nbd_negotiate_begin")()
    trace.point("nbd_negotiate_success")()
    assert capsys.readouterr().err == "nbd_negotiate_success Negotiation succeeded\n"


def test_commands_have_two_events_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert not trace.qmp_on
    enable("qmp_e*_quit")
    assert trace.qmp_on
    trace.qmp_enter("quit", "{}")
    trace.qmp_enter("query-jobs", "{}")
    trace.qmp_exit("quit", "{}", True)
    assert capsys.readouterr().err == "qmp_enter_quit {}\nqmp_exit_quit {} 1\n"
    enable("-qmp*")
    assert not trace.qmp_on


@pytest.mark.parametrize(
    ("pattern", "warning"),
    [
        ("nope", "trace event 'nope' does not exist"),
        ("-nope", "trace event 'nope' does not exist"),
        ("nop?", "trace event 'nop?' does not exist"),
        ("nope*", None),
        ("", None),
        ("qmp_enter_query_jobs", None),
        ("qmp_enter_nope", "trace event 'qmp_enter_nope' does not exist"),
    ],
)
def test_only_a_name_is_warned_about(pattern: str, warning: str | None) -> None:
    assert enable(pattern) == warning


def test_lines_can_go_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old")
    trace.log_to(str(path))
    enable("nbd_negotiate_begin")
    trace.point("nbd_negotiate_begin")()
    assert path.read_text() == "nbd_negotiate_begin Beginning negotiation\n"


def test_an_unknown_point_is_a_bug() -> None:
    with pytest.raises(KeyError):
        trace.point("nope")


def test_every_format_is_one() -> None:
    for name, text in trace.EVENTS.items():
        arguments = [1 if kind in "dx" else "x" for kind in _kinds(text)]
        assert text % tuple(arguments), name


def _kinds(text: str) -> list[str]:
    return [after[0] for after in text.replace("%%", "").split("%")[1:]]
