"""What the qcow2 tests share: a disk in memory, images of every shape, the checker."""

from __future__ import annotations

import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from qsd_trio.block.abc import Perm, ProtocolDriver
from qsd_trio.block.drivers.qcow2 import Qcow2
from qsd_trio.block.drivers.qcow2.create import write_image
from qsd_trio.block.drivers.qcow2.encryption import NewEncryption
from qsd_trio.block.drivers.qcow2.header import OUR_V3_SIZE, V2_SIZE, Header
from qsd_trio.block.drivers.qcow2.layout import (
    AUTOCLEAR_DATA_FILE_RAW,
    INCOMPAT_DATA_FILE,
    INCOMPAT_EXTENDED_L2,
)
from qsd_trio.block.encryption import NewLuks
from qsd_trio.qapi import BlockdevOptionsQcow2, BlockdevQcow2Encryption
from qsd_trio.qapi.converter import from_qmp
from qsd_trio.testing.memory import FakeOpener, child_of, node_over
from qsd_trio.testing.recorder import RecordingDisk as Disk
from tests.block.drivers.qcow2.checker import OFFSET, Report, check
from tests.crypto.kit import PASSWORD, volume

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from qsd_trio.block.io import Node

__all__ = [
    "OFFSET",
    "Disk",
    "Report",
    "assert_sound",
    "check",
    "luks_options",
    "make",
    "new_luks",
    "opened",
    "qemu_img",
    "read",
    "read_fast",
    "write",
]


async def make(
    size: int,
    *,
    cluster_bits: int = 16,
    version: int = 3,
    refcount_order: int = 4,
    prealloc: str = "off",
    extended: bool = False,
    data: ProtocolDriver | None = None,
    raw: bool = False,
    crypt: NewEncryption | None = None,
) -> bytes:
    """Make an empty image; ``data`` becomes its external data file, ``raw``: one that stands alone."""
    disk = Disk()
    data_file = child_of(node_over(data, node_name="data")) if data is not None else None
    header = Header(
        version=version,
        cluster_bits=cluster_bits,
        refcount_table_offset=1 << cluster_bits,
        refcount_table_clusters=1,
        refcount_order=refcount_order,
        incompatible=(INCOMPAT_EXTENDED_L2 if extended else 0)
        | (INCOMPAT_DATA_FILE if data is not None else 0),
        autoclear=AUTOCLEAR_DATA_FILE_RAW if raw else 0,
        header_length=OUR_V3_SIZE if version >= 3 else V2_SIZE,
    )
    await write_image(child_of(node_over(disk)), header, size, prealloc, data_file, crypt)
    return bytes(disk.data)


def new_luks() -> NewEncryption:
    """Return what makes an encrypted image; its secret is ``s`` of tests/block/secrets.py."""
    header, key, _ = volume()
    return NewEncryption(NewLuks(header=header, key=key, secret=PASSWORD, milliseconds=0))


def luks_options() -> object:
    """Return the option ``encrypt`` for such an image."""
    return from_qmp(BlockdevQcow2Encryption, {"format": "luks", "key-secret": "s"})


@asynccontextmanager
async def opened(
    disk: ProtocolDriver,
    backing: Node | None = None,
    *,
    data: ProtocolDriver | None = None,
    read_only: bool = False,
    objects: Mapping[str, object] | None = None,
    **options: object,
) -> AsyncGenerator[Node]:
    """Open the image on ``disk``, with ``data`` as its external data file."""
    children = {"file": node_over(disk, node_name="file")}
    if data is not None:
        children["data-file"] = node_over(data, node_name="data")
    if backing is not None:
        children["backing"] = backing
    opener = FakeOpener(children, read_only=read_only, objects=objects)
    driver = await Qcow2.open(opener, BlockdevOptionsQcow2(file="file", **options))
    node = node_over(driver, node_name="node", read_only=read_only, bitmaps=opener.bitmaps)
    node.opener = opener
    assert node.cumulative == (Perm.ALL, Perm.ALL)
    if backing is not None:
        node.children.append(driver.backing)
    try:
        yield node
    finally:
        with trio.CancelScope(shield=True):
            if not driver.image.broken:
                await node.flush()
            await driver.aclose()


async def read(node: Node, offset: int, length: int) -> bytes:
    """Read by the slow path."""
    data = bytearray(length)
    await node.preadv(offset, [memoryview(data)])
    return bytes(data)


async def write(node: Node, offset: int, data: bytes, *, fast: bool = False) -> bool:
    """Write, by the fast path if asked and possible; say whether it was."""
    view = memoryview(data)
    if fast:
        extents = node.map_write(offset, len(data))
        if extents is not None:
            at = 0
            assert sum(length for _, _, length in extents) == len(data)
            for file, host, length in extents:
                if not file.write_now([view[at : at + length]], host):
                    break
                at += length
            else:
                return True
    await node.pwritev(offset, [view])
    return False


def read_fast(node: Node, offset: int, length: int) -> bytes | None:
    """Read by the fast path, or None."""
    extents = node.map_read(offset, length)
    if extents is None:
        return None
    out = b""
    for file, host, size in extents:
        piece = bytearray(size)
        if file is not None:
            file.read_now([memoryview(piece)], host)
        out += piece
    return out


def qemu_img(*args: object) -> str:
    """Run qemu-img; fail with what it says if it fails."""
    result = subprocess.run(
        ["qemu-img", *map(str, args)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def assert_sound(path: Path, content: bytes) -> None:
    """Have qemu-img check an image and compare it with ``content``."""
    qemu_img("check", path)
    model = path.with_suffix(".model")
    model.write_bytes(content)
    qemu_img("compare", "-q", "-f", "qcow2", "-F", "raw", path, model)
