"""``check_block_driver``: the contract of a block driver, as code.

A driver's test calls it with a factory; it passes when what is written is what is read, by every
way there is, and a cancelled request leaves a driver that works.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeAlias, final

import trio

from qsd_trio.block.abc import SECTOR, ReqFlag, StatusFlag
from qsd_trio.errors import QmpError
from qsd_trio.testing.memory import pattern

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from qsd_trio.block.abc import Extents
    from qsd_trio.block.io import Node

Factory: TypeAlias = "Callable[[], AbstractAsyncContextManager[Node]]"

#: Lengths and offsets around which things go wrong.
_EDGES = (1, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537)
_ENTROPY = pattern(1 << 18)


@final
class _Model:
    """A node and the bytearray it must equal."""

    def __init__(self, node: Node, seed: int) -> None:
        self.node = node
        self.rng = random.Random(seed)
        self.content = bytearray()

    async def load(self) -> None:
        """Take over what the image holds at first."""
        self.content = bytearray(await read(self.node, 0, self.node.getlength()))

    def some_range(self) -> tuple[int, int]:
        """Return (offset, length) somewhere in the image, often at awkward places."""
        size = len(self.content)
        offset = self.rng.choice([self.rng.randrange(size), *_EDGES, 0, max(0, size - 512)]) % size
        length = self.rng.choice([*_EDGES, self.rng.randrange(1, 1 << 17)])
        return offset, max(1, min(length, size - offset))

    def some_bytes(self, length: int) -> bytes:
        start = self.rng.randrange(len(_ENTROPY) - length) if length < len(_ENTROPY) else 0
        return (_ENTROPY * (length // len(_ENTROPY) + 2))[start : start + length]

    async def check(self, offset: int, length: int) -> None:
        got = await read(self.node, offset, length)
        want = self.content[offset : offset + length]
        if got != want:
            at = next(i for i in range(length) if got[i] != want[i])
            raise AssertionError(
                f"read {length} bytes at {offset}: byte {offset + at} is {got[at]:#x},"
                f" not {want[at]:#x}"
            )


async def read(node: Node, offset: int, length: int, pieces: int = 1) -> bytes:
    """Read through the slow path, into ``pieces`` buffers."""
    buffer = bytearray(b"\xa5" * length)
    await node.preadv(offset, _cut(memoryview(buffer), pieces))
    return bytes(buffer)


async def write(node: Node, offset: int, data: bytes, pieces: int = 1) -> None:
    """Write through the slow path, from ``pieces`` buffers."""
    await node.pwritev(offset, _cut(memoryview(data), pieces))


def _cut(view: memoryview, pieces: int) -> list[memoryview]:
    step = max(1, -(-len(view) // pieces))
    return [view[at : at + step] for at in range(0, len(view), step)]


async def check_block_driver(
    factory: Factory, *, steps: int = 60, seed: int = 1, writable: bool = True
) -> None:
    """Check the driver of the node that ``factory`` opens (at least 256 KiB long).

    The factory is called several times and must give an image of the same kind each time; its content does
    not matter. Raises AssertionError with what went wrong.
    """
    await _check_bytes(factory, steps, seed, writable=writable)
    await _check_status(factory, seed, writable=writable)
    await _check_fast_path(factory, seed, writable=writable)
    if writable:
        await _check_parallel(factory, seed)
        await _check_cancellation(factory, seed)
        await _check_truncate(factory, seed)


async def _check_bytes(factory: Factory, steps: int, seed: int, *, writable: bool) -> None:
    """Random requests; after each the bytes around it, at the end all bytes are compared."""
    async with factory() as node:
        model = _Model(node, seed)
        await model.load()
        assert len(model.content) >= 1 << 18, "give the factory an image of at least 256 KiB"
        for _ in range(steps if writable else 0):
            await _random_request(model)
        await model.check(0, len(model.content))
        for _ in range(10):
            offset, length = model.some_range()
            pieces = model.rng.choice([1, 2, 3, 17])
            assert await read(node, offset, length, pieces) == bytes(
                model.content[offset : offset + length]
            )


async def _random_request(model: _Model) -> None:
    node, rng = model.node, model.rng
    offset, length = model.some_range()
    end = offset + length
    kind = rng.choice(["write", "write", "write", "zeroes", "unmap", "discard", "flush", "fua"])
    if kind in ("write", "fua"):
        data = model.some_bytes(length)
        flags = ReqFlag.FUA if kind == "fua" else ReqFlag.NONE
        await node.pwritev(offset, _cut(memoryview(data), rng.choice([1, 2, 5])), flags)
        model.content[offset:end] = data
    elif kind in ("zeroes", "unmap"):
        await node.pwrite_zeroes(
            offset, length, ReqFlag.MAY_UNMAP if kind == "unmap" else ReqFlag.NONE
        )
        model.content[offset:end] = bytes(length)
    elif kind == "discard":
        await node.pdiscard(offset, length)
        # What is read after a discard is up to the driver; from then on it must stay.
        model.content[offset:end] = await read(node, offset, length)
    else:
        await node.flush()
    low, high = max(0, offset - 600), min(len(model.content), end + 600)
    await model.check(low, high - low)


async def _check_status(factory: Factory, seed: int, *, writable: bool) -> None:
    """Status covers the image without gaps, and what is said to be zero is."""
    async with factory() as node:
        model = _Model(node, seed)
        await model.load()
        if writable:
            await write(node, 65536, model.some_bytes(4096))
            await node.pwrite_zeroes(131072, 65536, ReqFlag.MAY_UNMAP)
            await model.load()
        for want_zero in (True, False):
            at, size = 0, node.getlength()
            while at < size:
                asked = min(model.rng.choice([size, 65536, 4096, 512]), size - at)
                status = await node.block_status(at, asked, want_zero=want_zero)
                assert 0 < status.length <= asked, f"status of {asked} at {at}: {status}"
                if status.flags & StatusFlag.ZERO:
                    assert not any(model.content[at : at + status.length]), (
                        f"{status.length} bytes at {at} are said to be zero"
                    )
                at += status.length
            assert status.flags & StatusFlag.EOF


async def _check_fast_path(factory: Factory, seed: int, *, writable: bool) -> None:
    """What map_read and map_write answer agrees with the slow path."""
    async with factory() as node:
        model = _Model(node, seed)
        await model.load()
        for _ in range(20):
            offset, length = model.some_range()
            extents = node.map_read(offset, length)
            if extents is not None:
                assert sum(extent[2] for extent in extents) == length
                got = _read_extents(extents)
                assert got is None or got == model.content[offset : offset + length]
            if not writable:
                continue
            targets = node.map_write(offset, length)
            if targets is None:
                continue
            assert sum(extent[2] for extent in targets) == length
            data = model.some_bytes(length)
            at = 0
            for file, position, size in targets:
                assert file is not None, "a zero extent cannot be written"
                if not file.write_now([memoryview(data)[at : at + size]], position):
                    await write(node, offset, data)  # as exports do then
                    break
                at += size
            model.content[offset : offset + length] = data
            await model.check(offset, length)


def _read_extents(extents: Extents) -> bytes | None:
    """Return what extents hold, None if it is not to be had at once."""
    data = b""
    for file, at, size in extents:
        piece = bytearray(size)
        if file is not None and file.read_now([memoryview(piece)], at) < 0:
            return None
        data += piece
    return data


async def _check_parallel(factory: Factory, seed: int) -> None:
    """Requests at the same time, side by side and not aligned, don't harm each other."""
    async with factory() as node:
        model = _Model(node, seed)
        await model.load()
        cuts = sorted(model.rng.sample(range(1, 1 << 18), 24))
        async with trio.open_nursery() as nursery:
            for start, end in zip([0, *cuts], [*cuts, 1 << 18], strict=True):
                data = model.some_bytes(end - start)
                model.content[start:end] = data
                nursery.start_soon(write, node, start, data)
        await model.check(0, len(model.content))


async def _check_cancellation(factory: Factory, seed: int) -> None:
    """A cancelled write leaves old or new bytes, and a driver that works."""
    async with factory() as node:
        model = _Model(node, seed)
        await model.load()
        for turns in range(8):
            offset, length = model.some_range()
            old = bytes(model.content[offset : offset + length])
            new = model.some_bytes(length)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, node, offset, new)
                nursery.start_soon(read, node, offset, length)
                nursery.start_soon(node.flush)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            got = await read(node, offset, length)
            assert all(byte in pair for byte, *pair in zip(got, old, new, strict=True)), (
                f"a cancelled write of {length} bytes at {offset} left something else"
            )
            await write(node, offset, new)
            model.content[offset : offset + length] = new
        await model.check(0, len(model.content))


async def _check_truncate(factory: Factory, seed: int) -> None:
    """What grows reads as zeroes (if new images do), what is left stays; or resizing is refused."""
    async with factory() as node:
        model = _Model(node, seed)
        await model.load()
        size = len(model.content)
        try:
            await node.truncate(size + 65536)
        except QmpError:
            return
        await _grown(node, model, size + 65536)
        data = model.some_bytes(5000)
        await write(node, size - 1000, data)
        model.content[size - 1000 : size + 4000] = data
        await model.check(size - 65536, 2 * 65536)
        try:
            await node.truncate(size - 512)
        except QmpError:
            return  # some formats only grow
        del model.content[size - 512 :]
        await _grown(node, model, size - 512)
        await node.truncate(size)
        await _grown(node, model, size)


async def _grown(node: Node, model: _Model, asked: int) -> None:
    """Check the length; a window that doesn't begin with a sector may show some bytes more."""
    length = node.getlength()
    assert asked <= length < asked + 2 * SECTOR, f"{length} bytes long, not {asked}"
    growth = length - len(model.content)
    if growth > 0 and not node.driver.has_zero_init():
        model.content += await read(node, length - growth, growth)
    else:
        model.content += bytes(growth)
    await model.check(0, length)
