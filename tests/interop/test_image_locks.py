"""QEMU's programs and ours on one image: each sees the other's locks."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from qsd_trio.block.abc import Perm
from qsd_trio.block.drivers.file import File
from qsd_trio.qapi import BlockdevOptionsFile
from qsd_trio.testing.memory import opened
from tests.peers import requires
from tests.texts import refused

pytestmark = requires("qemu-io", "qemu-img")

#: What a format driver that writes takes and leaves to others.
WRITER = (
    Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE,
    Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED,
)
READER = (Perm.CONSISTENT_READ, Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    return path


def options(image: Path) -> BlockdevOptionsFile:
    return BlockdevOptionsFile(filename=str(image))


async def run(*command: str | Path) -> tuple[int, str]:
    done = await trio.run_process(
        [str(part) for part in command], capture_stdout=True, capture_stderr=True, check=False
    )
    return done.returncode, done.stderr.decode()


@contextlib.contextmanager
def qemu_io(*args: str | Path) -> Iterator[None]:
    """Hold an image open in qemu-io."""
    process = subprocess.Popen(
        ["qemu-io", *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write("length\n")
        process.stdin.flush()
        assert "MiB" in process.stdout.readline(), "qemu-io did not open the image"
        yield
    finally:
        process.communicate("quit\n", timeout=10)


@pytest.mark.parametrize(
    ("held", "command", "text"),
    [
        (WRITER, ("qemu-img", "info"), 'Failed to get shared "write" lock'),
        (WRITER, ("qemu-io", "-r", "-c", "length"), 'Failed to get shared "write" lock'),
        (WRITER, ("qemu-io", "-c", "length"), 'Failed to get "write" lock'),
        (READER, ("qemu-io", "-c", "length"), 'Failed to get "write" lock'),
        ((Perm.NONE, Perm.ALL & ~Perm.RESIZE), ("qemu-img", "check", "-r", "all"), "lock"),
    ],
)
async def test_qemu_is_kept_out(
    image: Path, held: tuple[Perm, Perm], command: tuple[str, ...], text: str
) -> None:
    async with opened(File, options(image)) as node:
        await node.driver.set_permissions(*held)
        code, stderr = await run(*command, image)
        assert code == 1
        assert text in stderr
        assert f"Is another process using the image [{image}]?" in stderr
        await node.driver.set_permissions(Perm.NONE, Perm.ALL)
        assert await run(*command, image) == (0, "")


async def test_qemu_reads_beside_a_reader(image: Path) -> None:
    async with opened(File, options(image)) as node:
        await node.driver.set_permissions(*READER)
        assert (await run("qemu-img", "info", image))[0] == 0
        assert (await run("qemu-io", "-U", "-r", "-c", "length", image))[0] == 0


@pytest.mark.parametrize(
    ("args", "wanted", "text"),
    [
        ((), WRITER, 'Failed to get "write" lock'),
        ((), READER, 'Failed to get shared "write" lock'),
        (("-r",), WRITER, 'Failed to get "write" lock'),
    ],
)
async def test_we_are_kept_out(
    image: Path, args: tuple[str, ...], wanted: tuple[Perm, Perm], text: str
) -> None:
    hint = f"Is another process using the image [{image}]?"
    async with opened(File, options(image)) as node:
        with qemu_io(*args, image):
            with refused(text, hint):
                await node.driver.set_permissions(*wanted)
        await node.driver.set_permissions(*wanted)


async def test_we_read_beside_a_reader(image: Path) -> None:
    async with opened(File, options(image), read_only=True) as node:
        with qemu_io("-r", image):
            await node.driver.set_permissions(*READER)
