"""Opening, options, corrupt images."""

from __future__ import annotations

import random
import struct
from contextlib import AbstractAsyncContextManager

import attrs
import pytest

from qsd_trio.block.drivers.qcow2 import Qcow2
from qsd_trio.block.drivers.qcow2 import header as hdr
from qsd_trio.block.io import Node
from qsd_trio.errors import QmpError
from qsd_trio.qapi import BlockdevOptionsQcow2
from qsd_trio.testing.block_drivers import check_block_driver
from qsd_trio.testing.memory import FakeOpener, MemoryDriver, node_over, pattern
from tests.block.drivers.qcow2.kit import OFFSET, Disk, make, opened, read, write

COPIED = 1 << 63


def put(image: bytes | bytearray, at: int, value: int, form: str = ">Q") -> bytes:
    data = bytearray(image)
    struct.pack_into(form, data, at, value)
    return bytes(data)


def word(image: bytes | bytearray, at: int) -> int:
    return int.from_bytes(image[at : at + 8], "big")


async def filled(version: int = 3) -> tuple[bytes, int, int, int, int]:
    """Return an image with two data clusters, and where L1, L2, refcount table and block are."""
    disk = Disk(await make(1 << 26, version=version))
    async with opened(disk) as node:
        await write(node, 0, pattern(1 << 17))
    image = bytes(disk.data)
    l1 = word(image, 40)
    reftable = word(image, 48)
    return image, l1, word(image, l1) & OFFSET, reftable, word(image, reftable)


async def test_conformance() -> None:
    image = await make(3 << 20, cluster_bits=12)

    def factory() -> AbstractAsyncContextManager[Node]:
        return opened(MemoryDriver(image))

    await check_block_driver(factory)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"cache_size": 1 << 20, "l2_cache_size": 2 << 20},
            "l2-cache-size may not exceed cache-size",
        ),
        (
            {"cache_size": 1 << 20, "refcount_cache_size": 2 << 20},
            "refcount-cache-size may not exceed cache-size",
        ),
        (
            {"cache_size": 1, "l2_cache_size": 1, "refcount_cache_size": 1},
            "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
        ),
        (
            {"l2_cache_size": -1},
            "Parameter 'l2-cache-size' expects a non-negative number below 2^64",
        ),
        ({"refcount_cache_size": 1 << 62}, "Refcount cache size too big"),
        ({"cache_size": 1 << 62}, "Refcount cache size too big"),
        (
            {"l2_cache_entry_size": 513},
            "L2 cache entry size must be a power of two between 512 and the cluster size (65536)",
        ),
        (
            {"l2_cache_entry_size": 1 << 17},
            "L2 cache entry size must be a power of two between 512 and the cluster size (65536)",
        ),
        ({"cache_clean_interval": -1}, "Cache clean interval too big"),
        ({"cache_clean_interval": 1 << 32}, "Cache clean interval too big"),
        ({"data_file": "x"}, "'data-file' can only be set for images with an external data file"),
    ],
)
async def test_options_that_cannot_be(options: dict[str, object], text: str) -> None:
    disk = Disk(await make(1 << 20))
    with pytest.raises(QmpError) as caught:
        async with opened(disk, **options):
            pass
    assert str(caught.value) == text


async def test_lazy_refcounts_need_version_3() -> None:
    with pytest.raises(QmpError, match="Lazy refcounts require a qcow2 image with at least qemu 1"):
        async with opened(Disk(await make(1 << 20, version=2)), lazy_refcounts=True):
            pass


async def test_cache_sizes() -> None:
    image = await make(1 << 40)
    for options, tables, blocks in [
        ({}, 512, 4),
        ({"cache_size": 1 << 20}, 12, 4),
        ({"cache_size": 1 << 20, "l2_cache_size": 1 << 19}, 8, 8),
        ({"cache_size": 1 << 30}, 2048, (1 << 14) - 2048),
        ({"l2_cache_size": 0, "refcount_cache_size": 0}, 2, 4),
    ]:
        async with opened(Disk(image), **options) as node:
            metadata = node.driver.image.metadata
            assert (metadata.l2_limit, metadata.refcounts.limit) == (tables, blocks)


@pytest.mark.parametrize(
    ("at", "form", "value", "read_only", "text"),
    [
        (72, ">Q", 4, True, "'data-file' is required for this image"),
        (32, ">I", 1, True, "Parameter 'encrypt.key-secret' is required for cipher"),
        (32, ">I", 2, True, "Missing CRYPTO header for crypt method 2"),
        (88, ">Q", 2, True, "data-file-raw requires a data file"),
    ],
)
async def test_what_comes_later_is_refused(
    at: int, form: str, value: int, read_only: bool, text: str
) -> None:
    image = put(await make(1 << 20), at, value, form)
    with pytest.raises(QmpError, match=text):
        async with opened(Disk(image), read_only=read_only):
            pass


async def test_unknown_autoclear_bits_are_cleared_by_who_writes() -> None:
    image = put(await make(1 << 20), 88, 0xF0)
    disk = Disk(image)
    async with opened(disk, read_only=True):
        pass
    assert disk.data == image
    async with opened(disk):
        assert word(disk.data, 88) == 0


async def test_image_info() -> None:
    for version, data in [
        (
            3,
            {
                "compat": "1.1",
                "compression-type": "zlib",
                "lazy-refcounts": False,
                "refcount-bits": 16,
                "corrupt": False,
                "extended-l2": False,
            },
        ),
        (2, {"compat": "0.10", "compression-type": "zlib", "refcount-bits": 16}),
    ]:
        async with opened(Disk(await make(1 << 20, version=version))) as node:
            assert await node.driver.image_info() == {
                "cluster-size": 65536,
                "dirty-flag": False,
                "format-specific": {"type": "qcow2", "data": data},
            }


# What the real driver says of the same faults.
@pytest.mark.parametrize(
    ("fault", "text", "reading"),
    [
        ("l1 unaligned", "L2 table offset 0x40200 unaligned (L1 index: 0)", True),
        (
            "l2 unaligned",
            "Cluster allocation offset 0x50200 unaligned (L2 offset: 0x40000, L2 index: 0)",
            True,
        ),
        (
            "v2 zero",
            "Zero cluster entry found in pre-v3 image (L2 offset: 0x40000, L2 index: 0)",
            True,
        ),
        ("to L1", "Preventing invalid write on metadata (overlaps with active L1 table)", False),
        ("to L2", "Preventing invalid write on metadata (overlaps with active L2 table)", False),
        (
            "to reftable",
            "Preventing invalid write on metadata (overlaps with refcount table)",
            False,
        ),
        (
            "to refblock",
            "Preventing invalid write on metadata (overlaps with refcount block)",
            False,
        ),
        ("free header", "Preventing invalid write on metadata (overlaps with qcow2_header)", False),
        ("free L1", "Preventing invalid write on metadata (overlaps with active L1 table)", False),
        ("reftable unaligned", "Refblock offset 0x20200 unaligned (reftable index: 0)", False),
    ],
)
async def test_corrupt_metadata(fault: str, text: str, reading: bool) -> None:
    version = 2 if fault == "v2 zero" else 3
    image, l1, l2, reftable, refblock = await filled(version)
    where = 0
    match fault:
        case "l1 unaligned":
            image = put(image, l1, COPIED | l2 | 0x200)
        case "l2 unaligned":
            image = put(image, l2, COPIED | 0x50200)
        case "v2 zero":
            image = put(image, l2, 1)
        case "to L1":
            image = put(image, l2, COPIED | l1)
        case "to L2":
            image = put(image, l2, COPIED | l2)
        case "to reftable":
            image = put(image, l2, COPIED | reftable)
        case "to refblock":
            image = put(image, l2, COPIED | refblock)
            where = 1 << 20  # an allocation first, which reads the block
        case "free header":
            image = image[:refblock] + bytes(20) + image[refblock + 20 :]
            where = 1 << 20
        case "free L1":
            image = image[: refblock + 6] + bytes(14) + image[refblock + 20 :]
            where = 1 << 20
        case "reftable unaligned":
            image = put(image, reftable, refblock | 0x200)
            where = 1 << 20
    # Only reading: reported, and the image is not touched.
    disk = Disk(image)
    if reading:
        async with opened(disk, read_only=True) as node:
            with pytest.raises(OSError, match="Input/output"):
                await read(node, 0, 512)
            assert node.map_read(0, 512) is None
            [(event, data)] = node.opener.events
            assert event == "BLOCK_IMAGE_CORRUPTED"
            assert (data["msg"], data["fatal"]) == (text, False)
        assert disk.data == image
    async with opened(disk) as node:
        with pytest.raises(OSError, match="Input/output"):
            await write(node, where, b"x" * 512, fast=True)
            await write(node, 0, b"x" * 512, fast=True)
        [(event, data)] = node.opener.events
        if fault == "l2 unaligned":  # QEMU has other words for writes
            text = "Data cluster offset 0x50200 unaligned (guest offset: 0)"
        assert (data["msg"], data["fatal"]) == (text, True)
        for request in (read(node, 0, 512), write(node, 1 << 20, b"x"), node.driver.flush()):
            with pytest.raises(OSError, match="No medium"):
                await request
        assert node.map_read(0, 512) is None
        assert node.map_write(0, 512) is None
    if version == 3:
        assert word(disk.data, 72) == 2, "the corrupt bit"
        with pytest.raises(QmpError, match="Image is corrupt; cannot be opened read/write"):
            async with opened(disk):
                pass
    differences = sum(a != b for a, b in zip(disk.data, image, strict=False))
    assert differences <= 1, "nothing but the corrupt bit was written"


async def test_mutated_images_give_errors_or_data() -> None:
    """Any bytes in the tables: no exception but OSError and QmpError, no endless loop."""
    image, l1, l2, reftable, refblock = await filled()
    rng = random.Random(1)
    interesting = [0, 1, COPIED, 1 << 62, 2**64 - 1, COPIED | 0x10000, COPIED | 1 << 55, 0x1FF]
    opens = 0
    for _ in range(400):
        data = bytearray(image)
        for _ in range(rng.randrange(1, 4)):
            base, count = rng.choice([(0, 15), (l1, 1), (l2, 40), (reftable, 3), (refblock, 5)])
            at = base + 8 * rng.randrange(count)
            value = rng.choice([rng.choice(interesting), rng.getrandbits(64), word(data, at) ^ 512])
            data = bytearray(put(data, at, value))
        disk = Disk(bytes(data))
        try:
            async with opened(disk) as node:
                opens += 1
                for offset in (0, 65536, 1 << 20, 0):
                    try:
                        await read(node, offset, 70_000)
                        await write(node, offset + 100, b"y" * 1000, fast=rng.random() < 0.5)
                        await node.pdiscard(0, 65536)
                    except OSError:
                        pass
        except (QmpError, OSError):
            continue
        assert len(disk.data) < 1 << 24
    assert opens > 50


async def test_backing_file_as_the_header_names_it() -> None:
    image = await make(1 << 20)
    header = hdr.parse(image[:65536], read_only=True)
    named = attrs.evolve(header, backing_file="below", backing_format="raw").to_bytes()
    opener = FakeOpener({"file": node_over(Disk(named + image[len(named) :]))})
    driver = await Qcow2.open(opener, BlockdevOptionsQcow2(file="file"))
    assert opener.backing_asked == ("below", "raw")
    assert driver.backing_file() == ("below", "raw")
    await driver.aclose()


async def test_reopen_read_only_writes_everything_back() -> None:
    disk = Disk(await make(1 << 20))
    async with opened(disk) as node:
        await write(node, 0, pattern(4096))
        options = BlockdevOptionsQcow2(file="file", l2_cache_size=1 << 20)
        commit = await node.driver.reopen(FakeOpener(read_only=True), options)
        await commit()
        assert not node.driver.writable
        commit = await node.driver.reopen(FakeOpener(), options)
        await commit()
        await write(node, 8192, pattern(4096))
    async with opened(disk, read_only=True) as node:
        assert await read(node, 8192, 4096) == pattern(4096)
