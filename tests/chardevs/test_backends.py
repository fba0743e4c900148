"""The other backends: files, FIFOs, terminals, datagrams, buffers, ports; each against the contract."""

from __future__ import annotations

import os
import pty
import socket
import sys
import tty
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.chardevs.abc import Chardev
from qsd_trio.chardevs.ringbuf import RingbufChardev, RingBuffer
from qsd_trio.errors import QmpError
from qsd_trio.testing.chardevs import check_chardev, receive_exactly, running
from tests.chardevs.kit import inet, make, unix


@asynccontextmanager
async def opened(*paths: tuple[str, int]) -> AsyncIterator[trio.abc.Stream]:
    """Open a path to read and one to write, or one for both."""
    streams = [trio.lowlevel.FdStream(os.open(path, flags)) for path, flags in paths]
    stapled = trio.StapledStream(streams[-1], streams[0])
    async with stapled:
        yield stapled


async def test_pipe_pair(tmp_path: Path) -> None:
    device = str(tmp_path / "p")

    def fresh() -> Chardev:
        for end in (".in", ".out"):
            (tmp_path / f"p{end}").unlink(missing_ok=True)
            os.mkfifo(device + end)
        return make("pipe", device=device)

    def peer(_chardev: Chardev) -> AbstractAsyncContextManager[trio.abc.Stream]:
        return opened((f"{device}.out", os.O_RDWR), (f"{device}.in", os.O_RDWR))

    await check_chardev(fresh, peer, sessions=1, sees_peer_leave=False)


async def test_pipe_needs_a_path(tmp_path: Path) -> None:
    device = str(tmp_path / "p")
    with pytest.raises(QmpError) as caught:
        async with running(make("pipe", device=device)):
            pass
    assert str(caught.value) == f"Could not open '{device}': No such file or directory"


async def test_pty_serves_whoever_opens_it() -> None:
    @asynccontextmanager
    async def peer(chardev: Chardev) -> AsyncIterator[trio.abc.Stream]:
        assert chardev.pty is not None
        assert chardev.filename == f"pty:{chardev.pty}"
        async with opened((chardev.pty, os.O_RDWR | os.O_NOCTTY)) as stream:
            yield stream

    await check_chardev(lambda: make("pty"), peer)


async def test_pty_link(tmp_path: Path) -> None:
    link = tmp_path / "link"
    chardev = make("pty", path=str(link))
    async with running(chardev):
        assert os.readlink(link) == chardev.pty
        with pytest.raises(QmpError, match="File exists"):
            async with running(make("pty", path=str(link))):
                pass
        assert link.is_symlink()
    assert not link.is_symlink()


async def test_udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        own_port = probe.getsockname()[1]
    remote = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with remote:
        await remote.bind(("127.0.0.1", 0))
        port = str(remote.getsockname()[1])
        chardev = make("udp", remote=inet(port=port), local=inet(port=str(own_port)))
        async with running(chardev), aclosing(chardev.sessions()) as streams:
            await remote.connect(("127.0.0.1", own_port))
            await remote.send(b"")
            await remote.send(b"hello")
            async with await anext(streams) as stream:
                assert await stream.receive_some() == b"hello"
                await stream.send_all(b"datagram")
                assert await remote.recv(100) == b"datagram"


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"remote": unix("/x")}, "socket type unsupported for datagram"),
        ({"remote": inet(port="")}, "remote port not specified"),
        (
            {"remote": inet(port="9"), "local": unix("/x")},
            "address resolution failed for /x:0: Name or service not known",
        ),
        (
            {"remote": inet(port="9"), "local": inet(host="192.0.2.1")},
            "Failed to bind socket: Cannot assign requested address",
        ),
    ],
)
async def test_udp_errors(members: dict[str, object], text: str) -> None:
    with pytest.raises(QmpError) as caught:
        async with running(make("udp", **members)):
            pass
    assert str(caught.value) == text


async def test_file_writes_and_reads(tmp_path: Path) -> None:
    out, into = tmp_path / "out", tmp_path / "in"
    out.write_bytes(b"old")
    into.write_bytes(b"input")
    for append, before in ((True, b"old"), (None, b"")):
        members = {} if append is None else {"append": append}
        chardev = make("file", out=str(out), in_=str(into), **members)
        async with running(chardev), aclosing(chardev.sessions()) as streams:
            async with await anext(streams) as stream:
                assert await receive_exactly(stream, 5) == b"input"
                assert await stream.receive_some() == b""
                await stream.send_all(b"new")
        assert out.read_bytes() == before + b"new"


async def test_file_without_input_is_silent(tmp_path: Path) -> None:
    chardev = make("file", out=str(tmp_path / "out"))
    async with running(chardev), aclosing(chardev.sessions()) as streams:
        async with await anext(streams) as stream:
            with trio.move_on_after(0.01) as scope:
                await stream.receive_some()
            assert scope.cancelled_caught


async def test_file_errors_leave_nothing_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for members, path in (
        ({"out": str(tmp_path / "no" / "out")}, tmp_path / "no" / "out"),
        ({"out": str(tmp_path / "out"), "in_": str(tmp_path / "in")}, tmp_path / "in"),
    ):
        with pytest.raises(QmpError) as caught:
            async with running(make("file", **members)):
                pass
        assert str(caught.value) == f"Could not open '{path}': No such file or directory"
    assert len(os.listdir("/proc/self/fd")) == before


async def test_null_has_no_session() -> None:
    chardev = make("null")
    async with running(chardev), aclosing(chardev.sessions()) as streams:
        with trio.move_on_after(0.01) as scope:
            await anext(streams)
        assert scope.cancelled_caught
    assert chardev.filename == "null"


@given(st.integers(0, 6), st.lists(st.binary(max_size=50) | st.integers(1, 50), max_size=20))
def test_ring_buffer_keeps_the_newest(power: int, steps: list[bytes | int]) -> None:
    size = 1 << power
    ring, model = RingBuffer(size), b""
    for step in steps:
        if isinstance(step, bytes):
            ring.write(step)
            model = (model + step)[-size:]
        else:
            assert ring.read(step) == model[:step]
            model = model[step:]


async def test_ringbuf_takes_what_its_front_end_sends() -> None:
    chardev = make("ringbuf", size=8)
    assert isinstance(chardev, RingbufChardev)
    async with running(chardev), aclosing(chardev.sessions()) as streams:
        async with await anext(streams) as stream:
            await stream.send_all(b"0123456789")
    assert chardev.buffer.read(100) == b"23456789"
    assert make("memory").filename == "memory"
    for size in (0, 3, -1):
        with pytest.raises(QmpError, match="must be power of two"):
            make("ringbuf", size=size)


async def test_serial_on_a_terminal() -> None:
    main, other = os.openpty()
    tty.setraw(main)
    chardev = make("serial", device=os.ttyname(other))
    os.close(other)
    async with running(chardev), aclosing(chardev.sessions()) as streams:
        async with trio.lowlevel.FdStream(main) as line, await anext(streams) as stream:
            await line.send_all(b"\x03in\r")  # no signal, no echo, no translation
            assert await receive_exactly(stream, 4) == b"\x03in\r"
            await stream.send_all(b"out\n")
            assert await receive_exactly(line, 4) == b"out\n"


async def test_parallel_wants_a_port() -> None:
    with pytest.raises(QmpError) as caught:
        async with running(make("parallel", device="/dev/null")):
            pass
    assert str(caught.value) == "not a parallel port: Inappropriate ioctl for device"


async def test_stdio_is_there_once_and_restored() -> None:
    stdin, stdout = os.dup(0), os.dup(1)
    main, other = pty.openpty()
    attributes = tty.tcgetattr(other)
    sys.stdout.flush()
    os.dup2(other, 0)
    os.dup2(other, 1)
    try:
        chardev = make("stdio", id_="a", signal=False)
        async with running(chardev) as table, aclosing(chardev.sessions()) as streams:
            with pytest.raises(QmpError, match="cannot use stdio by multiple character devices"):
                await table.start(make("stdio", id_="b"))
            assert tty.tcgetattr(other) != attributes
            async with trio.lowlevel.FdStream(os.dup(main)) as line, await anext(streams) as stream:
                await line.send_all(b"\x03in")
                assert await receive_exactly(stream, 3) == b"\x03in"
                await stream.send_all(b"out")
                assert await receive_exactly(line, 3) == b"out"
        assert tty.tcgetattr(other) == attributes
        assert os.get_blocking(other)
    finally:
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        for fd in (stdin, stdout, main, other):
            os.close(fd)
    async with running(make("stdio")):
        pass  # it is free again
