"""getopt_long's rules, as the real daemon shows them (tests/interop/test_cli.py compares)."""

from __future__ import annotations

import pytest

from qsd_trio.cli import SHORT, TAKES_ARGUMENT
from qsd_trio.getopt import Option, UsageError, parse


def options(*argv: str) -> list[Option]:
    return list(parse(argv, TAKES_ARGUMENT, SHORT))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], []),
        (["--blockdev", "x"], [("blockdev", "x", "--blockdev x")]),
        (["--blockdev=x"], [("blockdev", "x", "--blockdev=x")]),
        (["--blockdev="], [("blockdev", "", "--blockdev=")]),
        (["--b", "x"], [("blockdev", "x", "--b x")]),
        (["--b=x=y"], [("blockdev", "x=y", "--b=x=y")]),
        (["--blockdev", "--help"], [("blockdev", "--help", "--blockdev --help")]),
        (["-T", "x"], [("trace", "x", "-T x")]),
        (["-Tx"], [("trace", "x", "-Tx")]),
        (["-hV"], [("help", "", "-hV"), ("version", "", "-hV")]),
        (["-hTx"], [("help", "", "-hTx"), ("trace", "x", "-hTx")]),
        (["a", "-h"], [("", "a", "a"), ("help", "", "-h")]),
        (["-"], [("", "-", "-")]),
        (["--help", "--", "--nope", "x"], [("help", "", "--help")]),
    ],
)
def test_options_come_in_order(argv: list[str], expected: list[tuple[str, str, str]]) -> None:
    assert options(*argv) == expected


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--foo"], "unrecognized option '--foo'"),
        (["--foo=bar"], "unrecognized option '--foo=bar'"),
        (["--blockdev"], "option '--blockdev' requires an argument"),
        (["--obj"], "option '--object' requires an argument"),
        (["--help=x"], "option '--help' doesn't allow an argument"),
        (["-T"], "option requires an argument -- 'T'"),
        (["-x"], "invalid option -- 'x'"),
        (["-hx"], "invalid option -- 'x'"),
        (
            ["--="],
            "option '--=' is ambiguous; possibilities: '--blockdev' '--chardev' '--daemonize'"
            " '--export' '--help' '--monitor' '--nbd-server' '--object' '--pidfile' '--trace'"
            " '--version'",
        ),
    ],
)
def test_usage_errors(argv: list[str], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        options(*argv)
    assert str(caught.value) == text


def test_what_stands_before_an_error_is_seen_first() -> None:
    parsing = parse(["--help", "--nope"], TAKES_ARGUMENT, SHORT)
    assert next(parsing).name == "help"
    with pytest.raises(UsageError):
        next(parsing)
