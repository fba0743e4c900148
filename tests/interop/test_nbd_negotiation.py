"""Both servers get the same bytes and must answer the same: negotiation and transmission."""

from __future__ import annotations

import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qsd_trio.protocol.nbd.client import (
    ReplyParser,
    pack_go,
    pack_meta_context,
    pack_name,
    pack_option,
)
from qsd_trio.protocol.nbd.constants import IHAVEOPT, Cmd, CmdFlag, Mode, Opt, ReplyType
from qsd_trio.protocol.nbd.transmission import Request, pack_request
from tests.oracle import OURS, REAL, Daemon, requires

pytestmark = requires("qemu-storage-daemon")

SIZE = 1 << 20
CLIENT = struct.pack(">I", 3)
STRUCTURED = pack_option(Opt.STRUCTURED_REPLY)
ABORT = pack_option(Opt.ABORT)

ARGV = [
    *("--blockdev", "driver=file,node-name=n,filename=n.img"),
    *("--blockdev", "driver=file,node-name=ro,filename=ro.img,read-only=on"),
    *("--nbd-server", "addr.type=unix,addr.path=s"),
    *("--export", "nbd,id=e1,node-name=n,writable=on"),
    *("--export", "nbd,id=e2,node-name=n,name=two,description=desc"),
    *("--export", "nbd,id=e3,node-name=ro,allocation-depth=on,writethrough=on"),
    *("--export", "nbd,id=e4,node-name=ro,name="),
]


@pytest.fixture(scope="module")
def sockets() -> Iterator[tuple[Path, Path]]:
    """Start both daemons; return the paths of their NBD sockets (the real one's first)."""
    with ExitStack() as stack:
        paths = []
        for program in (REAL, OURS):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="q-")))
            (folder / "n.img").write_bytes(bytes(SIZE // 2) + b"data" * (SIZE // 8))
            (folder / "ro.img").write_bytes(bytes(SIZE))
            stack.enter_context(Daemon(program, ARGV, folder, monitor=False))
            paths.append(folder / "s")
        yield paths[0], paths[1]


def talk(path: Path, data: bytes) -> bytes:
    """Send everything, return everything that comes back."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        got = b""
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            while piece := sock.recv(1 << 16):
                got += piece
        except ConnectionResetError:
            pass  # closed with bytes unread: the same to a client
        return got


def meta(option: int, name: str, *queries: str) -> bytes:
    return STRUCTURED + pack_meta_context(option, name, queries)


LIST, SET = Opt.LIST_META_CONTEXT, Opt.SET_META_CONTEXT

NEGOTIATIONS = {
    "list": pack_option(3),
    "list with payload": pack_option(3, b"x") + ABORT,
    "abort with payload": pack_option(2, b"abc"),
    "abort twice": ABORT + ABORT,
    "export name": pack_option(1, b"n"),
    "default export": pack_option(1, b""),
    "unknown export": pack_option(1, b"zz"),
    "export name of 4096": pack_option(1, b"x" * 4096),
    "export name of 4097": pack_option(1, b"x" * 4097),
    "structured, then export name": STRUCTURED + pack_option(1, b"ro"),
    "info": pack_go(6, "n") + ABORT,
    "info of all": pack_go(6, "two", [0, 1, 2, 3, 4, 9]) + ABORT,
    "go": pack_go(7, "two", [3]),
    "go without anything": pack_go(7, "n"),
    "go with name": pack_go(7, "n", [1]),
    "go for unknown": pack_go(7, "zz") + ABORT,
    "go for unknown of 79": pack_go(7, "z" * 79) + ABORT,
    "go for unknown of 80": pack_go(7, "z" * 80) + ABORT,
    "go for unknown of 4096": pack_go(7, "z" * 4096) + ABORT,
    "go for unknown of 4097": pack_go(7, "z" * 4097) + ABORT,
    "go with a tail": pack_option(7, pack_name("n") + b"\0\0xx") + ABORT,
    "go, short": pack_option(7, b"abc") + ABORT,
    "go, empty": pack_option(7) + ABORT,
    "go without count": pack_option(7, pack_name("n")) + ABORT,
    "go, half a count": pack_option(7, pack_name("n") + b"\0") + ABORT,
    "go, too few infos": pack_option(7, pack_name("n") + b"\0\2\0\1") + ABORT,
    "go, name too long": pack_option(7, b"\0\0\0\xffnnnn") + ABORT,
    "go with NUL": pack_go(7, "n\0") + ABORT,
    "go twice": pack_go(6, "n") + pack_go(6, "two") + pack_go(7, "n"),
    "go, not UTF-8": pack_option(7, b"\0\0\0\2\xff\xfe\0\0") + ABORT,
    "starttls": pack_option(5) + ABORT,
    "starttls with payload": pack_option(5, b"x") + ABORT,
    "structured": STRUCTURED + ABORT,
    "structured twice": STRUCTURED + STRUCTURED + ABORT,
    "structured with payload": pack_option(8, b"x") + ABORT,
    "unknown": pack_option(99) + pack_option(0) + pack_option(2**32 - 1, b"abc") + ABORT,
    "unknown of 1 MiB": pack_option(99, bytes(1 << 20)) + ABORT,
    "peek": pack_option(4) + ABORT,
    "too long": struct.pack(">QII", IHAVEOPT, 99, 2**25 + 1) + ABORT,
    "much too long": struct.pack(">QII", IHAVEOPT, 3, 2**32 - 1) + ABORT,
    "contexts without structured": pack_meta_context(LIST, "n", [])
    + pack_meta_context(SET, "n", [])
    + ABORT,
    "list contexts": meta(LIST, "n") + ABORT,
    "list contexts of ro": meta(LIST, "ro") + ABORT,
    "list base:": meta(LIST, "ro", "base:") + ABORT,
    "list qemu:": meta(LIST, "ro", "qemu:") + ABORT,
    "list qemu: of n": meta(LIST, "n", "qemu:") + ABORT,
    "list bitmaps": meta(LIST, "ro", "qemu:dirty-bitmap:") + ABORT,
    "list a bitmap": meta(LIST, "ro", "qemu:dirty-bitmap:x") + ABORT,
    "list depth": meta(LIST, "ro", "qemu:allocation-depth") + ABORT,
    "list depth:": meta(LIST, "ro", "qemu:allocation-depth:") + ABORT,
    "list many": meta(LIST, "ro", "qemu:allocation-depth", "base:allocation", "", "f:b", "base")
    + ABORT,
    "list with a long query": meta(LIST, "ro", "x" * 4096, "y" * 4097, "base:allocation") + ABORT,
    "set both": meta(SET, "ro", "base:allocation", "qemu:allocation-depth") + pack_go(7, "ro"),
    "set twice the same": meta(SET, "ro", "base:allocation", "base:allocation") + ABORT,
    "set base:": meta(SET, "ro", "base:") + ABORT,
    "set none": meta(SET, "ro") + ABORT,
    "set bitmaps": meta(SET, "ro", "qemu:dirty-bitmap:") + ABORT,
    "set for unknown": meta(SET, "zz") + ABORT,
    "set, short": STRUCTURED + pack_option(SET, pack_name("ro") + struct.pack(">I", 5)) + ABORT,
    "set, no count": STRUCTURED + pack_option(SET, pack_name("ro") + b"\0\0") + ABORT,
    "set, query too long": STRUCTURED
    + pack_option(SET, pack_name("ro") + struct.pack(">II", 1, 55) + b"ba")
    + ABORT,
    "set, no name": STRUCTURED + pack_option(SET) + ABORT,
    "set, name of 4097": meta(SET, "x" * 4097) + ABORT,
    "set, name of 4096": meta(SET, "x" * 4096) + ABORT,
    "bad magic": b"x" * 16,
}


def test_negotiations(sockets: tuple[Path, Path]) -> None:
    for name, options in NEGOTIATIONS.items():
        real, ours = (talk(path, CLIENT + options) for path in sockets)
        assert ours == real, name


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 4, 2**32 - 1])
def test_client_flags(sockets: tuple[Path, Path], flags: int) -> None:
    for option in (pack_option(1, b"n"), pack_option(3) + ABORT, pack_option(1, b"zz")):
        data = struct.pack(">I", flags) + option
        real, ours = (talk(path, data) for path in sockets)
        assert ours == real


FLAGS = [0, CmdFlag.FUA, CmdFlag.DF, CmdFlag.NO_HOLE, CmdFlag.REQ_ONE, CmdFlag.FAST_ZERO, 32, 64]
RANGES = [(0, 4096), (SIZE // 2 - 512, 1024), (SIZE - 1, 1), (SIZE, 1), (SIZE, 0), (0, SIZE), (0, SIZE + 1), (2**64 - 1, 1), (0, 0), (0, 2**25 + 1), (4096, 2**32 - 1)]  # fmt: skip


def requests() -> Iterator[tuple[Request, bytes]]:
    for kind in (0, 3, 4, 5, 6, 7, 8, 99):
        for offset, length in RANGES:
            for flags in FLAGS:
                if kind == Cmd.READ and flags & CmdFlag.FUA and length > SIZE:
                    continue
                request = Request(flags, kind, 0x0102030405060708, offset, length)
                yield request, b""
    for offset, length in RANGES[:8]:
        if length <= SIZE:
            for flags in FLAGS:
                request = Request(flags, Cmd.WRITE, 7, offset, length)
                yield request, b"w" * length


STARTS = {
    "simple": pack_go(7, "n"),
    "structured": meta(SET, "n", "base:allocation") + pack_go(7, "n"),
    "read-only": meta(SET, "ro", "qemu:allocation-depth") + pack_go(7, "ro"),
}


@pytest.mark.parametrize("start", STARTS)
def test_transmission(sockets: tuple[Path, Path], start: str) -> None:
    """One connection for all requests, each awaited."""
    with ExitStack() as stack:
        connections = []
        for path in sockets:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(10)
            sock.connect(str(path))
            sock.sendall(CLIENT + STARTS[start])
            got = b""
            while not got.endswith(struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0)):
                got += sock.recv(4096)
            connections.append(sock)
        parsers = [ReplyParser(Mode.SIMPLE if start == "simple" else Mode.STRUCTURED) for _ in "12"]
        for request, payload in requests():
            answers = []
            reads = {request.cookie: request.length} if request.type == Cmd.READ else {}
            for sock, parser in zip(connections, parsers, strict=True):
                sock.sendall(pack_request(request, extended=False) + payload)
                answers.append(reply(sock, parser, reads))
            assert answers[1] == answers[0], request


def reply(sock: socket.socket, parser: ReplyParser, reads: dict[int, int]) -> list[object]:
    """Return a request's reply in a form in which the cutting of data into chunks does not matter."""
    parts: list[object] = []
    content = bytearray()
    while True:
        chunk = parser.next_chunk(reads)
        if chunk is None:
            data = sock.recv(1 << 20)
            assert data
            parser.receive_data(data)
            continue
        if chunk.type == ReplyType.OFFSET_DATA:
            content += (
                chunk.payload[8:] if len(chunk.payload) != reads[chunk.cookie] else chunk.payload
            )
        elif chunk.type == ReplyType.OFFSET_HOLE:
            content += bytes(struct.unpack(">QI", chunk.payload)[1])
        elif chunk.type != ReplyType.NONE:
            parts.append((chunk.type, chunk.cookie, chunk.payload))
        if chunk.done:
            return [*parts, bytes(content)]
