"""Growing, shrinking, preallocation, creating."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from qsd_trio.block.drivers.qcow2.create import create
from qsd_trio.errors import QmpError
from qsd_trio.qapi import (
    BlockdevCreateOptionsQcow2,
    BlockdevDriver,
    BlockdevQcow2Version,
    PreallocMode,
    Qcow2CompressionType,
)
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
from tests.oracle import requires


@pytest.mark.parametrize("bits", [9, 12, 16])
@pytest.mark.parametrize("version", [2, 3])
async def test_growing_and_shrinking(version: int, bits: int) -> None:
    rng = random.Random(bits)
    unit = 1 << bits
    size = 40 * unit + 512 if bits > 9 else 40 * unit
    disk = Disk(await make(size, cluster_bits=bits, version=version))
    model = bytearray(size)
    async with opened(disk) as node:
        for _ in range(25):
            offset = rng.randrange(len(model))
            data = rng.randbytes(min(rng.choice([512, unit, 5 * unit]), len(model) - offset))
            await write(node, offset, data, fast=True)
            model[offset : offset + len(data)] = data
            size = rng.choice([rng.randrange(1, 200) * 512, rng.randrange(1, 300) * unit])
            await node.truncate(size)
            del model[size:]
            model += bytes(size - len(model))
            assert node.getlength() == size
            assert await read(node, 0, size) == model
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])
    assert report.content == model


async def test_what_grows_over_a_longer_backing_file_reads_as_zeroes() -> None:
    for version in (2, 3):
        disk = Disk(await make(10_240, cluster_bits=12, version=version))
        async with opened(disk, memory_node(pattern(100_000))) as node:
            await node.truncate(81_920)
            assert await read(node, 0, 81_920) == pattern(100_000)[:10_240] + bytes(71_680)


async def test_sizes_that_cannot_be() -> None:
    disk = Disk(await make(1 << 20, cluster_bits=9))
    async with opened(disk) as node:
        for size, text in [
            (1000, "The new size must be a multiple of 512"),
            (1 << 50, "Failed to grow the L1 table: File too large"),
        ]:
            with pytest.raises(QmpError) as caught:
                await node.truncate(size)
            assert str(caught.value) == text
        with pytest.raises(QmpError, match="Preallocation can't be used for shrinking an image"):
            await node.truncate(512, prealloc="full")
        assert node.getlength() == 1 << 20


async def test_the_refcount_table_grows() -> None:
    # 512-byte clusters with 64-bit refcounts: a cluster of the table describes 2 MiB.
    size = 12 << 20
    disk = Disk(await make(size, cluster_bits=9, refcount_order=6))
    piece = pattern(1 << 20)
    async with opened(disk) as node:
        for at in range(0, size, 1 << 20):
            await write(node, at, piece)
        assert node.driver.image.metadata.refcounts.table_offset != 512
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])
    assert report.content == piece * 12


class _Creator:
    """A CreateOpener over one disk."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    async def node(self, reference: object) -> object:
        return child_of(node_over(self.disk))

    def object(self, id_: str, type_: type) -> object:
        raise AssertionError


async def created(**options: object) -> bytes:
    disk = Disk()
    await create(_Creator(disk), BlockdevCreateOptionsQcow2(file="file", **options))
    return bytes(disk.data)


V2 = BlockdevQcow2Version.V2
CREATE = [
    ({"size": 64 << 20}, ""),
    ({"size": 0}, ""),
    ({"size": 64 << 20, "version": V2}, "compat=0.10"),
    ({"size": 64 << 20, "cluster_size": 512}, "cluster_size=512"),
    ({"size": 64 << 20, "cluster_size": 4096}, "cluster_size=4096"),
    (
        {"size": 64 << 20, "cluster_size": 2 << 20, "refcount_bits": 1},
        "cluster_size=2M,refcount_bits=1",
    ),
    ({"size": 64 << 20, "refcount_bits": 64}, "refcount_bits=64"),
    ({"size": 64 << 20, "lazy_refcounts": True}, "lazy_refcounts=on"),
    (
        {"size": 64 << 20, "backing_file": "below.raw", "backing_fmt": BlockdevDriver.RAW},
        "backing_file=below.raw,backing_fmt=raw",
    ),
    ({"size": 8 << 20, "preallocation": PreallocMode.METADATA}, "preallocation=metadata"),
]


@requires("qemu-img")
@pytest.mark.parametrize(("options", "text"), CREATE)
async def test_new_images_are_byte_for_byte_those_of_qemu_img(
    tmp_path: Path, options: dict[str, object], text: str
) -> None:
    path = tmp_path / "image"
    (tmp_path / "below.raw").write_bytes(bytes(1 << 20))
    more = ["-o", text] if text else []
    qemu_img("create", "-q", "-f", "qcow2", *more, path, options["size"])
    assert await created(**options) == path.read_bytes()


@requires("qemu-img")
@pytest.mark.parametrize(
    "options",
    [
        {"size": 8 << 20, "preallocation": PreallocMode.FALLOC},
        {"size": 8 << 20, "preallocation": PreallocMode.FULL},
        {"size": 1 << 33, "cluster_size": 512, "refcount_bits": 64},
        {
            "size": 3 << 20,
            "cluster_size": 512,
            "refcount_bits": 64,
            "preallocation": PreallocMode.METADATA,
        },
    ],
)
async def test_other_new_images_are_sound(tmp_path: Path, options: dict[str, object]) -> None:
    path = tmp_path / "image"
    image = await created(**options)
    path.write_bytes(image)
    qemu_img("check", path)
    if options["size"] < 1 << 25:
        assert_sound(path, bytes(options["size"]))
        async with opened(Disk(image)) as node:
            assert node.map_write(0, 1 << 20) is not None or node.map_write(0, 512) is None


async def test_old_content_of_the_node_does_not_show() -> None:
    disk = Disk(b"old content" * 100_000)
    options = BlockdevCreateOptionsQcow2(
        file="file", size=1 << 20, preallocation=PreallocMode.METADATA
    )
    await create(_Creator(disk), options)
    async with opened(disk) as node:
        assert await read(node, 0, 1 << 20) == bytes(1 << 20)
        await write(node, 512, b"x", fast=True)
        assert await read(node, 0, 1 << 20) == bytes(512) + b"x" + bytes((1 << 20) - 513)
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])


# Texts of the real daemon.
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 513}, "Image size must be a multiple of 512 bytes"),
        ({"cluster_size": 513}, "Cluster size must be a power of two between 512 and 2048k"),
        ({"cluster_size": 256}, "Cluster size must be a power of two between 512 and 2048k"),
        ({"cluster_size": 4 << 20}, "Cluster size must be a power of two between 512 and 2048k"),
        ({"refcount_bits": 3}, "Refcount width must be a power of two and may not exceed 64 bits"),
        ({"refcount_bits": 0}, "Refcount width must be a power of two and may not exceed 64 bits"),
        (
            {"refcount_bits": 128},
            "Refcount width must be a power of two and may not exceed 64 bits",
        ),
        (
            {"refcount_bits": 8, "version": V2},
            "Different refcount widths than 16 bits require compatibility level 1.1 or above"
            " (use version=v3 or greater)",
        ),
        (
            {"lazy_refcounts": True, "version": V2},
            "Lazy refcounts only supported with compatibility level 1.1 and above"
            " (use version=v3 or greater)",
        ),
        (
            {"extended_l2": True, "cluster_size": 8192},
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
        ),
        (
            {"compression_type": Qcow2CompressionType.ZSTD, "version": V2},
            "Non-zlib compression type is only supported with compatibility level 1.1 and above"
            " (use version=v3 or greater)",
        ),
        ({"backing_fmt": BlockdevDriver.RAW}, "Backing format cannot be used without backing file"),
        (
            {"backing_file": "x", "preallocation": PreallocMode.FULL},
            "Backing file and preallocation can only be used at the same time if extended_l2 is on",
        ),
        ({"size": 1 << 60}, "Could not resize image: Failed to grow the L1 table: File too large"),
        (
            {"size": 2**63 - 512},
            "Could not resize image: offset(9223372036854775296) exceeds"
            " maximum(9223372035781033984)",
        ),
        ({"size": 2**64 - 512}, "Could not resize image: Image size cannot be negative"),
        (
            {"backing_file": "b" * 1024},
            f"Could not assign backing file '{'b' * 1024}' with format '(null)': Invalid argument",
        ),
        (
            {"backing_file": "b" * 500, "cluster_size": 512, "backing_fmt": BlockdevDriver.QCOW2},
            f"Could not assign backing file '{'b' * 500}' with format 'qcow2':"
            " No space left on device",
        ),
        ({"data_file_raw": True}, "data-file-raw requires data-file"),
    ],
)
async def test_refusals(options: dict[str, object], text: str) -> None:
    with pytest.raises(QmpError) as caught:
        await created(**({"size": 1 << 20} | options))
    assert str(caught.value) == text
