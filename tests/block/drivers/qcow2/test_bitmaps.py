"""Persistent dirty bitmaps: kept over closing, never believed after a crash."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest

from qsd_trio.block.dirty_bitmaps import DirtyBitmap
from qsd_trio.block.drivers.qcow2 import bitmap_tables
from qsd_trio.block.drivers.qcow2 import bitmaps as room
from qsd_trio.block.drivers.qcow2 import check as census
from qsd_trio.block.drivers.qcow2.bitmaps import BitmapStore
from qsd_trio.block.io import Node
from qsd_trio.errors import QmpError, os_error
from tests.block.drivers.qcow2.kit import Disk, Report, check, make, opened, qemu_img, write
from tests.peers import requires

KIB = 1024
MIB = 1024 * KIB
SIZE = 4 * MIB


def new(node: Node, name: str, granularity: int = 4 * KIB) -> DirtyBitmap:
    """Add a persistent bitmap."""
    store_of(node).check_can_store(name, granularity)
    bitmap = node.bitmaps.create(name, granularity, node.getlength())
    bitmap.persistent = True
    return bitmap


def store_of(node: Node) -> BitmapStore:
    store = node.driver.bitmap_store
    assert isinstance(store, BitmapStore)
    return store


def sound(disk: Disk) -> Report:
    """Check that nothing is wrong with the image and no cluster leaks."""
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])
    return report


@asynccontextmanager
async def reopened(disk: Disk, **options: object) -> AsyncGenerator[Node]:
    sound(disk)
    async with opened(disk, **options) as node:
        yield node


async def with_bitmaps(cluster_bits: int = 12, size: int = SIZE) -> Disk:
    """Make an image with bitmaps ``on`` and ``off``, the first MiB dirty in both."""
    disk = Disk(await make(size, cluster_bits=cluster_bits))
    async with opened(disk) as node:
        for name in ("on", "off"):
            new(node, name).mark(0, MIB)
        node.bitmaps.find("off").enabled = False
    return disk


@pytest.mark.parametrize("cluster_bits", [9, 12, 16])
async def test_bits_come_back(cluster_bits: int) -> None:
    """Clean, full, and mixed clusters of bits, by fine and coarse granularity."""
    size = 64 * MIB - 1024
    disk = Disk(await make(size, cluster_bits=cluster_bits))
    rng = random.Random(cluster_bits)
    want = {}
    async with opened(disk) as node:
        for granularity in (512, 4096, 1 << 31):
            bitmap = new(node, f"b{granularity}", granularity)
            bitmap.mark(20 * MIB, 24 * MIB)
            for _ in range(20):
                offset = rng.randrange(16 * MIB)
                bitmap.mark(offset, rng.randrange(1, 5000))
            bitmap.mark(size - 1, 1)
            new(node, f"clean{granularity}", granularity)
        want = {each.name: bytes(each.data) for each in node.bitmaps}
        names = [each.name for each in node.bitmaps]
    report = sound(disk)
    assert list(report.bitmaps) == names
    for name, found in report.bitmaps.items():
        assert found.bits.ljust(len(want[name]), b"\0")[: len(want[name])] == want[name]
        assert (found.in_use, found.auto) == (False, True)
    async with reopened(disk) as node:
        assert {each.name: bytes(each.data) for each in node.bitmaps} == want
        assert all(each.persistent and each.enabled and not each.readonly for each in node.bitmaps)


async def test_what_is_recorded_later_is_kept_and_states_as_well() -> None:
    disk = await with_bitmaps()
    async with reopened(disk) as node:
        assert [(each.name, each.enabled) for each in node.bitmaps] == [
            ("on", True),
            ("off", False),
        ]
        await write(node, 2 * MIB, b"x" * 512)
        await write(node, 3 * MIB, b"x" * 4096, fast=True)
        temporary = node.bitmaps.create("temporary", 4096, SIZE)
        assert temporary.count() == 0
    async with reopened(disk) as node:
        on, off = node.bitmaps.find("on"), node.bitmaps.find("off")
        assert (on.count(), off.count()) == (MIB + 8192, MIB)
        assert node.bitmaps.get("temporary") is None
        on.enabled, off.enabled = False, True
    assert {name: each.auto for name, each in sound(disk).bitmaps.items()} == {
        "on": False,
        "off": True,
    }


async def test_bits_in_the_image_are_in_use_before_anybody_can_write() -> None:
    disk = await with_bitmaps()
    async with opened(disk) as node:
        for crash in disk.journal.crashes(random.Random(1)):
            last = crash
        assert all(each.in_use for each in check(last.images[0]).bitmaps.values())
        assert store_of(node).info() == [
            {"name": "off", "granularity": 4096, "flags": ["in-use"]},
            {"name": "on", "granularity": 4096, "flags": ["in-use", "auto"]},
        ]


@pytest.mark.parametrize("seed", range(4))
async def test_no_crash_makes_a_bitmap_lie(seed: int) -> None:
    """Whatever moment: no errors, and a bitmap that seems good has every write since its beginning."""
    rng = random.Random(seed)
    disk = await with_bitmaps(cluster_bits=rng.choice([9, 12]))
    before = sound(disk)
    disk = Disk(bytes(disk.data), rng)
    async with opened(disk, lazy_refcounts=seed == 3) as node:
        await write(node, 2 * MIB, b"x" * 5000)
        if seed % 2:
            await store_of(node).remove("off")
            node.bitmaps.remove(node.bitmaps.find("off"))
        for number in range(5):
            new(node, f"new{number}", 512)
        await node.flush()
        await write(node, 2 * MIB + rng.randrange(MIB), b"y" * 3000)
        if seed % 3 == 0:
            await store_of(node).become_readonly()
            await store_of(node).become_writable()
            await write(node, 3 * MIB + 12345, b"z")
    after = sound(disk)
    final = {name: each.bits for name, each in after.bitmaps.items()}
    for crash in disk.journal.crashes(rng, 60):
        report = check(crash.images[0])
        assert report.dirty or not report.errors
        for name, found in report.bitmaps.items():
            if found.in_use or found.bits == final.get(name):
                continue
            if name in before.bitmaps and found.bits == before.bitmaps[name].bits:
                assert name == "off" or report.content == before.content
            else:  # stored when it became read-only
                assert seed % 3 == 0
        again = Disk(crash.images[0])
        async with opened(again) as node:
            for bitmap in node.bitmaps:
                assert bitmap.inconsistent is report.bitmaps[bitmap.name].in_use
                await store_of(node).remove(bitmap.name)
                node.bitmaps.remove(bitmap)
        assert check(bytes(again.data)).errors == []
        assert not check(bytes(again.data)).bitmaps


async def test_a_bitmap_that_was_in_use_can_only_be_removed() -> None:
    disk = await with_bitmaps()
    async with opened(disk) as node:
        lost = bytes(disk.data)
    disk = Disk(lost)
    async with opened(disk) as node:
        assert [(each.inconsistent, each.enabled, each.count()) for each in node.bitmaps] == [
            (True, False, 0),
            (True, False, 0),
        ]
        await write(node, 0, b"x")
        with pytest.raises(QmpError, match="is inconsistent"):
            await node.truncate(2 * SIZE)
    assert all(each.in_use for each in check(bytes(disk.data)).bitmaps.values())
    async with opened(disk) as node:
        await store_of(node).remove("on")
        node.bitmaps.remove(node.bitmaps.find("on"))
    assert list(sound(disk).bitmaps) == ["off"]


async def test_removing_the_last_one_leaves_no_trace() -> None:
    disk = await with_bitmaps()
    async with reopened(disk) as node:
        assert node.driver.header.autoclear == 1
        for name in ("on", "off", "nobody"):
            await store_of(node).remove(name)
            if name != "nobody":
                node.bitmaps.remove(node.bitmaps.find(name))
        assert (node.driver.header.autoclear, list(node.driver.header.extensions)) == (0, [])
        assert store_of(node).info() == []
    assert not sound(disk).bitmaps


async def test_an_abandoned_removal_is_made_good_at_close() -> None:
    """A transaction that fails after the removal from the image keeps the bitmap."""
    disk = await with_bitmaps()
    async with reopened(disk) as node:
        await store_of(node).remove("on")
    assert sorted(sound(disk).bitmaps) == ["off", "on"]


async def test_read_only_images_are_not_written() -> None:
    disk = await with_bitmaps()
    content = bytes(disk.data)
    async with reopened(disk, read_only=True) as node:
        assert all(each.readonly for each in node.bitmaps)
        assert [each.count() for each in node.bitmaps] == [MIB, MIB]
        assert store_of(node).info()[0]["flags"] == []
    assert disk.data == content


async def test_a_new_bitmap_of_a_read_only_image_is_lost_with_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = Disk(await make(SIZE))
    async with opened(disk, read_only=True) as node:
        new(node, "b")
    assert (
        "Lost persistent bitmaps during inactivation of node 'node': No write access" in caplog.text
    )
    assert not sound(disk).bitmaps


async def test_read_only_and_back() -> None:
    disk = await with_bitmaps()
    async with reopened(disk) as node:
        await write(node, 2 * MIB, b"x")
        await store_of(node).become_readonly()
        await node.driver.image.metadata.write_back()
        report = sound(disk)
        assert not any(each.in_use for each in report.bitmaps.values())
        assert report.bitmaps["on"].bits.count(b"\x01") == 1
        assert node.map_write(0, 512) is None
        await store_of(node).become_writable()
        assert all(each.in_use for each in check(bytes(disk.data)).bitmaps.values())
        await write(node, 3 * MIB, b"x")
    assert sound(disk).bitmaps["on"].bits.count(b"\x01") == 2


async def test_writes_are_refused_where_the_bitmaps_cannot_be_marked_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = await with_bitmaps()
    async with reopened(disk) as node:
        await store_of(node).become_readonly()

        async def fail() -> None:
            raise os_error(errno.EIO)

        with monkeypatch.context() as patch:
            patch.setattr(disk, "flush", fail)
            await node.driver.abort_reopen()
        with pytest.raises(OSError, match="not permitted"):
            await node.pwritev(0, [memoryview(b"x")])
        await node.driver.abort_reopen()
        await node.pwritev(0, [memoryview(b"x")])


async def test_bitmaps_are_lost_and_nothing_else_where_the_disk_is_full(
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = await with_bitmaps(cluster_bits=16)
    async with reopened(disk) as node:
        for number in range(8):
            new(node, f"b{number}", 512).mark(number * 65536, 1)
        await write(node, 2 * MIB, b"x" * 512)
        await node.flush()
        disk.max_length = len(disk.data) + 3 * 65536
    assert "Failed to store bitmap 'b" in caplog.text
    report = sound(disk)
    assert {name: each.in_use for name, each in report.bitmaps.items()} == {"on": True, "off": True}
    assert report.content[2 * MIB :][:512] == b"x" * 512


async def test_a_directory_that_another_program_ignored_is_dropped() -> None:
    disk = await with_bitmaps()
    disk.data[88:96] = bytes(8)
    async with opened(disk, read_only=True) as node:
        assert len(node.bitmaps) == 0
    async with opened(disk) as node:
        assert list(node.driver.header.extensions) == []
        new(node, "on").mark(0, 1)
    report = check(bytes(disk.data))
    assert (report.errors, list(report.bitmaps)) == ([], ["on"])
    assert report.leaks


async def test_resizing() -> None:
    disk = await with_bitmaps()
    async with reopened(disk) as node:
        await node.truncate(SIZE + MIB)
        await node.truncate(MIB // 2)
        await node.truncate(2 * SIZE)
        assert node.bitmaps.find("on").count() == MIB // 2
        await write(node, 2 * SIZE - 1, b"x")
        store_of(node).check_can_store("more", 4096)
    async with reopened(disk) as node:
        assert node.bitmaps.find("on").count() == MIB // 2 + 4096
        assert node.bitmaps.find("off").size == 2 * SIZE
        node.bitmaps.find("off").busy = True
        with pytest.raises(QmpError, match="currently in use"):
            await node.truncate(SIZE)


async def test_an_empty_image_keeps_none(caplog: pytest.LogCaptureFixture) -> None:
    """Its bitmaps have no bits, and a table without entries is none."""
    disk = Disk(await make(0))
    async with opened(disk) as node:
        new(node, "b")
    assert "An image of no bytes cannot keep bitmaps" in caplog.text
    assert not sound(disk).bitmaps


async def test_accounting_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = await with_bitmaps()
    monkeypatch.setattr(bitmap_tables, "MAX_TABLES", 15)
    async with opened(disk) as node:
        with pytest.raises(OSError, match="File too large"):
            await bitmap_tables.regions(node.driver.image.metadata)


async def test_what_cannot_be_stored() -> None:
    disk = Disk(await make(SIZE, version=2))
    async with opened(disk) as node:
        with pytest.raises(QmpError) as caught:
            store_of(node).check_can_store("b", 4096)
        assert str(caught.value) == "Cannot store dirty bitmaps in qcow2 v2 files"
    async with opened(Disk(await make(SIZE))) as node:
        store = store_of(node)
        for name, granularity, text in [
            ("b", 1 << 32, "Granularity exceeds maximum (2147483648 bytes)"),
            ("x" * 1024, 4096, "Name length exceeds maximum (1023 characters)"),
        ]:
            with pytest.raises(QmpError) as caught:
                store.check_can_store(name, granularity)
            assert str(caught.value) == text


async def test_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(Disk(await make(SIZE))) as node:
        new(node, "a" * 100)
        new(node, "b" * 100)
        monkeypatch.setattr(room.form, "MAX_DIRECTORY", 384)
        with pytest.raises(QmpError, match="Not enough space in the bitmap directory"):
            new(node, "c" * 105)
        new(node, "c" * 104)
        monkeypatch.setattr(room.form, "MAX_BITMAPS", 3)
        with pytest.raises(QmpError, match="Maximum number of persistent bitmaps"):
            new(node, "d")


async def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of an image whose tables say "all dirty" and take no space."""
    disk = await with_bitmaps()
    monkeypatch.setattr(room, "MAX_LOADED", SIZE // 4096 // 8 * 2 - 1)
    with pytest.raises(QmpError, match="need more than"):
        async with opened(disk):
            pass
    monkeypatch.setattr(room, "MAX_LOADED", SIZE // 4096 // 8 * 2)
    async with opened(disk) as node:
        assert len(node.bitmaps) == 2


async def test_tables_of_all_ones_need_no_clusters() -> None:
    disk = Disk(await make(64 * MIB, cluster_bits=9))
    async with opened(disk) as node:
        new(node, "full", 512).mark(0, 64 * MIB)
    report = sound(disk)
    assert report.bitmaps["full"].bits == b"\xff" * (64 * MIB // 512 // 8)
    async with reopened(disk) as node:
        assert node.bitmaps.find("full").count() == 64 * MIB


async def test_the_clusters_of_bitmaps_are_accounted_for() -> None:
    disk = await with_bitmaps(cluster_bits=9)
    async with reopened(disk) as node:
        metadata = node.driver.image.metadata
        regions = await bitmap_tables.regions(metadata)
        used = {at >> 9 for start, length in regions for at in range(start, start + length, 512)}
        async with opened(Disk(await make(SIZE, cluster_bits=9))) as empty:
            without = empty.driver.image.metadata.refcounts
            count = await metadata.refcounts.count_used(1 << 20) - await without.count_used(1 << 20)
        assert count == len(used)
        assert (await census.take(metadata)).corruptions == 0


async def test_a_repair_spares_the_bitmaps() -> None:
    disk = await with_bitmaps()
    disk.data[79] |= 1  # the dirty bit
    async with opened(disk) as node:
        assert node.bitmaps.find("on").count() == MIB
    assert sound(disk).bitmaps["on"].bits


@pytest.mark.parametrize("at", range(3))
async def test_a_broken_table_is_refused_and_changes_nothing(at: int) -> None:
    disk = await with_bitmaps()
    (offset,) = struct.unpack_from(">Q", disk.data, directory_of(disk)[0])
    struct.pack_into(">Q", disk.data, offset, [2, 512, 1 << 63][at])
    before = bytes(disk.data)
    with pytest.raises(QmpError) as caught:
        async with opened(disk):
            pass
    text = "Could not read bitmap_table table from image for bitmap 'off': Invalid argument"
    assert str(caught.value) == text
    assert disk.data == before


async def test_clusters_of_a_broken_table_leak_rather_than_harm() -> None:
    disk = await with_bitmaps()
    async with opened(disk):
        lost = Disk(bytes(disk.data))
    (offset,) = struct.unpack_from(">Q", lost.data, directory_of(lost)[0])
    struct.pack_into(">Q", lost.data, offset, 2)
    async with opened(lost) as node:
        for bitmap in node.bitmaps:
            await store_of(node).remove(bitmap.name)
            node.bitmaps.remove(bitmap)
    report = check(bytes(lost.data))
    assert (report.errors, bool(report.leaks)) == ([], True)


def directory_of(disk: Disk) -> tuple[int, int]:
    """Return offset and size of the directory."""
    at = disk.data.index(struct.pack(">II", 0x23852875, 24)) + 8
    _, _, size, offset = struct.unpack_from(">IIQQ", disk.data, at)
    return offset, size


@requires("qemu-img")
async def test_qemu_img_and_we_read_each_other(tmp_path: Path) -> None:
    disk = await with_bitmaps(cluster_bits=16)
    path = tmp_path / "image"
    path.write_bytes(disk.data)
    qemu_img("check", path)
    qemu_img("bitmap", "--add", "-g", "512", path, "theirs")
    qemu_img("bitmap", "--enable", path, "off")
    qemu_img("bitmap", "--merge", "on", path, "theirs")
    qemu_img("bitmap", "--clear", path, "on")
    disk = Disk(path.read_bytes())
    async with reopened(disk) as node:
        found = {each.name: (each.granularity, each.enabled, each.count()) for each in node.bitmaps}
        assert found == {
            "on": (4096, True, 0),
            "off": (4096, True, MIB),
            "theirs": (512, True, MIB),
        }
    assert attrs.astuple(sound(disk).bitmaps["theirs"])[:3] == (512, False, True)
