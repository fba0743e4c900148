"""The vhost-user-blk export against the real daemon: options and their texts, messages, requests, and being killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from qsd_trio.protocol import vhost_user as vu
from qsd_trio.protocol.vhost_user import Message
from qsd_trio.protocol.virtio.blk import (
    BARRIER,
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    OUT,
    SEGMENT,
    WRITE_ZEROES,
)
from qsd_trio.testing.vhost_user import FrontEnd, connect_front_end, open_front_end
from tests import oracle
from tests.oracle import OURS, compare, compare_exit, qmp, requires

pytestmark = requires("qemu-storage-daemon")

SIZE = 1 << 20


def images(directory: Path) -> None:
    (directory / "a.img").write_bytes(bytes(range(256)) * (SIZE // 256))
    (directory / "small.img").write_bytes(bytes(1000))


def add(id_: str, node: str = "n", path: str = "s", **more: Any) -> dict[str, Any]:
    options = {"type": "vhost-user-blk", "id": id_, "node_name": node}
    return qmp("block-export-add", **{**options, "addr": {"type": "unix", "path": path}, **more})


NODES = [
    qmp("blockdev-add", driver="file", node_name="n", filename="a.img"),
    qmp("blockdev-add", driver="file", node_name="ro", filename="a.img", read_only=True),
]
LIST = qmp("query-block-exports")


def test_commands() -> None:
    compare(
        [],
        [
            *NODES,
            add("e", "nope"),
            add("1"),
            add("e", "ro", writable=True),
            add("e", iothread="nobody"),
            add("e", logical_block_size=511),
            add("e", logical_block_size=4 << 20),
            add("e", logical_block_size=513),
            add("e", logical_block_size=3072, num_queues=0),
            add("e", num_queues=0),
            add("e", num_queues=65536),
            add("e", num_queues=-1),
            add("e", addr={"type": "inet", "host": "127.0.0.1", "port": "0"}),
            add("e", addr={"type": "vsock", "cid": "1", "port": "1"}, num_queues=0),
            add("e", addr={"type": "unix"}),
            add("e", addr={"type": "fd", "str": "77"}),
            add("e", path="/nonexistent/s"),
            add("e", path="x" * 200),
            add("e", bogus=1),
            qmp("block-export-add", type="vhost-user-blk", id="e", node_name="n"),
            LIST,
            add("e"),
            add("e"),
            add("f", "ro", path="t", logical_block_size=4096, num_queues=4),
            add("g", path="u", writable=True, writethrough=True),
            add("h", path="v", writable=True, logical_block_size=0),
            LIST,
            qmp("blockdev-del", node_name="n"),
            qmp("block-export-del", id="nope"),
            qmp("block-export-del", id="e"),
            qmp("block-export-del", id="f", mode="hard"),
            LIST,
        ],
        setup=images,
    )


def test_iothreads() -> None:
    compare(
        ["--object", "iothread,id=io"],
        [
            *NODES,
            add("e", iothread="io", fixed_iothread=True),
            LIST,
            qmp("block-export-del", id="e"),
        ],
        setup=images,
    )


@pytest.mark.parametrize(
    "options",
    [
        "addr.type=unix",
        "addr.type=fd,addr.str=77",
        "addr.type=inet,addr.host=127.0.0.1,addr.port=0",
        "addr.type=unix,addr.path=/nonexistent/s",
        "addr.type=unix,addr.path=s,logical-block-size=100",
        "addr.type=unix,addr.path=s,num-queues=0",
        "addr.type=unix,addr.path=s,num-queues=70000",
        "addr.type=unix,addr.path=s,bogus=1",
        "num-queues=1",
    ],
)
def test_command_lines(options: str) -> None:
    compare_exit(
        [
            *("--blockdev", "null-co,node-name=n,read-zeroes=on"),
            *("--export", f"vhost-user-blk,id=e,node-name=n,{options}"),
        ]
    )


def argv(directory: Path, *more: str) -> list[str]:
    return [
        *("--blockdev", "file,node-name=n,filename=a.img"),
        "--export",
        ",".join(
            (
                "vhost-user-blk,id=e,node-name=n,addr.type=unix",
                f"addr.path={directory / 's'}",
                *(more or ("writable=on",)),
            )
        ),
    ]


async def conversation(vm: FrontEnd) -> list[object]:
    """Return what a back-end says to a well-behaved front-end, where ours is to be the same."""
    said: list[object] = [await vm.get_u64(Message.GET_QUEUE_NUM)]
    config = bytearray(await vm.config())
    config[32] = 0  # wce: the real one says 0 whatever the mode is
    said.append(bytes(config))
    said += [await vm.ask(Message.GET_CONFIG, vu.CONFIG.pack(0, 61, 0) + bytes(61))]
    said += [await vm.get_u64(Message.GET_MAX_MEM_SLOTS)]
    await vm.set_write_cache(True)
    said.append((await vm.config())[32])
    return said


REQUESTS: list[tuple[int, int, bytes, int]] = [
    (IN, 1, b"", 4096),
    (IN, 2047, b"", 512),
    (IN, 2047, b"", 1024),
    (IN, 2048, b"", 0),
    (IN, 0, b"", 100),
    (IN, 1 << 55, b"", 512),
    (IN, 1 << 63, b"", 512),
    (IN | BARRIER, 1, b"", 512),
    (OUT, 4, b"x" * 512, 0),
    (OUT, 4, b"x" * 511, 0),
    (OUT, 2048, b"x" * 512, 0),
    (FLUSH, 7, b"", 0),
    (GET_ID, 0, b"", 20),
    (GET_ID, 0, b"", 5),
    (GET_ID, 0, b"", 0),
    (DISCARD, 0, SEGMENT.pack(0, 8, 0), 0),
    (DISCARD, 0, SEGMENT.pack(0, 8, 1), 0),
    (DISCARD, 0, SEGMENT.pack(2048, 1, 2), 0),
    (DISCARD, 0, SEGMENT.pack(0, 32769, 0), 0),
    (DISCARD, 0, SEGMENT.pack(0, 8, 0) * 2, 0),
    (DISCARD, 0, bytes(15), 0),
    (DISCARD | BARRIER, 0, SEGMENT.pack(0, 8, 0), 0),
    (WRITE_ZEROES, 0, SEGMENT.pack(16, 8, 1), 0),
    (WRITE_ZEROES, 0, SEGMENT.pack(16, 8, 3), 0),
    (WRITE_ZEROES, 0, SEGMENT.pack(16, 0, 0), 0),
    (2, 0, b"", 0),
    (99, 0, b"", 16),
]


async def work(vm: FrontEnd) -> list[object]:
    """Return the answers to all kinds of requests."""
    answers: list[object] = []
    for kind, sector, out, into in REQUESTS:
        answer = await vm.queues[0].request(kind, sector, out, into)
        data = answer.data if answer.status == 0 else b""
        answers.append((kind, sector, answer.status, answer.used, data))
    return answers


@pytest.mark.parametrize("options", [("writable=on",), ("writable=off",), ("num-queues=3",)])
@pytest.mark.parametrize("event_idx", [False, True])
def test_the_same_answers(options: tuple[str, ...], event_idx: bool, tmp_path: Path) -> None:
    answers: list[list[object]] = []

    async def talk(path: Path) -> None:
        with trio.fail_after(15):
            async with connect_front_end(path) as vm:
                said = await conversation(vm)
            async with open_front_end(path, event_idx=event_idx, mmap_offset=4096) as vm:
                said += await work(vm)
        answers.append(said)

    for name, program in (("real", oracle.REAL), ("ours", OURS)):
        directory = tmp_path / name
        directory.mkdir()
        images(directory)
        with oracle.Daemon(program, argv(directory, *options), directory):
            trio.run(talk, directory / "s")
        answers[-1].append((directory / "a.img").read_bytes())
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (99, b""),
        (Message.SET_FEATURES, bytes(8)),
        (Message.SET_VRING_KICK, vu.U64.pack(7)),
        (Message.SET_VRING_KICK, vu.U64.pack(0)),
        (Message.SET_VRING_ENABLE, vu.STATE.pack(7, 1)),
        (Message.SET_VRING_ADDR, bytes(40)),
        (Message.SET_CONFIG, vu.CONFIG.pack(0, 8, 0) + bytes(8)),
        (Message.REM_MEM_REG, bytes(8) + vu.REGION.pack(0, 4096, 0, 0)),
        (Message.GET_INFLIGHT_FD, bytes(20)),
    ],
    ids=lambda value: str(int(value)) if isinstance(value, int) else "",
)
def test_the_same_complaints(request_: int, payload: bytes, tmp_path: Path) -> None:
    """What both refuse, and what they write of it."""

    async def talk(path: Path) -> None:
        with trio.fail_after(15):
            async with connect_front_end(path) as vm:
                await vm.send(request_, payload)
                with pytest.raises(EOFError):
                    while True:
                        await vm.receive()
            async with open_front_end(path) as vm:
                await vm.read(0, 512)

    said: list[list[str]] = []
    for name, program in (("real", oracle.REAL), ("ours", OURS)):
        directory = tmp_path / name
        directory.mkdir()
        images(directory)
        with oracle.Daemon(program, argv(directory), directory) as daemon:
            trio.run(talk, directory / "s")
            daemon.stop()
            lines = [line for line in daemon.read_stderr().splitlines() if "vu_panic" in line]
        said.append([line.partition(": ")[2] for line in lines][:1])
    assert said[0]
    assert said[0] == said[1]


def start(directory: Path) -> subprocess.Popen[bytes]:
    daemon = subprocess.Popen([*OURS, *argv(directory)], cwd=directory)
    deadline = time.monotonic() + 15
    while True:
        probe = vu.message(Message.GET_QUEUE_NUM)
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(os.fspath(directory / "s"))
                sock.settimeout(15)
                sock.sendall(probe)
                if sock.recv(20):
                    return daemon
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_under_load_and_started_again(how: signal.Signals, sock_dir: Path) -> None:
    """The front-end keeps its memory and the log, connects again, and misses nothing."""
    images(sock_dir)
    daemon = start(sock_dir)

    async def run() -> None:
        nonlocal daemon
        with trio.fail_after(40):
            async with open_front_end(sock_dir / "s", inflight=True) as vm:
                model = bytearray((sock_dir / "a.img").read_bytes())
                stop = trio.Event()

                async def writer(number: int) -> None:
                    step = 0
                    while not stop.is_set():
                        at = (number * 16 + step % 16) * 4096
                        data = bytes([step & 0xFF]) * 4096
                        await vm.write(at, data)
                        model[at : at + 4096] = data
                        step += 1

                async with trio.open_nursery() as nursery:
                    for number in range(16):
                        nursery.start_soon(writer, number)
                    for _ in range(2):
                        await trio.sleep(0.1)
                        daemon.send_signal(how)
                        daemon.wait(15)
                        daemon = start(sock_dir)
                        vm.sock.close()
                        vm.sock = socket.socket(socket.AF_UNIX)
                        vm.sock.connect(os.fspath(sock_dir / "s"))
                        vm.sock.setblocking(False)
                        await vm.negotiate()
                        await vm.share_memory()
                        await vm.share_inflight()
                        await vm.start(vm.queues[0], base=vm.queues[0].ring.used_index)
                        vm.queues[0].kick()
                    stop.set()
                await vm.flush()
                assert (sock_dir / "a.img").read_bytes() == model

    try:
        trio.run(run)
    finally:
        daemon.kill()
        daemon.wait()
