"""Character devices against the real daemon: ``--chardev`` argument by argument, and the commands."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from qsd_trio.commands.chardev import chardev_option
from qsd_trio.daemon import open_daemon_tables
from qsd_trio.errors import QmpError
from tests.oracle import OURS, REAL, Daemon, Pair, qmp, requires

pytestmark = requires("qemu-storage-daemon")

Json: TypeAlias = Any

#: Ends the real daemon after the options before it went well.
LAST = ("--blockdev", "nope")

# Not here, because ours accepts what is newer than 7.2: logtimestamp, input-path, reconnect-ms, hub.
# Not here, because the real one crashes or takes what does nothing: ringbuf size=0, udp with a bad port.
ARGUMENTS = """\
socket
null
foo
null,id=a,foo=1
null,id=1a
null,id=
null,id=1a,foo=1
null,foo=1
foo,id=a
foo,cols=x
id=a
id=a,null
id=a,noserver
=x,id=a
null,,id=a
null,id=a,
backend=null,id=a
id=a,backend=null
null,id=a,backend=file
null,id=a,id=1
null,id=a,cols=x,foo=1
null,id=a,foo=1,cols=x
null,id=a,mux=x,cols=x
null,id=a,cols=99999999999999999999
null,id=a,cols=-1
null,id=a,cols=0x10
null,id=a,size=-1
null,id=a,size=1.5k
null,id=a,size=16E
null,id=a,server=ON
null,id=a,server=true
null,id=a,server=
null,id=a,nofoo
null,id=a,foo
null,id=a,nomux
null,id=a,mux
null,id=a,path
null,id=a,help=on
help=on
?=x
help,id=1a
socket,id=a
socket,id=a,path=none
socket,id=a,path=nodir/s,server=on
socket,id=a,path=.,server=on,wait=off
socket,id=a,path=s,server=on,wait=off
socket,id=a,path=s,server,nowait
socket,id=a,path=s,server,nowait,nodelay
socket,id=a,path=s,server,nowait,noserver
socket,id=a,path=s,server=on,reconnect=1
socket,id=a,path=s,server=on,reconnect=0
socket,id=a,path=s,wait=off
socket,id=a,path=s,wait=on
socket,id=a,path=s,server=off,reconnect=1,wait=off
socket,id=a,path=s,websocket=on
socket,id=a,path=s,server=on,wait=off,telnet=on,websocket=on
socket,id=a,path=s,server=on,wait=off,tn3270=on
socket,id=a,path=s,server=on,wait=off,tls-creds=xx
socket,id=a,path=s,server=on,wait=off,tls-authz=xx
socket,id=a,host=localhost,port=0,server=on,wait=off,tls-creds=xx
socket,id=a,path=s,abstract=on
socket,id=a,path=qsd-trio-x,abstract=on,server=on,wait=off
socket,id=a,path=s,path=t,server=on,wait=off,mux=on
socket,id=a,path=s,host=127.0.0.1,port=0,server=on
socket,id=a,path=s,fd=3,server=on
socket,id=a,host=h,fd=1
socket,id=a,fd=0,server=on
socket,id=a,fd=77,server=on
socket,id=a,fd=abc,server=on
socket,id=a,fd=-1,server=on
socket,id=a,fd=0
socket,id=a,fd=3,port=1
socket,id=a,cid=2,port=1
socket,id=a,host=localhost,server=on,wait=off
socket,id=a,host=,server=on
socket,id=a,port=0,server=on,wait=off
socket,id=a,host=,port=0,server=on,wait=off
socket,id=a,host=localhost,port=abc,server=on,wait=off
socket,id=a,host=127.0.0.1,port=1
socket,id=a,host=127.0.0.1,port=1,reconnect=x
socket,id=a,host=127.0.0.1,port=1,reconnect=-1
socket,id=a,host=127.0.0.1,port=1,ipv4=off,ipv6=off
socket,id=a,host=127.0.0.1,port=0,ipv4=off,ipv6=off,server=on,wait=off
socket,id=a,host=127.0.0.1,port=0,ipv4=off,server=on,wait=off
socket,id=a,host=127.0.0.1,port=0,ipv6=on,server=on,wait=off
socket,id=a,host=::1,port=0,ipv4=on,server=on,wait=off
socket,id=a,host=127.0.0.1,port=0,to=x,server=on,wait=off
socket,id=a,host=127.0.0.1,port=5,to=3,server=on,wait=off
socket,id=a,host=192.0.2.1,port=5,server=on,wait=off
socket,id=a,host=127.0.0.1,port=0,numeric=on,server=on,wait=off
socket,id=a,host=127.0.0.1,port=0,keep-alive=on,server=on,wait=off
socket,id=a,host=127.0.0.1,port=0,delay=off,server=on,wait=off
socket,id=a,host=127.0.0.1,port=0,delay=off,nodelay=on,server=on,wait=off
socket,id=a,host=127.0.0.1,port=0,nodelay=x,server=on,wait=off
file,id=a
file,id=a,path=
file,id=a,path=f
file,id=a,path=f,append=on,mux=on
file,id=a,path=nodir/f
pipe,id=a
pipe,id=a,path=p
pipe,id=a,path=
udp,id=a
udp,id=a,port=
udp,id=a,port=1
udp,id=a,host=localhost,port=1
udp,id=a,port=1,localport=0
udp,id=a,port=1,localaddr=127.0.0.1
udp,id=a,port=1,ipv4=off,ipv6=off
udp,id=a,port=1,localaddr=,localport=
ringbuf,id=a
ringbuf,id=a,size=3
ringbuf,id=a,size=1M
ringbuf,id=a,size=x
ringbuf,id=a,size=
memory,id=a,size=16
mux,id=a
mux,id=a,chardev=x
mux,id=a,chardev=
serial,id=a
serial,id=a,path=none
serial,id=a,path=/dev/null
tty,id=a,path=/dev/null
parallel,id=a
parallel,id=a,path=/dev/null
parallel,id=a,path=none
parport,id=a,path=/dev/null
testdev,id=a
vc,id=a
console,id=a
spicevmc,id=a,name=x
msmouse,id=a
braille,id=a
wctablet,id=a
dbus,id=a
null,id=a,logfile=log
null,id=a,logfile=nodir/log
null,id=a,logappend=on
null,id=a,logfile=log,logappend=x
null,id=a,mux=on,logfile=log
stdio,id=a,signal=maybe
stdio,id=a,mux=on,signal=off
null,id=a null,id=a
null,id=a-base null,id=a,mux=on
null,id=a null,id=a,mux=on
null,id=a mux,id=b,chardev=a
null,id=a,mux=on mux,id=b,chardev=a
stdio,id=a stdio,id=b
""".splitlines()
ARGUMENTS += [
    "socket,id=a,server=on,path=" + "x" * 120,
    "socket,id=a,server=on,abstract=on,path=" + "x" * 120,
    "file,id=a,path=" + "f" * 300,
]


def real_messages(arguments: list[str], directory: Path) -> list[str]:
    """Return what the real daemon says to the options, without the place."""
    argv = [*REAL]
    for argument in arguments:
        argv += ["--chardev", argument]
    ended = subprocess.run(
        [*argv, *LAST],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=20,
    )
    place = "|".join(re.escape(f"--chardev {argument}: ") for argument in arguments)
    text = re.sub(f"^{re.escape(argv[0])}: (?:{place})", "", ended.stderr, flags=re.MULTILINE)
    return [line for line in text.splitlines() if f" {' '.join(LAST)}: " not in line]


async def our_messages(
    arguments: list[str], directory: Path, caplog: pytest.LogCaptureFixture
) -> list[str]:
    """Return what ours logs and what it fails with."""
    caplog.clear()
    lines: list[str] = []
    with in_directory(directory):
        async with open_daemon_tables(held=True) as daemon:
            try:
                for argument in arguments:
                    await chardev_option(daemon, argument)
            except QmpError as exc:
                lines = [str(exc), *"\n".join(getattr(exc, "__notes__", ())).splitlines()]
            daemon.request_quit()
    return [*"\n".join(caplog.messages).splitlines(), *lines]


@contextmanager
def in_directory(path: Path) -> Iterator[None]:
    """Be in ``path`` with standard input at its end, as the real daemon is in these tests."""
    before, stdin = os.getcwd(), os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        os.chdir(path)
        os.dup2(null, 0)
        yield
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
        os.close(null)
        os.chdir(before)


async def test_arguments_get_the_same_messages(
    sock_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    wrong = []
    for line in ARGUMENTS:
        arguments = line.split(" ")
        real = real_messages(arguments, sock_dir)
        ours = await our_messages(arguments, sock_dir, caplog)
        if real != ours:
            wrong.append((line, real, ours))
    assert wrong == []


def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=20)


async def test_help_lists() -> None:
    for argument in ("help", "?", "help,id=a", "null,help", "null,id=a,?"):
        argv = [*REAL, "--chardev", argument]
        real = run(argv)
        async with open_daemon_tables() as daemon:
            ours = await chardev_option(daemon, argument)
        assert ours.exit_status == real.returncode
        newer = r"  (hub|chardevs\.\d|encoding|input-path|logtimestamp|reconnect-ms)\b.*\n"
        assert re.sub(newer, "", ours.stdout) == real.stdout


def add(id_: str, kind: str, **data: Json) -> Json:
    members = {name.replace("_", "-").rstrip("-"): value for name, value in data.items()}
    return qmp("chardev-add", id=id_, backend={"type": kind, "data": members})


def change(id_: str, kind: str, **data: Json) -> Json:
    return {**add(id_, kind, **data), "execute": "chardev-change"}


def inet(host: str, port: str, **members: Json) -> Json:
    return {"type": "inet", "data": {"host": host, "port": port, **members}}


def unix(path: str, **members: Json) -> Json:
    return {"type": "unix", "data": {"path": path, **members}}


LIST = qmp("query-chardev")
LOCAL = inet("127.0.0.1", "0")

SOCKET_SCRIPT = [
    LIST,
    add("a", "socket", addr=unix("u1"), server=True, wait=False),
    add("b", "socket", addr=unix("u2")),
    add("c", "socket", addr=LOCAL),
    add("c", "socket", addr=LOCAL),
    add("d", "socket", addr=LOCAL, telnet=True),
    add("e", "socket", addr=LOCAL, websocket=True),
    add("f", "socket", addr=LOCAL, tn3270=True),
    add("g", "socket", addr=LOCAL, tn3270=True, telnet=True),
    add("h", "socket", addr=LOCAL, websocket=True, telnet=True),
    add("i", "socket", addr=inet("localhost", "0")),
    add("j", "socket", addr=inet("", "0")),
    add("l", "socket", addr=unix("u3", tight=False)),
    add("m", "socket", addr={"type": "vsock", "data": {"cid": "x", "port": "1"}}),
    add("m", "socket", addr={"type": "vsock", "data": {"cid": "1", "port": "y"}}),
    add("m", "socket", addr={"type": "fd", "data": {"str": "0"}}),
    add("m", "socket", addr={"type": "fd", "data": {"str": "foo"}}),
    add("n", "socket", addr=inet("127.0.0.1", "1"), server=False),
    add("n", "socket", addr=inet("127.0.0.1", "1"), server=False, wait=False),
    add("n", "socket", addr=inet("127.0.0.1", "1"), reconnect=1),
    add("n", "socket", addr=inet("127.0.0.1", "1"), server=False, websocket=True),
    add("n", "socket", addr=inet("127.0.0.1", "1"), server=False, reconnect=-1),
    add("o", "socket", addr=inet("127.0.0.1", "1"), server=False, reconnect=500),
    add("p", "socket", addr=inet("127.0.0.1", "1"), server=False, reconnect=500, telnet=True),
    add("q", "socket", addr=unix("none"), server=False, reconnect=500),
    add("r", "socket", addr=inet("127.0.0.1", "0", keep_alive=True)),
    add("r", "socket", addr=inet("127.0.0.1", "0", numeric=True)),
    add("s", "socket", addr=inet("localhost", "0", numeric=True)),
    add("s", "socket", addr=inet("127.0.0.1", "0", ipv4=False)),
    add("s", "socket", addr=LOCAL, tls_creds="x"),
    add("s", "socket", addr=LOCAL, tls_authz="x"),
    add("s", "socket", addr=unix("x" * 109)),
    add("s", "socket", addr=unix("nodir/x")),
    add("t", "socket", addr=unix("u2"), server=False),
    add("1a", "null"),
    add("", "null"),
    add("a b", "null"),
    LIST,
    qmp("chardev-send-break", id="c"),
    qmp("chardev-send-break", id="zz"),
    qmp("chardev-remove", id="a"),
    qmp("chardev-remove", id="a"),
    qmp("chardev-remove", id="oracle"),
    qmp("chardev-remove"),
    LIST,
]

OTHER_SCRIPT = [
    *[add("v", kind) for kind in ("vc", "msmouse", "foo", "testdev", "console", "wctablet")],
    qmp("chardev-add"),
    qmp("chardev-add", id="a"),
    qmp("chardev-add", id="a", backend={}),
    qmp("chardev-add", id="a", backend={"type": "null"}),
    qmp("chardev-add", id=1, backend={"type": "null", "data": {}}),
    add("f1", "file", out="g1"),
    add("f2", "file", out="nodir/g1"),
    add("f3", "file", out="g1", in_="none"),
    add("f4", "file", out="g1", in_="g1"),
    add("f5", "file", out="g1", append=True),
    add("f6", "file"),
    add("p1", "pipe", device="none"),
    add("p2", "pipe", device="g1"),
    add("s1", "stdio"),
    add("u1", "udp", remote=inet("127.0.0.1", "9999")),
    add("u2", "udp", remote=inet("127.0.0.1", "9999"), local=LOCAL),
    add("u3", "udp", remote=unix("/x")),
    add("u3", "udp", remote=inet("127.0.0.1", "")),
    add("u5", "udp", remote=inet("", "9999")),
    add("u6", "udp", remote=inet("127.0.0.1", "9999"), local=unix("/x")),
    add("u6", "udp", remote=inet("127.0.0.1", "9999"), local=inet("192.0.2.1", "0")),
    add("u7", "udp", remote=inet("127.0.0.1", "9999"), local=inet("", "")),
    add("u8", "udp", remote=inet("127.0.0.1", "x"), local=LOCAL),
    add("r1", "ringbuf"),
    add("r2", "ringbuf", size=16),
    add("r3", "ringbuf", size=3),
    add("r3", "ringbuf", size=-1),
    add("r4", "memory", size=16),
    add("x1", "mux", chardev="r1"),
    add("x2", "mux", chardev="nobody"),
    add("x3", "mux", chardev="oracle"),
    add("x4", "mux", chardev="x1"),
    add("z1", "serial", device="none"),
    add("l1", "null", logfile="nodir/x"),
    add("l2", "null", logfile="log", logappend=True),
    LIST,
    qmp("ringbuf-write", device="r2", data="abc"),
    qmp("ringbuf-write", device="r2", data="abc", format="base64"),
    qmp("ringbuf-write", device="r2", data="!!!!", format="base64"),
    qmp("ringbuf-write", device="r2", data="YWJjZA==", format="base64"),
    qmp("ringbuf-write", device="r2", data="", format="base64"),
    qmp("ringbuf-write", device="r2", data="YWJj\n", format="base64"),
    qmp("ringbuf-write", device="r2", data="=", format="base64"),
    qmp("ringbuf-write", device="zz", data="abc"),
    qmp("ringbuf-write", device="f1", data="abc"),
    qmp("ringbuf-write", device="x1", data="abc"),
    qmp("ringbuf-write", device="r2", data="abc", format="hex"),
    qmp("ringbuf-read", device="r2", size=3),
    qmp("ringbuf-read", device="r2", size=0),
    qmp("ringbuf-read", device="r2", size=-1),
    qmp("ringbuf-read", device="zz", size=0),
    qmp("ringbuf-read", device="f1", size=3),
    qmp("ringbuf-read", device="r2", size="3"),
    qmp("ringbuf-read", device="r2", size=300, format="base64"),
    qmp("ringbuf-read", device="r2", size=300, format="utf8"),
    qmp("ringbuf-write", device="r2", data="0123456789abcdefghij"),
    qmp("ringbuf-read", device="r2", size=300),
    qmp("ringbuf-write", device="r2", data="aé€"),
    *[qmp("ringbuf-read", device="r2", size=2)] * 3,
    qmp("ringbuf-write", device="r2", data="AP/+gGFi", format="base64"),
    qmp("ringbuf-read", device="r2", size=300),
    qmp("ringbuf-write", device="r2", data="//6AYWI=", format="base64"),
    qmp("ringbuf-read", device="r2", size=300),
    *[qmp("chardev-remove", id=id_) for id_ in ("r1", "x1", "x4", "f4")],
    change("nobody", "null"),
    change("f5", "null"),
    change("f5", "ringbuf"),
    change("oracle", "null"),
    change("x1", "null"),
    change("r1", "null"),
    change("f5", "file", out="nodir/x"),
    change("f5", "null"),
    LIST,
    qmp("query-chardev-backends"),
    qmp("query-chardev", x=1),
]


def comparable(reply: Json) -> Json:
    """Forget ports that the kernel chose and the order of hash tables."""
    value = reply.get("return")
    if not isinstance(value, list):
        return reply
    shown = [
        {
            key: re.sub(r":\d{4,5}(,|$)", r":PORT\1", text) if isinstance(text, str) else text
            for key, text in item.items()
        }
        for item in value
        if item.get("name") != "hub"
    ]
    return {**reply, "return": sorted(shown, key=str)}


@pytest.mark.parametrize("script", [SOCKET_SCRIPT, OTHER_SCRIPT], ids=["socket", "other"])
def test_commands_get_the_same_replies(script: list[Json]) -> None:
    options = ("null,id=c1", "null,id=c2,mux=on", "ringbuf,id=c3,size=16,mux=on", "stdio,id=c4")
    argv = [word for option in options for word in ("--chardev", option)]
    wrong = []
    with Pair(argv) as pair:
        for command in script:
            real = comparable(pair.real.qmp.execute(command))
            ours = comparable(pair.ours.qmp.execute(command))
            if real != ours:
                wrong.append((command, real, ours))
    assert wrong == []


def test_connected_names_and_passed_descriptors(sock_dir: Path) -> None:
    """Names while a client is there, a server and a client by descriptor; all seen over QMP."""
    shown = []
    for program in (REAL, OURS):
        directory = sock_dir / program[-1].split("-")[0]
        directory.mkdir()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / "fd"))
        left, right = socket.socketpair()
        with listener, left, right:
            argv = [
                *("--chardev", f"socket,id=server,fd={listener.fileno()},server=on,wait=off"),
                *("--chardev", f"socket,id=client,fd={left.fileno()}"),
                *("--chardev", "socket,id=path,path=path,server=on,wait=off"),
            ]
            fds = (listener.fileno(), left.fileno())
            with Daemon(program, argv, directory, pass_fds=fds) as daemon:
                listener.close()
                clients = []
                for name in ("fd", "path"):
                    client = socket.socket(socket.AF_UNIX)
                    client.connect(str(directory / name))
                    clients.append(client)
                names: dict[str, str] = {}
                for _ in range(200):
                    infos = daemon.qmp.command("query-chardev")
                    names = {info["label"]: info["filename"] for info in infos}
                    if not any(name.startswith("disconnected") for name in names.values()):
                        break
                for client in clients:
                    client.close()
        assert not (directory / "path").exists()
        shown.append({key: name.replace(str(directory), "DIR") for key, name in names.items()})
    assert shown[0] == shown[1]


def test_waiting_for_a_client_says_so(sock_dir: Path) -> None:
    """``wait=on`` blocks the start, says where it waits, and goes on with the first client."""
    texts = []
    for program in (REAL, OURS):
        path = sock_dir / "s"
        process = subprocess.Popen(
            [*program, "--chardev", "socket,id=a,path=s,server=on", *LAST],
            cwd=sock_dir,
            stderr=subprocess.PIPE,
            text=True,
        )
        timer = threading.Timer(20, process.kill)
        timer.start()
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            assert path.is_socket()
            assert process.poll() is None
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                rest = process.stderr.read()
                assert process.wait() == 1
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            process.stderr.close()
        assert program == REAL or not path.exists()  # the real one leaves it behind
        texts.append([re.sub(r"^\S+: ", "", line) for line in (first, rest)])
    assert texts[0] == texts[1]
    assert "info: QEMU waiting for connection on: disconnected:unix:s,server=on" in texts[0][0]
