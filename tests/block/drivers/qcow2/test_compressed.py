"""Compressed clusters: entries, packing, reading, writing, sharing of host clusters."""

from __future__ import annotations

import errno
import itertools
import random
import zlib
from pathlib import Path

import pytest
import trio
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.block.abc import ReqFlag, StatusFlag
from qsd_trio.block.drivers.qcow2 import compressed, compressing
from qsd_trio.block.drivers.qcow2.compressed import (
    ZLIB,
    ZSTD,
    make_entry,
    pack,
    parse_entry,
    unpack,
)
from qsd_trio.block.drivers.qcow2.create import plan, write_image
from qsd_trio.block.drivers.qcow2.layout import COMPRESSED, COPIED
from qsd_trio.block.io import Node
from qsd_trio.qapi import BlockdevCreateOptionsQcow2
from qsd_trio.testing.memory import child_of, memory_node, node_over, pattern
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
from tests.peers import requires

CLUSTER = 65536
KINDS = pytest.mark.parametrize("kind", [ZLIB, ZSTD], ids=compressed.COMPRESSION_TYPES)


async def new_image(size: int, **options: object) -> Disk:
    """Make an empty image as blockdev-create does."""
    disk = Disk()
    node = node_over(disk)
    options = {name: _enum(name, value) for name, value in options.items()}
    header, prealloc = plan(BlockdevCreateOptionsQcow2(file="f", size=size, **options))
    await write_image(child_of(node), header, size, prealloc)
    return disk


def _enum(name: str, value: object) -> object:
    from qsd_trio.qapi import BlockdevQcow2Version, Qcow2CompressionType

    enums = {"compression_type": Qcow2CompressionType, "version": BlockdevQcow2Version}
    return enums[name](value) if name in enums else value


async def compress(node: Node, offset: int, data: bytes) -> None:
    await node.pwritev(offset, [memoryview(data)], ReqFlag.WRITE_COMPRESSED)


def text(rng: random.Random, length: int) -> bytes:
    """Return bytes that compress to about a third."""
    words = [rng.randbytes(6) for _ in range(40)]
    return b"".join(rng.choices(words, k=length // 6 + 1))[:length]


# -- entries and streams -------------------------------------------------------------------------------


@given(st.integers(9, 21), st.data())
def test_an_entry_covers_its_bytes_and_no_sector_more(bits: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, (1 << bits) - 1))
    offset = data.draw(st.integers(1, (1 << min(compressed.offset_bits(bits), 56)) - size))
    entry = make_entry(offset, size, bits)
    assert entry & COMPRESSED
    assert not entry & COPIED
    start, length = parse_entry(entry, bits)
    assert start == offset
    assert size <= length < size + 512
    assert (start + length) % 512 == 0


@KINDS
@pytest.mark.parametrize("size", [512, 4096, 2 << 20])
def test_what_is_packed_is_unpacked(kind: int, size: int) -> None:
    data = text(random.Random(1), size)
    packed = pack(kind, data)
    assert packed is not None
    assert len(packed) < size
    assert unpack(kind, packed + b"of others", size) == data


@KINDS
def test_noise_is_not_packed(kind: int) -> None:
    assert pack(kind, random.Random(1).randbytes(4096)) is None


@KINDS
def test_streams_that_give_anything_but_a_cluster_are_refused(kind: int) -> None:
    packed = pack(kind, bytes(4096))
    assert packed is not None
    for raw, size in [(packed, 4097), (packed[:-4], 4096), (b"\xff" * 64, 4096), (b"", 4096)]:
        with pytest.raises(OSError, match="Input/output") as caught:
            unpack(kind, raw, size)
        assert caught.value.errno == errno.EIO


def test_a_huge_stream_costs_no_more_than_a_cluster() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    with pytest.raises(OSError, match="Input/output"):
        unpack(ZSTD, bomb, 4096)
    deflate = zlib.compressobj(wbits=-15)
    bomb = deflate.compress(bytes(1 << 24)) + deflate.flush()
    assert unpack(ZLIB, bomb, 4096) == bytes(4096)


def test_a_zstd_frame_may_not_ask_for_more_memory_than_clusters_need() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = stream.compress(bytes(4096)) + stream.flush()
    with pytest.raises(OSError, match="Input/output"):
        unpack(ZSTD, frame, 4096)


def test_a_zstd_frame_without_its_size_is_read() -> None:
    stream = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    data = pattern(65536)
    assert unpack(ZSTD, stream.compress(data) + stream.flush() + bytes(100), 65536) == data


# -- writing -------------------------------------------------------------------------------------------


async def test_clusters_share_host_clusters() -> None:
    disk = await new_image(8 * CLUSTER)
    async with opened(disk) as node:
        data = text(random.Random(2), 4 * CLUSTER)
        await compress(node, 0, data)
        await compress(node, 4 * CLUSTER, text(random.Random(3), CLUSTER))
        image = node.driver.image
        table = await image.metadata.slice(0)
        extents = [image.compressed.extent(entry) for entry in table[:5]]
        assert all(table[at] & COMPRESSED for at in range(5))
        for (start, length), (following, _) in itertools.pairwise(extents):
            assert start < following <= start + length  # no gap, not even to the next sector
        shared = extents[0][0] >> 16
        users = sum(
            start >> 16 <= shared <= (start + length - 1) >> 16 for start, length in extents
        )
        assert users > 1
        assert await image.metadata.refcounts.get(shared) == users
        assert await read(node, 0, len(data)) == data
        status = await node.block_status(0, CLUSTER)
        assert status.flags & StatusFlag.COMPRESSED
        assert status.flags & StatusFlag.DATA
        assert node.map_read(0, 512) is None
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])
    assert report.content[: len(data)] == data


async def test_one_bit_counters_cannot_share() -> None:
    disk = await new_image(8 * CLUSTER, refcount_bits=1)
    async with opened(disk) as node:
        data = text(random.Random(2), 3 * CLUSTER)
        await compress(node, 0, data)
        table = await node.driver.image.metadata.slice(0)
        starts = [node.driver.image.compressed.extent(entry)[0] for entry in table[:3]]
        assert [start % CLUSTER for start in starts] == [0, 0, 0]
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])
    assert report.content[: len(data)] == data


async def test_counters_at_their_limit_are_left_alone() -> None:
    disk = await new_image(64 * 4096, refcount_bits=2, cluster_size=4096)
    async with opened(disk) as node:
        await compress(node, 0, bytes([1]) * 64 * 4096)
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])
    assert report.content == bytes([1]) * 64 * 4096


async def test_noise_is_written_as_it_is() -> None:
    disk = await new_image(4 * CLUSTER)
    noise = random.Random(1).randbytes(CLUSTER)
    data = bytes([7]) * CLUSTER + noise + bytes([8]) * CLUSTER
    async with opened(disk) as node:
        await compress(node, 0, data)
        table = await node.driver.image.metadata.slice(0)
        assert [bool(entry & COMPRESSED) for entry in table[:3]] == [True, False, True]
        assert await read(node, 0, len(data)) == data


async def test_the_last_cluster_may_be_partial() -> None:
    size = CLUSTER + 1536
    disk = await new_image(size)
    async with opened(disk) as node:
        await compress(node, CLUSTER, bytes([5]) * 1536)
        table = await node.driver.image.metadata.slice(0)
        assert table[1] & COMPRESSED
        assert await read(node, 0, size) == bytes(CLUSTER) + bytes([5]) * 1536


@pytest.mark.parametrize(("offset", "length"), [(512, CLUSTER), (0, CLUSTER + 512), (0, 512)])
async def test_only_whole_clusters(offset: int, length: int) -> None:
    disk = await new_image(4 * CLUSTER)
    async with opened(disk) as node:
        with pytest.raises(OSError, match="Invalid") as caught:
            await compress(node, offset, bytes(length))
        assert caught.value.errno == errno.EINVAL


async def test_who_cannot_compress_says_so() -> None:
    disk = await make(4 * CLUSTER, data=(data := Disk()))
    async with opened(Disk(disk), data=data) as node:
        with pytest.raises(OSError, match="not supported") as caught:
            await compress(node, 0, bytes(CLUSTER))
        assert caught.value.errno == errno.ENOTSUP
    with pytest.raises(OSError, match="not supported") as caught:
        await compress(memory_node(CLUSTER), 0, bytes(CLUSTER))
    assert caught.value.errno == errno.ENOTSUP


async def test_a_failed_write_leaves_the_old_cluster() -> None:
    disk = await new_image(4 * CLUSTER)
    async with opened(disk) as node:
        await compress(node, 0, bytes([1]) * CLUSTER)
        await node.flush()
        whole = disk.pwritev

        async def fail(*args: object) -> None:
            raise OSError(errno.ENOSPC, "full")

        disk.pwritev = fail  # type: ignore[method-assign,assignment]
        with pytest.raises(OSError, match="full"):
            await compress(node, 0, bytes([2]) * CLUSTER)
        disk.pwritev = whole  # type: ignore[method-assign]
        assert await read(node, 0, CLUSTER) == bytes([1]) * CLUSTER
        await compress(node, CLUSTER, bytes([3]) * CLUSTER)
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])
    assert report.content == bytes([1]) * CLUSTER + bytes([3]) * CLUSTER + bytes(2 * CLUSTER)


async def test_a_reader_gets_what_was_there_while_its_place_is_used_again() -> None:
    """Its entry may come back for other data: neither it nor the cache may mix them up."""
    disk = await new_image(16 * 4096, cluster_size=4096)
    async with opened(disk) as node:
        entries: list[int] = []
        for turn in range(1, 100):
            await compress(node, 0, bytes([turn]) * 2048 + random.Random(1).randbytes(2048))
            table = await node.driver.image.metadata.slice(0)
            entries.append(table[0])
            assert await read(node, 5, 100) == bytes([turn]) * 100
            await node.flush()
        assert len(set(entries)) < len(entries)


async def test_requests_at_once() -> None:
    """Compressed and plain writes of the same clusters: each reads as one of them, nothing is lost."""
    disk = await new_image(16 * 4096, cluster_size=4096)
    async with opened(disk) as node:
        async with trio.open_nursery() as nursery:
            for turn in range(1, 9):
                data = bytes([turn]) * 4 * 4096
                nursery.start_soon(compress, node, turn % 3 * 4096, data)
                nursery.start_soon(write, node, 8 * 4096 + turn % 3 * 4096, data)
                nursery.start_soon(compress, node, 9 * 4096, data)
                nursery.start_soon(read, node, 0, 16 * 4096)
        content = await read(node, 0, 16 * 4096)
        for at in range(0, len(content), 4096):
            assert len(set(content[at : at + 4096])) == 1
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])
    assert report.content == content


SHAPES: list[dict[str, object]] = [
    {"cluster_size": 512},
    {"cluster_size": 512, "version": "v2"},
    {"cluster_size": 4096, "refcount_bits": 2},
    {"cluster_size": 16384, "extended_l2": True},
    {"cluster_size": 16384, "extended_l2": True, "compression_type": "zstd"},
    {"cluster_size": 65536, "compression_type": "zstd"},
    {"cluster_size": 4096, "lazy_refcounts": True},
]


@requires("qemu-img")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
async def test_random_requests(shape: dict[str, object], tmp_path: Path) -> None:
    """Against a bytearray; the checker, and qemu-img too, find nothing to complain of."""
    cluster = int(str(shape["cluster_size"]))
    rng = random.Random(str(shape))
    size = 40 * cluster + 512
    disk = await new_image(size, **shape)
    model = bytearray(size)
    for _ in range(2):
        async with opened(disk, l2_cache_size=1024) as node:
            for _ in range(60):
                await _request(node, rng, model, cluster)
            assert await read(node, 0, size) == model
        report = check(bytes(disk.data))
        assert (report.errors, report.leaks) == ([], [])
        assert report.content == model
    path = tmp_path / "image"
    path.write_bytes(disk.data)
    assert_sound(path, bytes(model))


async def _request(node: Node, rng: random.Random, model: bytearray, cluster: int) -> None:
    first = rng.randrange(41)
    offset = first * cluster
    end = min(offset + rng.choice([1, 2, 5]) * cluster, len(model))
    kind = rng.choice("ccccwzdrf")
    if kind == "w":
        offset += rng.randrange(end - offset)
    if kind in "cw":
        data = rng.choice([text, lambda rng, length: rng.randbytes(length)])(rng, end - offset)
        flags = ReqFlag.WRITE_COMPRESSED if kind == "c" else ReqFlag.NONE
        await node.pwritev(offset, [memoryview(data)], flags)
        model[offset:end] = data
    elif kind == "z":
        await node.pwrite_zeroes(offset, end - offset)
        model[offset:end] = bytes(end - offset)
    elif kind == "d":
        await node.pdiscard(offset, end - offset)
        model[offset:end] = bytes(end - offset)
    elif kind == "r":
        at = rng.randrange(len(model))
        part = model[at : at + 3 * cluster]
        assert await read(node, at, len(part)) == part
    else:
        await node.flush()


# -- filling in ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [ReqFlag.NONE, ReqFlag.WRITE_COMPRESSED])
async def test_filling_in_passes_over_what_is_there(flag: ReqFlag) -> None:
    disk = await new_image(8 * 4096, cluster_size=4096)
    backing = memory_node(bytes([9]) * 8 * 4096)
    async with opened(disk, backing) as node:
        await write(node, 4096, bytes([1]) * 4096)
        await node.pwrite_zeroes(3 * 4096, 4096)
        await compress(node, 5 * 4096, bytes([2]) * 4096)
        data = memoryview(bytes([9]) * 8 * 4096)
        await node.pwritev(0, [data], ReqFlag.WRITE_UNCHANGED | flag)
        want = b"".join(bytes([value]) * 4096 for value in [9, 1, 9, 0, 9, 2, 9, 9])
        assert await read(node, 0, 8 * 4096) == want
        assert node.driver.allocated_now(0, 8 * 4096)
        table = await node.driver.image.metadata.slice(0)
        assert bool(table[0] & COMPRESSED) == bool(flag)
    assert check(bytes(disk.data)).content == want


async def test_filling_in_zeroes_passes_over_what_is_there() -> None:
    for extended in (False, True):
        disk = await new_image(8 * 16384, cluster_size=16384, extended_l2=extended)
        async with opened(disk, memory_node(bytes(8 * 16384))) as node:
            await write(node, 16384, bytes([1]) * 16384)
            await write(node, 3 * 16384 + 512, bytes([2]) * 512)
            assert not node.driver.allocated_now(0, 16384)
            await node.pwrite_zeroes(0, 8 * 16384, ReqFlag.WRITE_UNCHANGED)
            content = await read(node, 0, 8 * 16384)
            assert content[16384 : 2 * 16384] == bytes([1]) * 16384
            assert content.count(2) == 512
            assert node.driver.allocated_now(0, 8 * 16384)


def test_the_number_of_parallel_workers_bounds_memory() -> None:
    assert compressed.PARALLEL * max(compressing.PIECE, 2 << 20) <= 8 << 20


@requires("qemu-img")
@pytest.mark.parametrize("kind", compressed.COMPRESSION_TYPES)
@pytest.mark.parametrize("cluster", [512, 4096, 65536, 2 << 20])
async def test_what_qemu_img_compressed_is_read(tmp_path: Path, kind: str, cluster: int) -> None:
    rng = random.Random(cluster)
    size = min(16 * cluster, 3 << 20)
    content = text(rng, size) + rng.randbytes(cluster) + bytes(2 * cluster) + text(rng, 1536)
    (tmp_path / "raw").write_bytes(content)
    options = f"cluster_size={cluster},compression_type={kind}"
    qemu_img(
        "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, tmp_path / "raw", tmp_path / "q"
    )
    async with opened(Disk((tmp_path / "q").read_bytes()), read_only=True) as node:
        assert await read(node, 0, len(content)) == content
        for _ in range(10):
            at = rng.randrange(len(content))
            length = rng.choice([1, 511, 4096, 70000])
            assert await read(node, at, length) == content[at : at + length].ljust(length, b"\0")
