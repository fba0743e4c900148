"""Images that mean harm: names to open, loops, resources that are not given back, tables as large as allowed."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import qsd_trio
from qsd_trio.block.drivers.qcow2 import header as hdr
from qsd_trio.block.drivers.qcow2 import layout as lay
from qsd_trio.block.drivers.qcow2.header import Header
from qsd_trio.errors import QmpError
from tests.block.drivers.qcow2.kit import make

SIZE = 1 << 20


@asynccontextmanager
async def a_daemon() -> AsyncIterator[qsd_trio.EmbeddedDaemon]:
    """Run a daemon; in the end nothing of it may be left."""
    async with qsd_trio.open_daemon() as daemon:
        yield daemon
        assert not daemon.tables.graph.nodes


def open_files() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


async def add(daemon: qsd_trio.EmbeddedDaemon, path: Path, **options: Any) -> None:
    """Add the image as node ``n``; refused, it leaves no node and no open file."""
    before = open_files()
    file = {"driver": "file", "filename": str(path)}
    try:
        await daemon.qmp(
            "blockdev-add", {"driver": "qcow2", "node-name": "n", "file": file, **options}
        )
    except QmpError:
        assert not daemon.tables.graph.nodes
        assert open_files() == before
        raise


async def image(path: Path, **changes: Any) -> None:
    """Write an empty image whose header has other values in some fields."""
    data = await make(SIZE)
    header = attrs.evolve(hdr.parse(data[:65536], read_only=True), **changes)
    await trio.Path(path).write_bytes(header.to_bytes().ljust(65536, b"\0") + data[65536:])


def data_file(name: bytes) -> dict[str, Any]:
    """Return what a header has that names a data file."""
    return {
        "incompatible": lay.INCOMPAT_DATA_FILE,
        "extensions": [(hdr.EXT_DATA_FILE, name)],
    }


NAMES = [
    'json:{"driver":"null-co"}',
    "nbd://localhost/x",
    "nbd:unix:/run/x",
    "nbd+unix:///x?socket=y",
    "file:secret",
    "fat:rw:.",
    "host_device:/dev/null",
    "http://localhost/x",
    "blkdebug::secret",
]


@pytest.mark.parametrize("name", NAMES)
async def test_names_are_paths_and_nothing_else(name: str, tmp_path: Path) -> None:
    """Even where a file of that name exists."""
    if "/" not in name:
        (tmp_path / name).write_bytes(bytes(SIZE))
    await image(tmp_path / "backed", backing_file=name, backing_format="raw")
    await image(tmp_path / "data", **data_file(name.encode()))
    async with a_daemon() as daemon:
        for path in (tmp_path / "backed", tmp_path / "data"):
            with pytest.raises(QmpError, match="not a plain local file name"):
                await add(daemon, path)


@pytest.mark.parametrize(
    "format_", ["nbd", "https", "ssh", "vvfat", "quorum", "null-co", "blkdebug", "json:{}", "x"]
)
async def test_formats_that_are_none(format_: str, tmp_path: Path) -> None:
    """The format beside a name opens nothing but that file."""
    (tmp_path / "below").write_bytes(bytes(SIZE))
    await image(tmp_path / "top", backing_file="below", backing_format=format_)
    async with a_daemon() as daemon:
        with pytest.raises(QmpError):
            await add(daemon, tmp_path / "top")


async def test_a_format_is_never_guessed(tmp_path: Path) -> None:
    (tmp_path / "below").write_bytes(await make(SIZE))
    await image(tmp_path / "top", backing_file="below", backing_format=None)
    async with a_daemon() as daemon:
        with pytest.raises(QmpError, match="without its format"):
            await add(daemon, tmp_path / "top")


async def test_plain_names_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backing files beside the image, data files from where the daemon runs, as QEMU does."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "below").write_bytes(bytes(SIZE))
    (tmp_path / "external").write_bytes(bytes(SIZE))
    monkeypatch.chdir(tmp_path)
    names: list[dict[str, Any]] = [
        {"backing_file": "../below", "backing_format": "raw"},
        {"backing_file": str(tmp_path / "below"), "backing_format": "raw"},
        data_file(b"external"),
        data_file(bytes(tmp_path / "external")),
    ]
    async with a_daemon() as daemon:
        for changes in names:
            await image(tmp_path / "sub" / "top", **changes)
            await add(daemon, tmp_path / "sub" / "top")
            await daemon.qmp("blockdev-del", {"node-name": "n"})


@pytest.mark.parametrize("read_only", [False, True])
async def test_an_image_that_is_its_own_data_file(read_only: bool, tmp_path: Path) -> None:
    path = tmp_path / "image"
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "hard").touch()
    async with a_daemon() as daemon:
        for name in ("image", "link", "hard"):
            await image(path, **data_file(bytes(tmp_path / name)))
            if name == "hard":
                (tmp_path / "hard").unlink()
                os.link(path, tmp_path / "hard")
            if read_only:
                # Harmless: what is read is what is there.
                await add(daemon, path, **{"read-only": True})
                await daemon.qmp("blockdev-del", {"node-name": "n"})
            else:
                with pytest.raises(QmpError, match="lock"):
                    await add(daemon, path)


async def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    await image(tmp_path / "top", backing_file="a", backing_format="raw")
    async with a_daemon() as daemon:
        with pytest.raises(QmpError, match="Too many levels of symbolic links"):
            await add(daemon, tmp_path / "top")


async def test_a_loop_through_folders_that_are_links(tmp_path: Path) -> None:
    """Each time round the name is a longer one: ``image``, ``d/image``, ``d/d/image`` ..."""
    (tmp_path / "d").symlink_to(tmp_path)
    await image(tmp_path / "image", backing_file="d/image", backing_format="qcow2")
    async with a_daemon() as daemon:
        with pytest.raises(QmpError, match="Too many levels of symbolic links"):
            await add(daemon, tmp_path / "image", **{"read-only": True})


async def test_a_thousand_bad_images_leave_nothing(tmp_path: Path) -> None:
    """``add`` looks at nodes and files each time."""
    rng = random.Random(1)
    good = await make(1 << 16, cluster_bits=9)
    path = tmp_path / "image"
    refused = 0
    async with a_daemon() as daemon:
        for _ in range(1000):
            data = bytearray(good)
            for _ in range(rng.randrange(1, 4)):
                at = rng.choice([4, 8, 16, 20, 24, 32, 36, 40, 48, 56, 60, 64, 72, 96, 100, 104])
                data[at : at + 4] = rng.choice([bytes(4), b"\xff" * 4, rng.randbytes(4)])
            path.write_bytes(data)
            try:
                await add(daemon, path)
            except QmpError:
                refused += 1
            else:
                await daemon.qmp("blockdev-del", {"node-name": "n"})
    assert 500 < refused < 1000


# -- memory ----------------------------------------------------------------------------------------------

#: What a table of so many bytes on disk may take in memory: itself, a copy while its byte order is
#: changed, and what is kept of its clusters.
TABLE_FACTOR = 2
#: Of a snapshot: its entry as an object.
SNAPSHOT_BYTES = 1 << 10
ELSE = 2 << 20


async def peak_of_opening(path: Path) -> int:
    """Return the bytes that opening and closing an image took at most."""
    async with a_daemon() as daemon:
        await image(path.with_name("warm"))  # so that nothing is imported for the first time
        await add(daemon, path.with_name("warm"))
        await daemon.qmp("blockdev-del", {"node-name": "n"})
        tracemalloc.start(1)
        try:
            try:
                await add(daemon, path, **{"read-only": True})
            except QmpError:
                pass
            else:
                await daemon.qmp("blockdev-del", {"node-name": "n"})
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


def write_sparse(path: Path, header: Header, length: int) -> None:
    path.write_bytes(header.to_bytes())
    os.truncate(path, length)


async def test_memory_of_the_largest_tables(tmp_path: Path) -> None:
    header = Header(
        cluster_bits=16,
        size=1 << 51,
        l1_size=lay.MAX_L1_BYTES // 8,
        l1_table_offset=1 << 30,
        refcount_table_offset=1 << 16,
        refcount_table_clusters=lay.MAX_REFTABLE_BYTES >> 16,
    )
    write_sparse(tmp_path / "image", header, 2 << 30)
    peak = await peak_of_opening(tmp_path / "image")
    tables = lay.MAX_L1_BYTES + lay.MAX_REFTABLE_BYTES
    assert tables < peak < TABLE_FACTOR * tables + ELSE


async def test_memory_of_many_snapshots(tmp_path: Path) -> None:
    """It goes by their number, which has a limit (test_header.py)."""
    count = lay.MAX_SNAPSHOTS // 16
    header = Header(
        size=SIZE,
        l1_size=1,
        l1_table_offset=3 << 16,
        refcount_table_offset=1 << 16,
        refcount_table_clusters=1,
        nb_snapshots=count,
        snapshots_offset=1 << 24,
    )
    path = tmp_path / "image"
    write_sparse(path, header, 1 << 28)
    entries = (
        struct.pack(">QIHHIIQII", 4 << 16, 1, 8, 8, 0, 0, 0, 0, 16)
        + struct.pack(">QQ", 0, SIZE)
        + f"{number:8}name{number % 10000:4}".encode()
        for number in range(count)
    )
    with path.open("r+b") as file:
        file.seek(1 << 24)
        file.write(b"".join(entries))
    peak = await peak_of_opening(path)
    assert peak < count * SNAPSHOT_BYTES
