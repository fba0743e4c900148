"""QMP to the byte: the same bytes go to both daemons, and the same bytes have to come back."""

from __future__ import annotations

import random
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.oracle import OURS, REAL, Daemon, requires

pytestmark = requires("qemu-storage-daemon")

MARK = b'{"execute": "END-OF-TEST"}'
MARK_REPLY = b"END-OF-TEST has not been found"
NEGOTIATE = b'{"execute": "qmp_capabilities"}'
OOB = b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}'
TIMEOUT = 20


class Wire:
    """One of the daemons, with a plain and a pretty monitor."""

    ARGV = tuple(
        word
        for name, pretty in (("plain", "off"), ("pretty", "on"))
        for word in (
            "--chardev", f"socket,path={name}.sock,server=on,wait=off,id={name}",
            "--monitor", f"chardev={name},pretty={pretty}",
        )
    )  # fmt: skip

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def connect(self, name: str = "plain") -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(TIMEOUT)
        connection.connect(f"/proc/{self.daemon.pid}/cwd/{name}.sock")
        return connection

    def exchange(
        self,
        data: bytes,
        *,
        name: str = "plain",
        until: bytes = MARK_REPLY,
        half_close: bool = False,
    ) -> bytes:
        """Return what comes back until a line with ``until`` is complete."""
        with self.connect(name) as connection:
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            return normalised(receive(connection, until))


def receive(connection: socket.socket, until: bytes | None) -> bytes:
    """Return what comes up to the end of the message with ``until``, or (None) of everything."""
    received = b""
    while until is None or until not in received or not re.search(rb"(^|[^ ])}\r\n\Z", received):
        try:
            data = connection.recv(1 << 20)
        except ConnectionResetError:  # the real daemon leaves with our bytes unread
            data = b""
        if not data:
            break
        received += data
    return received


def normalised(data: bytes) -> bytes:
    data = re.sub(rb'"package": "[^"]*"', b'"package": ""', data)
    return re.sub(rb'"(micro)?seconds": \d+', rb'"\1seconds": 0', data)


@pytest.fixture(scope="module")
def wires() -> Iterator[tuple[Wire, Wire]]:
    with (
        tempfile.TemporaryDirectory(prefix="q-") as real,
        tempfile.TemporaryDirectory(prefix="q-") as ours,
        Daemon(REAL, Wire.ARGV, Path(real)) as real_daemon,
        Daemon(OURS, Wire.ARGV, Path(ours)) as our_daemon,
    ):
        yield Wire(real_daemon), Wire(our_daemon)


def same(wires: tuple[Wire, Wire], data: bytes, **how: object) -> bytes:
    real, ours = (wire.exchange(data, **how) for wire in wires)  # type: ignore[arg-type]
    assert ours == real
    return real


NOT_NEGOTIATED = [
    b"",
    b"\xff",
    b'{"execute": "query-version"}',
    b'{"execute": "nope", "id": [1, {"a": null}]}',
    b'{"execute": 5}',
    b'{"exec-oob": "qmp_capabilities"}',
    b'{"execute": "qmp_capabilities", "arguments": {"enable": ["foo"]}}',
    b'{"execute": "qmp_capabilities", "arguments": {"enable": "oob"}}',
    b'{"execute": "qmp_capabilities", "arguments": {"enable": [1]}}',
    b'{"execute": "qmp_capabilities", "arguments": {"x": 1}}',
    b'{"execute": "qmp_capabilities", "arguments": []}',
]


def test_before_negotiation(wires: tuple[Wire, Wire]) -> None:
    for sample in NOT_NEGOTIATED:
        got = same(wires, sample + b"\xff" + b'{"execute": "END", "id": "E"}', until=b'"E"')
        assert got.startswith(b'{"QMP": {"version": ')


def test_negotiation(wires: tuple[Wire, Wire]) -> None:
    for enable in (b"[]", b'["oob"]', b'["oob", "oob"]'):
        arguments = b'"arguments": {"enable": %s}' % enable
        same(wires, b'{"execute": "qmp_capabilities", "id": 1, %s}' % arguments + NEGOTIATE + MARK)


REQUESTS = [
    b'{"execute": "query-version"}',
    b'{"execute": "query-version", "arguments": {}}',
    b'{"execute": "query-version", "arguments": {"a": 1}}',
    b'{"execute": "query-version", "arguments": null, "id": 1}',
    b'{"execute": "query-version", "arguments": [], "id": 1}',
    b'{"execute": "query-jobs", "id": null}',
    b'{"execute": "query-jobs", "id": {"b": 1, "a": [], "c": {"x": true}}}',
    b'{"execute": "query-jobs", "id": [0.1, 1e100, 1e999, -0.0, -0, 18446744073709551615, 1e2]}',
    b'{"execute": "query-jobs", "id": 99999999999999999999}',
    b'{"execute": "query-jobs", "id": "\\u00e9\\ud83d\\ude00\\u0000\\n\\u007f"}',
    "{'execute': 'query-jobs', 'id': 'é\U0001f600'}".encode(),
    b'{"execute": ""}',
    b'{"execute": "a b"}',
    b'{"execute": "\\u0000"}',
    b'{"execute": null, "id": 2}',
    b'{"execute": {}, "arguments": 5}',
    b'{"arguments": 5, "execute": {}}',
    b'{"foo": 1, "bar": 2, "execute": "x"}',
    b'{"id": 1}',
    b"{}",
    b"[]",
    b'"x"',
    b"null ",
    b"1.5 ",
    b'{"execute": "block-export-add"}',
    b'{"execute": "job-dismiss", "arguments": {"id": 1}}',
    b'{"execute": "job-dismiss", "arguments": {"id": "x"}}',
    b'{"execute": "job-pause", "arguments": {"id": "x"}}',
    b'{"execute": "job-resume", "arguments": {"id": "x"}}',
    b'{"execute": "job-cancel", "arguments": {"id": "x"}}',
    b'{"execute": "job-complete", "arguments": {"id": "x"}}',
    b'{"execute": "job-finalize", "arguments": {"id": "x", "y": 1}}',
    b'{"execute": "query-block-jobs"}',
]


@pytest.mark.parametrize("name", ["plain", "pretty"])
@pytest.mark.parametrize("capabilities", [NEGOTIATE, OOB])
def test_requests(wires: tuple[Wire, Wire], name: str, capabilities: bytes) -> None:
    for end in (b"\n", b"", b"\r\n\t "):
        same(wires, capabilities + end.join(REQUESTS) + MARK, name=name)


@pytest.mark.parametrize(
    "sample", [b'{"exec-oob": "query-version", "execute": 1}', b'{"exec-oob": 1}']
)
def test_out_of_band_without_leave(wires: tuple[Wire, Wire], sample: bytes) -> None:
    same(wires, NEGOTIATE + sample + MARK)


OOB_REQUESTS = [
    b'{"exec-oob": "query-version", "id": 7}',
    b'{"exec-oob": "nope"}',
    b'{"exec-oob": 5}',
    b'{"exec-oob": "qmp_capabilities"}',
    b'{"execute": "a", "exec-oob": "b", "id": 3}',
    b'{"exec-oob": "query-version", "arguments": []}',
    b'{"exec-oob": "query-version", "foo": 1}',
]


def test_out_of_band(wires: tuple[Wire, Wire]) -> None:
    for sample in OOB_REQUESTS:
        same(wires, OOB + sample + MARK)


@pytest.mark.parametrize("capabilities", [NEGOTIATE, OOB])
def test_many_at_once_are_answered_in_order(wires: tuple[Wire, Wire], capabilities: bytes) -> None:
    queries = b"".join(b'{"execute": "query-version", "id": %d}' % i for i in range(300))
    got = same(wires, capabilities + queries + MARK)
    assert re.findall(rb'"id": (\d+)', got) == [b"%d" % i for i in range(300)]


@pytest.mark.parametrize("brackets", [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting(wires: tuple[Wire, Wire], brackets: tuple[bytes, bytes]) -> None:
    opening, closing = brackets
    for depth in (1022, 1023, 1024):
        value = opening * depth + b"1" + closing * depth
        # The member `execute` makes the request one level deeper.
        same(wires, NEGOTIATE + b'{"execute": "x", "id": ' + value + b"}\xff" + MARK)


FRAGMENTS = [
    b"{", b"}", b"[", b"]", b",", b":", b'"a"', b"'b'", b'"', b"'", b"1", b"0", b"-", b".", b"e",
    b"E", b"+", b"true", b"null", b"nul", b"x", b" ", b"\n", b"\t", b"\x00", b"\x01", b"\xff",
    b"\xfe", b"\xc3\xa9", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80",
    b"\xf5\x80\x80\x80", b"\xc0\x80", b"\xc1\x81", b"\xef\xbf\xbf", b"\xf8\x88\x80\x80\x80",
    b"\xfc\x80", b"\x80", b"\\", b"\\u", b"\\u00e9", b"\\ud83d", b"\\ude00", b"\\u0000", b"\\n",
    b"\\/", b"\\'", b"@", b"%", b"#", b"\x7f", b"1.5", b"1e3", b"-0", b"18446744073709551616",
    b'{"execute":', b'"id":', b'"execute":"x"', b'"a":',
]  # fmt: skip


def mutilated(rng: random.Random) -> bytes:
    pieces = b"".join(rng.choice(FRAGMENTS) for _ in range(rng.randint(0, 8)))
    kind = rng.random()
    if kind < 0.2:
        quote = rng.choice([b'"', b"'"])
        return b'{"execute":"x","id":' + quote + pieces + quote + b"}"
    if kind < 0.4:
        return b'{"execute":"x","id":' + pieces + b"}"
    if kind < 0.5:
        return rng.randbytes(rng.randint(1, 12))
    return pieces


@pytest.mark.parametrize("seed", range(4))
def test_mutilated_input(wires: tuple[Wire, Wire], seed: int) -> None:
    rng = random.Random(seed)
    # Each is ended by 0xFF, which resets the parser. Pieces small enough for the sockets' buffers.
    for _ in range(10):
        samples = [mutilated(rng) + b"\xff" for _ in range(50)]
        data = NEGOTIATE + b"".join(samples) + MARK
        real, ours = (wire.exchange(data) for wire in wires)
        if ours != real:  # which one was it?
            for sample in samples:
                same(wires, NEGOTIATE + sample + MARK)
        assert ours == real


def test_what_came_before_a_half_close_is_carried_out(wires: tuple[Wire, Wire]) -> None:
    data = NEGOTIATE + b'{"execute": "query-jobs"}' * 20 + MARK
    got = same(wires, data, half_close=True)
    assert got.count(b'"return": []') == 20
    # An unfinished request at the end is no error.
    same(wires, NEGOTIATE + MARK + b'{"exec', half_close=True)


def test_an_unterminated_number_waits(wires: tuple[Wire, Wire]) -> None:
    got = same(wires, NEGOTIATE + b"12", until=b'{"return": {}}\r\n')
    assert b"error" not in got


def lifecycle(wire: Wire, monitor: str) -> tuple[bytes, bytes]:
    """Make a node in one session and see its job's events in another; return what both saw."""
    create = (
        b'{"execute": "blockdev-create", "arguments": {"job-id": "j",'
        b' "options": {"driver": "file", "filename": "x.img", "size": 4096}}}'
    )
    with wire.connect("pretty" if monitor == "plain" else "plain") as other:
        other.sendall(NEGOTIATE)
        receive(other, b'"return"')
        with wire.connect(monitor) as connection:
            connection.sendall(NEGOTIATE + create)
            mine = receive(connection, b"concluded")
            if mine.count(b'"return"') < 2:
                mine += receive(connection, b'"return"')
            connection.sendall(b'{"execute": "job-dismiss", "arguments": {"id": "j"}}' + MARK)
            mine += receive(connection, MARK_REPLY)
        seen = receive(other, b'"null"')
    return normalised(mine), normalised(seen)


def test_events_reach_every_session(wires: tuple[Wire, Wire]) -> None:
    for monitor in ("plain", "pretty"):
        real, ours = (lifecycle(wire, monitor) for wire in wires)
        assert sorted(ours[0].split(b"\r\n")) == sorted(real[0].split(b"\r\n"))
        assert ours[1] == real[1]


def test_quit() -> None:
    outcomes = []
    for program in (REAL, OURS):
        argv = [
            *Wire.ARGV,
            *("--blockdev", "null-co,node-name=n,read-zeroes=on"),
            *("--nbd-server", "addr.type=unix,addr.path=nbd.sock"),
            *("--export", "nbd,id=a,node-name=n"),
            *("--export", "nbd,id=b,node-name=n,name=b"),
        ]
        with (
            tempfile.TemporaryDirectory(prefix="q-") as directory,
            Daemon(program, argv, Path(directory), monitor=False) as daemon,
        ):
            wire = Wire(daemon)
            with wire.connect("plain") as one, wire.connect("pretty") as two:
                two.sendall(NEGOTIATE)
                receive(two, b'"return"')
                one.sendall(
                    NEGOTIATE
                    + b'{"execute": "quit", "id": 1}'
                    + b'{"execute": "query-version"}' * 9
                )
                lines = sorted(normalised(receive(one, None)).split(b"\r\n"))
                other = sorted(normalised(receive(two, None)).split(b"\r\n"))
            outcomes.append((lines, other, daemon.wait()))
    assert outcomes[1] == outcomes[0]
    lines, other, code = outcomes[0]
    assert b'{"return": {}, "id": 1}' in lines
    assert other.count(b'    "event": "BLOCK_EXPORT_DELETED",') == 2
    assert code == 0
