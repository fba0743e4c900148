"""block/drivers/luks.py."""

from __future__ import annotations

import functools
import random
from contextlib import AbstractAsyncContextManager

import pytest
import trio
import trio.testing

from qsd_trio.block.abc import Child, ChildRole, Perm, StatusFlag
from qsd_trio.block.drivers.luks import Luks, create
from qsd_trio.block.io import Node
from qsd_trio.crypto import luks
from qsd_trio.crypto.luks import Header
from qsd_trio.crypto.sectors import SectorCipher
from qsd_trio.qapi import BlockdevCreateOptions, BlockdevOptionsLUKS
from qsd_trio.qapi.converter import from_qmp
from qsd_trio.testing.block_drivers import check_block_driver, read, write
from qsd_trio.testing.memory import FakeOpener, child_of, node_over, opened
from qsd_trio.testing.recorder import RecordingDisk
from tests.block.secrets import secrets
from tests.crypto.kit import volume
from tests.texts import refused

KIB, MIB = 1 << 10, 1 << 20
OPTIONS = BlockdevOptionsLUKS(file="file", key_secret="s")


@functools.cache
def made(*, detached: bool = False) -> tuple[Header, bytes, bytes]:
    return volume(detached=detached)


def image(length: int) -> RecordingDisk:
    """Return a volume with ``length`` bytes of payload."""
    return RecordingDisk(made()[2] + bytes(length))


def luks_over(
    disk: RecordingDisk, header: RecordingDisk | None = None
) -> AbstractAsyncContextManager[Node]:
    children = {"file": node_over(disk)}
    options = OPTIONS
    if header is not None:
        children["header"] = node_over(header)
        options = BlockdevOptionsLUKS(file="file", header="header", key_secret="s")
    return opened(Luks, options, children, objects=secrets())


async def test_keeps_the_contract() -> None:
    await check_block_driver(lambda: luks_over(image(512 * KIB)), steps=25)


async def test_data_are_encrypted_by_their_place_in_the_payload() -> None:
    header, key, data = made()
    cipher = SectorCipher(header.spec, key)
    disk = image(MIB)
    plain = random.Random(1).randbytes(8 * KIB)
    async with luks_over(disk) as node:
        await write(node, 64 * KIB, plain)
        assert disk.data[len(data) + 64 * KIB :][: 8 * KIB] == cipher.encrypt(plain, 128)
        assert await read(node, 64 * KIB, 8 * KIB) == plain
        # Half sectors keep what is beside them.
        await write(node, 64 * KIB + 700, b"x" * 100)
        expected = plain[:700] + b"x" * 100 + plain[800:]
        assert await read(node, 64 * KIB, 8 * KIB) == expected
    assert disk.data[: len(data)] == data


async def test_a_detached_header() -> None:
    header, key, data = made(detached=True)
    disk, header_disk = RecordingDisk(bytes(MIB)), RecordingDisk(data)
    async with luks_over(disk, header_disk) as node:
        assert node.getlength() == MIB
        await write(node, 0, b"a" * 512)
        info = (await node.driver.image_info())["format-specific"]["data"]
        assert (info["detached-header"], info["payload-offset"]) == (True, 0)
    assert disk.data[:512] == SectorCipher(header.spec, key).encrypt(b"a" * 512, 0)
    assert header_disk.data == data


async def test_image_info() -> None:
    async with luks_over(image(0)) as node:
        assert node.driver.encrypted
        assert node.driver.full_options() == {"key-secret": "s"}
        info = await node.driver.image_info()
        data = info["format-specific"]["data"]
        slots = data.pop("slots")
        assert data.pop("uuid") == made()[0].uuid
        assert data == {
            "cipher-alg": "aes-128",
            "cipher-mode": "xts",
            "ivgen-alg": "plain64",
            "hash-alg": "sha256",
            "payload-offset": len(made()[2]),
            "master-key-iters": 1000,
        }
        assert slots[0] == {"active": True, "iters": 1000, "stripes": 4000, "key-offset": 4096}
        assert slots[1] == {"active": False, "key-offset": 4096 + 256 * 512}


async def test_length() -> None:
    for length, shown in [(0, 0), (1, 512), (512, 512), (MIB, MIB)]:
        async with luks_over(image(length)) as node:
            assert node.getlength() == shown
    with refused("Could not refresh total sector count: Input/output error"):
        async with luks_over(RecordingDisk(made()[2][:-512])):
            pass


async def test_whole_sectors_are_ciphered_at_once() -> None:
    header, key, data = made()
    cipher = SectorCipher(header.spec, key)
    disk = image(MIB)
    plain = random.Random(1).randbytes(64 * KIB)
    async with luks_over(disk) as node:
        ((file, offset, length),) = node.map_write(KIB, len(plain))
        pieces = [memoryview(plain)[:700], memoryview(plain)[700:]]
        assert file.write_now(pieces, offset)
        assert length == len(plain)
        assert disk.data[len(data) + KIB :][:length] == cipher.encrypt(plain, 2)
        ((file, offset, length),) = node.map_read(2 * KIB, 512)
        back = bytearray(length)
        assert file.read_now([memoryview(back)[:100], memoryview(back)[100:]], offset) == 512
        assert back == plain[KIB:][:512]
        assert not file.cached_now(offset, length)  # else it were sent as it is on disk


async def test_what_is_not_for_the_fast_path() -> None:
    disk = image(MIB)
    async with luks_over(disk) as node:
        for offset, length in [(100, 512), (0, 100), (0, 64 * KIB + 512)]:
            assert node.map_read(offset, length) is None
            assert node.map_write(offset, length) is None
        assert node.map_write(MIB, 512) is None  # growth
        disk.fast_writes = False
        assert node.map_write(0, 512) is None


async def test_no_write_slips_into_the_padding_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = image(MIB)
    go = trio.Event()
    preadv = RecordingDisk.preadv

    async def held(self: RecordingDisk, offset: int, iov: list[memoryview]) -> None:
        await go.wait()
        await preadv(self, offset, iov)

    async with luks_over(disk) as node, trio.open_nursery() as nursery:
        assert node.map_write(0, 512) is not None
        monkeypatch.setattr(RecordingDisk, "preadv", held)
        nursery.start_soon(write, node, 100, b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert node.map_write(0, 512) is None
        go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert node.map_write(0, 512) is not None


async def test_nothing_is_known_of_the_bytes() -> None:
    async with luks_over(image(MIB)) as node:
        status = await node.block_status(0, MIB)
        assert status.flags == StatusFlag.DATA | StatusFlag.ALLOCATED | StatusFlag.EOF
        assert status.length == MIB


async def test_permissions() -> None:
    """As a filter's, but that the header is always read, and written only while it is amended."""
    everything, file = Perm.ALL, ChildRole.DATA | ChildRole.PRIMARY
    async with luks_over(image(0)) as node:
        driver = node.driver

        def asked(role: ChildRole, needed: Perm, shared: Perm) -> tuple[Perm, Perm]:
            return driver.child_permissions(role, needed, shared, read_only=False)

        assert asked(file, Perm.NONE, everything) == (Perm.CONSISTENT_READ, everything)
        needed, shared = Perm.WRITE, Perm.CONSISTENT_READ
        assert asked(file, needed, shared) == (Perm.WRITE | Perm.CONSISTENT_READ, shared)
        assert asked(ChildRole.NONE, needed, shared) == (Perm.CONSISTENT_READ, everything)
        driver.set_amending(True)
        assert asked(file, Perm.NONE, everything) == (
            Perm.WRITE | Perm.CONSISTENT_READ,
            everything & ~Perm.CONSISTENT_READ,
        )


# -- creation ------------------------------------------------------------------------------------------


class Creation:
    """A CreateOpener over nodes of the test."""

    def __init__(self, **nodes: Node) -> None:
        self.nodes = nodes
        self.object = FakeOpener(objects=secrets()).object

    async def node(self, reference: str) -> Child:
        return child_of(self.nodes[reference])


def wanted(**options: object) -> object:
    given = {name.replace("_", "-"): value for name, value in options.items()}
    base = {"driver": "luks", "key-secret": "s", "iter-time": 0, "cipher-alg": "aes-128"}
    return from_qmp(BlockdevCreateOptions, base | given)


async def test_a_new_volume_opens() -> None:
    disk = RecordingDisk(b"old" * 1000)
    await create(Creation(f=node_over(disk)), wanted(file="f", size=MIB))
    async with luks_over(disk) as node:
        assert node.getlength() == MIB
        assert node.driver.volume.header.payload_offset == luks.layout(32, detached=False)[1]


async def test_a_new_detached_header() -> None:
    disk, header = RecordingDisk(), RecordingDisk()
    opener = Creation(f=node_over(disk), h=node_over(header))
    await create(opener, wanted(file="f", header="h", size=MIB))
    assert len(disk.data) == MIB
    async with luks_over(disk, header) as node:
        assert node.getlength() == MIB
    alone = RecordingDisk()
    await create(Creation(h=node_over(alone)), wanted(header="h", size=MIB))
    assert len(alone.data) == len(header.data)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "Either the parameter 'header' or 'file' must be specified"),
        (
            {"header": "f", "preallocation": "full"},
            "Parameter 'preallocation' requires 'file' to be specified for formatting LUKS disk",
        ),
        ({"file": "f", "key-secret": "none"}, "No secret with id 'none'"),
        ({"file": "f", "cipher-alg": "des"}, "Algorithm 'des' not supported"),
        (
            {"file": "f", "cipher-alg": "twofish-256"},
            "Unsupported cipher algorithm twofish-256 with xts mode",
        ),
        ({"file": "f", "size": 1 << 62}, "The requested file size is too large"),
        ({"file": "f", "size": (1 << 63) - 512}, "The requested file size is too large"),
    ],
)
async def test_what_cannot_be_made(options: dict[str, object], text: str) -> None:
    with refused(text):
        await create(Creation(f=node_over(RecordingDisk())), wanted(**{"size": MIB, **options}))
