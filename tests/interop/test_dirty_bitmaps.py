"""Dirty bitmaps against the real daemon: commands, what is recorded, checksums."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.oracle import OURS, REAL, Call, Daemon, compare, qmp
from tests.peers import requires

pytestmark = requires("qemu-storage-daemon", "qemu-img", "qemu-io", "nbdinfo")

MIB = 1 << 20
Json = Any


def command(verb: str, node: str = "n", name: str = "b", **more: Json) -> Json:
    return qmp(f"block-dirty-bitmap-{verb}", node=node, name=name, **more)


def merge(node: str, target: str, *bitmaps: Json) -> Json:
    return qmp("block-dirty-bitmap-merge", node=node, target=target, bitmaps=list(bitmaps))


def sha256(name: str, node: str = "n") -> Json:
    return qmp("x-debug-block-dirty-bitmap-sha256", node=node, name=name)


def node(driver: str, name: str, filename: str, **more: Json) -> Json:
    file = {"driver": "file", "filename": filename}
    return qmp("blockdev-add", driver=driver, node_name=name, file=file, **more)


QUERY = qmp("query-named-block-nodes", flat=True)


def images(directory: Path) -> None:
    for name, size, options in [
        ("plain", "64M", ""),
        ("v2", "64M", "compat=0.10"),
        ("small", "1G", "cluster_size=512"),
        ("big", "64M", "cluster_size=1M"),
    ]:
        more = ["-o", options] if options else []
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", *more, name, size],
            cwd=directory, check=True, timeout=60,
        )  # fmt: skip
    (directory / "raw").write_bytes(bytes(MIB))


NODES = [
    node("qcow2", "n", "plain"),
    node("qcow2", "v2", "v2"),
    node("qcow2", "small", "small"),
    node("qcow2", "big", "big"),
    node("raw", "raw", "raw"),
    qmp("blockdev-add", driver="null-co", node_name="null", size=1 << 40),
]


def test_commands() -> None:
    compare(
        [],
        [
            *NODES,
            *(command("add", **more) for more in [
                {"node": "nobody"}, {"name": ""}, {"granularity": 0}, {"granularity": 511},
                {"granularity": 513}, {"granularity": 2**32}, {"granularity": -1},
                {"granularity": 2**31}, {}, {"persistent": True}, {"name": "x" * 1023},
                {"name": "x" * 1024}, {"name": "é" * 512}, {"name": "d", "disabled": True},
                {"node": "raw", "persistent": True}, {"node": "null", "persistent": True},
                {"node": "v2", "persistent": True},
                {"node": "raw"}, {"node": "null"}, {"node": "small"}, {"node": "big"},
            ]),
            QUERY,
            sha256("b"),
            sha256("x" * 1023),
            sha256("b", "small"),
            sha256("b", "null"),
            sha256("nobody"),
            sha256("b", "nobody"),
            *(command(verb, name="nobody") for verb in ("clear", "remove", "enable", "disable")),
            *(command(verb, node="nobody") for verb in ("clear", "remove", "enable", "disable")),
            *(command(verb) for verb in ("clear", "disable", "disable", "enable")),
            merge("n", "b", "d", {"node": "n", "name": "d"}),
            merge("n", "b", "nobody"),
            merge("n", "b", "d", "nobody"),
            merge("n", "nobody", "b"),
            merge("nobody", "b", "b"),
            merge("n", "b", {"node": "small", "name": "b"}),
            merge("n", "b", {"node": "nobody", "name": "b"}),
            merge("n", "b", {"node": "small", "name": "nobody"}),
            merge("n", "b", "b"),
            merge("n", "b", 5),
            qmp("block_resize", node_name="n", size=100 * MIB),
            QUERY,
            sha256("d"),
            command("remove"),
            command("remove"),
            QUERY,
            # The default granularity is that of the format below: the checksum tells it.
            qmp("blockdev-add", driver="raw", node_name="over", file="small"),
            command("add", node="over", persistent=True),
            command("add", node="over"),
            sha256("b", "over"),
            qmp("blockdev-add", driver="copy-on-read", node_name="cor", file="over"),
            command("add", node="cor"),
            QUERY,
        ],
        setup=images,
        ignore=["actual-size"],
    )  # fmt: skip


SERVER = qmp("nbd-server-start", addr={"type": "unix", "data": {"path": "s"}})


def export(id_: str, *bitmaps: Json, node: str = "n", **more: Json) -> Json:
    return qmp(
        "block-export-add", type="nbd", id=id_, node_name=node, bitmaps=list(bitmaps), **more
    )


def test_exports() -> None:
    backing = {"driver": "file", "filename": "raw"}
    compare(
        [],
        [
            SERVER,
            qmp("blockdev-add", driver="file", node_name="below", filename="raw", read_only=True),
            node("qcow2", "n", "plain", backing="below"),
            qmp("blockdev-add", driver="raw", node_name="other", file=backing),
            command("add"),
            command("add", name="off", disabled=True),
            command("add", node="below"),
            command("add", node="below", name="deep"),
            command("add", node="other", name="there"),
            export("e", "b"),
            export("e", "off", "nobody"),
            export("e", {"node": "nobody", "name": "b"}),
            export("e", {"node": "below", "name": "nobody"}),
            export("e", {"node": "other", "name": "there"}),
            export("e", 5),
            export("e", "off", "off"),
            *(command(verb, name="off") for verb in ("clear", "remove", "enable", "disable")),
            merge("n", "b", "off"),
            merge("n", "off", "b"),
            QUERY,
            qmp("blockdev-add", driver="raw", node_name="over", file="n"),
            export("f", "off"),
            export("f", "b", "deep", {"node": "below", "name": "b"}, writable=True),
            qmp("block-export-del", id="e"),
            export("g", "off", "deep", node="over", name="g"),
            export("g", "off", node="over", name="g"),
            qmp("nbd-server-add", device="over", name="h", bitmap="b"),
            qmp("block-export-del", id="f"),
            qmp("nbd-server-add", device="over", name="h", bitmap="b"),
            command("disable"),
            qmp("nbd-server-add", device="over", name="h", bitmap="b"),
            qmp("query-block-exports"),
            qmp("block-export-del", id="g"),
            qmp("block-export-del", id="h"),
            command("remove"),
            command("remove", name="off"),
            command("remove", node="below"),
        ],
        setup=images,
        ignore=["actual-size"],
        check_stderr=False,
    )  # fmt: skip


WRITES = [
    "write 0 512", "write 1M 64k", "write 3000 100", "write -z 10M 1M", "write -zu 20M 3000000",
    "discard 30M 1M", "discard 40000000 1000000", "write 67107840 1024", "aio_write 50M 128k", "flush",
]  # fmt: skip


def test_what_is_recorded(sock_dir: Path) -> None:
    """The same requests make the same maps, counts and checksums, by every granularity."""
    found = []
    for program in (REAL, OURS):
        images(sock_dir)
        argv = [
            "--blockdev", "driver=qcow2,node-name=n,discard=unmap,file.driver=file,file.filename=plain",
            "--blockdev", "driver=raw,node-name=plain,file.driver=file,file.filename=raw",
            "--nbd-server", "addr.type=unix,addr.path=s",
        ]  # fmt: skip
        with Daemon(program, argv, sock_dir, monitor=True) as daemon:
            run = daemon.qmp.command
            outcome: list[Json] = []
            names = []
            for granularity in (512, 4096, 65536, 1 << 20, 1 << 31):
                names.append(f"g{granularity}")
                for kind, disabled in (("", False), ("off", True)):
                    run(
                        "block-dirty-bitmap-add", node="n", name=f"g{granularity}{kind}",
                        granularity=granularity, disabled=disabled,
                    )  # fmt: skip
            run("block-dirty-bitmap-add", node="plain", name="raw", granularity=512)
            run(
                "block-export-add", id="w", type="nbd", name="w", node_name="n", writable=True,
                bitmaps=names,
            )  # fmt: skip
            run("block-export-add", id="p", type="nbd", name="p", node_name="plain", writable=True)
            for writes in (WRITES[:3], WRITES):
                qemu_io(sock_dir, "w", writes)
                outcome += [nbd_map(sock_dir, "w", f"qemu:dirty-bitmap:{name}") for name in names]
            outcome.append(nbdinfo(sock_dir, "w", "--list"))
            qemu_io(sock_dir, "p", ["write 1000 1000", "write 1048000 576", "discard 0 1M"])
            run("block-export-del", id="w", mode="hard")
            daemon.qmp.wait_event("BLOCK_EXPORT_DELETED")
            for coarse, fine in (
                ("g512off", "g65536"),
                ("g65536off", "g512"),
                ("g4096", "g1048576"),
            ):
                run("block-dirty-bitmap-merge", node="n", target=coarse, bitmaps=[fine])
            run(
                "block-dirty-bitmap-merge",
                node="n",
                target=f"g{1 << 20}off",
                bitmaps=["g512", "g65536"],
            )
            run("block_resize", node_name="n", size=64 * MIB + 1536)
            run("block_resize", node_name="n", size=52 * MIB)
            run("block_resize", node_name="n", size=80 * MIB)
            for info in run("query-named-block-nodes", flat=True):
                outcome.append(info.get("dirty-bitmaps"))
                outcome += [
                    run(
                        "x-debug-block-dirty-bitmap-sha256",
                        node=info["node-name"],
                        name=each["name"],
                    )
                    for each in info.get("dirty-bitmaps", ())
                ]
            found.append(outcome)
    for theirs, mine in zip(*found, strict=True):
        assert mine == theirs


def qemu_io(directory: Path, name: str, commands: list[str]) -> None:
    options = f"driver=nbd,export={name},server.type=unix,server.path={directory}/s,discard=unmap"
    arguments = [part for each in commands for part in ("-c", each)]
    done = subprocess.run(
        ["qemu-io", "--image-opts", *arguments, options],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "failed" not in done.stdout + done.stderr


def nbdinfo(directory: Path, name: str, *arguments: str) -> str:
    return subprocess.run(
        ["nbdinfo", *arguments, f"nbd+unix:///{name}?socket={directory}/s"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip


def nbd_map(directory: Path, name: str, context: str) -> str:
    return nbdinfo(directory, name, f"--map={context}")


def bitmap_image(directory: Path) -> bytes:
    """Make ``good``: three bitmaps by QEMU's own tools, one of them disabled."""
    for line in (
        "create -q -f qcow2 good 64M",
        "bitmap --add good b1",
        "bitmap --add -g 4096 good b2",
    ):
        qemu_img(directory, *line.split())
    writes = ("-c", "write 0 100k", "-c", "write 10M 1M")
    subprocess.run(
        ["qemu-io", *writes, "good"], cwd=directory, check=True, timeout=60, capture_output=True
    )
    qemu_img(directory, "bitmap", "--add", "--disable", "good", "b3")
    return (directory / "good").read_bytes()


def qemu_img(directory: Path, *arguments: str) -> str:
    return subprocess.run(
        ["qemu-img", *arguments], cwd=directory, check=True, timeout=60, capture_output=True, text=True
    ).stdout  # fmt: skip


# Where a field is, (struct format, offset from there), and values at and around its limits.
FIELDS: dict[str, list[tuple[str, int, list[int]]]] = {
    "extension": [
        (">I", -4, [16, 32]),
        (">I", 0, [0, 2, 4, 65535, 65536]),
        (">I", 4, [1]),
        (">Q", 8, [0, 8, 88, 97, 104, 65535 * 1024, 65535 * 1024 + 1, 2**64 - 1]),
        (">Q", 16, [0, 1, 1 << 40, 2**63, 2**64 - 65536]),
    ],
    "entry": [
        (">Q", 0, [0, 1, 512, 1 << 40, 1 << 62, 2**64 - 65536]),
        (">I", 8, [0, 2, 8192, 8193, 2**32 - 1]),
        (">I", 12, [0, 1, 2, 3, 4, 0x80000002]),
        (">B", 16, [0, 2]),
        (">B", 17, [8, 9, 12, 31, 32, 255]),
        (">H", 18, [0, 1, 3, 1023, 1024, 65535]),
        (">I", 20, [1, 8, 2**32 - 1]),
        (">B", 25, [0, ord("2")]),
    ],
    "table": [(">Q", 0, [1, 2, 512, 65537, 1 << 40, 1 << 55, 1 << 63])],
    "autoclear": [(">Q", 0, [0])],
}


def mutants(good: bytes) -> Iterator[tuple[str, bytes]]:
    extension = good.index(struct.pack(">II", 0x23852875, 24)) + 8
    (entry,) = struct.unpack_from(">Q", good, extension + 16)
    (table,) = struct.unpack_from(">Q", good, entry)
    places = {"extension": extension, "entry": entry, "table": table, "autoclear": 88}
    for place, fields in FIELDS.items():
        for form, at, values in fields:
            for value in values:
                data = bytearray(good)
                struct.pack_into(form, data, places[place] + at, value)
                yield f"{place}-{at}-{value:x}", bytes(data)


def test_each_field_of_stored_bitmaps(tmp_path: Path) -> None:
    """Read-only and writable: the same text, or the same bitmaps, also after the image was closed."""
    some = dict(mutants(bitmap_image(tmp_path)))

    def setup(directory: Path) -> None:
        for name, data in some.items():
            (directory / name).write_bytes(data)

    steps: list[Json] = []
    for name in some:
        for read_only in (True, False, True):
            steps += [
                node("qcow2", "n", name, read_only=read_only),
                QUERY,
                qmp("blockdev-del", node_name="n"),
            ]
    compare([], steps, setup=setup, ignore=["actual-size"], check_stderr=False)


def test_life_of_stored_bitmaps(tmp_path: Path) -> None:
    """Inconsistent ones, reopening, removal, resizing, storing: replies, and what is left in the image."""
    good = bitmap_image(tmp_path)
    (entry,) = struct.unpack_from(
        ">Q", good, good.index(struct.pack(">II", 0x23852875, 24)) + 8 + 16
    )
    data = bytearray(good)
    struct.pack_into(">I", data, entry + 12, 3)

    def setup(directory: Path) -> None:
        images(directory)
        (directory / "lost").write_bytes(data)
        (directory / "good").write_bytes(good)

    def reopen(read_only: bool, filename: str = "lost") -> Json:
        file = {"driver": "file", "filename": filename}
        options = {"driver": "qcow2", "node-name": "n", "file": file, "read-only": read_only}
        return qmp("blockdev-reopen", options=[options])

    def left(name: str) -> Json:
        return Call(lambda directory: stored(directory, name))

    compare(
        [],
        [
            node("qcow2", "n", "lost"),
            *(command(verb, name="b1") for verb in ("clear", "enable", "disable")),
            command("add", name="b1", persistent=True),
            merge("n", "b2", "b1"),
            merge("n", "b1", "b2"),
            sha256("b1"),
            sha256("b2"),
            SERVER,
            export("e", "b1", writable=True),
            qmp("block_resize", node_name="n", size=128 * MIB),
            QUERY,
            reopen(True),
            QUERY,
            left("lost"),
            *(command(verb, name="b2") for verb in ("clear", "enable", "disable", "remove")),
            command("remove", name="b1"),
            merge("n", "b3", "b2"),
            command("add", name="tmp"),
            command("add", name="later", persistent=True),
            reopen(False),
            QUERY,
            command("remove", name="b1"),
            QUERY,
            qmp("block_resize", node_name="n", size=128 * MIB),
            qmp("block_resize", node_name="n", size=50 * MIB + 512),
            command("enable", name="b2"),
            merge("n", "b3", "b2"),
            command("add", name="b1", persistent=True, granularity=512),
            command("add", name="é", persistent=True, disabled=True),
            export("e", "b2", writable=True),
            command("remove", name="b2"),
            qmp("block-export-del", id="e"),
            QUERY,
            qmp("blockdev-del", node_name="n"),
            left("lost"),
            node("qcow2", "n", "lost", read_only=True),
            QUERY,
            *(sha256(name) for name in ("b1", "b2", "b3", "later", "é")),
            qmp("blockdev-del", node_name="n"),
            node("qcow2", "n", "good"),
            *(command("remove", name=f"b{number}") for number in (1, 2, 3)),
            QUERY,
            qmp("blockdev-del", node_name="n"),
            left("good"),
            node("qcow2", "v2", "v2"),
            command("add", node="v2", persistent=True),
        ],
        setup=setup,
        ignore=["actual-size"],
    )  # fmt: skip


def stored(directory: Path, name: str) -> Json:
    """Return the bitmaps that qemu-img sees in a sound image."""
    check = json.loads(qemu_img(directory, "check", "-U", "--output=json", name))
    info = json.loads(qemu_img(directory, "info", "-U", "--output=json", name))
    assert not {"corruptions", "leaks", "check-errors"} & {k for k, v in check.items() if v}
    return info["format-specific"]["data"].get("bitmaps")


@pytest.mark.parametrize(
    ("writer", "layout"),
    [
        (REAL, "cluster_size=4k"),
        (OURS, "cluster_size=4k"),
        (OURS, "extended_l2=on"),
        (OURS, "data_file=data,data_file_raw=on"),
        (OURS, "lazy_refcounts=on,cluster_size=512"),
    ],
    ids=["theirs", "ours", "subclusters", "data file", "lazy refcounts"],
)
def test_one_stores_the_other_loads(sock_dir: Path, writer: tuple[str, ...], layout: str) -> None:
    reader = OURS if writer is REAL else REAL
    qemu_img(sock_dir, "create", "-q", "-f", "qcow2", "-o", layout, "plain", "64M")
    argv = [
        "--blockdev", "driver=qcow2,node-name=n,discard=unmap,file.driver=file,file.filename=plain",
        "--nbd-server", "addr.type=unix,addr.path=s",
    ]  # fmt: skip
    names = {"fine": 512, "usual": 65536, "huge": 1 << 31, "off": 4096}
    sums = []
    for turn, program in enumerate((writer, reader, writer)):
        with Daemon(program, argv, sock_dir, monitor=True) as daemon:
            run = daemon.qmp.command
            if not turn:
                for name, granularity in names.items():
                    run(
                        "block-dirty-bitmap-add", node="n", name=name, persistent=True,
                        granularity=granularity, disabled=name == "off",
                    )  # fmt: skip
            found = [
                run("x-debug-block-dirty-bitmap-sha256", node="n", name=name) for name in names
            ]
            if turn:
                assert found == sums
            for info in run("query-named-block-nodes", flat=True):
                for bitmap in info.get("dirty-bitmaps", ()):
                    assert bitmap["recording"] is (bitmap["name"] != "off")
                    assert bitmap["granularity"] == names[bitmap["name"]]
            run("block-export-add", id="w", type="nbd", name="w", node_name="n", writable=True)
            qemu_io(
                sock_dir, "w", [f"write {turn}M 3000", f"write {30 + turn}M 2M", "discard 0 1M"]
            )
            if turn == 1:
                run("block-dirty-bitmap-merge", node="n", target="off", bitmaps=["fine"])
            sums = [run("x-debug-block-dirty-bitmap-sha256", node="n", name=name) for name in names]
        assert len(stored(sock_dir, "plain")) == len(names)


def test_killed_daemons_leave_bitmaps_that_nobody_believes(sock_dir: Path) -> None:
    argv = [
        "--blockdev", "driver=qcow2,node-name=n,file.driver=file,file.filename=plain",
        "--nbd-server", "addr.type=unix,addr.path=s",
        "--export", "type=nbd,id=w,name=w,node-name=n,writable=on",
    ]  # fmt: skip
    images(sock_dir)
    qemu_img(sock_dir, "bitmap", "--add", "plain", "b")
    with Daemon(OURS, argv, sock_dir, monitor=True) as daemon:
        qemu_io(sock_dir, "w", ["write 1M 64k", "flush"])
        daemon.process.kill()
        daemon.process.wait(20)
    (sock_dir / "s").unlink(missing_ok=True)
    info = json.loads(qemu_img(sock_dir, "info", "--output=json", "plain"))
    (bitmap,) = info["format-specific"]["data"]["bitmaps"]
    assert bitmap["flags"] == ["in-use", "auto"]
    with Daemon(OURS, argv, sock_dir, monitor=True) as daemon:
        (infos,) = [
            node["dirty-bitmaps"]
            for node in daemon.qmp.command("query-named-block-nodes", flat=True)
            if "dirty-bitmaps" in node
        ]
        assert infos[0]["inconsistent"] is True
        daemon.qmp.command("block-dirty-bitmap-remove", node="n", name="b")
    assert stored(sock_dir, "plain") is None


def test_bitmaps_record_on_after_a_reopen_that_failed(sock_dir: Path) -> None:
    """Stored for becoming read-only, but another node could not follow. (The real daemon keeps them read-only.)"""
    for name in ("a", "b"):
        qemu_img(sock_dir, "create", "-q", "-f", "qcow2", name, "64M")
        qemu_img(sock_dir, "bitmap", "--add", name, "dirty")
    server = ["--nbd-server", "addr.type=unix,addr.path=s"]
    argv = [
        *("--blockdev", "driver=qcow2,node-name=a,file.driver=file,file.filename=a"),
        *("--blockdev", "driver=qcow2,node-name=b,file.driver=file,file.filename=b"),
        *server,
    ]
    common = {"driver": "qcow2", "read-only": True}
    options = [
        {**common, "node-name": "a", "file": {"driver": "file", "filename": "a"}},
        {
            **common, "node-name": "b", "file": {"driver": "file", "filename": "b"},
            "cache-size": 1, "l2-cache-size": 2,
        },
    ]  # fmt: skip
    with Daemon(OURS, argv, sock_dir, monitor=True) as daemon:
        reply = daemon.qmp.execute(qmp("blockdev-reopen", options=options))
        assert reply["error"]["desc"] == "l2-cache-size may not exceed cache-size"
        daemon.qmp.command(
            "block-export-add", id="w", type="nbd", name="w", node_name="a", writable=True
        )
        info = json.loads(qemu_img(sock_dir, "info", "-U", "--output=json", "a"))
        assert info["format-specific"]["data"]["bitmaps"][0]["flags"] == ["in-use", "auto"]
        qemu_io(sock_dir, "w", ["write 1M 64k"])
        infos = daemon.qmp.command("query-named-block-nodes", flat=True)
        counts = {
            each["node-name"]: each.get("dirty-bitmaps", [{}])[0].get("count") for each in infos
        }
        assert (counts["a"], counts["b"]) == (65536, 0)
    for name in ("a", "b"):
        assert stored(sock_dir, name) == [
            {"name": "dirty", "granularity": 65536, "flags": ["auto"]}
        ]
