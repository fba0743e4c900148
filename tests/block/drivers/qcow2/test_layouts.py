"""Extended L2 entries, external data files, slices of L2 tables: every kind of request against models."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
import trio

from qsd_trio import open_daemon
from qsd_trio.block.abc import SECTOR, ReqFlag
from qsd_trio.block.snapshots import Snapshot
from qsd_trio.errors import QmpError
from qsd_trio.testing.guest import Guest, stamp, stamps
from qsd_trio.testing.memory import MemoryDriver, memory_node, pattern
from qsd_trio.testing.recorder import Journal
from tests.block.drivers.qcow2.kit import (
    Disk,
    assert_sound,
    check,
    make,
    opened,
    qemu_img,
    read,
    write,
)
from tests.block.drivers.qcow2.test_image import random_work
from tests.block.drivers.qcow2.workload import Workload
from tests.oracle import requires


@requires("qemu-img")
@pytest.mark.parametrize("bits", [14, 16, 21])
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("extended", [False, True])
async def test_images_of_qemu_img(
    tmp_path: Path, bits: int, extended: bool, external: bool
) -> None:
    path = tmp_path / "image"
    size = min(3 << 20, 40 << bits) + 512
    options = f"cluster_size={1 << bits},extended_l2={'on' if extended else 'off'}"
    if external:
        options += f",data_file={tmp_path}/data"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, size)
    model = bytearray(size)
    disk = Disk(path.read_bytes())
    data = Disk((tmp_path / "data").read_bytes()) if external else None
    rng = random.Random(bits)
    async with opened(disk, data=data, l2_cache_entry_size=512) as node:
        await random_work(node, rng, model, 150)
    path.write_bytes(disk.data)
    if data is not None:
        (tmp_path / "data").write_bytes(data.data)
    assert_sound(path, bytes(model))
    report = check(bytes(disk.data), data_file=bytes(data.data) if data else None)
    assert (report.errors, report.leaks) == ([], [])
    assert report.content == model


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("there", [1 << 16, 150_016, 1 << 20])
async def test_backing(extended: bool, external: bool, there: int) -> None:
    size = 300_032
    below = pattern(there)
    model = bytearray(below[:size].ljust(size, b"\0"))
    data = Disk(b"\xdd" * 200_000) if external else None
    disk = Disk(await make(size, cluster_bits=14, extended=extended, data=data))
    rng = random.Random(there)
    async with opened(disk, memory_node(below), data=data) as node:
        await random_work(node, rng, model, 150, backing=True)
        assert await read(node, 0, size) == model
    report = check(bytes(disk.data), below, bytes(data.data) if data else None)
    assert (report.errors, report.leaks) == ([], [])
    assert report.content == model


@pytest.mark.parametrize("extended", [False, True])
async def test_raw_data_files_are_kept_in_step(extended: bool) -> None:
    size = 300_032
    data = Disk(bytes(size))
    disk = Disk(await make(size, cluster_bits=14, extended=extended, data=data, raw=True))
    model = bytearray(size)
    async with opened(disk, data=data) as node:
        await random_work(node, random.Random(1), model, 200)
    assert data.data[:size] == model


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("seed", range(3))
async def test_overlapping_requests_in_random_order(
    seed: int, extended: bool, external: bool, backed: bool
) -> None:
    bits = 14
    sectors = 8 << (bits - 9)
    rng = random.Random(seed)
    journal = Journal()
    data = Disk(b"", rng, journal) if external else None
    image = await make(sectors * SECTOR, cluster_bits=bits, extended=extended, data=data)
    disk = Disk(image, rng, journal)
    below = stamp(1 << 40) * (sectors // 2) if backed else b""
    work = Workload(rng, Guest(journal, sectors, stamps(below)), 1 << bits)
    backing = memory_node(below) if backed else None
    async with opened(disk, backing, data=data, l2_cache_entry_size=512) as node:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(work.run, node, 15)
            await work.check(node, 0, sectors)
        final = stamps(await read(node, 0, sectors * SECTOR))
    report = check(bytes(disk.data), below, bytes(data.data) if data else None)
    assert (report.errors, report.leaks) == ([], [])
    assert stamps(report.content) == final


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("extended", "bits", "backed"),
    [(False, 12, True), (True, 14, False), (True, 14, True), (True, 16, True)],
)
async def test_together_with_snapshots_and_compressed_clusters(
    seed: int, extended: bool, bits: int, backed: bool
) -> None:
    rng = random.Random(seed)
    size = 40 << bits
    below = pattern(size // 2) if backed else b""
    model = bytearray(below.ljust(size, b"\0"))
    disk = Disk(await make(size, cluster_bits=bits, extended=extended))
    taken: dict[str, bytes] = {}
    backing = memory_node(below) if backed else None
    async with opened(disk, backing, l2_cache_entry_size=512, l2_cache_size=2048) as node:
        store = node.driver.snapshots
        for turn in range(4):
            await random_work(node, rng, model, 25, backing=backed)
            for _ in range(4):
                start = rng.randrange(40) << bits
                data = bytes([rng.randrange(256)]) * (1 << bits)
                await node.pwritev(start, [memoryview(data)], ReqFlag.WRITE_COMPRESSED)
                model[start : start + len(data)] = data
            name = f"s{turn}"
            snapshot = Snapshot(
                id=b"", name=name.encode(), date_sec=0, date_nsec=0, vm_clock_nsec=0
            )
            await store.create(snapshot)
            taken[name] = bytes(model)
            if turn == 2:
                await store.delete(None, b"s0")
                del taken["s0"]
        await random_work(node, rng, model, 25, backing=backed)
        assert await read(node, 0, size) == model
    report = check(bytes(disk.data), below)
    assert (report.errors, report.leaks) == ([], [])
    assert report.content == model
    assert {snapshot.name: snapshot.content for snapshot in report.snapshots} == taken


@requires("qemu-img")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"a" * 20, None),
        (b"nbd://localhost/x", "not a plain local file name"),
        (b'json:{"driver":"x"}', "not a plain local file name"),
        (b"missing", "Could not open"),
        (b"", "'data-file' is required for this image"),
        (b"\0aaa", "'data-file' is required for this image"),
    ],
)
async def test_names_of_data_files_in_images(tmp_path: Path, name: bytes, text: str | None) -> None:
    """A string from an image is a local file's name at most."""
    path, data = tmp_path / "image", tmp_path / ("a" * 20)
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data}", path, 1 << 20)
    image = bytearray(path.read_bytes())
    start = image.index(b"DATA") + 4
    (length,) = struct.unpack_from(">I", image, start)
    recorded = str(data).encode() if text is None else name
    image[start + 4 : start + 4 + length] = recorded.ljust(length, b"\0")
    path.write_bytes(image)
    file = {"driver": "file", "filename": str(path)}
    async with open_daemon() as daemon:
        arguments = {"driver": "qcow2", "node-name": "n", "file": file}
        if text is None:
            await daemon.qmp("blockdev-add", arguments)
            assert len(daemon.tables.graph.nodes) == 3
        else:
            with pytest.raises(QmpError, match=text):
                await daemon.qmp("blockdev-add", arguments)
            assert not daemon.tables.graph.nodes


async def test_nothing_shows_of_a_file_that_does_not_grow_by_zeroes() -> None:
    """As inside a LUKS volume: what is left of a new cluster is written, not taken for zeroes."""
    noise = MemoryDriver(await make(1 << 20))
    noise.grow_by = b"?"
    async with opened(noise) as node:
        await write(node, 70000, b"x" * 100)
        assert await read(node, 65536, 65536) == (bytes(4464) + b"x" * 100).ljust(65536, b"\0")
