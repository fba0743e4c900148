"""block/drivers/compress.py."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from qsd_trio.block.abc import ReqFlag
from qsd_trio.block.drivers.compress import Compress
from qsd_trio.block.drivers.qcow2.layout import COMPRESSED
from qsd_trio.block.io import Node
from qsd_trio.errors import QmpError
from qsd_trio.qapi import BlockdevOptionsGenericFormat
from qsd_trio.testing.block_drivers import check_block_driver, read, write
from qsd_trio.testing.memory import FakeOpener, MemoryDriver, memory_node, opened, pattern
from tests.block.drivers.qcow2.kit import Disk, check, make
from tests.block.drivers.qcow2.kit import opened as opened_qcow2

CLUSTER = 4096
OPTIONS = BlockdevOptionsGenericFormat(file="file")


@asynccontextmanager
async def compressing(image: bytes) -> AsyncGenerator[tuple[Node, Node, Disk]]:
    """Open a filter over an image; yield both nodes and the disk."""
    disk = Disk(image)
    async with (
        opened_qcow2(disk) as qcow2,
        opened(Compress, OPTIONS, {"file": qcow2}) as node,
    ):
        yield node, qcow2, disk


async def test_conformance() -> None:
    image = await make(1 << 20, cluster_bits=12)

    @asynccontextmanager
    async def factory() -> AsyncGenerator[Node]:
        async with (
            opened_qcow2(MemoryDriver(image)) as qcow2,
            opened(Compress, OPTIONS, {"file": qcow2}) as node,
        ):
            yield node

    await check_block_driver(factory, steps=40)


async def test_what_is_written_is_compressed() -> None:
    async with compressing(await make(1 << 20, cluster_bits=12)) as (node, qcow2, disk):
        data = pattern(1000) * 30
        await write(node, 1234, data)
        assert await read(node, 1234, len(data)) == data
        table = await qcow2.driver.image.metadata.slice(0)
        assert all(entry & COMPRESSED for entry in table[:7])
        assert node.map_write(0, CLUSTER) is None
    report = check(bytes(disk.data))
    assert (report.errors, report.leaks) == ([], [])
    assert report.content[1234 : 1234 + len(data)] == data


async def test_a_last_cluster_that_is_not_whole() -> None:
    """A parent that may resize can write there; its padding must not."""
    size = 16 * CLUSTER + 512
    async with compressing(await make(size, cluster_bits=12)) as (node, qcow2, _):
        await write(node, 16 * CLUSTER, bytes([1]) * 512)
        await write(node, 15 * CLUSTER + 100, bytes([2]) * CLUSTER)
        assert node.getlength() == qcow2.getlength() == size
        want = bytes([2]) * 100 + bytes([1]) * 412
        assert await read(node, 16 * CLUSTER, 512) == want


async def test_zeroes_and_discards_are_forwarded() -> None:
    async with compressing(await make(1 << 20, cluster_bits=12)) as (node, qcow2, _):
        await write(node, 0, bytes([1]) * 4 * CLUSTER)
        await node.pwrite_zeroes(0, CLUSTER)
        await node.pdiscard(CLUSTER, CLUSTER)
        table = await qcow2.driver.image.metadata.slice(0)
        assert [bool(entry & COMPRESSED) for entry in table[:4]] == [False, False, True, True]
        assert await read(node, 0, 2 * CLUSTER) == bytes(2 * CLUSTER)


async def test_plain_clusters_are_read_by_the_fast_path() -> None:
    path_free = await make(1 << 20, cluster_bits=12)
    async with compressing(path_free) as (node, qcow2, _):
        await write(qcow2, 0, bytes([1]) * CLUSTER)
        assert node.map_read(512, 512) == qcow2.map_read(512, 512)
        assert node.map_read(512, 512) is not None


async def test_what_cannot_compress_is_refused() -> None:
    with pytest.raises(QmpError, match="Compression is not supported for underlying format: mem"):
        await Compress.open(FakeOpener({"file": memory_node(CLUSTER)}), OPTIONS)


async def test_copies_that_change_nothing_are_compressed_too() -> None:
    async with compressing(await make(1 << 20, cluster_bits=12)) as (node, qcow2, _):
        await write(qcow2, 0, bytes([1]) * CLUSTER)
        data = memoryview(bytes([2]) * 2 * CLUSTER)
        await node.pwritev(0, [data], ReqFlag.WRITE_UNCHANGED)
        assert await read(node, 0, 2 * CLUSTER) == bytes([1]) * CLUSTER + bytes([2]) * CLUSTER
        table = await qcow2.driver.image.metadata.slice(0)
        assert table[1] & COMPRESSED


async def test_copies_into_a_last_cluster_that_is_not_whole_pass_over_what_is_there() -> None:
    image = await make(4 * CLUSTER + 512, cluster_bits=12)
    async with compressing(image) as (node, qcow2, _):
        await write(qcow2, 4 * CLUSTER, bytes([1]) * 512)
        data = memoryview(bytes([2]) * (CLUSTER + 512))
        await node.pwritev(3 * CLUSTER, [data], ReqFlag.WRITE_UNCHANGED)
        assert await read(node, 3 * CLUSTER, CLUSTER + 512) == (
            bytes([2]) * CLUSTER + bytes([1]) * 512
        )
