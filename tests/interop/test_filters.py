"""The filters next to qcow2 against the real daemon: texts, what queries show, permissions."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.oracle import OURS, Call, Daemon, Wait, compare, qmp
from tests.peers import requires

pytestmark = requires("qemu-storage-daemon", "qemu-img", "qemu-io", "nbdcopy")

MIB = 1 << 20


def run(*args: object, cwd: Path) -> str:
    return subprocess.run(
        [*map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=60, check=True
    ).stdout


def qemu_img(*args: object, cwd: Path) -> str:
    return run("qemu-img", *args, cwd=cwd)


def images(directory: Path) -> None:
    """A chain top -> mid -> base.raw, and an image that does not end with a cluster."""
    qemu_img("create", "-q", "-f", "raw", "base.raw", "1M", cwd=directory)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw", "mid", cwd=directory)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "mid", "top", "2M", cwd=directory)
    qemu_img("create", "-q", "-f", "qcow2", "odd", MIB + 1536, cwd=directory)


def file(name: str, **options: Any) -> dict[str, Any]:
    return {"driver": "file", "filename": name, **options}


def add(driver: str, name: str, below: Any, **options: Any) -> dict[str, Any]:
    return qmp("blockdev-add", driver=driver, node_name=name, file=below, **options)


def gone(*names: str) -> list[dict[str, Any]]:
    return [qmp("blockdev-del", node_name=name) for name in names]


CHAIN = add(
    "qcow2",
    "top",
    file("top", **{"node-name": "tf"}),
    backing={
        "driver": "qcow2",
        "node-name": "mid",
        "file": file("mid", **{"node-name": "mf"}),
        "backing": {
            "driver": "raw",
            "node-name": "base",
            "file": file("base.raw", **{"node-name": "bf"}),
        },
    },
)
LOOK = [
    qmp("query-named-block-nodes", flat=True),
    qmp("query-named-block-nodes"),
    qmp("x-debug-query-block-graph"),
]


def reopened(**options: Any) -> dict[str, Any]:
    return qmp(
        "blockdev-reopen",
        options=[{name.replace("_", "-"): value for name, value in options.items()}],
    )


def test_compress() -> None:
    compare(
        [],
        [
            add("raw", "r", file("base.raw")),
            add("compress", "c", "r"),
            add("compress", "c", "nobody"),
            add("compress", "c", {"driver": "null-co"}),
            add("compress", "c", file("base.raw")),
            CHAIN,
            add("compress", "c", "top"),
            *LOOK,
            add("compress", "cc", "c"),
            add("compress", "cr", {"driver": "raw", "file": "c"}),
            add("copy-on-read", "cr", "c"),
            *LOOK,
            *gone("cr"),
            reopened(driver="compress", node_name="c", file="top", read_only=True),
            *gone("c"),
            add("compress", "c", {"driver": "qcow2", "node-name": "o", "file": file("odd")}),
            qmp("nbd-server-start", addr={"type": "unix", "data": {"path": "s"}}),
            qmp("block-export-add", type="nbd", id="e", node_name="c", writable=True),
            qmp("block-export-add", type="nbd", id="e", node_name="c"),
            qmp("block-export-del", id="e"),
            Wait("BLOCK_EXPORT_DELETED"),
            *gone("c"),
            add(
                "compress",
                "c",
                {"driver": "qcow2", "read-only": True, "file": file("odd")},
            ),
            *gone("c"),
        ],
        setup=images,
        ignore=["actual-size"],
    )


def test_copy_on_read() -> None:
    cor = {"driver": "copy-on-read", "node_name": "c", "file": "top"}
    compare(
        [],
        [
            CHAIN,
            add("copy-on-read", "c", "top"),
            *LOOK,
            *gone("c"),
            add("copy-on-read", "c", "top", bottom="nobody"),
            add("copy-on-read", "c", "top", bottom=""),
            add("copy-on-read", "c", "top", bottom="base"),
            *LOOK,
            reopened(driver="qcow2", node_name="mid", file="mf", backing=None),
            reopened(driver="qcow2", node_name="top", file="tf", backing="base"),
            reopened(driver="qcow2", node_name="top", file="tf", backing="mid"),
            reopened(**cor),
            reopened(**cor, bottom="mid"),
            add("copy-on-read", "c2", "top", bottom="mid"),
            *gone("c"),
            add("copy-on-read", "c", "top", bottom="top"),
            *gone("c"),
            add("copy-on-read", "c", "mid", bottom="mid"),
            add("compress", "z", "top"),
            add("copy-on-read", "c", "top", bottom="z"),
            add("copy-on-read", "c", "z", bottom="mid"),
            *LOOK,
            *gone("c", "z"),
            add("copy-on-read", "c", "top", read_only=True),
            *LOOK,
            *gone("c"),
            add("copy-on-read", "c", {"driver": "qcow2", "file": file("odd"), "read-only": True}),
            add("copy-on-read", "c", {"driver": "qcow2", "file": file("odd")}, read_only=True),
            add("copy-on-read", "c", "nobody"),
            reopened(driver="qcow2", node_name="top", file="tf", backing="base"),
            *gone("top"),
        ],
        setup=images,
        ignore=["actual-size"],
    )


def test_preallocate() -> None:
    steps: list[Any] = []
    for options in [
        {"prealloc-align": 513},
        {"prealloc-align": -512},
        {"prealloc-align": 1536},
        {"prealloc-align": "a"},
        {"prealloc-size": -1},
        {"prealloc-size": 1},
    ]:
        steps += [add("preallocate", "p", file("base.raw"), **options), *gone("p")]
    pre = {"driver": "preallocate", "node_name": "p", "file": file("base.raw")}
    over = {"driver": "preallocate", "node-name": "p", "file": file("top", **{"node-name": "f"})}
    steps += [
        add("preallocate", "p", file("base.raw")),
        *LOOK,
        reopened(**pre, prealloc_align=513),
        reopened(**pre, prealloc_align=4096, prealloc_size=65536),
        *LOOK,
        *gone("p"),
        add("qcow2", "q", over, backing=None),
        *LOOK,
        qmp("block_resize", node_name="q", size=4 * MIB),
        *LOOK,
        qmp("block_resize", node_name="p", size=4 * MIB),
        *gone("q"),
        add("preallocate", "p", "nobody"),
        add("preallocate", "p", {"driver": "null-co"}),
        qmp("block_resize", node_name="p", size=2 * MIB),
        *gone("p"),
        add("raw", "q", dict(over, file=file("base.raw", **{"node-name": "f"}))),
        *LOOK,
        qmp("block_resize", node_name="p", size=2 * MIB),
        qmp("block_resize", node_name="q", size=3 * MIB),
        qmp("block_resize", node_name="q", size=MIB),
        *LOOK,
        *gone("q"),
    ]
    compare([], steps, setup=images, ignore=["actual-size"])


def test_snapshot_access() -> None:
    compare(
        [],
        [
            add("raw", "r", file("base.raw", **{"node-name": "f"})),
            add("snapshot-access", "s", "nobody"),
            add("snapshot-access", "s", "r"),
            *LOOK,
            qmp("nbd-server-start", addr={"type": "unix", "data": {"path": "s"}}),
            qmp("block-export-add", type="nbd", id="e", node_name="s", name="a"),
            qmp("block-export-add", type="nbd", id="e2", node_name="s", name="b", writable=True),
            *LOOK,
            qmp("block_resize", node_name="r", size=2 * MIB),
            *LOOK,
            reopened(driver="snapshot-access", node_name="s", file="r"),
            add("snapshot-access", "s2", "r", read_only=True),
            add("raw", "over", "s"),
            *LOOK,
            *gone("over", "s2", "f"),
        ],
        setup=images,
        ignore=["actual-size"],
    )


# -- data ----------------------------------------------------------------------------------------------


def exported(driver: str, below: Any, *, writable: bool = True) -> list[dict[str, Any]]:
    """Export a filter as "c" on the socket "s"."""
    return [
        add(driver, "c", below),
        qmp("nbd-server-start", addr={"type": "unix", "data": {"path": "s"}}),
        qmp("block-export-add", type="nbd", id="e", node_name="c", writable=writable),
    ]


def qemu_io(*commands: str) -> Call:
    """Have qemu-io do things on the export."""
    args = [arg for command in commands for arg in ("-c", command)]

    def call(directory: Path) -> list[str]:
        output = run("qemu-io", "-f", "raw", "nbd+unix:///c?socket=s", *args, cwd=directory)
        return [line for line in output.splitlines() if "sec" not in line]  # no speeds

    return Call(call)


def layout(name: str) -> Call:
    """Have qemu-img check an image and tell what is where in the chain, but for host offsets."""

    def call(directory: Path) -> list[Any]:
        qemu_img("check", name, cwd=directory)
        found = json.loads(qemu_img("map", "--output=json", name, cwd=directory))
        for item in found:
            item.pop("offset", None)
        return found

    return Call(call)


# Hard: the daemon may not have noticed yet that the client has gone.
CLOSE = [qmp("block-export-del", id="e", mode="hard"), Wait("BLOCK_EXPORT_DELETED"), *gone("c")]


def test_reads_are_copied_as_the_real_daemon_does() -> None:
    def setup(directory: Path) -> None:
        images(directory)
        data = random.Random(1).randbytes(300_000)
        (directory / "base.raw").write_bytes(data + bytes(MIB - len(data)))

    compare(
        [],
        [
            *exported("copy-on-read", {"driver": "qcow2", "node-name": "top", "file": file("top")}),
            qemu_io("read 1000 10", "read 200k 150k", "write -P 7 512k 4k", "read 500k 200k"),
            qemu_io("read -P 0 1M 512k", "flush"),
            *CLOSE,
            layout("top"),
        ],
        setup=setup,
    )


def test_writes_are_compressed_as_the_real_daemon_does() -> None:
    compare(
        [],
        [
            *exported("compress", {"driver": "qcow2", "node-name": "top", "file": file("top")}),
            qemu_io(
                "write -P 1 0 64k", "write -P 2 100k 1k", "write -z 256k 64k", "write 320k 256k"
            ),
            qemu_io("read -P 1 0 64k", "read -P 2 100k 1k", "read -P 0 101k 27k", "flush"),
            *CLOSE,
            layout("top"),
            Call(lambda directory: qemu_img("check", "top", cwd=directory).splitlines()[1]),
        ],
        setup=images,
    )


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_an_image_is_as_small_as_qemu_img_makes_it(kind: str, tmp_path: Path) -> None:
    rng = random.Random(1)
    words = [rng.randbytes(6) for _ in range(400)]
    content = b"".join(rng.choices(words, k=4 * MIB // 6)) + rng.randbytes(MIB) + bytes(MIB)
    content += bytes(-len(content) % 65536)
    (tmp_path / "raw").write_bytes(content)
    option = f"compression_type={kind}"
    qemu_img("create", "-qf", "qcow2", "-o", option, "ours", len(content), cwd=tmp_path)
    qemu_img("convert", "-cO", "qcow2", "-o", option, "raw", "theirs", cwd=tmp_path)
    argv = ["--blockdev", "driver=compress,node-name=c,file.driver=qcow2,file.file.driver=file"]
    argv[-1] += ",file.file.filename=ours"
    argv += ["--nbd-server", "addr.type=unix,addr.path=s"]
    argv += ["--export", "nbd,id=e,node-name=c,writable=on"]
    with Daemon(OURS, argv, tmp_path):
        run("nbdcopy", "raw", "nbd+unix:///c?socket=s", cwd=tmp_path)
    qemu_img("check", "ours", cwd=tmp_path)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", "raw", "ours", cwd=tmp_path)
    sizes = [(tmp_path / name).stat().st_size for name in ("ours", "theirs")]
    assert sizes[0] <= sizes[1] * 1.02 + 4 * 65536, sizes


def test_a_preallocated_file_ends_with_its_data() -> None:
    """While it is open it is long, afterwards as long as the real daemon leaves it."""
    over = {"driver": "preallocate", "file": file("odd"), "prealloc-size": MIB}

    def size(directory: Path) -> int:
        return (directory / "odd").stat().st_size

    steps = [
        qmp("blockdev-add", driver="qcow2", node_name="c", file=over),
        qmp("nbd-server-start", addr={"type": "unix", "data": {"path": "s"}}),
        qmp("block-export-add", type="nbd", id="e", node_name="c", writable=True),
        qemu_io("write -P 1 0 256k", "flush", "read -P 1 0 256k"),
        Call(lambda directory: size(directory) % MIB),
        *CLOSE,
        Call(size),
        layout("odd"),
    ]
    compare([], steps, setup=images)
