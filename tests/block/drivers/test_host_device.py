"""block/drivers/host_device.py, on a loop device where there is one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd_trio.block.abc import ReqFlag
from qsd_trio.block.drivers.host_device import HostCdrom, HostDevice
from qsd_trio.errors import QmpError
from qsd_trio.host import blockdev
from qsd_trio.host.files import is_block_device
from qsd_trio.qapi import BlockdevOptionsFile
from qsd_trio.testing.block_drivers import check_block_driver, read
from qsd_trio.testing.memory import FakeOpener, opened
from tests.peers import requires
from tests.texts import refused

loop = requires("losetup", "/dev/loop-control")


def options(path: str) -> BlockdevOptionsFile:
    return BlockdevOptionsFile(filename=path)


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    path = tmp_path / "loop"
    path.write_bytes(b"\x55" * (1 << 20))
    return path


@pytest.fixture
def device(backing: Path) -> Iterator[str]:
    name = losetup("--find", "--show", str(backing))
    yield name
    losetup("--detach", name)


def losetup(*args: str) -> str:
    done = subprocess.run(["losetup", *args], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def content(path: Path) -> bytes:
    return path.read_bytes()


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("driver", [HostDevice, HostCdrom])
@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            "loop",
            "'{}' driver requires 'loop' to be either a character or block device",
        ),
        ("/dev/none", "Could not open '/dev/none': No such file or directory"),
    ],
)
async def test_refuses_what_is_no_device(
    backing: Path,
    monkeypatch: pytest.MonkeyPatch,
    driver: type[HostDevice | HostCdrom],
    path: str,
    text: str,
) -> None:
    monkeypatch.chdir(backing.parent)
    with pytest.raises(QmpError) as caught:
        await driver.open(FakeOpener(), options(path))
    assert str(caught.value) == text.format(driver.format_name)


async def test_a_character_device_has_no_length() -> None:
    async with opened(HostDevice, options("/dev/null")) as node:
        assert node.getlength() == 0
        with refused("Cannot grow device files"):
            await node.truncate(512)
    async with opened(HostCdrom, options("/dev/null"), read_only=True) as node:
        assert await node.driver.image_info() == {}
        assert node.driver.driver_stats() is None


@loop
@pytest.mark.parametrize("direct", [False, True])
async def test_keeps_the_contract(device: str, direct: bool) -> None:
    await check_block_driver(
        lambda: opened(HostDevice, options(device), cache_direct=direct), steps=20
    )


@loop
async def test_a_part_that_is_not_cached_is_not_taken_for_the_end(device: str) -> None:
    async with opened(HostDevice, options(device)) as node:
        assert isinstance(node.driver, HostDevice)
        file = node.driver._file
        os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_RANDOM)
        await read(node, 0, 4096)
        count = file.read_now([memoryview(bytearray(1 << 18))], 0)
        assert count in (-1, 1 << 18)
        assert await read(node, 0, 1 << 18) == b"\x55" * (1 << 18)


@loop
async def test_discards_and_unmapping_zeroes_reach_the_device(device: str, backing: Path) -> None:
    assert is_block_device(device)
    async with opened(HostDevice, options(device)) as node:
        before = allocated(backing)
        await node.pdiscard(0, 1 << 18)
        assert allocated(backing) <= before - (1 << 18)
        await node.pwrite_zeroes(1 << 18, 1 << 18, ReqFlag.MAY_UNMAP)
        assert allocated(backing) <= before - (1 << 19)
        await node.pwrite_zeroes(1 << 19, 1 << 18)
        stats = node.driver.driver_stats()
        assert stats is not None
        assert stats["driver"] == "host_device"
        assert stats["discard-bytes-ok"] == 1 << 18
    assert content(backing) == bytes(3 << 18) + b"\x55" * (1 << 18)


@loop
async def test_resizing_is_the_devices_own_business(device: str, backing: Path) -> None:
    async with opened(HostDevice, options(device)) as node:
        for length, exact, prealloc, text in (
            (1 << 21, False, "off", "Cannot grow device files"),
            (1 << 21, True, "off", "Cannot resize device files"),
            (
                1 << 20,
                False,
                "full",
                "Preallocation mode 'full' unsupported for this non-regular file",
            ),
        ):
            with pytest.raises(QmpError) as caught:
                await node.truncate(length, exact=exact, prealloc=prealloc)
            assert str(caught.value) == text
        with backing.open("r+b") as file:
            file.truncate(1 << 21)
        losetup("--set-capacity", device)
        await node.truncate(1 << 21)
        assert node.getlength() == 1 << 21


@loop
async def test_a_write_protected_device_is_refused(backing: Path) -> None:
    device = losetup("--find", "--show", "--read-only", str(backing))
    try:
        with pytest.raises(QmpError) as caught:
            await HostDevice.open(FakeOpener(), options(device))
        assert str(caught.value) == "The device is not writable: Permission denied"
        async with opened(HostDevice, options(device), read_only=True) as node:
            assert node.getlength() == 1 << 20
    finally:
        losetup("--detach", device)


@loop
def test_the_ioctls(device: str) -> None:
    with open(device, "r+b", buffering=0) as file:
        assert blockdev.device_size(file.fileno()) == 1 << 20
        assert blockdev.sector_size(file.fileno()) == 512
        assert not blockdev.is_read_only(file.fileno())
