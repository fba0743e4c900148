"""Extended L2 entries and external data files against the real daemon: texts, queries, files, maps."""

from __future__ import annotations

import json
import random
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.oracle import OURS, REAL, Call, Daemon, Wait, compare, qmp
from tests.peers import requires

pytestmark = requires("qemu-storage-daemon", "qemu-img", "qemu-io", "nbdinfo")

MIB = 1 << 20


def qemu_img(*args: object, cwd: Path) -> str:
    return subprocess.run(
        ["qemu-img", *map(str, args)],
        cwd=cwd, capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip


#: (options, whether the job succeeds); "D" stands for the data file's node
CREATE: list[tuple[dict[str, Any], bool]] = [
    ({"data-file": "D"}, True),
    ({"data-file": "D", "data-file-raw": True}, True),
    ({"data-file": "D", "version": "v2"}, False),
    (
        {"data-file": "D", "data-file-raw": True, "backing-file": "x", "backing-fmt": "raw"},
        False,
    ),
    ({"data-file": "D", "preallocation": "metadata"}, True),
    ({"data-file": "D", "preallocation": "falloc"}, True),
    ({"data-file": "D", "preallocation": "full"}, True),
    ({"data-file": "D", "cluster-size": 512}, True),
    ({"data-file": "D", "extended-l2": True, "data-file-raw": True}, True),
    ({"data-file": "nobody"}, False),
    ({"data-file-raw": True}, False),
    ({"extended-l2": True}, True),
    ({"extended-l2": True, "cluster-size": 8192}, False),
    ({"extended-l2": True, "version": "v2"}, False),
    ({"extended-l2": True, "preallocation": "metadata"}, True),
    ({"extended-l2": True, "preallocation": "full"}, True),
    (
        {
            "extended-l2": True,
            "preallocation": "metadata",
            "backing-file": "x",
            "backing-fmt": "raw",
        },
        True,
    ),
    ({"extended-l2": True, "cluster-size": 2 * MIB}, True),
]


def test_creating() -> None:
    """The same job errors, images equal to the byte, the same data files."""
    steps: list[Any] = []
    for number, (options, works) in enumerate(CREATE):
        earlier = sum(5 + ok for _, ok in CREATE[:number])
        file, data = f"f{number}", f"d{number}"
        # With space preallocated in the image itself QEMU moves the refcount table.
        same = works and ("data-file" in options or options.get("preallocation") != "full")
        options = {name: (data if value == "D" else value) for name, value in options.items()}
        steps += [
            qmp("blockdev-add", driver="file", node_name=file, filename=file),
            qmp("blockdev-add", driver="file", node_name=data, filename=data),
            qmp(
                "blockdev-create",
                job_id=f"j{number}",
                options={"driver": "qcow2", "file": file, "size": MIB, **options},
            ),
            Wait("JOB_STATUS_CHANGE", skip=earlier + 3 + works),
            qmp("query-jobs"),
            qmp("job-dismiss", id=f"j{number}"),
            qmp("blockdev-del", node_name=file),
            qmp("blockdev-del", node_name=data),
            Call(lambda path, file=file, same=same: (path / file).read_bytes() if same else b""),
            Call(lambda path, data=data: (path / data).read_bytes()),
        ]

    def setup(directory: Path) -> None:
        for number in range(len(CREATE)):
            (directory / f"f{number}").write_bytes(b"")
            (directory / f"d{number}").write_bytes(b"old")

    compare([], steps, setup=setup, ignore=["actual-size"])


def add(name: str, **options: Any) -> dict[str, Any]:
    file = {"driver": "file", "filename": name}
    return qmp("blockdev-add", driver="qcow2", node_name="n", file=file, **options)


DATA = {"driver": "file", "filename": "data.raw"}
OPENED: list[tuple[str, dict[str, Any]]] = [
    ("data", {}),
    ("data", {"data-file": DATA}),
    ("data", {"read-only": True}),
    ("data", {"data-file": "nobody"}),
    ("raw", {}),
    ("sub", {}),
    ("sub", {"data-file": DATA}),
    ("plain", {"data-file": DATA}),
    ("plain", {"data-file": "nobody"}),
    ("nameless", {}),
    ("nameless", {"data-file": DATA}),
    ("rawbit", {}),
    ("sub", {"l2-cache-entry-size": 512}),
]


def test_opening_and_resizing() -> None:
    """Options, what queries and the graph show, sizes of data files after resizes."""

    def setup(directory: Path) -> None:
        for name, *options in [
            ("plain",),
            ("data", "-o", "data_file=data.raw"),
            ("raw", "-o", "data_file=raw.raw,data_file_raw=on"),
            ("sub", "-o", "extended_l2=on"),
        ]:
            qemu_img("create", "-q", "-f", "qcow2", *options, name, "1M", cwd=directory)
        image = bytearray((directory / "data").read_bytes())
        at = image.index(struct.pack(">I", 0x44415441))
        image[at : at + 4] = struct.pack(">I", 0x44415442)  # an unknown extension: no name
        (directory / "nameless").write_bytes(image)
        image = bytearray((directory / "plain").read_bytes())
        image[88:96] = struct.pack(">Q", 2)
        (directory / "rawbit").write_bytes(image)
        for number, (name, _) in enumerate(OPENED):
            (directory / f"{name}-{number}").write_bytes((directory / name).read_bytes())

    def sizes(path: Path) -> list[tuple[str, int]]:
        return [
            (entry.name, entry.stat().st_size)
            for entry in sorted(path.iterdir())
            if entry.suffix == ".raw"
        ]

    steps: list[Any] = []
    for number, (name, options) in enumerate(OPENED):
        steps += [
            add(f"{name}-{number}", **options),
            qmp("query-named-block-nodes"),
            qmp("x-debug-query-block-graph"),
            qmp("block_resize", node_name="n", size=3 * MIB),
            Call(sizes),
            qmp("query-named-block-nodes", flat=True),
            # The real daemon aborts when a raw data file is resized once more.
            qmp("block_resize", node_name="n", size=3 * MIB if name == "raw" else MIB + 512),
            Call(sizes),
            qmp("blockdev-del", node_name="n"),
        ]
    compare([], steps, setup=setup, ignore=["actual-size"])


READS = [f"read -P 7 {offset} 512" for offset in (0, 65536, 131072)]
CHANGES = ["write -P 9 0 512", "discard 0 64k", "write -z 0 64k"]
COPIED = 1 << 63
#: (name of the image, index of a word in its first L2 table, value, what is done to the image)
CORRUPT = [
    ("sub", 1, 1 | 1 << 32, READS + CHANGES),  # allocated and zero
    ("sub", 1, 2 | 1 << 33, READS),  # ... another subcluster than the one that is read
    ("sub", 5, 1, READS),  # allocated without a host cluster
    ("sub", 0, COPIED | 0x50200, READS + CHANGES),
    ("sub", 0, COPIED | 0x50001, READS),  # not the zero flag here
    # Writes in place where the data of another cluster belong are refused by us only.
    ("data", 0, COPIED | 0x10000, READS),
    ("data", 2, COPIED | 0x10000, READS),
    ("data", 1, 1 << 62 | 0x10000, READS),
    ("data", 1, COPIED | 0x10200, READS),
    ("data", 1, 0x10000, READS),
    ("plain", 0, COPIED | 0x50200, CHANGES),
    ("plain", 0, COPIED | 0x50201, CHANGES),
    ("plain", 0, 0x50200, CHANGES),
]


def test_corrupt_entries() -> None:
    """Requests to what such an entry says: the same result, the same event."""

    def setup(directory: Path) -> None:
        for name, options in [
            ("plain", "cluster_size=64k"),
            ("sub", "extended_l2=on"),
            ("data", "data_file=data.raw"),
        ]:
            qemu_img("create", "-q", "-f", "qcow2", "-o", options, name, "1M", cwd=directory)
            for offset in (0, 65536):
                subprocess.run(
                    ["qemu-io", "-f", "qcow2", "-c", f"write -P 7 {offset} 4k", name],
                    cwd=directory, capture_output=True, check=True, timeout=60,
                )  # fmt: skip
            good = (directory / name).read_bytes()
            (l1,) = struct.unpack_from(">Q", good, 40)
            table = struct.unpack_from(">Q", good, l1)[0] & (1 << 56) - 1
            for number, (which, index, value, commands) in enumerate(CORRUPT):
                if which == name:
                    image = bytearray(good)
                    struct.pack_into(">Q", image, table + index * 8, value)
                    for turn in range(len(commands)):
                        (directory / f"c{number}-{turn}").write_bytes(image)

    def io(path: Path, command: str) -> list[str]:
        url = f"nbd+unix:///n?socket={path}/nbd"
        done = subprocess.run(
            ["qemu-io", "-f", "raw", "-d", "unmap", "-c", command, url],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        lines = (done.stdout + done.stderr).splitlines()
        return [line for line in lines if "ops/sec" not in line]

    steps: list[Any] = [
        qmp("nbd-server-start", addr={"type": "unix", "data": {"path": "nbd"}}),
    ]
    done = 0
    for number, (_, _, _, commands) in enumerate(CORRUPT):
        for turn, command in enumerate(commands):
            steps += [
                add(f"c{number}-{turn}", discard="unmap"),
                qmp("block-export-add", type="nbd", id="n", node_name="n", writable=True),
                Call(lambda path, command=command: io(path, command)),
                qmp("block-export-del", id="n", mode="hard"),
                Wait("BLOCK_EXPORT_DELETED", skip=done),
                qmp("blockdev-del", node_name="n"),
            ]
            done += 1
    compare([], steps, setup=setup, check_stderr=False)


WRITES = [
    "write -P 1 64k 200k", "write -P 2 300k 1k", "write -P 3 5000 3000", "write -z 512k 256k",
    "write -z 515k 4k", "write -zu 70k 20k", "write -z 900k 1k", "write -zu 1M 512k",
    "discard 128k 64k", "write -P 4 1100k 100", "write -z 2M 500", "write -P 5 2500k 64k",
    "write -zu 2500k 2k", "flush", "quit",
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "backed"),
    [
        ("cluster_size=64k", False),
        ("cluster_size=4k", True),
        ("extended_l2=on", False),
        ("extended_l2=on,cluster_size=16k", True),
        ("extended_l2=on,preallocation=metadata", True),
        ("data_file=data", True),
        ("data_file=data,extended_l2=on", False),
        ("data_file=data,data_file_raw=on", False),
    ],
)
def test_what_clients_write(sock_dir: Path, options: str, backed: bool) -> None:
    """Through either daemon: the same block status over NBD, map by qemu-img, content, raw file."""
    real, ours = (
        written(program, sock_dir / name, options, backed=backed)
        for program, name in ((REAL, "real"), (OURS, "ours"))
    )
    for name, value in real.items():
        assert ours[name] == value, name


def written(program: str, directory: Path, options: str, *, backed: bool) -> dict[str, object]:
    """Make an image, write to it through a daemon; return what is seen of it."""
    directory.mkdir()
    (directory / "below").write_bytes(random.Random(1).randbytes(MIB))
    more = ["-F", "raw", "-b", "below"] if backed else []
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, *more, "image", "3M", cwd=directory)
    argv = [
        "--blockdev", "driver=qcow2,node-name=n,discard=unmap,file.driver=file,file.filename=image",
        "--nbd-server", "addr.type=unix,addr.path=nbd",
        "--export", "type=nbd,id=e,name=e,node-name=n,writable=on,allocation-depth=on",
    ]  # fmt: skip
    url = f"nbd+unix:///e?socket={directory}/nbd"
    with Daemon(program, argv, directory, monitor=True):
        done = subprocess.run(
            ["qemu-io", "-f", "raw", "-d", "unmap", url],
            input="\n".join(WRITES), capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert "failed" not in done.stdout + done.stderr
        status = qemu_img("map", "--output=json", "-f", "raw", url, cwd=directory)
        depths = subprocess.run(
            ["nbdinfo", "--map=qemu:allocation-depth", url],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip
    qemu_img("check", "image", cwd=directory)
    qemu_img("convert", "-O", "raw", "image", "content", cwd=directory)
    return {
        "status": merged(json.loads(status)),
        "depths": depths,
        "map": merged(json.loads(qemu_img("map", "--output=json", "image", cwd=directory))),
        "content": (directory / "content").read_bytes(),
        "raw": (directory / "data").read_bytes() if "raw=on" in options else b"",
    }


def merged(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what qemu-img map says, without places and holes of the files: these may differ."""
    found: list[dict[str, Any]] = []
    for entry in entries:
        del entry["start"]
        length = entry.pop("length")
        entry["place"] = entry.pop("offset", None) is not None
        if entry["data"]:
            del entry["zero"]
        if found and found[-1] | {"length": 0} == entry | {"length": 0}:
            found[-1]["length"] += length
        else:
            found.append(entry | {"length": length})
    return found
