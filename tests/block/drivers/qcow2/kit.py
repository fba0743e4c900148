"""What the qcow2 tests share: a disk that can crash, images of every shape, the checker."""

from __future__ import annotations

import errno
import random
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, final

import trio

from qsd_trio.block.abc import BlockStatus, Limits, Perm, ProtocolDriver, ReqFlag, StatusFlag
from qsd_trio.block.drivers.qcow2 import Qcow2
from qsd_trio.block.drivers.qcow2.create import write_image
from qsd_trio.block.drivers.qcow2.header import OUR_V3_SIZE, V2_SIZE, Header
from qsd_trio.errors import os_error
from qsd_trio.qapi import BlockdevOptionsQcow2
from qsd_trio.testing.memory import FakeOpener, child_of, node_over
from tests.block.drivers.qcow2.checker import OFFSET, Report, check

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from qsd_trio.block.io import Node

__all__ = [
    "OFFSET",
    "Disk",
    "Report",
    "assert_sound",
    "check",
    "make",
    "opened",
    "qemu_img",
    "read",
    "read_fast",
    "write",
]

MAX_DISK = 1 << 28  # as a file system has a longest file


@final
class _HostFile:
    """What extents of a ``Disk`` point to."""

    can_read_now = True

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    @property
    def can_write_now(self) -> bool:
        return self._disk.fast_writes

    def write_now(self, iov: list[memoryview], offset: int) -> bool:
        if not self._disk.fast_writes:
            return False
        self._disk.store(offset, b"".join(iov))
        return True

    def read_now(self, iov: list[memoryview], offset: int) -> int:
        count = 0
        for piece in iov:
            part = self._disk.data[offset + count :][: len(piece)]
            piece[: len(part)] = part
            count += len(part)
        return count


@final
class Disk(ProtocolDriver):
    """A disk in memory that keeps what was not flushed apart, and takes its time if it has a ``rng``."""

    format_name = "memory"

    def __init__(self, content: bytes = b"", rng: random.Random | None = None) -> None:
        self.data = bytearray(content)
        self.durable = bytes(content)
        self.unflushed: list[tuple[int, bytes | int]] = []
        self.rng = rng
        self.host = _HostFile(self)
        self.fast = True
        self.fast_writes = True
        self.flushes = 0
        self.on_write: Callable[[], None] | None = None
        self.discarded: list[tuple[int, int]] = []

    @classmethod
    async def open(cls, opener: object, options: object) -> Disk:
        raise NotImplementedError

    async def aclose(self) -> None:
        pass

    def getlength(self) -> int:
        return len(self.data)

    def limits(self) -> Limits:
        return Limits(can_discard=True)

    def store(self, offset: int, data: bytes) -> None:
        """Write."""
        if offset + len(data) > MAX_DISK:
            raise os_error(errno.EFBIG)
        if len(self.data) < offset:
            self.data += bytes(offset - len(self.data))
        self.data[offset : offset + len(data)] = data
        self.unflushed.append((offset, data))
        if self.on_write is not None:
            self.on_write()

    async def _pause(self) -> None:
        if self.rng is not None:
            for _ in range(self.rng.randrange(3)):
                await trio.lowlevel.checkpoint()

    def map_read(self, offset: int, length: int) -> object:
        return ((self.host, offset, length),) if self.fast else None

    def map_write(self, offset: int, length: int) -> object:
        return ((self.host, offset, length),) if self.fast else None

    async def preadv(self, offset: int, iov: list[memoryview]) -> None:
        await self._pause()
        for piece in iov:
            part = self.data[offset : offset + len(piece)]
            piece[:] = part + bytes(len(piece) - len(part))
            offset += len(piece)

    async def pwritev(self, offset: int, iov: list[memoryview], flags: ReqFlag) -> None:
        data = b"".join(iov)
        await self._pause()
        self.store(offset, data)
        await self._pause()

    async def pdiscard(self, offset: int, length: int) -> None:
        await self._pause()
        self.discarded.append((offset, length))
        self.store(offset, bytes(min(length, len(self.data) - offset)))

    async def flush(self) -> None:
        await self._pause()
        self.flushes += 1
        self.durable = bytes(self.data)
        self.unflushed = []

    async def block_status(self, offset: int, length: int, *, want_zero: bool) -> BlockStatus:
        return BlockStatus(StatusFlag.DATA | StatusFlag.ALLOCATED, length)

    async def truncate(self, size: int, *, exact: bool, prealloc: str, flags: ReqFlag) -> None:
        del self.data[size:]
        self.data += bytes(size - len(self.data))
        self.unflushed.append((size, -1))

    def crash(self, rng: random.Random) -> bytes:
        """Return what a crash now might leave: unflushed writes at random, torn at 512 bytes."""
        data = bytearray(self.durable)
        keep = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        for offset, piece in self.unflushed:
            if isinstance(piece, int):
                del data[offset:]
                data += bytes(offset - len(data))
                continue
            for at in range(0, len(piece), 512):
                if rng.random() < keep:
                    start = offset + at
                    data += bytes(max(0, start - len(data)))
                    data[start : start + len(piece[at : at + 512])] = piece[at : at + 512]
        return bytes(data)


async def make(
    size: int,
    *,
    cluster_bits: int = 16,
    version: int = 3,
    refcount_order: int = 4,
    prealloc: str = "off",
) -> bytes:
    """Make an empty image."""
    disk = Disk()
    header = Header(
        version=version,
        cluster_bits=cluster_bits,
        refcount_table_offset=1 << cluster_bits,
        refcount_table_clusters=1,
        refcount_order=refcount_order,
        header_length=OUR_V3_SIZE if version >= 3 else V2_SIZE,
    )
    await write_image(child_of(node_over(disk)), header, size, prealloc)
    return bytes(disk.data)


@asynccontextmanager
async def opened(
    disk: ProtocolDriver, backing: Node | None = None, *, read_only: bool = False, **options: object
) -> AsyncGenerator[Node]:
    """Open the image on ``disk``."""
    children = {"file": node_over(disk, node_name="file")}
    if backing is not None:
        children["backing"] = backing
    opener = FakeOpener(children, read_only=read_only)
    driver = await Qcow2.open(opener, BlockdevOptionsQcow2(file="file", **options))
    node = node_over(driver, node_name="node", read_only=read_only)
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
