"""block/drivers/qcow2/encryption.py: what is on the disk, zeroes, headers that cannot be right."""

from __future__ import annotations

import functools
import random
import struct
from contextlib import AbstractAsyncContextManager

import pytest

from qsd_trio.block.abc import ReqFlag, StatusFlag
from qsd_trio.block.drivers.qcow2.encryption import NewEncryption
from qsd_trio.block.drivers.qcow2.header import EXT_CRYPTO
from qsd_trio.block.encryption import NewLuks
from qsd_trio.block.io import Node
from qsd_trio.crypto.algorithms import spec
from qsd_trio.crypto.luks import Header
from qsd_trio.crypto.sectors import SectorCipher
from qsd_trio.qapi import BlockdevAmendOptions, BlockdevOptions
from qsd_trio.qapi.converter import from_qmp
from qsd_trio.testing.block_drivers import check_block_driver
from qsd_trio.testing.memory import FakeOpener, memory_node
from tests.block.drivers.qcow2 import kit
from tests.block.drivers.qcow2.kit import Disk, read, write
from tests.block.secrets import secrets
from tests.crypto.kit import PASSWORD, volume
from tests.texts import refused

KIB, MIB = 1 << 10, 1 << 20
METHODS = pytest.mark.parametrize("method", ["luks", "aes"])


@functools.cache
def luks() -> tuple[Header, bytes]:
    header, key, _ = volume()
    return header, key


def new(method: str) -> NewEncryption:
    if method == "aes":
        return NewEncryption(None)
    header, key = luks()
    return NewEncryption(NewLuks(header=header, key=key, secret=PASSWORD, milliseconds=0))


def encrypt(format_: str, key_secret: str | None) -> object:
    given = {"format": format_} | ({"key-secret": key_secret} if key_secret else {})
    options = {"driver": "qcow2", "node-name": "n", "file": "f", "encrypt": given}
    return from_qmp(BlockdevOptions, options).encrypt


def opened(
    disk: Disk,
    method: str = "luks",
    backing: Node | None = None,
    *,
    key_secret: str | None = "s",
    read_only: bool = False,
) -> AbstractAsyncContextManager[Node]:
    return kit.opened(
        disk,
        backing,
        objects=secrets(two=b"two"),
        encrypt=encrypt(method, key_secret),
        read_only=read_only,
    )


def assert_sound(disk: Disk, below: bytes = b"") -> None:
    """Have the checker look at the image."""
    report = kit.check(bytes(disk.data), below)
    assert (report.errors, report.leaks) == ([], [])


def l2_entry(disk: Disk, guest: int) -> int:
    """Return the host offset of a guest offset within the first L2 table, clusters of 64 KiB."""
    (l1,) = struct.unpack_from(">Q", disk.data, 40)
    (l2,) = struct.unpack_from(">Q", disk.data, l1)
    (entry,) = struct.unpack_from(">Q", disk.data, (l2 & (1 << 56) - 512) + guest // 65536 * 8)
    return int(entry & (1 << 56) - 512)


@METHODS
@pytest.mark.parametrize(
    ("cluster_bits", "version", "extended"), [(16, 3, False), (9, 2, False), (14, 3, True)]
)
async def test_keeps_the_contract(
    method: str, cluster_bits: int, version: int, extended: bool
) -> None:
    image = await kit.make(
        512 * KIB, cluster_bits=cluster_bits, version=version, extended=extended, crypt=new(method)
    )
    await check_block_driver(lambda: opened(Disk(image), method), steps=12)


@METHODS
async def test_sectors_are_numbered_as_the_format_says(method: str) -> None:
    """LUKS by their place in the file, the old AES by their place in the disk that the guest sees."""
    disk = Disk(await kit.make(MIB, crypt=new(method)))
    plain = random.Random(1).randbytes(4 * KIB)
    async with opened(disk, method) as node:
        await write(node, 256 * KIB, b"\0" * 65536)  # so that host and guest offset differ
        await write(node, 640 * KIB + 512, plain)
    host = l2_entry(disk, 640 * KIB) + 512
    if method == "luks":
        header, key = luks()
        cipher, sector = SectorCipher(header.spec, key), host // 512
    else:
        cipher = SectorCipher(spec("aes-128", "cbc", "plain64", None), PASSWORD.ljust(16, b"\0"))
        sector = (640 * KIB + 512) // 512
    assert disk.data[host : host + 4 * KIB] == cipher.encrypt(plain, sector)
    assert_sound(disk)


@METHODS
async def test_nothing_plain_reaches_the_disk(method: str) -> None:
    """Not the data, not what copy-on-write adds from below, not the zeroes beside them."""
    marks = [b"What the guest writes, 32 bytes.", b"What stands below it,  32 bytes."]
    below = memory_node(marks[1] * (MIB // 32))
    disk = Disk(await kit.make(2 * MIB, crypt=new(method)))
    async with opened(disk, method, below) as node:
        await write(node, 100 * KIB, marks[0] * 100)
        await write(node, 1536 * KIB + 1000, marks[0])
        assert await read(node, 64 * KIB, 36 * KIB) == marks[1] * (36 * KIB // 32)
        assert await read(node, 100 * KIB, 3200) == marks[0] * 100
        assert await read(node, 1536 * KIB, 1000) == bytes(1000)
    assert not any(mark in disk.data for mark in marks)
    host = l2_entry(disk, 1536 * KIB)
    assert disk.data[host : host + 65536].count(0) < 1000
    assert_sound(disk)


@METHODS
async def test_what_is_to_be_compressed_is_encrypted_instead(method: str) -> None:
    """(The real daemon compresses it, and stores it for all to read.)"""
    disk = Disk(await kit.make(MIB, crypt=new(method)))
    data = b"What the guest writes, 32 bytes." * 2048
    async with opened(disk, method) as node:
        await node.pwritev(0, [memoryview(data)], ReqFlag.WRITE_COMPRESSED)
        assert await read(node, 0, len(data)) == data
        status = await node.block_status(0, len(data))
        assert not status.flags & StatusFlag.COMPRESSED
    assert_sound(disk)


@METHODS
async def test_block_status(method: str) -> None:
    async with opened(Disk(await kit.make(MIB, crypt=new(method))), method) as node:
        await write(node, 0, b"a" * 65536)
        await node.pwrite_zeroes(65536, 65536, ReqFlag.NONE)
        status = await node.block_status(0, 65536)
        assert status.flags == StatusFlag.DATA | StatusFlag.ALLOCATED
        assert (await node.block_status(65536, 65536)).flags & StatusFlag.ZERO


async def test_the_old_aes_goes_the_slow_path() -> None:
    async with opened(Disk(await kit.make(MIB, crypt=new("aes"))), "aes") as node:
        await write(node, 0, b"a" * 65536)
        for offset in (0, 65536):
            assert node.map_read(offset, 512) is None
            assert node.map_write(offset, 512) is None


async def test_luks_is_ciphered_on_the_fast_path() -> None:
    disk = Disk(await kit.make(MIB, crypt=new("luks")))
    async with opened(disk) as node:
        assert not await kit.write(node, 512, b"b" * 512, fast=True)  # a part of a new cluster
        assert await kit.write(node, 1024, b"c" * 1024, fast=True)
        assert await kit.write(node, 65536, b"d" * 65536, fast=True)
        expected = bytes(512) + b"b" * 512 + b"c" * 1024 + bytes(63488) + b"d" * 65536
        assert await read(node, 0, 131072) == expected
        assert kit.read_fast(node, 512, 1536) == expected[512:2048]
        assert kit.read_fast(node, 131072, 4096) == bytes(4096)
        assert kit.read_fast(node, 100, 512) is None
    assert b"d" * 32 not in disk.data
    async with opened(Disk(bytes(disk.data))) as node:
        assert await read(node, 0, 131072) == expected


@METHODS
async def test_what_grows_reads_as_zeroes(method: str) -> None:
    disk = Disk(await kit.make(MIB, crypt=new(method)))
    async with opened(disk, method) as node:
        assert node.driver.has_zero_init()
        await write(node, 0, b"a" * MIB)
        await node.truncate(MIB + 4096)
        assert await read(node, MIB - 512, 4608) == b"a" * 512 + bytes(4096)
    preallocated = Disk(await kit.make(MIB, crypt=new(method), prealloc="metadata"))
    async with opened(preallocated, method) as node:
        assert not node.driver.has_zero_init()


async def test_image_info() -> None:
    async with opened(Disk(await kit.make(MIB, crypt=new("luks")))) as node:
        driver = node.driver
        assert driver.encrypted
        assert driver.full_options() == {"encrypt.key-secret": "s"}
        found = (await driver.image_info())["format-specific"]["data"]["encrypt"]
        assert (found["format"], found["cipher-alg"]) == ("luks", "aes-128")
        assert "detached-header" not in found
    async with opened(Disk(await kit.make(MIB, crypt=new("aes"))), "aes") as node:
        found = (await node.driver.image_info())["format-specific"]["data"]["encrypt"]
        assert found == {"format": "aes"}


async def amend(node: Node, encrypt: dict[str, object] | None) -> None:
    given = {"driver": "qcow2"} | ({"encrypt": encrypt} if encrypt is not None else {})
    options = from_qmp(BlockdevAmendOptions, given)
    objects = FakeOpener(objects=secrets(two=b"two"))
    await node.driver.amend(objects, options, force=False)


async def test_key_slots_change() -> None:
    disk = Disk(await kit.make(MIB, crypt=new("luks")))
    async with opened(disk) as node:
        await write(node, 0, b"a" * 512)
        luks_options = {"format": "luks", "state": "active", "new-secret": "two", "iter-time": 0}
        await amend(node, luks_options)
        await amend(node, {"format": "luks", "state": "inactive", "old-secret": "s"})
        await amend(node, None)
    assert_sound(disk)
    async with opened(disk, key_secret="two") as node:
        assert await read(node, 0, 512) == b"a" * 512
    with refused("Invalid password, cannot unlock any keyslot"):
        async with opened(disk):
            pass


async def test_amending_what_has_no_key_slots() -> None:
    luks_options: dict[str, object] = {"format": "luks", "state": "active", "new-secret": "two"}
    async with kit.opened(Disk(await kit.make(MIB))) as node:
        await amend(node, None)
        with refused("image is not encrypted, can't amend"):
            await amend(node, luks_options)
    async with opened(Disk(await kit.make(MIB, crypt=new("aes"))), "aes") as node:
        with refused("Amend can't be used to change the qcow2 encryption format"):
            await amend(node, {"format": "qcow"})
        with refused("Only LUKS encryption options can be amended for qcow2 with blockdev-amend"):
            await amend(node, luks_options)


@pytest.mark.parametrize(
    ("method", "format_", "key_secret", "text"),
    [
        ("luks", "luks", None, "Parameter 'encrypt.key-secret' is required for cipher"),
        ("luks", "luks", "x", "No secret with id 'x'"),
        ("luks", "luks", "two", "Invalid password, cannot unlock any keyslot"),
        ("luks", "aes", "s", "Header reported 'luks' encryption format but options specify 'aes'"),
        ("aes", "luks", "s", "Header reported 'aes' encryption format but options specify 'luks'"),
        ("aes", "aes", None, "Parameter 'encrypt.key-secret' is required for cipher"),
    ],
)
async def test_options_that_do_not_fit(
    method: str, format_: str, key_secret: str | None, text: str
) -> None:
    disk = Disk(await kit.make(MIB, crypt=new(method)))
    with refused(text):
        async with opened(disk, format_, key_secret=key_secret):
            pass


def pointer_at(data: bytes) -> int:
    """Return where the header extension is that says where the encryption header is."""
    return data.index(struct.pack(">II", EXT_CRYPTO, 16))


@pytest.mark.parametrize(
    ("at", "form", "value", "text"),
    [
        (0, ">I", 1, "Missing CRYPTO header for crypt method 2"),
        (4, ">I", 15, "CRYPTO header extension size 15, but expected size 16"),
        (8, ">Q", 1, "Encryption header offset '1' is not a multiple of cluster size '65536'"),
        (8, ">Q", 0, "Volume is not in LUKS format"),
        (8, ">Q", 1 << 40, "Volume is not in LUKS format"),
        (8, ">Q", 1 << 63, "Could not read encryption header: Input/output error"),
        (8, ">Q", (1 << 64) - 65536, "Could not read encryption header: Input/output error"),
        (16, ">Q", 0, "Request for data outside of extension header"),
        (16, ">Q", 4096, "Request for data outside of extension header"),
    ],
)
async def test_pointers_that_cannot_be_right(at: int, form: str, value: int, text: str) -> None:
    data = bytearray(await kit.make(MIB, crypt=new("luks")))
    struct.pack_into(form, data, pointer_at(bytes(data)) + at, value)
    with refused(text):
        async with opened(Disk(bytes(data))):
            pass


@pytest.mark.parametrize("method", [0, 1])
async def test_a_pointer_without_luks_is_refused(method: int) -> None:
    data = bytearray(await kit.make(MIB, crypt=new("luks")))
    struct.pack_into(">I", data, 32, method)
    with refused("CRYPTO header extension only expected with LUKS encryption method"):
        async with kit.opened(Disk(bytes(data)), objects=secrets()):
            pass
