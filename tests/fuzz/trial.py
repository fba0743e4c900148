"""Open a mutant, use it, close it: a clean error or the right data, in bounded memory and time."""

from __future__ import annotations

import errno
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import final

from qsd_trio.block.abc import BlockStatus, Limits, ProtocolDriver, ReqFlag, StatusFlag
from qsd_trio.block.drivers.luks import Luks
from qsd_trio.block.drivers.qcow2 import Qcow2
from qsd_trio.block.io import Node
from qsd_trio.block.snapshots import Snapshot
from qsd_trio.errors import QmpError, os_error
from qsd_trio.exports.extents import read_now, write_now
from qsd_trio.objects.secret import SecretCommon
from qsd_trio.qapi import BlockdevOptionsLUKS, BlockdevOptionsQcow2
from qsd_trio.qapi.converter import from_qmp
from qsd_trio.testing.memory import FakeOpener, node_over
from tests.fuzz.mutants import Mutant
from tests.fuzz.seeds import SIZE, Seed
from tests.qcow2_recipes import SECRET

KIB, MIB = 1 << 10, 1 << 20
#: No mutant may keep us busy for longer; the machine may be, hence the generosity.
SECONDS = 10.0
#: What opening may read: the largest L1 and refcount tables, and as much again for everything else.
MAX_READ_TO_OPEN = 80 * MIB


class TooSlowError(Exception):
    """Neither an error nor the data came."""


@final
class Passphrase(SecretCommon):
    """The secret of the encrypted seeds."""

    def __init__(self) -> None:
        self.value = SECRET.encode()

    @classmethod
    def create(cls, options: object) -> Passphrase:
        raise NotImplementedError


@final
class FuzzedDisk(ProtocolDriver):
    """A file in memory that counts what is read of it, and is full at 32 MiB.

    It never gives way to other tasks: there are none, and a checkpoint takes longer than a request.
    """

    format_name = "fuzzed"
    MAX_LENGTH = 32 * MIB

    def __init__(self, content: bytes) -> None:
        self.data = bytearray(content)
        self.bytes_read = 0
        self.can_write_now = True

    @classmethod
    async def open(cls, opener: object, options: object) -> FuzzedDisk:
        raise NotImplementedError

    async def aclose(self) -> None:
        pass

    def getlength(self) -> int:
        return len(self.data)

    def limits(self) -> Limits:
        return Limits(can_discard=True)

    def map_read(self, offset: int, length: int) -> object:
        assert length >= 0
        assert offset >= 0
        return ((self, offset, length),)

    def map_write(self, offset: int, length: int) -> object:
        return ((self, offset, length),)

    def has_zero_init(self) -> bool:
        return True

    def read_now(self, iov: Sequence[memoryview], offset: int) -> int:
        """Read as who was given an extent does."""
        done = 0
        for piece in iov:
            part = self.data[offset + done :][: len(piece)]
            piece[: len(part)] = part
            done += len(part)
        return done

    def write_now(self, iov: Sequence[memoryview], offset: int) -> bool:
        """Write as who was given an extent does."""
        self._store(offset, b"".join(iov))
        return True

    async def preadv(self, offset: int, iov: Sequence[memoryview]) -> None:
        for piece in iov:
            self.bytes_read += len(piece)
            piece[:] = bytes(self.data[offset : offset + len(piece)]).ljust(len(piece), b"\0")
            offset += len(piece)

    async def pwritev(self, offset: int, iov: Sequence[memoryview], flags: ReqFlag) -> None:
        self._store(offset, b"".join(iov))

    def _store(self, offset: int, data: bytes) -> None:
        if offset + len(data) > self.MAX_LENGTH:
            raise os_error(errno.EFBIG)
        self.data += bytes(max(0, offset + len(data) - len(self.data)))
        self.data[offset : offset + len(data)] = data

    async def pdiscard(self, offset: int, length: int) -> None:
        self._store(offset, bytes(length))

    async def flush(self) -> None:
        pass

    async def block_status(self, offset: int, length: int, *, want_zero: bool) -> BlockStatus:
        flags = StatusFlag.DATA | StatusFlag.ALLOCATED | StatusFlag.OFFSET_VALID
        return BlockStatus(flags, length, None, offset)

    async def truncate(self, size: int, *, exact: bool, prealloc: str, flags: ReqFlag) -> None:
        if size > self.MAX_LENGTH:
            raise os_error(errno.EFBIG)
        del self.data[size:]
        self.data += bytes(size - len(self.data))


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TooSlowError in the middle of whatever takes longer, even of what never awaits."""

    def ring(signum: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@final
class Opened:
    """A mutant's node and driver."""

    def __init__(self, disk: FuzzedDisk, driver: Qcow2 | Luks, node: Node) -> None:
        self.disk = disk
        self.driver = driver
        self.node = node


async def _open_driver(seed: Seed, opener: FakeOpener) -> Qcow2 | Luks:
    if seed.format == "luks":
        return await Luks.open(opener, BlockdevOptionsLUKS(file="file", key_secret="s"))
    options: dict[str, object] = {"file": "file"}
    if seed.recipe.encryption != "none":
        options["encrypt"] = {"format": seed.recipe.encryption, "key-secret": "s"}
    return await Qcow2.open(opener, from_qmp(BlockdevOptionsQcow2, options))


async def opened(mutant: Mutant, *, read_only: bool) -> Opened | None:
    """Open a mutant; None if it is refused."""
    seed = mutant.seed
    disk = FuzzedDisk(mutant.image)
    children = {"file": node_over(disk, node_name="file")}
    for name, content in (("data-file", seed.data), ("backing", seed.below)):
        if content is not None:
            children[name] = node_over(FuzzedDisk(content), node_name=name)
    opener = FakeOpener(children, read_only=read_only, objects={"s": Passphrase()})
    try:
        driver = await _open_driver(seed, opener)
    except (QmpError, OSError):
        return None
    finally:
        assert disk.bytes_read <= MAX_READ_TO_OPEN, f"read {disk.bytes_read} bytes to open"
    node = node_over(driver, read_only=read_only, bitmaps=opener.bitmaps)
    return Opened(disk, driver, node)


async def read_all(mutant: Mutant) -> bool:
    """Open a mutant read-only and read it; say whether it could be opened."""
    image = await opened(mutant, read_only=True)
    if image is None:
        return False
    node = image.node
    length = min(node.getlength(), SIZE)
    for offset in range(0, length, 16 * KIB):
        await _read(mutant, image, offset, min(16 * KIB, length - offset))
    tail = node.getlength() & ~511
    if tail >= 512:
        await _read(mutant, image, tail - 512, 512)
    await image.driver.image_info()
    await image.driver.aclose()
    return True


async def _read(mutant: Mutant, image: Opened, offset: int, length: int) -> None:
    """Read a range both ways and ask what it is; what can be read must be right."""
    node = image.node
    data = bytearray(length)
    try:
        await node.preadv(offset, [memoryview(data)])
    except OSError:
        # A part of it may be intact.
        if length > 4 * KIB:
            for at in range(offset, offset + length, 4 * KIB):
                await _read(mutant, image, at, min(4 * KIB, offset + length - at))
        return
    for at in range(0, length, 512):
        if mutant.expects(offset + at):
            where = slice(offset + at, offset + at + 512)
            assert data[at : at + 512] == mutant.seed.content[where], (
                f"wrong data at {where.start:#x}"
            )
    extents = node.map_read(offset, length)
    if extents is not None:
        found = bytearray(length)
        assert read_now(extents, [memoryview(found)])
        assert found == data, f"the fast path reads something else at {offset:#x}"
    try:
        status = await node.block_status(offset, length, want_zero=True)
    except OSError:
        return
    assert 0 < status.length <= length


async def write_some(mutant: Mutant) -> bool:
    """Open a mutant read-write and make requests; say whether it could be opened."""
    image = await opened(mutant, read_only=False)
    if image is None:
        return False
    rng = random.Random(mutant.number)
    node = image.node
    for _ in range(8):
        length = node.getlength()
        if length < 512:
            break
        offset = rng.randrange(min(length, 2 * SIZE) // 512) * 512
        count = min(rng.choice([512, 4 * KIB, 40 * KIB]), length - offset)
        try:
            match rng.choice(
                ["write", "write", "write", "fast", "zero", "discard", "size", "flush"]
            ):
                case "write":
                    await node.pwritev(offset, [memoryview(rng.randbytes(count))], ReqFlag.NONE)
                case "fast":
                    extents = node.map_write(offset, count)
                    if extents is not None:
                        write_now(extents, [memoryview(rng.randbytes(count))])
                case "zero":
                    await node.pwrite_zeroes(offset, count, ReqFlag.MAY_UNMAP)
                case "discard":
                    await node.pdiscard(offset, count)
                case "size":
                    await node.truncate(length // 512 * 512 + rng.choice([-512, 512, 64 * KIB]))
                case "flush":
                    await node.flush()
        except (QmpError, OSError):
            pass
    try:
        await _change_snapshots(image)
    except (QmpError, OSError):
        pass
    try:
        await image.driver.aclose()
    except OSError:
        pass
    return True


async def _change_snapshots(image: Opened) -> None:
    """Delete the first snapshot and take another."""
    store = image.driver.snapshots
    if store is None:
        return
    for old in tuple(store.all())[:1]:
        await store.delete(old.id, None)
    await store.create(Snapshot(id=b"", name=b"new", date_sec=0, date_nsec=0, vm_clock_nsec=0))


async def trial(mutant: Mutant) -> bool:
    """Do all of it; say whether the mutant could be opened at all. What is wrong with us is raised."""
    try:
        with limited(SECONDS):
            opened_to_read = await read_all(mutant)
            opened_to_write = await write_some(mutant)
    except BaseException as exc:
        exc.add_note(str(mutant))
        raise
    return opened_to_read or opened_to_write
