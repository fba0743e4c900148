"""The FUSE export against the real daemon: the same system calls on both mounts, the same commands to both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.interop import fuse_probe
from tests.oracle import Daemon, Pair
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
