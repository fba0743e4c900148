"""The qcow2 driver against the real daemon: texts, what queries show, new images, data over NBD."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.oracle import OURS, REAL, Daemon, Wait, compare, qmp
from tests.peers import requires

pytestmark = requires("qemu-storage-daemon", "qemu-img", "nbdinfo")

MIB = 1 << 20


def qemu_img(*args: object, cwd: Path) -> str:
    result = subprocess.run(
        ["qemu-img", *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return result.stdout


def add(filename: str, **options: Any) -> dict[str, Any]:
    file = {"driver": "file", "filename": filename}
    return qmp("blockdev-add", driver="qcow2", node_name="n", file=file, **options)


def tried(filename: str, **options: Any) -> list[dict[str, Any]]:
    return [add(filename, **options), qmp("blockdev-del", node_name="n")]


# (offset, struct format, values) of header fields
FIELDS = [
    (0, ">I", [0, 0x514649FA]),
    (4, ">I", [0, 1, 4, 2**32 - 1]),
    (8, ">Q", [65537, 1 << 40, 2**64 - 1]),
    (20, ">I", [0, 8, 9, 21, 22, 2**32 - 1]),
    (24, ">Q", [0, 512, 1 << 29, (1 << 29) + 512, 2**63]),
    (32, ">I", [3, 2**32 - 1]),
    (36, ">I", [0, 1, 2, 1 << 22, (1 << 22) + 1, 2**32 - 1]),
    (40, ">Q", [0, 1, 512, 1 << 40, 2**63, 2**64 - 1]),
    (48, ">Q", [0, 1, 1 << 40, 2**63]),
    (56, ">I", [0, 1, 128, 129, 2**32 - 1]),
    (60, ">I", [65537, 2**32 - 1]),
    (64, ">Q", [1, 2**63]),
    (72, ">Q", [2, 8, 1 << 5, 3 << 40, 2**64 - 1]),
    (80, ">Q", [1, 2**64 - 1]),
    (88, ">Q", [2, 4, 1 << 63]),
    (96, ">I", [0, 6, 7, 2**32 - 1]),
    (100, ">I", [0, 103, 104, 105, 65536, 65537]),
    (104, ">B", [1, 2, 255]),
]


def test_header_fields() -> None:
    """Each field at and around its limits: the same text, or the same success."""
    steps: list[Any] = []

    def setup(directory: Path) -> None:
        qemu_img("create", "-q", "-f", "qcow2", "good", "64M", cwd=directory)
        good = (directory / "good").read_bytes()
        for at, form, values in FIELDS:
            for value in values:
                data = bytearray(good)
                struct.pack_into(form, data, at, value)
                (directory / f"{at}-{value:x}").write_bytes(data)
        for length in (0, 71, 103, 4096):
            (directory / f"short-{length}").write_bytes(good[:length])

    for at, _, values in FIELDS:
        for value in values:
            steps += tried(f"{at}-{value:x}")
            steps += tried(f"{at}-{value:x}", read_only=True)
    for length in (4096,):
        steps += tried(f"short-{length}")
    compare([], steps, setup=setup)


def test_options() -> None:
    steps: list[Any] = []
    for options in [
        {"cache-size": 1},
        {"cache-size": MIB, "l2-cache-size": 2 * MIB},
        {"cache-size": MIB, "refcount-cache-size": 2 * MIB},
        {"cache-size": MIB, "l2-cache-size": MIB, "refcount-cache-size": MIB},
        {"l2-cache-size": -1},
        {"l2-cache-size": 1 << 62},
        {"refcount-cache-size": 1 << 62},
        {"cache-size": 1 << 62, "l2-cache-size": 1 << 62},
        {"cache-size": 1 << 50, "refcount-cache-size": MIB},
        {"l2-cache-entry-size": 511},
        {"l2-cache-entry-size": 1 << 17},
        {"l2-cache-entry-size": 4096},
        {"cache-clean-interval": -1},
        {"cache-clean-interval": 1 << 33},
        {"cache-clean-interval": 5},
        {"lazy-refcounts": True},
        {"overlap-check": "bad"},
        {"overlap-check": "all"},
        {"overlap-check": {"template": "none", "main-header": True}},
        {"pass-discard-request": True, "pass-discard-other": False},
        {"encrypt": {"format": "luks"}},
        {"backing": None},
        {"backing": "nobody"},
    ]:
        steps += tried("v3", **options)
    steps += tried("v2", **{"lazy-refcounts": True})

    def setup(directory: Path) -> None:
        qemu_img("create", "-q", "-f", "qcow2", "v3", "64M", cwd=directory)
        qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "v2", "64M", cwd=directory)

    compare([], steps, setup=setup)


def test_queries() -> None:
    def setup(directory: Path) -> None:
        qemu_img("create", "-q", "-f", "raw", "below.raw", "64M", cwd=directory)
        qemu_img(
            "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "below.raw", "mid", cwd=directory
        )
        qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "mid", "top", cwd=directory)
        options = "compat=0.10,cluster_size=4096"
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, "v2", "1M", cwd=directory)

    steps: list[Any] = []
    for name, options in [
        ("top", {}),
        ("mid", {}),
        ("mid", {"backing": None}),
        ("v2", {"read-only": True}),
        ("v2", {"discard": "unmap", "cache": {"direct": False, "no-flush": True}}),
    ]:
        steps += [
            add(name, **options),
            qmp("query-named-block-nodes"),
            qmp("x-debug-query-block-graph"),
            qmp("block_resize", node_name="n", size=100 * MIB),
            qmp("block_resize", node_name="n", size=1000),
            qmp("query-named-block-nodes", flat=True),
            qmp("blockdev-del", node_name="n"),
        ]
    compare([], steps, setup=setup, ignore=["actual-size"])


#: (options, whether the job succeeds)
CREATE: list[tuple[dict[str, Any], bool]] = [
    ({"size": 64 * MIB}, True),
    ({"size": 0}, True),
    ({"size": 513}, False),
    ({"size": 64 * MIB, "cluster-size": 513}, False),
    ({"size": 64 * MIB, "cluster-size": 512}, True),
    ({"size": 64 * MIB, "refcount-bits": 3}, False),
    ({"size": 64 * MIB, "refcount-bits": 1}, True),
    ({"size": 64 * MIB, "version": "v2"}, True),
    ({"size": 64 * MIB, "version": "v2", "refcount-bits": 8}, False),
    ({"size": 64 * MIB, "version": "v2", "lazy-refcounts": True}, False),
    ({"size": 64 * MIB, "lazy-refcounts": True}, True),
    ({"size": 64 * MIB, "backing-fmt": "raw"}, False),
    ({"size": 64 * MIB, "backing-file": "below", "backing-fmt": "raw"}, True),
    ({"size": 64 * MIB, "backing-file": "b" * 1024}, False),
    ({"size": 64 * MIB, "backing-file": "b", "preallocation": "full"}, False),
    ({"size": MIB, "preallocation": "metadata"}, True),
    ({"size": MIB, "preallocation": "falloc"}, True),
    ({"size": MIB, "preallocation": "full"}, True),
    ({"size": 1 << 60}, False),
    ({"size": 2**63 - 512}, False),
    ({"size": 64 * MIB, "data-file-raw": True}, False),
]


def test_creating() -> None:
    """The same job errors, and nodes that look the same."""
    steps: list[Any] = []
    for number, (options, works) in enumerate(CREATE):
        job = f"j{number}"
        earlier = sum(5 + ok for _, ok in CREATE[:number])
        file = f"f{number}"
        steps += [
            qmp("blockdev-add", driver="file", node_name=file, filename=file, discard="unmap"),
            qmp(
                "blockdev-create", job_id=job, options={"driver": "qcow2", "file": file, **options}
            ),
            Wait("JOB_STATUS_CHANGE", skip=earlier + 3 + works),
            qmp("query-jobs"),
            qmp("job-dismiss", id=job),
        ]
        if works:
            steps += [
                qmp("blockdev-add", driver="qcow2", node_name="n", file=file, backing=None),
                qmp("query-named-block-nodes"),
                qmp("blockdev-del", node_name="n"),
            ]
        steps.append(qmp("blockdev-del", node_name=file))

    def setup(directory: Path) -> None:
        for number in range(len(CREATE)):
            (directory / f"f{number}").write_bytes(b"old" if number < 10 else b"")

    compare([], steps, setup=setup, ignore=["actual-size"])


@pytest.mark.parametrize("cluster_size", [512, 65536])
def test_data_over_nbd(sock_dir: Path, cluster_size: int) -> None:
    """The clients of QEMU write through our daemon; qemu-img then finds the image sound and equal."""
    rng = random.Random(cluster_size)
    qemu_img("create", "-q", "-f", "raw", "below.raw", "4M", cwd=sock_dir)
    (sock_dir / "below.raw").write_bytes(rng.randbytes(4 * MIB))
    more = f"cluster_size={cluster_size}"
    for name in ("image", "model"):
        qemu_img(
            "create", "-q", "-f", "qcow2", "-o", more, "-F", "raw", "-b", "below.raw", name, "8M",
            cwd=sock_dir,
        )  # fmt: skip
    commands: list[str] = []
    for _ in range(60):
        offset = rng.randrange(8 * MIB // 512) * 512
        length = min(rng.choice([512, 4096, 65536, 200_704]), 8 * MIB - offset)
        commands.append(
            rng.choice(
                [
                    f"write -P {rng.randrange(1, 256)} {offset} {length}",
                    f"aio_write -P {rng.randrange(1, 256)} {offset} {length}\naio_flush",
                    f"write -z {offset} {length}",
                    f"write -zu {offset} {length}",
                    "flush",
                ]
            )
        )
    script = "\n".join(commands) + "\nquit\n"
    url = f"nbd+unix:///e?socket={sock_dir}/nbd"
    argv = [
        "--blockdev", "driver=qcow2,node-name=n,discard=unmap,file.driver=file,file.filename=image",
        "--nbd-server", "addr.type=unix,addr.path=nbd",
        "--export", "type=nbd,id=e,name=e,node-name=n,writable=on",
    ]  # fmt: skip

    def qemu_io(*args: str) -> None:
        done = subprocess.run(
            ["qemu-io", *args], input=script, cwd=sock_dir, capture_output=True, text=True, timeout=60,
            check=True,
        )  # fmt: skip
        assert "failed" not in done.stdout + done.stderr

    with Daemon(OURS, argv, sock_dir, monitor=True) as daemon:
        qemu_io("-f", "raw", url)
        daemon.qmp.command("query-named-block-nodes")
    qemu_io("-f", "qcow2", "-d", "unmap", "model")
    qemu_img("check", "image", cwd=sock_dir)
    qemu_img("compare", "image", "model", cwd=sock_dir)


def test_maps_over_nbd(sock_dir: Path) -> None:
    """Block status of images with data, zeroes, holes, a backing file and preallocation is the same."""
    (sock_dir / "raw").write_bytes(b"r" * (3 * MIB))
    writes = ["write 64k 200k", "write -z 1M 512k", "write -zu 2M 256k", "write 3M 64k"]
    for name, *options in [
        ("plain",),
        ("backed", "-F", "raw", "-b", "raw"),
        ("metadata", "-o", "preallocation=metadata"),
        ("falloc", "-o", "preallocation=falloc"),
        ("small", "-o", "cluster_size=4k,compat=0.10"),
    ]:
        qemu_img("create", "-q", "-f", "qcow2", *options, name, "8M", cwd=sock_dir)
        for command in writes:
            subprocess.run(
                ["qemu-io", "-f", "qcow2", "-d", "unmap", "-c", command, name],
                cwd=sock_dir, capture_output=True, check=True, timeout=60,
            )  # fmt: skip
        # Holes are what the file system says: on disk, not in its memory.
        subprocess.run(["sync", name], cwd=sock_dir, check=True, timeout=60)
        argv = [
            "--blockdev",
            f"driver=qcow2,node-name=n,read-only=on,file.driver=file,file.filename={name}",
            "--nbd-server", "addr.type=unix,addr.path=nbd",
            "--export", "type=nbd,id=e,name=e,node-name=n,allocation-depth=on",
        ]  # fmt: skip
        maps = []
        for program in (REAL, OURS):
            with Daemon(program, argv, sock_dir, monitor=True):
                url = f"nbd+unix:///e?socket={sock_dir}/nbd"
                found = qemu_img("map", "--output=json", "-f", "raw", url, cwd=sock_dir)
                depths = subprocess.run(
                    ["nbdinfo", "--map=qemu:allocation-depth", url],
                    capture_output=True, text=True, check=True, timeout=60,
                ).stdout  # fmt: skip
                maps.append((found, depths))
        assert maps[0] == maps[1], name
