"""The commands of exports and of the NBD server against the real daemon: replies, texts, events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.oracle import Wait, compare, qmp, requires

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires("qemu-storage-daemon")


def images(directory: Path) -> None:
    (directory / "a.img").write_bytes(bytes(1 << 20))
    (directory / "ro.img").write_bytes(bytes(1 << 20))


def start(kind: str = "unix", /, **more: Any) -> dict[str, Any]:
    """Return nbd-server-start on the socket ``s``."""
    return qmp("nbd-server-start", addr={"type": kind, "data": {"path": "s"}}, **more)


def start_at(kind: str, /, **data: Any) -> dict[str, Any]:
    return qmp("nbd-server-start", addr={"type": kind, "data": data})


def add(id_: str, node: str = "n", **more: Any) -> dict[str, Any]:
    return qmp("block-export-add", type="nbd", id=id_, node_name=node, **more)


NODES = [
    qmp("blockdev-add", driver="file", node_name="n", filename="a.img"),
    qmp("blockdev-add", driver="file", node_name="ro", filename="ro.img", read_only=True),
]
LIST = qmp("query-block-exports")
STOP = qmp("nbd-server-stop")
LONG = "x" * 4097

SCRIPTS: dict[str, list[Any]] = {
    "without a server": [
        STOP,
        LIST,
        add("e"),
        qmp("nbd-server-add", device="n"),
        qmp("nbd-server-remove", name="n"),
        qmp("block-export-del", id="n"),
        *NODES,
        add("e"),
        add("e", name=LONG),
        add("e", "ro", writable=True),
        qmp("nbd-server-add", device="n"),
        qmp("nbd-server-add", device="n", name=LONG),
        qmp("nbd-server-add", device="nope", name=LONG),
        qmp("nbd-server-add", device="n", description=LONG),
        qmp("nbd-server-add", device="n", bitmap="b"),
        start(tls_creds="t"),
        start(max_connections=-1),
        start(max_connections=2**32),
        start(max_connections="1"),
        start("bad"),
        start_at("unix", path="/nonexistent/s"),
        start_at("unix", path="/x" * 100),
        start_at("fd", str="99"),
        start_at("fd", str="name"),
        start_at("inet", host="192.0.2.1", port="1"),
        qmp("nbd-server-start"),
        LIST,
    ],
    "server": [
        start(tls_authz="nobody"),
        start(),
        STOP,
        STOP,
        start(max_connections=0),
        STOP,
        LIST,
    ],
    "exports": [
        *NODES,
        start(),
        *(add(bad) for bad in ("", "1a", "a b", "a!", "-a", "é")),
        add("e", "nope"),
        add("e", "ro", writable=True),
        add("e", name=LONG),
        add("e", description=LONG),
        add("e", bitmaps=["b"]),
        add("e", bitmaps=[{"node": "nope", "name": "b"}]),
        add("e", bitmaps=[{"node": "ro", "name": "b"}]),
        add("e", iothread="nobody"),
        add("e", iothread="nobody", fixed_iothread=True),
        add("e", fixed_iothread=True),
        add("e"),
        add("e2"),
        add("e2", name="n"),
        add("e2", name="two", writable=True),
        add("e3", "ro", name="", writethrough=True, allocation_depth=True, description="d"),
        add("e4", "ro", name=""),
        add("x" * 300, "ro", name="a long id"),
        add("a.b-c_d", "ro", name="é"),
        LIST,
        qmp("blockdev-del", node_name="n"),
        qmp("block-export-del", id="nope"),
        qmp("block-export-del", id="e", mode="bad"),
        qmp("block-export-del", id="e"),
        qmp("block-export-del", id="e"),
        qmp("block-export-del", id="e2", mode="hard"),
        qmp("nbd-server-remove", name="two"),
        qmp("nbd-server-remove", name="e3"),
        LIST,
        STOP,
        LIST,
        *(qmp("blockdev-del", node_name=name) for name in ("n", "ro")),
    ],
    "the deprecated commands": [
        *NODES,
        start(),
        qmp("nbd-server-add", device="nope"),
        qmp("nbd-server-add", device="n", name="a b"),
        qmp("nbd-server-add", device="n", name=""),
        qmp("nbd-server-add", device="n", writable=True),
        qmp("nbd-server-add", device="n"),
        qmp("nbd-server-add", device="n", name=LONG),
        qmp("nbd-server-add", device="n", description=LONG, name="d"),
        qmp("nbd-server-add", device="n", bitmap="b", name="d"),
        qmp("nbd-server-add", device="n", bitmap="b" * 4096, name="d"),
        qmp("nbd-server-add", device="ro", writable=True, name="d", description="text"),
        add("n"),
        LIST,
        qmp("nbd-server-remove", name="n", mode="safe"),
        qmp("nbd-server-remove", name="d", mode="hard"),
        qmp("nbd-server-remove", name="d", mode="bad"),
        qmp("nbd-server-remove", name="d"),
        LIST,
    ],
    "other types and bad arguments": [
        *NODES,
        start(),
        qmp("block-export-add", type="bad", id="e", node_name="n"),
        qmp("block-export-add", type="nbd", id="e"),
        qmp("block-export-add", type="nbd", node_name="n"),
        qmp("block-export-add", type="nbd", id=1, node_name="n"),
        qmp("block-export-add", id="e", node_name="n"),
        add("e", writable="on"),
        add("e", growable=True),
        add("e", bitmaps=[1]),
        qmp("block-export-del"),
        qmp("query-block-exports", x=1),
    ],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_commands(name: str) -> None:
    compare([], SCRIPTS[name], setup=images)


def test_stop_deletes_the_exports_in_order() -> None:
    steps = [*NODES, start(), add("e"), add("e2", "ro"), STOP, Wait("BLOCK_EXPORT_DELETED"), LIST]
    compare([], steps, setup=images)


@pytest.mark.parametrize(
    "argv",
    [
        ["--nbd-server", "addr.type=unix,addr.path=s,max-connections=x"],
        ["--nbd-server", "addr.type=unix,addr.path=s,nope=1"],
        ["--nbd-server", "addr.type=unix"],
        ["--nbd-server", "addr.type=unix,addr.path=/nonexistent/s"],
        [
            "--nbd-server",
            "addr.type=unix,addr.path=s",
            "--nbd-server",
            "addr.type=unix,addr.path=t",
        ],
        ["--export", "nbd,id=e,node-name=n"],
        ["--export", "type=nbd,id=e"],
        ["--nbd-server", "addr.type=unix,addr.path=s", "--export", "nbd,id=e,node-name=n"],
    ],
)
def test_command_line_errors(argv: list[str]) -> None:
    compare(argv, [], setup=images)
