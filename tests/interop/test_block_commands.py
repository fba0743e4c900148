"""The commands of block nodes against the real daemon: same replies, texts, events, graphs."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.oracle import compare, qmp, requires

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires("qemu-storage-daemon", "qemu-img")

SMALL = 1 << 20


def images(directory: Path) -> None:
    """Make a raw image, one of odd size, and a qcow2 chain."""
    (directory / "disk.img").write_bytes(bytes(SMALL))
    (directory / "odd.img").write_bytes(b"x" * 1000)
    for argv in (
        ["-f", "qcow2", "base.qcow2", "4M"],
        ["-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"],
        ["-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top2.qcow2", "6M"],
    ):
        subprocess.run(["qemu-img", "create", "-q", *argv], cwd=directory, check=True)


def file(name: str, filename: str = "disk.img", **more: Any) -> dict[str, Any]:
    """Return blockdev-add of a file node."""
    return qmp("blockdev-add", driver="file", node_name=name, filename=filename, **more)


def raw(name: str, child: object, **more: Any) -> dict[str, Any]:
    """Return blockdev-add of a raw node."""
    return qmp("blockdev-add", driver="raw", node_name=name, file=child, **more)


def reopen(*options: dict[str, Any]) -> dict[str, Any]:
    """Return a blockdev-reopen."""
    return {"execute": "blockdev-reopen", "arguments": {"options": list(options)}}


QUERIES = [
    qmp("query-named-block-nodes"),
    qmp("query-named-block-nodes", flat=True),
    qmp("query-block"),
    qmp("query-blockstats"),
    qmp("query-blockstats", query_nodes=True),
    qmp("x-debug-query-block-graph"),
]

SCRIPTS: dict[str, list[Any]] = {
    "names": [
        *(file(name) for name in ("x" * 31, "x" * 32, "", "1a", "a b", "#a", "a/b", "ok", "ok")),
        file("with.dots-and_1"),
        qmp("blockdev-add", driver="file", filename="disk.img"),
        file("missing", "nope.img"),
        raw("self", "self"),
        raw("loop", {"driver": "raw", "file": "loop", "node-name": "inner"}),
        *QUERIES,
    ],
    "graph": [
        file("f"),
        file("ro", read_only=True),
        raw("r", "f"),
        raw("r2", "f"),
        raw("r3", "ro"),
        raw("r4", "ro", auto_read_only=True),
        raw("r5", "f", size=512),
        raw("r6", "f", read_only=True),
        raw("r7", {"driver": "file", "filename": "disk.img"}, read_only=True),
        raw("r8", {"driver": "file", "filename": "disk.img", "node-name": "own"}, offset=512),
        *QUERIES,
        qmp("blockdev-del", node_name="nope"),
        qmp("blockdev-del", node_name="f"),
        qmp("blockdev-del", node_name="own"),
        qmp("blockdev-del", node_name="r8"),
        qmp("blockdev-del", node_name="own"),
        qmp("blockdev-del", node_name="r"),
        *QUERIES,
    ],
    "odd sizes": [
        file("o", "odd.img"),
        raw("ro", "o"),
        qmp("blockdev-add", driver="null-co", node_name="n", size=12345),
        qmp("blockdev-add", driver="null-co", node_name="n2", read_zeroes=True),
        qmp("blockdev-add", driver="null-aio", node_name="n3", size=0),
        *QUERIES,
    ],
    "permissions": [
        file("f"),
        raw("r", "f"),
        qmp("blockdev-add", driver="qcow2", node_name="bad", file="f"),
        qmp(
            "nbd-server-start",
            addr={"type": "unix", "data": {"path": "nbd.sock"}},
        ),
        qmp("block-export-add", type="nbd", id="e", node_name="r", writable=True),
        qmp("block-export-add", type="nbd", id="e2", node_name="f", writable=True),
        qmp(
            "blockdev-add",
            driver="qcow2",
            node_name="q",
            file={"driver": "file", "node-name": "qf", "filename": "base.qcow2"},
        ),
        qmp("block-export-add", type="nbd", id="e3", node_name="qf", writable=True),
        qmp("block-export-add", type="nbd", id="e4", node_name="qf"),
        qmp("blockdev-add", driver="qcow2", node_name="conflict", file="f"),
        raw("ro", "f", read_only=True),
        qmp("block-export-add", type="nbd", id="e5", node_name="ro", writable=True),
        raw("fixed", "f", size=4096),
        qmp("block_resize", node_name="qf", size=SMALL * 2),
        qmp("blockdev-del", node_name="r"),
    ],
    "resize": [
        file("f"),
        raw("r", "f"),
        qmp("block_resize", node_name="r", size=2 * SMALL),
        qmp("block_resize", node_name="r", size=2 * SMALL + 1),
        qmp("block_resize", node_name="r", size=-1),
        qmp("block_resize", node_name="r", size=1 << 62),
        qmp("block_resize", node_name="f", size=4096),
        qmp("block_resize", node_name="f", size=0),
        qmp("block_resize", size=4096),
        qmp("block_resize", node_name="zz", size=4096),
        qmp("block_resize", device="zz", size=4096),
        qmp("block_resize", device="zz", node_name="r", size=4096),
        raw("fixed", "f", size=512),
        qmp("block_resize", node_name="fixed", size=1024),
        qmp("block_resize", node_name="r", size=4096),
        file("ro", "odd.img", read_only=True),
        qmp("block_resize", node_name="ro", size=4096),
        qmp("query-named-block-nodes"),
    ],
    "qcow2 chain": [
        qmp(
            "blockdev-add",
            driver="qcow2",
            node_name="q",
            file={"driver": "file", "filename": "top.qcow2"},
        ),
        *QUERIES,
        qmp("block_resize", node_name="q", size=8 * SMALL),
        qmp("block_resize", node_name="q", size=8 * SMALL - 1),
        *QUERIES[:1],
        qmp("blockdev-del", node_name="q"),
        *QUERIES,
    ],
    "qcow2 given chain": [
        qmp(
            "blockdev-add",
            driver="qcow2",
            node_name="q",
            file={"driver": "file", "filename": "top.qcow2", "node-name": "qf"},
            backing={
                "driver": "qcow2",
                "node-name": "b",
                "file": {"driver": "file", "filename": "base.qcow2", "node-name": "bf"},
            },
        ),
        *QUERIES,
        qmp("blockdev-del", node_name="b"),
        qmp("blockdev-add", driver="null-co", node_name="n", read_zeroes=True),
        qmp(
            "blockdev-add",
            driver="qcow2",
            node_name="q2",
            file={"driver": "file", "filename": "top2.qcow2"},
            backing=None,
        ),
        qmp(
            "blockdev-add",
            driver="qcow2",
            node_name="q3",
            file={"driver": "file", "filename": "top2.qcow2"},
            read_only=True,
        ),
        *QUERIES[:1],
        reopen({"driver": "qcow2", "node-name": "q", "file": "qf"}),
        reopen({"driver": "qcow2", "node-name": "q", "file": "qf", "backing": "q"}),
        reopen({"driver": "qcow2", "node-name": "q", "file": "qf", "backing": "n"}),
        *QUERIES,
        reopen({"driver": "qcow2", "node-name": "q", "file": "qf", "backing": None}),
        *QUERIES,
        reopen({"driver": "qcow2", "node-name": "q", "file": "qf", "backing": "n"}),
        *QUERIES[:1],
    ],
    "options": [
        file("zz", discard="foo"),
        file("zz", detect_zeroes="unmap"),
        file("z0", detect_zeroes="unmap", discard="unmap"),
        file("z2", read_only=True, auto_read_only=True),
        file("z3", force_share=True),
        file("z4", force_share=True, read_only=True),
        file("z5", cache={"direct": False, "no-flush": True}),
        file("z6", cache={"direct": "x"}),
        file("z7", cache={"nope": True}),
        file("z8", cache=5),
        *QUERIES,
    ],
    "reopen": [
        file("f"),
        file("ro", read_only=True),
        raw("r", "f"),
        raw("r3", "ro"),
        raw("r4", "ro"),
        reopen({"driver": "raw", "node-name": "r", "file": "f", "read-only": True}),
        reopen({"driver": "raw", "node-name": "rzz", "file": "f"}),
        reopen({"driver": "raw", "file": "f"}),
        reopen({"driver": "file", "filename": "disk.img", "node-name": "ro"}),
        reopen({"driver": "file", "filename": "odd.img", "node-name": "ro"}),
        reopen({"driver": "qcow2", "file": "f", "node-name": "r"}),
        reopen(
            {"driver": "raw", "file": "f", "node-name": "r"},
            {"driver": "raw", "file": "f", "node-name": "r3"},
        ),
        reopen({"driver": "raw", "file": "ro", "node-name": "r4", "offset": 512}),
        reopen(
            {
                "driver": "raw",
                "file": {"driver": "file", "filename": "disk.img"},
                "node-name": "r4",
            }
        ),
        reopen({"driver": "raw", "node-name": "r4", "file": "f"}),
        reopen({"driver": "raw", "node-name": "r4", "file": "r4"}),
        reopen({"driver": "raw", "node-name": "r4", "file": "nope"}),
        reopen({"driver": "raw", "node-name": "r4", "file": "f", "discard": "unmap"}),
        reopen({"driver": "file", "filename": "disk.img", "node-name": "f", "read-only": True}),
        *QUERIES,
    ],
    "write threshold": [
        file("f"),
        qmp("block-set-write-threshold", node_name="f", write_threshold=5),
        qmp("block-set-write-threshold", node_name="nope", write_threshold=5),
        qmp("block-set-write-threshold", node_name="f", write_threshold=-1),
        qmp("query-named-block-nodes"),
        qmp("block-set-write-threshold", node_name="f", write_threshold=0),
        qmp("query-named-block-nodes"),
    ],
    "arguments": [
        qmp("blockdev-add"),
        qmp("blockdev-add", driver="nope", node_name="x"),
        qmp("blockdev-add", driver=5, node_name="x"),
        qmp("blockdev-add", driver="file", node_name="x"),
        qmp("blockdev-add", driver="file", node_name="x", filename=5),
        qmp("blockdev-add", driver="file", node_name="x", filename="disk.img", size=5),
        qmp("blockdev-add", driver="raw", node_name="x"),
        qmp("blockdev-add", driver="raw", node_name="x", file=5),
        qmp("blockdev-add", driver="raw", node_name="x", file={}),
        qmp("blockdev-add", driver="raw", node_name="x", file={"driver": "file"}),
        qmp("blockdev-add", driver="raw", node_name="x", file=None),
        qmp("blockdev-del"),
        qmp("blockdev-del", node_name=1),
        qmp("blockdev-del", node_name="a", extra=1),
        qmp("blockdev-reopen"),
        reopen({"driver": "raw"}),
        qmp("block_resize", node_name="x"),
        qmp("block_resize", node_name="x", size="5"),
        qmp("query-named-block-nodes", flat="yes"),
    ],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_same_as_the_real_daemon(name: str) -> None:
    compare([], SCRIPTS[name], setup=images)
