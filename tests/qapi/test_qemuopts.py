"""QemuOpts; its errors are compared with the C daemon's in tests/interop."""

from __future__ import annotations

import pytest

from qsd_trio.qapi.qemuopts import CHARDEV_OPTIONS, OptsError, describe_options, parse_opts


def test_values_and_their_kinds() -> None:
    opts = parse_opts("socket,id=a,path=x,,y,server=on,to=0x10,size=1.5k", "backend")
    assert opts.id == "a"
    assert opts.get("backend") == "socket"
    assert opts.get("path") == "x,y"
    assert opts.get_bool("server") is True
    assert opts.get_bool("wait", default=True) is True
    assert opts.get_number("to") == 16
    assert opts.get_size("size") == 1536
    assert opts.get("host") is None
    assert opts.get("host", "localhost") == "localhost"
    assert not opts.wants_help


def test_last_of_several_counts() -> None:
    opts = parse_opts("null,id=a,mux=on,mux=off,backend=file", "backend")
    assert opts.get_bool("mux") is False
    assert opts.get("backend") == "file"


def test_implied_value_may_hold_commas_and_be_empty() -> None:
    assert parse_opts("a,,b,id=x", "backend").get("backend") == "a,b"
    opts = parse_opts(",id=a", "backend")
    assert (opts.get("backend"), opts.id) == ("", "a")


@pytest.mark.parametrize(
    ("flag", "name", "value", "hint"),
    [
        ("server", "server", "on", "server=on"),
        ("nowait", "wait", "off", "wait=off"),
        ("nodelay", "delay", "off", "nodelay=on"),
        ("delay", "delay", "on", "nodelay=off"),
    ],
)
def test_bare_flags_are_warned_of(flag: str, name: str, value: str, hint: str) -> None:
    warnings: list[str] = []
    opts = parse_opts(f"socket,id=a,{flag}", "backend", warn=lambda *texts: warnings.extend(texts))
    assert opts.get(name) == value
    assert warnings == [
        f"short-form boolean option '{flag}' deprecated",
        f"Please use {hint} instead",
    ]


@pytest.mark.parametrize("text", ["null,help", "null,?", "help,id=a,help"])
def test_help(text: str) -> None:
    assert parse_opts(text, "backend").wants_help


def test_help_as_the_implied_value_is_a_value() -> None:
    opts = parse_opts("help", "backend")
    assert not opts.wants_help
    assert opts.get("backend") == "help"


def test_errors_carry_hints() -> None:
    with pytest.raises(OptsError) as caught:
        parse_opts("null,id=1", "backend")
    assert caught.value.hint.startswith("Identifiers consist of")


def test_description() -> None:
    lines = describe_options("chardev", CHARDEV_OPTIONS).splitlines()
    assert lines[:3] == [
        "chardev options:",
        "  abstract=<bool (on/off)>",
        "  append=<bool (on/off)>",
    ]
    assert "  size=<size>" in lines
