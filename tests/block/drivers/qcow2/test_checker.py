"""The checker itself: it finds nothing in what QEMU makes, and finds what is broken on purpose."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qsd_trio.testing.memory import pattern
from tests.block.drivers.qcow2.checker import Report, check
from tests.block.drivers.qcow2.kit import make, qemu_img
from tests.peers import requires

SIZE = 1 << 20
KINDS = [
    "",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=2M",
    "refcount_bits=1",
    "refcount_bits=64",
    "extended_l2=on",
    "data_file=IMAGE.data",
    "data_file=IMAGE.data,data_file_raw=on",
    "extended_l2=on,data_file=IMAGE.data",
    "lazy_refcounts=on",
]


def qemu_io(path: Path, *commands: str) -> None:
    arguments = [part for command in commands for part in ("-c", command)]
    subprocess.run(["qemu-io", *arguments, path], check=True, capture_output=True, timeout=60)


def image_of(directory: Path, options: str) -> Path:
    """Have QEMU make an image that holds data, zeroes and nothing; see ``content``."""
    path = directory / "image"
    text = options.replace("IMAGE", str(path))
    qemu_img("create", "-qf", "qcow2", *(["-o", text] if text else []), path, SIZE)
    qemu_io(path, "write -P 7 1000 90000", "write -z 200000 200000", "discard 600k 64k")
    return path


def content() -> bytes:
    data = bytearray(SIZE)
    data[1000:91000] = b"\7" * 90000
    return bytes(data)


def report_on(path: Path, backing: bytes = b"") -> Report:
    data = path.with_name(path.name + ".data")
    return check(path.read_bytes(), backing, data.read_bytes() if data.exists() else None)


@requires("qemu-img", "qemu-io")
@pytest.mark.parametrize("options", KINDS)
def test_images_of_qemu(tmp_path: Path, options: str) -> None:
    report = report_on(image_of(tmp_path, options))
    assert (report.errors, report.leaks) == ([], [])
    assert report.content == content()


@requires("qemu-img")
@pytest.mark.parametrize("options", ["", "compression_type=zstd", "extended_l2=on"])
def test_compressed_images_of_qemu(tmp_path: Path, options: str) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(b"text " * 40000 + pattern(70_000) + bytes(1072))
    path = tmp_path / "image"
    qemu_img("convert", "-cO", "qcow2", *(["-o", options] if options else []), raw, path)
    report = report_on(path)
    assert (report.errors, report.leaks) == ([], [])
    assert report.content == raw.read_bytes().ljust(len(report.content), b"\0")
    assert any(entry >> 62 & 1 for entry in report.entries.values())


@requires("qemu-img", "qemu-io")
@pytest.mark.parametrize("options", ["", "compat=0.10", "extended_l2=on"])
def test_snapshots_of_qemu(tmp_path: Path, options: str) -> None:
    path = image_of(tmp_path, options)
    qemu_img("snapshot", "-c", "first", path)
    qemu_io(path, "write -P 9 0 65536")
    report = report_on(path)
    assert (report.errors, report.leaks) == ([], [])
    assert [(each.name, each.content) for each in report.snapshots] == [("first", content())]
    assert report.content == b"\t" * 65536 + content()[65536:]


@requires("qemu-img", "qemu-io")
def test_bitmaps_of_qemu(tmp_path: Path) -> None:
    path = image_of(tmp_path, "")
    qemu_img("bitmap", "--add", "-g", "32768", path, "one")
    qemu_io(path, "write 65536 40000")
    report = report_on(path)
    assert (report.errors, report.leaks) == ([], [])
    found = report.bitmaps["one"]
    assert (found.granularity, found.in_use, found.auto) == (32768, False, True)
    assert found.bits == b"\x0c\0\0\0"


async def broken(at: int, value: bytes) -> Report:
    image = bytearray(await make(1 << 20, prealloc="metadata"))
    image[at : at + len(value)] = value
    return check(bytes(image))


async def test_what_is_broken_is_found() -> None:
    """An image of 64 KiB clusters: header, refcount table, refcount block, L1 table, L2 table, data."""
    l1, l2, block = 3 << 16, 4 << 16, 2 << 16
    word = (5 << 16 | 1 << 63).to_bytes(8, "big")
    assert (await broken(0, b"")).errors == []
    assert (await broken(0, b"")).leaks == []
    assert "overlaps" in (await broken(l2, (4 << 16 | 1 << 63).to_bytes(8, "big"))).errors[0]
    assert "used twice" in (await broken(l2 + 8, word)).errors[0]
    assert "unaligned" in (await broken(l2, word[:-2] + b"\2\0")).errors[0]
    assert "COPIED" in (await broken(l2, b"\0")).errors[0]
    assert "COPIED" in (await broken(l1, b"\0")).errors[0]
    assert "refcount 0, used 1" in (await broken(block + 10, b"\0\0")).errors[1]
    assert (await broken(block + 100, b"\0\1")).leaks == [50]
    assert (await broken(79, b"\1")).dirty
