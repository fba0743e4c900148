"""Internal snapshots and overlap-check against the real daemon: texts, events, and what qemu-img finds."""

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

pytestmark = requires("qemu-storage-daemon", "qemu-img", "qemu-io")

MIB = 1 << 20
CLUSTER = 65536
#: When a snapshot was taken (vm-clock is the time of day in a storage daemon), and how long files are.
DIFFERENT = [
    "date-sec",
    "date-nsec",
    "vm-clock-sec",
    "vm-clock-nsec",
    "actual-size",
    "virtual-size",
]


def qemu_img(directory: Path, *args: object) -> str:
    result = subprocess.run(
        ["qemu-img", *map(str, args)],
        cwd=directory, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return result.stdout


def qemu_io(directory: Path, image: str, *commands: str) -> list[str]:
    """Run commands on an image, or on the export ``e``; return what was said of failures."""
    target = ["-f", "qcow2", image]
    if not image:
        target = ["-f", "raw", f"nbd+unix:///e?socket={directory}/nbd"]
    result = subprocess.run(
        ["qemu-io", *(part for command in commands for part in ("-c", command)), *target],
        cwd=directory, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return [line for line in (result.stdout + result.stderr).splitlines() if "failed" in line]


def add(filename: str, name: str = "n", **options: Any) -> dict[str, Any]:
    file = {"driver": "file", "filename": filename, "node-name": f"{name}-file"}
    return qmp("blockdev-add", driver="qcow2", node_name=name, file=file, **options)


def take(device: str, name: str) -> dict[str, Any]:
    return qmp("blockdev-snapshot-internal-sync", device=device, name=name)


def delete(device: str, **which: str) -> dict[str, Any]:
    return qmp("blockdev-snapshot-delete-internal-sync", device=device, **which)


def test_commands() -> None:
    def setup(directory: Path) -> None:
        for name, options in [
            ("v3", "compat=1.1"),
            ("v2", "compat=0.10"),
            ("narrow", "refcount_bits=1"),
            ("external", "data_file=data,data_file_raw=on"),
        ]:
            qemu_img(directory, "create", "-q", "-f", "qcow2", "-o", options, name, "1M")
            qemu_io(directory, name, "write 0 100k")
        qemu_img(directory, "create", "-q", "-f", "raw", "raw", "1M")

    steps: list[Any] = [
        add("v3", "a"),
        add("v2", "b"),
        add("narrow", "c"),
        add("external", "d"),
        qmp(
            "blockdev-add", driver="raw", node_name="r", file={"driver": "file", "filename": "raw"}
        ),
        qmp("blockdev-add", driver="raw", node_name="over", file="b"),
        *[take(device, "s1") for device in ("", "x", "r", "a", "b", "c", "d", "a-file", "over")],
        take("a", "s1"),
        take("a", ""),
        take("r", ""),
        take("a", "1"),
        take("a", "é" * 200),
        take("a", "x" * 300),
        take("a", "x" * 255),
        qmp("query-named-block-nodes"),
        qmp("query-named-block-nodes", flat=True),
    ]
    for device in ("", "x", "r", "a", "d", "a-file", "over"):
        steps += [
            delete(device),
            delete(device, name=""),
            delete(device, id=""),
            delete(device, name="none"),
            delete(device, id="77"),
            delete(device, id="77", name="s1"),
        ]
    steps += [
        delete("a", id="1", name="1"),
        delete("a", name="1"),
        delete("a", id="3"),
        take("a", "again"),
        delete("a", name="again"),
        take("a", "again"),
        qmp("query-named-block-nodes", flat=True),
        qmp("block_resize", node_name="a", size=2 * MIB),
        qmp("block_resize", node_name="a", size=MIB),
        delete("over", name="s1"),
        qmp("blockdev-del", node_name="over"),
        take("b", "kept"),
        qmp("block_resize", node_name="b", size=2 * MIB),
        qmp("block_resize", node_name="b", size=1000),
        qmp(
            "blockdev-reopen",
            options=[{"driver": "qcow2", "node-name": "b", "file": "b-file", "read-only": True}],
        ),
        take("b", "more"),
        qmp("query-named-block-nodes", flat=True),
        # The real daemon forgets it all the same, until it opens the image again.
        delete("b", name="kept"),
        delete("b", name="none"),
    ]
    compare([], steps, setup=setup, ignore=DIFFERENT)


#: (field's offset in the table's entry, struct format, values)
FIELDS = [
    (0, ">Q", [1 << 40, 1 << 62]),
    (8, ">I", [0, 1, 2]),
    (12, ">H", [0, 1, 127, 128, 65535]),
    (14, ">H", [0, 1, 65535]),
    (16, ">I", [2**32 - 1]),
    (20, ">I", [2**32 - 1]),
    (24, ">Q", [2**63, 2**64 - 1]),
    (32, ">I", [5, 2**32 - 1]),
    (36, ">I", [0, 7, 8, 15, 16, 23, 24, 25, 1024, 1025, 2**32 - 1]),
    (40, ">Q", [1, 2**63, 2**64 - 1]),
    (48, ">Q", [0, 513, 2**64 - 1]),
    (56, ">Q", [0, 1, 2**63, 2**64 - 1]),
]
#: Values that make the snapshot's L1 table one that cannot be: it shows when the snapshot is deleted.
BAD_L1 = [
    (0, ">Q", [1, 512, 2**63, 2**64 - 1]),
    (8, ">I", [(1 << 22) + 1, 2**32 - 1]),
]
#: Of the header: number and offset of snapshots.
HEADER = [(60, ">I", [0, 2, 3, 65537]), (64, ">Q", [1, 1 << 40, 2**63, 2**64 - 512])]


def snapshot_image(directory: Path) -> bytes:
    """Return an image with a snapshot, half of which has been written over."""
    qemu_img(directory, "create", "-q", "-f", "qcow2", "good", "1M")
    qemu_io(directory, "good", "write -P 1 0 300k")
    qemu_img(directory, "snapshot", "-c", "snap", "good")
    qemu_io(directory, "good", "write -P 2 0 150k")
    return (directory / "good").read_bytes()


def put(image: bytes, at: int, form: str, value: int) -> bytes:
    data = bytearray(image)
    struct.pack_into(form, data, at, value)
    return bytes(data)


def shown(daemon: Daemon) -> Any:
    """Return the snapshots of node ``n``."""
    nodes = daemon.qmp.command("query-named-block-nodes", flat=True)
    return next(node["image"].get("snapshots") for node in nodes if node["node-name"] == "n")


def test_tables(sock_dir: Path) -> None:
    """Each field of the table at and around its limits: the same text, or the same snapshots."""
    good = snapshot_image(sock_dir)
    (table,) = struct.unpack_from(">Q", good, 64)
    images = {
        f"{base + at}-{value:x}": put(good, base + at, form, value)
        for base, fields in ((table, FIELDS + BAD_L1), (0, HEADER))
        for at, form, values in fields
        for value in values
    }

    def tried(daemon: Daemon, name: str) -> list[Any]:
        (sock_dir / "image").write_bytes(images[name])
        reply = daemon.qmp.execute(add("image"))
        if "error" in reply:
            return [reply]
        snapshots = shown(daemon)
        answers = [reply, snapshots]
        if snapshots:
            answers += [daemon.qmp.execute(delete("n", id=snapshots[0]["id"])), shown(daemon)]
        daemon.qmp.command("blockdev-del", node_name="n")
        return answers

    with Daemon(REAL, [], sock_dir) as daemon:
        expected = {name: tried(daemon, name) for name in images}
    with Daemon(OURS, [], sock_dir) as daemon:
        for name in images:
            assert tried(daemon, name) == expected[name], name


def test_a_table_that_is_too_long(sock_dir: Path) -> None:
    """One entry more than there may be of the longest."""
    count, length = 1024, 40 + 65535 + 1
    image = put(put(snapshot_image(sock_dir), 60, ">I", count), 64, ">Q", 1 << 24)
    with open(sock_dir / "image", "wb") as file:
        file.write(image)
        for number in range(count):
            file.seek((1 << 24) + number * length)
            file.write(struct.pack(">QIHHIIQII", 0, 0, 0, 65535, 0, 0, 0, 0, 0))
    replies = []
    for program in (REAL, OURS):
        with Daemon(program, [], sock_dir) as daemon:
            replies.append(daemon.qmp.execute(add("image")))
    assert replies[0]["error"]["desc"] == "Snapshot table is too big"
    assert replies[1] == replies[0]


@pytest.mark.parametrize("options", ["compat=1.1", "compat=0.10,cluster_size=4k", "extended_l2=on"])
def test_contents(sock_dir: Path, options: str) -> None:
    """The same script of writes and snapshots gives the same images and the same snapshots of them."""
    rng = random.Random(options)
    script: list[tuple[str, list[str]]] = []
    kept: list[str] = []
    for number in range(8):
        commands = []
        for _ in range(3):
            offset, length = rng.randrange(0, 4 * MIB, 512), rng.choice([512, 5120, 200_704])
            kind = rng.choice(["write -P 1", "write -P 2", "write -P 3", "write -zu", "discard"])
            commands.append(f"{kind} {offset} {min(length, 4 * MIB - offset)}")
        script += [("io", commands), ("take", [f"s{number}"])]
        kept.append(f"s{number}")
        if number % 3 == 2:
            script.append(("delete", [kept.pop(rng.randrange(len(kept)))]))
    argv = [
        "--blockdev",
        "driver=qcow2,node-name=n,discard=unmap,file.driver=file,file.filename=image,"
        "file.discard=unmap",
        "--nbd-server", "addr.type=unix,addr.path=nbd",
        "--export", "type=nbd,id=e,name=e,node-name=n,writable=on",
    ]  # fmt: skip
    outcomes = []
    for program in (REAL, OURS):
        qemu_img(sock_dir, "create", "-q", "-f", "qcow2", "-o", options, "image", "4M")
        with Daemon(program, argv, sock_dir) as daemon:
            for what, arguments in script:
                if what == "io":
                    assert not qemu_io(sock_dir, "", *arguments)
                elif what == "take":
                    assert daemon.qmp.execute(take("n", arguments[0])) == {"return": {}}
                else:
                    assert "return" in daemon.qmp.execute(delete("n", name=arguments[0]))
        qemu_img(sock_dir, "check", "image")
        found = json.loads(qemu_img(sock_dir, "info", "--output=json", "image"))["snapshots"]
        contents = []
        for name in ["", *kept]:
            which = ["-l", f"snapshot.name={name}"] if name else []
            qemu_img(sock_dir, "convert", "-f", "qcow2", "-O", "raw", *which, "image", "out")
            contents.append((sock_dir / "out").read_bytes())
        outcomes.append(
            ([(one["id"], one["name"], one["vm-state-size"]) for one in found], contents)
        )
    assert outcomes[1] == outcomes[0]


@pytest.mark.parametrize("flags", [True, False])
def test_overlap_check(sock_dir: Path, flags: bool) -> None:
    """Where entries of corrupt tables lead to metadata: who is stopped, and the events."""
    good = snapshot_image(sock_dir)

    def word(at: int) -> int:
        return int(struct.unpack_from(">Q", good, at)[0]) & 0x00FFFFFFFFFFFE00

    l1, reftable, snapshots = word(40), word(48), word(64)
    inactive_l1, l2, refblock = word(snapshots), word(l1), word(reftable)
    places = {
        "active-l1": l1,
        "active-l2": l2,
        "refcount-table": reftable,
        "refcount-block": refblock,
        "snapshot-table": snapshots,
        "inactive-l1": inactive_l1,
        "inactive-l2": word(inactive_l1),
    }
    cases: list[tuple[bytes, Any, str]] = []
    for name, place in places.items():
        as_data = put(good, l2, ">Q", place | 1 << 63)
        as_free = put(good, refblock + place // CLUSTER * 2, ">H", 0)
        modes: list[Any] = [None, "none", "constant", "cached", "all"]
        if flags:
            modes = [{"template": "none", name: True}, {"template": "all", name: False}, {}]
        cases += [(as_data, mode, "write 4k 4k") for mode in modes]
        cases += [(as_free, mode, "write 600k 4k") for mode in modes[1:2]]
    if not flags:
        for name in ("refcount-table", "snapshot-table", "inactive-l2"):
            cases.append((put(good, l1, ">Q", places[name] | 1 << 63), "all", "write 4k 4k"))

    def tried(daemon: Daemon, image: bytes, mode: Any, command: str) -> list[Any]:
        (sock_dir / "image").write_bytes(image)
        options = {} if mode is None else {"overlap-check": mode}
        replies = [
            daemon.qmp.execute(add("image", **options)),
            daemon.qmp.execute(
                qmp("block-export-add", type="nbd", id="e", node_name="n", name="e", writable=True)
            ),
        ]
        failures = qemu_io(sock_dir, "", command, "flush")
        daemon.qmp.command("block-export-del", id="e", mode="hard")
        daemon.qmp.wait_event("BLOCK_EXPORT_DELETED")
        daemon.qmp.command("blockdev-del", node_name="n")
        events = [
            event["data"]
            for event in daemon.qmp.events
            if event["event"] == "BLOCK_IMAGE_CORRUPTED"
        ]
        daemon.qmp.events.clear()
        return [replies, failures, events]

    argv = ["--nbd-server", "addr.type=unix,addr.path=nbd"]
    with Daemon(REAL, argv, sock_dir) as daemon:
        expected = [tried(daemon, *case) for case in cases]
    with Daemon(OURS, argv, sock_dir) as daemon:
        for case, outcome in zip(cases, expected, strict=True):
            assert tried(daemon, *case) == outcome, case[1:]


def test_overlap_check_may_be_changed() -> None:
    """blockdev-reopen takes another mode."""

    def setup(directory: Path) -> None:
        good = snapshot_image(directory)
        l1, table = struct.unpack_from(">Q", good, 40)[0], struct.unpack_from(">Q", good, 48)[0]
        l2 = struct.unpack_from(">Q", good, l1)[0] & 0x00FFFFFFFFFFFE00
        (directory / "image").write_bytes(put(good, l2, ">Q", table | 1 << 63))

    def reopen(mode: Any) -> dict[str, Any]:
        options = {"driver": "qcow2", "node-name": "n", "file": "n-file", "overlap-check": mode}
        return qmp("blockdev-reopen", options=[options])

    def write(directory: Path) -> list[str]:
        return qemu_io(directory, "", "write 4k 4k", "flush")

    compare(
        [],
        [
            add("image", **{"overlap-check": "none"}),
            qmp("nbd-server-start", addr={"type": "unix", "data": {"path": "nbd"}}),
            qmp("block-export-add", type="nbd", id="e", node_name="n", name="e", writable=True),
            Call(write),
            reopen({"template": "none", "refcount-table": True}),
            Call(write),
            Wait("BLOCK_IMAGE_CORRUPTED"),
        ],
        setup=setup,
        check_stderr=False,  # the real daemon does not say who speaks
    )
