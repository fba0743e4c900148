"""Chains of backing files: long ones, short ones in the middle, loops; what the fast path makes of them."""

from __future__ import annotations

import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from qsd_trio import open_daemon
from qsd_trio.block.io import Node
from qsd_trio.errors import QmpError
from qsd_trio.testing.memory import memory_node, pattern
from tests.block.drivers.qcow2.kit import Disk, make, opened, qemu_img, read, read_fast, write
from tests.oracle import requires

LENGTH = 100
SIZE = 1 << 20


async def chain(stack: AsyncExitStack, sizes: list[int], below: bytes) -> list[Node]:
    """Open images of these sizes, each over the one before, the first over ``below``."""
    nodes = [memory_node(below)]
    for size in sizes:
        nodes.append(await stack.enter_async_context(opened(Disk(await make(size)), nodes[-1])))
    return nodes


async def test_reads_fall_through_a_chain_of_100() -> None:
    below = pattern(SIZE)
    async with AsyncExitStack() as stack:
        nodes = await chain(stack, [SIZE] * LENGTH, below)
        node = nodes[-1]
        await write(node, 70_000, b"top")
        want = below[:70_000] + b"top" + below[70_003:]
        assert await read(node, 0, SIZE) == want
        assert node.map_read(300_000, 100_000) is None, "the lowest image cannot be mapped"
        middle = nodes[-3]
        await write(middle, 1 << 19, b"m" * 65536)
        assert read_fast(node, 1 << 19, 65536) == b"m" * 65536
        extents = node.map_read((1 << 19) + 100, 512)
        assert extents is not None
        assert len(extents) == 1
        assert extents == middle.map_read((1 << 19) + 100, 512)


async def test_images_of_a_chain_differ_in_length() -> None:
    below = pattern(200_192)
    async with AsyncExitStack() as stack:
        *_, node = await chain(stack, [150_016, 300_032, 100_352, SIZE], below)
        want = below[:100_352].ljust(SIZE, b"\0")
        assert await read(node, 0, SIZE) == want, "what a shorter image cuts off stays away"
        await write(node, 100_000, b"x")
        want = want[:100_000] + b"x" + want[100_001:]
        for offset, length in [(99_000, 3000), (90_000, 200_000), (100_352, 512)]:
            assert await read(node, offset, length) == want[offset : offset + length]
            fast = read_fast(node, offset, length)
            assert fast is None or fast == want[offset : offset + length]


def make_chain(directory: Path, length: int) -> None:
    """Make images i0, i1 ... each with the one before as its backing file, all of it in i0."""
    qemu_img("create", "-q", "-f", "qcow2", directory / "i0", SIZE)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", f"write -P 5 0 {SIZE}", directory / "i0"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    template = directory / "template"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "i000", template, SIZE)
    image = template.read_bytes()
    for number in range(1, length):
        name = f"i{number - 1}".encode()
        at = image.index(b"i000")
        changed = bytearray(image)
        changed[at : at + 4] = name.ljust(4, b"\0")
        changed[16:20] = len(name).to_bytes(4, "big")
        (directory / f"i{number}").write_bytes(changed)


@requires("qemu-img", "qemu-io")
async def test_chains_are_opened_by_names_and_by_references(tmp_path: Path) -> None:
    make_chain(tmp_path, LENGTH)
    async with open_daemon() as daemon:

        async def add(number: int, **options: object) -> None:
            file = {"driver": "file", "filename": str(tmp_path / f"i{number}")}
            name = options.pop("name")
            await daemon.qmp(
                "blockdev-add",
                {"driver": "qcow2", "node-name": name, "read-only": True, "file": file, **options},
            )

        await add(LENGTH - 1, name="top")
        assert len(daemon.tables.graph.nodes) == 2 * LENGTH
        assert await read(daemon.tables.graph.find("top"), 0, SIZE) == b"\x05" * SIZE
        await daemon.qmp("blockdev-del", {"node-name": "top"})
        assert not daemon.tables.graph.nodes
        await add(0, name="r0")
        for number in range(1, LENGTH):
            await add(number, name=f"r{number}", backing=f"r{number - 1}")
        assert await read(daemon.tables.graph.find("r99"), 0, SIZE) == b"\x05" * SIZE
        with pytest.raises(QmpError, match="cycle"):
            file = {"driver": "file", "filename": str(tmp_path / "i0")}
            await daemon.qmp(
                "blockdev-reopen",
                {
                    "options": [
                        {
                            "driver": "qcow2",
                            "node-name": "r0",
                            "read-only": True,
                            "backing": "r5",
                            "file": file,
                        }
                    ]
                },
            )


@requires("qemu-img")
async def test_loops_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    for name, below in [("x", "y"), ("y", "x"), ("above", "x")]:
        options = ("-u", "-f", "qcow2", "-F", "qcow2", "-b", below)
        qemu_img("create", "-q", *options, tmp_path / name, SIZE)
    (tmp_path / "link").symlink_to(tmp_path / "y")
    qemu_img("rebase", "-u", "-F", "qcow2", "-b", tmp_path / "link", tmp_path / "y")
    async with open_daemon() as daemon:
        for name, text in [("x", "its own backing file"), ("above", "its own backing file")]:
            file = {"driver": "file", "filename": str(tmp_path / name)}
            with pytest.raises(QmpError, match=text):
                await daemon.qmp(
                    "blockdev-add",
                    {"driver": "qcow2", "node-name": "n", "read-only": True, "file": file},
                )
            assert not daemon.tables.graph.nodes
