"""Repairs, lazy refcounts and discards of qcow2 images: the same as the real daemon's, and qemu-img's."""

from __future__ import annotations

import itertools
import os
import random
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.oracle import OURS, REAL, Daemon, Program, qmp
from tests.peers import requires
from tests.qcow2_recipes import KIB, MIB, Kitchen, Recipe

pytestmark = requires("qemu-storage-daemon", "qemu-img", "qemu-io")

COPIED = 1 << 63
TABLE_BLOCKS = 3 * 65536 // 512
OFFSET = 0x00FFFFFFFFFFFE00
Fault = Callable[[bytearray], None]


def qemu_img(*args: object, cwd: Path, check: bool = True) -> str:
    done = subprocess.run(
        ["qemu-img", *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=60, check=check
    )  # fmt: skip
    return done.stdout


def qemu_io(image: str, *commands: str, cwd: Path, options: tuple[str, ...] = ()) -> None:
    args = list(itertools.chain.from_iterable(("-c", command) for command in commands))
    done = subprocess.run(
        ["qemu-io", *options, *args, image], cwd=cwd, capture_output=True, text=True, timeout=60, check=True
    )  # fmt: skip
    assert "failed" not in done.stdout + done.stderr


def word(data: bytearray, at: int) -> int:
    (value,) = struct.unpack_from(">Q", data, at)
    assert isinstance(value, int)
    return value


def put(data: bytearray, at: int, value: int) -> None:
    struct.pack_into(">Q", data, at, value)


def l1(data: bytearray) -> int:
    return word(data, 40)


def l2(data: bytearray) -> int:
    return word(data, l1(data)) & OFFSET


def reftable(data: bytearray) -> int:
    return word(data, 48)


def refblock(data: bytearray) -> int:
    return word(data, reftable(data))


def refcount(cluster: int, value: int) -> Fault:
    return lambda data: struct.pack_into(">H", data, refblock(data) + 2 * cluster, value)


def no_refcounts(data: bytearray) -> None:
    data[refblock(data) : refblock(data) + 65536] = bytes(65536)


def no_copied_flags(data: bytearray) -> None:
    for at in range(l2(data), l2(data) + 65536, 8):
        put(data, at, word(data, at) & ~COPIED)


FAULTS: dict[str, Fault] = {
    "none": lambda data: None,
    "leak": refcount(30, 1),
    "too low": refcount(6, 0),
    "too high": refcount(6, 7),
    "no refcounts": no_refcounts,
    "no copied flags": no_copied_flags,
    "twice": lambda data: put(data, l2(data), word(data, l2(data) + 8)),
    "refblock is data": lambda data: put(data, reftable(data), word(data, l2(data)) & OFFSET),
    "no refblock": lambda data: put(data, reftable(data), 0),
    "data unaligned": lambda data: put(data, l2(data), word(data, l2(data)) | 512),
    "data off the end": lambda data: put(data, l2(data), COPIED | 1 << 40),
    "L2 off the end": lambda data: put(data, l1(data), COPIED | 1 << 40),
}
#: Both open such an image, and both leave it broken.
BEYOND_REPAIR = {"data unaligned", "data off the end", "L2 off the end"}


def open_and_close(program: Program, name: str, directory: Path, **options: Any) -> list[Any]:
    add = qmp(
        "blockdev-add", driver="qcow2", node_name="n",
        file={"driver": "file", "filename": name}, **options,
    )  # fmt: skip
    with Daemon(program, [], directory, monitor=True) as daemon:
        replies = [daemon.qmp.execute(add)]
        info = daemon.qmp.command("query-named-block-nodes")
        node = [entry for entry in info if entry["node-name"] == "n"]
        replies += [entry["image"]["dirty-flag"] for entry in node]
        replies += [entry["image"]["format-specific"] for entry in node]
        replies.append(daemon.qmp.execute(qmp("blockdev-del", node_name="n")))
    return replies


@pytest.mark.parametrize("fault", FAULTS)
def test_dirty_images_are_repaired_alike(fault: str, sock_dir: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "good", "64M", cwd=sock_dir)
    qemu_io("good", "write -P 5 0 300k", "write -P 6 8M 64k", cwd=sock_dir)
    data = bytearray((sock_dir / "good").read_bytes())
    FAULTS[fault](data)
    data[79] |= 1
    for name in ("real", "ours", "img"):
        (sock_dir / name).write_bytes(data)
    replies = [open_and_close(REAL, "real", sock_dir), open_and_close(OURS, "ours", sock_dir)]
    assert replies[0] == replies[1]
    qemu_img("check", "-r", "all", "img", cwd=sock_dir, check=False)
    for name in ("real", "ours"):
        done = subprocess.run(
            ["qemu-img", "check", name], cwd=sock_dir, capture_output=True, timeout=60, check=False
        )
        assert (done.returncode == 0) is (fault not in BEYOND_REPAIR), name
        assert (sock_dir / name).read_bytes()[79] == 0
    if fault not in BEYOND_REPAIR:
        qemu_img("compare", "ours", "img", cwd=sock_dir)
        qemu_img("compare", "ours", "real", cwd=sock_dir)


#: Every structure that refers to clusters, with refcounts of every width.
RECIPES = [
    Recipe(snapshots=True),
    Recipe(cluster_size=512, refcount_bits=64, compressed=True, snapshots=True),
    Recipe(cluster_size=64 * KIB, refcount_bits=8, compressed=True, compression_type="zstd"),
    Recipe(extended_l2=True, refcount_bits=32, snapshots=True),
    Recipe(data_file="file", refcount_bits=1, bitmap=True),
    Recipe(cluster_size=4 * KIB, refcount_bits=4, bitmap=True, snapshots=True),
    Recipe(cluster_size=512, refcount_bits=2, preallocation="full", bitmap=True),
    Recipe(cluster_size=2 * MIB, backing="raw", lazy_refcounts=True, snapshots=True),
    Recipe(cluster_size=64 * KIB, encryption="luks", snapshots=True),
]


def spoil_refcounts(path: Path) -> None:
    """Set the dirty bit, and all refcounts to what they are not."""
    data = bytearray(path.read_bytes())
    cluster = 1 << struct.unpack_from(">I", data, 20)[0]
    clusters = struct.unpack_from(">I", data, 56)[0]
    for at in range(reftable(data), reftable(data) + clusters * cluster, 8):
        block = word(data, at)
        if block:
            data[block : block + cluster] = random.Random(block).randbytes(cluster)
    data[79] |= 1
    path.write_bytes(data)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_everything_an_image_holds_is_counted(recipe: Recipe, tmp_path: Path) -> None:
    kitchen = Kitchen(recipe, tmp_path)
    model = bytes(kitchen.create())
    if recipe.bitmap:
        kitchen.add_bitmap("b")
    if recipe.snapshots:
        kitchen.snapshot("s")
        kitchen.qemu_io(["write -P 3 0 64k", "discard 64k 64k"])
    after = kitchen.read()
    spoil_refcounts(kitchen.path)
    with Daemon(OURS, recipe.secret, tmp_path, monitor=True) as daemon:
        daemon.qmp.command("blockdev-add", **recipe.node_options(kitchen.path))
        daemon.qmp.command("blockdev-del", node_name="n")
    kitchen.check()
    assert kitchen.read() == after
    if recipe.snapshots:
        assert kitchen.read("s") == model


def test_a_dirty_image_is_left_alone_by_who_only_reads(sock_dir: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "good", "64M", cwd=sock_dir)
    data = bytearray((sock_dir / "good").read_bytes())
    no_refcounts(data)
    data[79] |= 1
    replies = []
    for program, name in ((REAL, "real"), (OURS, "ours")):
        (sock_dir / name).write_bytes(data)
        replies.append(open_and_close(program, name, sock_dir, read_only=True))
        assert (sock_dir / name).read_bytes() == data
    assert replies[0] == replies[1]


def export(name: str, **options: str) -> list[str]:
    more = "".join(f",{key}={value}" for key, value in options.items())
    return [
        "--blockdev", f"driver=qcow2,node-name=n,file.driver=file,file.filename={name}{more}",
        "--nbd-server", "addr.type=unix,addr.path=nbd",
        "--export", "type=nbd,id=e,name=e,node-name=n,writable=on",
    ]  # fmt: skip


def dirty_flag(daemon: Daemon) -> bool:
    info = daemon.qmp.command("query-named-block-nodes")
    (flag,) = (node["image"]["dirty-flag"] for node in info if node["node-name"] == "n")
    assert isinstance(flag, bool)
    return flag


@pytest.mark.parametrize("how", ["header", "option"])
def test_lazy_refcounts_show_in_the_dirty_flag(how: str, sock_dir: Path) -> None:
    seen = []
    url = f"nbd+unix:///e?socket={sock_dir}/nbd"
    for program, name in ((REAL, "real"), (OURS, "ours")):
        lazy = "on" if how == "header" else "off"
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"lazy_refcounts={lazy}", name, "64M", cwd=sock_dir)  # fmt: skip
        options = {"lazy-refcounts": "on"} if how == "option" else {}
        with Daemon(program, export(name, **options), sock_dir, monitor=True) as daemon:
            flags = [dirty_flag(daemon)]
            for command in ("read 0 64k", "write -P 1 0 64k", "flush", "write -P 2 0 64k"):
                qemu_io(url, command, cwd=sock_dir, options=("-f", "raw"))
                flags.append(dirty_flag(daemon))
            flags.append(bool((sock_dir / name).read_bytes()[79]))
        seen.append(flags)
        assert (sock_dir / name).read_bytes()[79] == 0
        qemu_img("check", name, cwd=sock_dir)
    assert seen[0] == seen[1]
    assert seen[0][-1] is True


@pytest.mark.parametrize("reopened_by", [REAL, OURS], ids=["real", "ours"])
def test_killed_with_lazy_refcounts(reopened_by: Program, sock_dir: Path) -> None:
    url = f"nbd+unix:///e?socket={sock_dir}/nbd"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "image", "64M", cwd=sock_dir)
    with Daemon(OURS, export("image"), sock_dir, monitor=True) as daemon:
        for at in range(0, 32, 4):
            qemu_io(url, f"write -P 7 {at}M 300k", "flush", cwd=sock_dir, options=("-f", "raw"))
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.wait()
    (sock_dir / "nbd").unlink()
    assert (sock_dir / "image").read_bytes()[79] == 1
    open_and_close(reopened_by, "image", sock_dir)
    qemu_img("check", "image", cwd=sock_dir)
    for at in range(0, 32, 4):
        qemu_io("image", f"read -P 7 {at}M 300k", cwd=sock_dir)


PASSING: list[dict[str, str]] = [
    {},
    {"discard": "unmap"},
    {"discard": "unmap", "pass-discard-request": "off"},
    {"discard": "unmap", "pass-discard-request": "on", "pass-discard-other": "on"},
    {"pass-discard-request": "on"},
]


@pytest.mark.parametrize("options", PASSING, ids=str)
def test_space_that_discards_free_in_the_file(options: dict[str, str], sock_dir: Path) -> None:
    """The same number of blocks, and the same map of the image."""
    url = f"nbd+unix:///e?socket={sock_dir}/nbd"
    freed, maps = [], []
    for program, name in ((REAL, "real"), (OURS, "ours")):
        qemu_img("create", "-q", "-f", "qcow2", name, "64M", cwd=sock_dir)
        qemu_io(name, "write -P 5 0 8M", cwd=sock_dir)
        steps = [(sock_dir / name).stat().st_blocks]
        with Daemon(program, export(name, **options), sock_dir, monitor=True):
            for command in ("discard 1M 2M", "write -zu 4M 1M", "write -z 6M 1M"):
                qemu_io(url, command, "flush", cwd=sock_dir, options=("-f", "raw", "-d", "unmap"))
                steps.append((sock_dir / name).stat().st_blocks)
        freed.append([before - after for before, after in itertools.pairwise(steps)])
        qemu_img("check", name, cwd=sock_dir)
        maps.append(qemu_img("map", "--output=json", name, cwd=sock_dir))
    assert maps[0] == maps[1]
    # We write what changed of a table, the real daemon a whole cluster: that is not the point here.
    for theirs, ours in zip(freed[0], freed[1], strict=True):
        assert abs(theirs - ours) <= TABLE_BLOCKS
