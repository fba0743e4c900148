"""The FUSE export against the real daemon: the same system calls on both mounts, the same commands to both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.interop import fuse_probe
from tests.oracle import Daemon, Pair, compare, qmp
from tests.peers import requires

pytestmark = [
    requires("qemu-storage-daemon", "qemu-img"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="no access to /dev/fuse"),
]

STEPS = ["attributes", "content", "mapped", "direct", "seeking", "space", "lengths", "closing"]
SIZE = 4 << 20


def probe(daemon: Daemon, steps: list[str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, fuse_probe.__file__, str(daemon.directory / "m"), *steps],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()


def prepare(driver: str) -> Any:
    def setup(directory: Path) -> None:
        (directory / "m").touch()
        os.chmod(directory, 0o755)
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", driver, directory / "disk", str(SIZE)],
            check=True,
            timeout=20,
        )

    return setup


def argv(driver: str, **export: str) -> list[str]:
    options = "".join(f",{name.replace('_', '-')}={value}" for name, value in export.items())
    file = "driver=file,node-name=file,filename=disk,discard=unmap"
    node = ["--blockdev", file]
    if driver != "raw":
        node += ["--blockdev", f"driver={driver},node-name=top,file=file,discard=unmap"]
    top = "file" if driver == "raw" else "top"
    return [*node, "--export", f"fuse,id=e,node-name={top},mountpoint=m{options}"]


def differences(theirs: list[str], mine: list[str]) -> list[str]:
    step = ""
    found = []
    assert len(theirs) == len(mine)
    for left, right in zip(theirs, mine, strict=True):
        if left.startswith("--"):
            step = left
        if left != right:
            found.append(f"{step} {left!r} {right!r}")
    return found


@pytest.mark.parametrize("driver", ["raw", "qcow2"])
@pytest.mark.parametrize(
    "export",
    [
        {"writable": "on"},
        {"writable": "on", "growable": "on"},
        {"writable": "off"},
        {"writable": "on", "allow_other": "off"},
    ],
    ids=["writable", "growable", "read-only", "owner-only"],
)
def test_every_system_call(driver: str, export: dict[str, str]) -> None:
    with Pair(argv(driver, **export), setup=prepare(driver)) as pair:
        theirs, mine = (probe(daemon, STEPS) for daemon in (pair.real, pair.ours))
        assert differences(theirs, mine) == []


def add(id_: str = "e", mountpoint: Any = "m", **options: Any) -> dict[str, Any]:
    return qmp(
        "block-export-add", type="fuse", id=id_, node_name="file", mountpoint=mountpoint, **options
    )


def delete(id_: str = "e", **options: Any) -> dict[str, Any]:
    return qmp("block-export-del", id=id_, **options)


FILE = ["--blockdev", "file,node-name=file,filename=disk"]


def test_commands_and_texts() -> None:
    def setup(directory: Path) -> None:
        prepare("raw")(directory)
        (directory / "dir").mkdir()
        (directory / "link").symlink_to("m")
        os.mkfifo(directory / "fifo")

    steps: list[Any] = [
        qmp("block-export-add", type="fuse", id="e", node_name="file"),
        add(mountpoint=""),
        add(mountpoint="missing"),
        add(mountpoint="missing/m"),
        add(mountpoint="m/below"),
        add(mountpoint="dir"),
        add(mountpoint="fifo"),
        add(mountpoint=5),
        add(growable=1),
        add(allow_other="perhaps"),
        add(id_="1"),
        add(iothread="nobody"),
        add(iothread="nobody", fixed_iothread=True),
        qmp("block-export-add", type="fuse", id="e", node_name="nobody", mountpoint="missing"),
        qmp("query-block-exports"),
        add(writable=True),
        add(mountpoint="other"),
        add(id_="f"),
        add(id_="f", mountpoint="m2"),
        qmp("query-block-exports"),
        qmp("blockdev-del", node_name="file"),
        delete(),
        qmp("query-block-exports"),
        add(mountpoint="link", writable=True, growable=True, allow_other="off"),
        delete(mode="safe"),
        delete("e"),
        add(allow_other="on"),
        delete(mode="hard"),
        qmp("blockdev-del", node_name="file"),
        qmp("blockdev-add", driver="file", node_name="file", filename="disk", read_only=True),
        add(writable=True),
        add(growable=True),
        add(),
        delete(),
    ]
    compare(FILE, steps, setup=setup)


def test_permission_to_resize() -> None:
    """Taken before the mountpoint is looked at; an NBD export does not share it."""
    nbd = [
        "--nbd-server",
        "addr.type=unix,addr.path=nbd.sock",
        "--export",
        "nbd,id=n,node-name=file",
    ]
    steps = [
        add(mountpoint="missing", writable=True),
        add(mountpoint="missing", growable=True),
        add(),
        delete(),
    ]
    compare([*FILE, *nbd], steps, setup=prepare("raw"))


@pytest.mark.parametrize(
    "export",
    [
        "fuse,id=e,node-name=file",
        "fuse,id=e,node-name=file,mountpoint=missing",
        "fuse,id=e,node-name=file,mountpoint=.",
        "fuse,id=e,node-name=file,mountpoint=m,allow-other=maybe",
        "fuse,id=e,node-name=file,mountpoint=m,growable=maybe",
    ],
)
def test_command_line(export: str) -> None:
    compare([*FILE, "--export", export], setup=prepare("raw"), monitor=False)
