"""Chardev commands and the option, inside one process: what does not need the real daemon's word."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from qsd_trio.chardevs.options import HelpWanted, parse_chardev
from qsd_trio.commands.chardev import (
    chardev_add,
    chardev_change,
    chardev_option,
    chardev_remove,
    query_chardev,
)
from qsd_trio.daemon import open_daemon_tables
from qsd_trio.errors import QmpError
from qsd_trio.qapi.converter import args_from_qmp, to_qmp
from qsd_trio.testing.chardevs import FakeFrontend


def parsed(text: str) -> list[tuple[str, object]]:
    return [(id_, to_qmp(backend)) for id_, backend in parse_chardev(text)]


@pytest.mark.parametrize(
    ("text", "kind", "data"),
    [
        (
            "socket,id=a,path=x,,y,server=on",
            "socket",
            {
                "addr": {"type": "unix", "data": {"path": "x,y"}},
                "server": True,
                "wait": True,
            },
        ),
        (
            "socket,id=a,host=h,port=1,to=9,ipv6=on,nodelay=on,reconnect-ms=1500",
            "socket",
            {
                "addr": {
                    "type": "inet",
                    "data": {"host": "h", "port": "1", "to": 9, "ipv6": True},
                },
                "server": False,
                "nodelay": True,
                "reconnect-ms": 1500,
            },
        ),
        (
            "socket,id=a,fd=7,server=on,wait=off,delay=off",
            "socket",
            {
                "addr": {"type": "fd", "data": {"str": "7"}},
                "server": True,
                "wait": False,
                "nodelay": True,
            },
        ),
        ("stdio,id=a", "stdio", {"signal": True}),
        ("file,id=a,path=o,input-path=i", "file", {"out": "o", "in": "i"}),
        ("pty,id=a,path=l", "pty", {"path": "l"}),
        ("hub,id=a,chardevs.1=y,chardevs.0=x", "hub", {"chardevs": ["x", "y"]}),
        ("null,id=a,logfile=f,logtimestamp=on", "null", {"logfile": "f", "logtimestamp": True}),
        ("ringbuf,id=a,size=4k", "ringbuf", {"size": 4096}),
        (
            "udp,id=a,port=1,localport=2",
            "udp",
            {
                "remote": {"type": "inet", "data": {"host": "localhost", "port": "1"}},
                "local": {"type": "inet", "data": {"host": "", "port": "2"}},
            },
        ),
    ],
)
def test_an_option_is_the_command_it_stands_for(
    text: str, kind: str, data: dict[str, object]
) -> None:
    assert parsed(text) == [("a", {"type": kind, "data": data})]


def test_mux_on_makes_two() -> None:
    assert parsed("null,id=a,mux=on") == [
        ("a-base", {"type": "null", "data": {}}),
        ("a", {"type": "mux", "data": {"chardev": "a-base"}}),
    ]


def test_help() -> None:
    with pytest.raises(HelpWanted) as caught:
        parse_chardev("help")
    assert caught.value.exit_status == 0
    assert caught.value.listing.startswith("Available chardev backend types: \n  pty\n")


async def test_pty_says_where_it_is() -> None:
    async with open_daemon_tables() as daemon:
        outcome = await chardev_option(daemon, "pty,id=a")
        arg = args_from_qmp("chardev-add", {"id": "b", "backend": {"type": "pty", "data": {}}})
        answer = await chardev_add(daemon, arg)
        first, second = daemon.chardevs
        assert outcome.stdout == f"char device redirected to {first.pty} (label a)\n"
        assert to_qmp(answer) == {"pty": second.pty}


async def test_nothing_is_left_of_what_failed(sock_dir: Path) -> None:
    path = sock_dir / "s"
    async with open_daemon_tables() as daemon:
        backend = {
            "type": "socket",
            "data": {
                "addr": {"type": "unix", "data": {"path": str(path)}},
                "logfile": str(sock_dir / "no" / "log"),
            },
        }
        arg = args_from_qmp("chardev-add", {"id": "a", "backend": backend})
        with pytest.raises(QmpError, match="Failed to add chardev 'a': Could not create"):
            await chardev_add(daemon, arg)
        assert not path.exists()
        assert await query_chardev(daemon) == []


async def test_removed_socket_is_gone_when_the_reply_is_there(sock_dir: Path) -> None:
    path = sock_dir / "s"
    async with open_daemon_tables() as daemon:
        for _ in range(2):
            await chardev_option(daemon, f"socket,id=a,path={path},server=on,wait=off")
            assert path.is_socket()
            await chardev_remove(daemon, args_from_qmp("chardev-remove", {"id": "a"}))
            assert not path.exists()


async def test_a_used_chardev_is_not_changed(sock_dir: Path) -> None:
    async with open_daemon_tables() as daemon:
        await chardev_option(daemon, "null,id=a")
        (chardev,) = daemon.chardevs
        frontend = FakeFrontend()
        chardev.attach(frontend)
        backend = {"type": "ringbuf", "data": {}}
        arg = args_from_qmp("chardev-change", {"id": "a", "backend": backend})
        with pytest.raises(QmpError, match="does not support chardev hotswap"):
            await chardev_change(daemon, arg)
        chardev.detach(frontend)
        await chardev_change(daemon, arg)
        (changed,) = daemon.chardevs
        assert changed.filename == "ringbuf"


async def test_a_waiting_chardev_add_can_be_cancelled(sock_dir: Path) -> None:
    path = sock_dir / "s"
    async with open_daemon_tables() as daemon:
        with trio.move_on_after(0.01):
            await chardev_option(daemon, f"socket,id=a,path={path},server=on")
        assert not path.exists()
        assert "a" not in daemon.chardevs
