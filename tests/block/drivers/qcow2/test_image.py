"""Reading and writing: images of every shape against a bytearray, with qemu-img as the judge."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest

from qsd_trio.block.abc import ReqFlag, StatusFlag
from qsd_trio.block.io import Node
from qsd_trio.testing.memory import memory_node, pattern
from tests.block.drivers.qcow2.kit import (
    Disk,
    assert_sound,
    check,
    make,
    opened,
    qemu_img,
    read,
    read_fast,
    write,
)
from tests.oracle import requires

SHAPES = [
    (version, bits, order)
    for version, bits, order in [
        *((3, bits, 4) for bits in range(9, 22)),
        *((3, 16, order) for order in range(7)),
        (3, 9, 0),
        (3, 9, 6),
        (3, 21, 0),
        (2, 9, 4),
        (2, 16, 4),
        (2, 21, 4),
    ]
]


async def random_work(
    node: Node, rng: random.Random, model: bytearray, steps: int, *, backing: bool = False
) -> None:
    """Do random requests; compare each time."""
    size = len(model)
    unit = node.limits().pdiscard_alignment
    v2 = node.driver.image.version < 3
    entropy = rng.randbytes(1 << 20)
    for step in range(steps):
        offset = rng.choice([rng.randrange(size), rng.randrange(size // unit + 1) * unit]) % size
        length = min(size - offset, rng.choice([1, 512, 4096, unit, 2 * unit, 3 * unit + 17]))
        length = min(length, 1 << 19)
        match rng.choice("wwwwzZdf"):
            case "w":
                start = rng.randrange(len(entropy) - length)
                data = entropy[start : start + length]
                await write(node, offset, data, fast=rng.random() < 0.7)
                model[offset : offset + length] = data
            case "z" | "Z" as op:
                flags = ReqFlag.MAY_UNMAP if op == "Z" else ReqFlag.NONE
                await node.pwrite_zeroes(offset, length, flags)
                model[offset : offset + length] = bytes(length)
            case "d":
                await node.pdiscard(offset, length)
                low = -(-offset // unit) * unit
                high = size if offset + length == size else (offset + length) // unit * unit
                if low < high and not (v2 and backing):
                    model[low:high] = bytes(high - low)
            case "f":
                await node.flush()
        want = model[offset : offset + length]
        assert await read(node, offset, length) == want, step
        fast = read_fast(node, offset, length)
        assert fast is None or fast == want, step


@requires("qemu-img")
@pytest.mark.parametrize(("version", "bits", "order"), SHAPES)
async def test_images_of_qemu_img(tmp_path: Path, version: int, bits: int, order: int) -> None:
    path = tmp_path / "image"
    size = min(3 << 20, 300 << bits) + 512
    options = f"compat={'1.1' if version == 3 else '0.10'},cluster_size={1 << bits}"
    if version == 3:
        options += f",refcount_bits={1 << order}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, size)
    rng = random.Random(bits * 10 + order)
    model = bytearray(size)
    disk = Disk(path.read_bytes())
    async with opened(disk) as node:
        assert node.getlength() == size
        await random_work(node, rng, model, 120)
    path.write_bytes(disk.data)
    assert_sound(path, bytes(model))
    if bits < 16:
        report = check(bytes(disk.data))
        assert (report.errors, report.leaks) == ([], [])
        assert report.content == model


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("there", [1 << 16, 150_016, 1 << 20])
async def test_backing(version: int, there: int) -> None:
    size = 300_032
    below = pattern(there)
    model = bytearray(below[:size].ljust(size, b"\0"))
    disk = Disk(await make(size, cluster_bits=12, version=version))
    rng = random.Random(there)
    async with opened(disk, memory_node(below)) as node:
        await random_work(node, rng, model, 150, backing=True)
        assert await read(node, 0, size) == model
    report = check(bytes(disk.data), below)
    assert (report.errors, report.leaks) == ([], [])
    assert report.content == model


@requires("qemu-img")
@pytest.mark.parametrize("cluster_size", [512, 65536, 1 << 21])
async def test_compressed_clusters(tmp_path: Path, cluster_size: int) -> None:
    raw, path = tmp_path / "raw", tmp_path / "image"
    size = 4 * cluster_size + (1 << 18)
    content = (pattern(1000) * (size // 1000 + 1))[:size]
    raw.write_bytes(content)
    qemu_img("convert", "-q", "-c", "-O", "qcow2", "-o", f"cluster_size={cluster_size}", raw, path)
    disk = Disk(path.read_bytes())
    model = bytearray(content)
    async with opened(disk) as node:
        assert node.map_read(0, 512) is None or cluster_size == 512
        assert await read(node, 0, size) == content
        status = await node.block_status(0, size)
        assert status.flags & StatusFlag.DATA
        await random_work(node, random.Random(5), model, 40)
        assert await read(node, 0, size) == model
    path.write_bytes(disk.data)
    assert_sound(path, bytes(model))


@requires("qemu-img")
async def test_a_truncated_compressed_cluster_is_an_input_error(tmp_path: Path) -> None:
    raw, path = tmp_path / "raw", tmp_path / "image"
    raw.write_bytes(pattern(65536))
    qemu_img("convert", "-q", "-c", "-O", "qcow2", raw, path)
    image = bytearray(path.read_bytes())
    assert zlib.crc32(image)
    image[-512:] = b"\xff" * 512
    image[-1024:-512] = b"\xff" * 512
    async with opened(Disk(bytes(image))) as node:
        start = node.driver.image.compressed.extent((await node.driver.image.metadata.slice(0))[0])[
            0
        ]
    image[start : start + 64] = b"\xff" * 64
    async with opened(Disk(bytes(image))) as node:
        with pytest.raises(OSError, match="Input/output"):
            await read(node, 0, 512)


async def test_the_fast_path_allocates_and_reads() -> None:
    disk = Disk(await make(1 << 20))
    async with opened(disk) as node:
        assert node.map_write(0, 4096) is None, "no L2 table yet"
        await write(node, 0, pattern(512))
        assert await write(node, 70000, pattern(4096), fast=True)
        assert await write(node, 3 << 16, pattern(3 << 16), fast=True)
        assert len(node.map_read(3 << 16, 3 << 16)) == 1, "adjacent clusters are one extent"
        assert read_fast(node, 65536, 65536) == bytes(70000 - 65536) + pattern(4096) + bytes(
            131072 - 70000 - 4096
        )
        assert node.map_read(9 << 16, 4096) == [(None, 0, 4096)]
        disk.fast_writes = False
        assert node.map_write(10 << 16, 4096) is None, "the file is slow: nothing is allocated"
        assert node.map_write(70000, 4096) is not None
    assert check(bytes(disk.data)).errors == []


async def test_fast_path_leaves_partial_clusters_over_data_to_the_slow_path() -> None:
    disk = Disk(await make(1 << 20))
    async with opened(disk, memory_node(pattern(1 << 20))) as node:
        await write(node, 0, b"x")
        assert node.map_write(70000, 4096) is None
        assert node.map_write(1 << 17, 1 << 16) is not None


async def test_used_clusters_with_old_content_are_not_shown() -> None:
    disk = Disk(await make(1 << 20))
    async with opened(disk) as node:
        await write(node, 0, b"\xaa" * (1 << 17))
        await node.pdiscard(0, 1 << 17)
        await node.flush()
        disk.data = bytearray(disk.data.replace(bytes(1 << 16), b"\xbb" * (1 << 16)))
        assert node.map_write(1 << 18, 512) is None, "the free clusters are used ones"
        await write(node, 1 << 18, b"\xcc" * 512, fast=True)
        assert await read(node, 1 << 18, 1 << 16) == b"\xcc" * 512 + bytes(65024)


async def test_block_status_and_zero_writes() -> None:
    disk = Disk(await make(1 << 20))
    async with opened(disk, memory_node(pattern(1 << 20))) as node:
        await write(node, 0, bytes(1 << 17))
        await node.pwrite_zeroes(1 << 17, 1 << 16, ReqFlag.NONE)
        await node.pwrite_zeroes(1 << 16, 1 << 16, ReqFlag.NONE)
        status = await node.block_status(0, 1 << 20)
        assert status.flags & StatusFlag.DATA
        assert status.length == 1 << 16
        status = await node.block_status(1 << 16, 1 << 20)
        assert status.flags & StatusFlag.ZERO
        assert status.flags & StatusFlag.OFFSET_VALID
        assert status.length == 1 << 16, "the first has a place of its own, the second has none"
        status = await node.block_status(3 << 16, 1 << 20)
        assert not status.flags & StatusFlag.ALLOCATED
        assert status.length == 13 << 16
        used = len(disk.data)
        await write(node, 1 << 16, b"y" * 10)
        assert len(disk.data) == used, "a zero cluster's own place is used again"
        assert await read(node, 1 << 16, 20) == b"y" * 10 + bytes(10)


async def test_discards_reach_the_file_after_the_tables() -> None:
    disk = Disk(await make(1 << 20))
    async with opened(disk) as node:
        await write(node, 0, pattern(1 << 18))
        await node.flush()
        await node.pdiscard(0, 1 << 18)
        assert disk.discarded == []
        await node.flush()
        assert sum(length for _, length in disk.discarded) == 1 << 18
        assert len(disk.discarded) == 1, "adjacent clusters are discarded at once"


async def test_caches_stay_within_their_limits() -> None:
    size = 1 << 22  # 512-byte clusters: an L2 table for 32 KiB
    disk = Disk(await make(size, cluster_bits=9))
    model = bytearray(size)
    rng = random.Random(3)
    async with opened(disk, l2_cache_size=4096, refcount_cache_size=2048) as node:
        metadata = node.driver.image.metadata
        assert metadata.l2_limit == 8
        for _ in range(600):
            offset = rng.randrange(size - 512)
            data = rng.randbytes(512)
            await write(node, offset, data, fast=True)
            model[offset : offset + 512] = data
            assert len(metadata.l2) <= 9
        assert await read(node, 0, size) == model
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])
    assert report.content == model


async def test_a_failed_write_leaves_a_sound_image() -> None:
    disk = Disk(await make(1 << 20, cluster_bits=12))
    disk.fast = False
    failing = type(disk).pwritev
    async with opened(disk) as node:
        await write(node, 0, pattern(4096))

        async def fail(self: Disk, offset: int, iov: list[memoryview], flags: ReqFlag) -> None:
            raise OSError(28, "No space left on device")

        Disk.pwritev = fail
        try:
            with pytest.raises(OSError, match="No space"):
                await write(node, 8192, pattern(10000))
            with pytest.raises(OSError, match="No space"):
                await node.flush()
        finally:
            Disk.pwritev = failing
        assert await read(node, 8192, 10000) == bytes(10000)
        await write(node, 8192, pattern(10000))
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])
    assert report.content[8192:18192] == pattern(10000)


async def test_read_only_images_are_not_touched() -> None:
    image = await make(1 << 20)
    disk = Disk(image)
    async with opened(disk, read_only=True) as node:
        assert await read(node, 0, 4096) == bytes(4096)
    assert disk.data == image
    assert disk.journal.changes == []
