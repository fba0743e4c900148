"""The drivers of files and devices, raw and null, against the real daemon: texts, lengths, job errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.oracle import Wait, compare, qmp
from tests.peers import requires

pytestmark = requires("qemu-storage-daemon")

MIB = 1 << 20


def files(directory: Path) -> None:
    (directory / "disk").write_bytes(bytes(MIB))
    (directory / "folder").mkdir()
    (directory / "odd").write_bytes(b"x" * 1234)
    sparse = directory / "sparse"
    sparse.write_bytes(b"data")
    os.truncate(sparse, MIB)


def add(**options: Any) -> dict[str, Any]:
    return qmp("blockdev-add", node_name="n", **options)


def tried(**options: Any) -> list[dict[str, Any]]:
    """Add a node, look at it, delete it again."""
    return [add(**options), qmp("query-named-block-nodes"), qmp("blockdev-del", node_name="n")]


DISK = {"driver": "file", "filename": "disk"}

OPENING = [
    {"driver": "file", "filename": name}
    for name in ("none", "folder", "", "file:disk", "/dev/null", "/dev/zero", "disk", "odd")
] + [
    {"driver": "file", "filename": "folder", "read_only": True},
    {"driver": "file", "filename": "/proc/version", "read_only": True},
    {"driver": "file", "filename": "/proc/version", "auto_read_only": True},
    {"driver": "file", "filename": "disk", "aio": "native"},
    {"driver": "file", "filename": "disk", "aio": "native", "cache": {"direct": True}},
    {"driver": "file", "filename": "disk", "aio": "io_uring"},
    {"driver": "file", "filename": "disk", "aio": "threads", "aio_max_batch": 5},
    {"driver": "file", "filename": "disk", "cache": {"direct": True, "no-flush": True}},
    {"driver": "file", "filename": "disk", "locking": "on"},
    {"driver": "file", "filename": "disk", "drop_cache": False},
    {"driver": "file", "filename": "disk", "x_check_cache_dropped": True},
    {"driver": "host_device", "filename": "disk"},
    {"driver": "host_device", "filename": "/dev/none"},
    {"driver": "host_device", "filename": "/dev/null"},
    {"driver": "host_cdrom", "filename": "disk"},
    {"driver": "host_cdrom", "filename": "/dev/null", "read_only": True},
]

WINDOWS: list[dict[str, int]] = [
    {"offset": 1000},
    {"offset": 1 << 30},
    {"offset": -1},
    {"offset": MIB},
    {"size": 1000},
    {"size": 1024},
    {"size": -512},
    {"size": 0},
    {"size": 2**63 - 1},
    {"offset": 1024, "size": MIB},
    {"offset": 1, "size": 512},
    {"offset": 2**63 - 1},
]

NULLS: list[dict[str, Any]] = [
    {},
    {"size": 1000},
    {"size": 0},
    {"size": 2**63 - 1},
    {"latency_ns": 0, "read_zeroes": True},
    {"size": 4096, "read_zeroes": False, "latency_ns": 2**63 - 1},
]

#: What to create, and whether that works.
CREATIONS: list[tuple[dict[str, Any], bool]] = [
    ({"filename": "new", "size": 1000}, True),
    ({"filename": "new", "size": 1000, "preallocation": "falloc", "nocow": True}, True),
    ({"filename": "new", "size": 1000, "preallocation": "full", "extent-size-hint": 65536}, True),
    ({"filename": "new", "size": 1000, "preallocation": "metadata"}, False),
    ({"filename": "new", "size": 1000, "extent-size-hint": 1 << 32}, False),
    ({"filename": "new", "size": 1 << 60}, False),
    ({"filename": "new2", "size": 1 << 45, "preallocation": "falloc"}, False),
    ({"filename": "none/new", "size": 1}, False),
    ({"filename": "folder", "size": 1}, False),
    ({"filename": "", "size": 1}, False),
    ({"filename": "/dev/null", "size": 1, "preallocation": "falloc"}, False),
]


def test_opening_files_and_devices() -> None:
    compare([], [step for options in OPENING for step in tried(**options)], setup=files)


def test_windows_of_raw() -> None:
    steps = [step for window in WINDOWS for step in tried(driver="raw", file=DISK, **window)]
    compare([], steps, setup=files)


def test_null_images() -> None:
    steps = [
        step
        for driver in ("null-co", "null-aio")
        for options in NULLS
        for step in tried(driver=driver, **options)
    ]
    compare([], steps)


@pytest.mark.parametrize("name", ["disk", "odd", "sparse"])
def test_resizing(name: str) -> None:
    def resize(size: int) -> dict[str, Any]:
        return qmp("block_resize", node_name="n", size=size)

    compare(
        [],
        [
            add(driver="file", filename=name),
            *(resize(size) for size in (512, 1234567, 2 * MIB, 0, 1 << 62, MIB)),
            qmp("query-named-block-nodes"),
            qmp("blockdev-del", node_name="n"),
            add(driver="raw", file={"driver": "file", "filename": name}, offset=1024),
            *(resize(size) for size in (4096, 2**63 - 1)),
            qmp("blockdev-del", node_name="n"),
            add(driver="raw", file={"driver": "file", "filename": name}, size=1024),
            resize(4096),
            qmp("blockdev-del", node_name="n"),
            add(driver="host_device", filename="/dev/null"),
            resize(4096),
        ],
        setup=files,
    )


def test_creating_files() -> None:
    steps: list[Any] = []
    for number, (options, _) in enumerate(CREATIONS):
        steps.append(
            qmp("blockdev-create", job_id=f"j{number}", options={"driver": "file", **options})
        )
        # created, running, then waiting, pending or aborting, concluded; null at the end
        earlier = sum(5 + works for _, works in CREATIONS[:number])
        steps.append(Wait("JOB_STATUS_CHANGE", skip=earlier + 3 + CREATIONS[number][1]))
        steps += [qmp("query-jobs"), qmp("job-dismiss", id=f"j{number}")]
    compare([], steps, setup=files)
