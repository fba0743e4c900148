"""Dirty bitmaps as metadata contexts of the NBD export."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import qsd_trio.block.drivers
import qsd_trio.commands  # noqa: F401  # fills the registry
from qsd_trio.block.dirty_bitmaps import DirtyBitmap
from qsd_trio.daemon import Daemon, open_daemon_tables
from qsd_trio.errors import QmpError
from qsd_trio.exports import nbd_status
from qsd_trio.exports.nbd_status import collect, look_for
from qsd_trio.protocol.nbd.constants import CmdFlag, Mode
from qsd_trio.qapi.converter import args_from_qmp
from qsd_trio.registry import commands
from qsd_trio.testing.nbd_client import NbdClient, NbdError, connect_nbd
from tests.exports.nbd_kit import FakeBackend

SIZE = 1 << 20
DIRTY = "qemu:dirty-bitmap:"


async def run(daemon: Daemon, name: str, /, **arguments: object) -> None:
    """Execute a QMP command."""
    given = {key.replace("_", "-"): value for key, value in arguments.items()}
    await commands[name].function(daemon, args_from_qmp(name, given))


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Daemon]:
    """Run a daemon with an NBD server on ``folder/s`` and a node ``n`` with bitmaps ``a`` and ``b``."""
    (folder / "img").write_bytes(bytes(SIZE))
    async with open_daemon_tables() as daemon:
        options = {"driver": "file", "filename": str(folder / "img")}
        await run(daemon, "blockdev-add", node_name="n", **options)
        for name in ("a", "b"):
            await run(daemon, "block-dirty-bitmap-add", node="n", name=name, granularity=4096)
        address = {"type": "unix", "data": {"path": str(folder / "s")}}
        await run(daemon, "nbd-server-start", addr=address)
        yield daemon


async def export(daemon: Daemon, *bitmaps: object, **more: object) -> None:
    await run(
        daemon, "block-export-add", type="nbd", id="e", node_name="n", name="e",
        bitmaps=list(bitmaps), **{"writable": True, **more},
    )  # fmt: skip


@asynccontextmanager
async def client(folder: Path, *contexts: str, mode: int) -> AsyncIterator[NbdClient]:
    async with connect_nbd(str(folder / "s"), "e", mode=mode, contexts=contexts) as nbd:
        yield nbd


@pytest.mark.parametrize("mode", [Mode.STRUCTURED, Mode.EXTENDED])
async def test_writes_show_at_once(sock_dir: Path, mode: int) -> None:
    async with serving(sock_dir) as daemon:
        await export(daemon, "b", {"node": "n", "name": "a"}, allocation_depth=True)
        daemon.graph.nodes["n"].bitmaps.find("a").mark(SIZE - 1, 1)
        names = ["base:allocation", DIRTY + "b", DIRTY + "a"]
        async with client(sock_dir, *names, mode=mode) as nbd:
            status = await nbd.block_status(0, SIZE)
            assert list(status) == names
            assert status[DIRTY + "b"] == [(SIZE, 0)]
            assert status[DIRTY + "a"] == [(SIZE - 4096, 0), (4096, 1)]
            await nbd.pwrite(4096, b"x" * 5000)
            status = await nbd.block_status(1024, SIZE - 1024)
            assert status[DIRTY + "b"] == [(3072, 0), (8192, 1), (SIZE - 12288, 0)]
            one = await nbd.block_status(4100, 4096, flags=CmdFlag.REQ_ONE)
            assert one[DIRTY + "b"] == [(4096, 1)]


async def test_bitmaps_are_busy_as_long_as_they_are_exported(sock_dir: Path) -> None:
    async with serving(sock_dir) as daemon:
        bitmaps = daemon.graph.nodes["n"].bitmaps
        await export(daemon, "b")
        assert [each.busy for each in bitmaps] == [True, False]
        await run(daemon, "block-export-del", id="e")
        assert [each.busy for each in bitmaps] == [False, False]
        with pytest.raises(QmpError, match="'nobody' is not found"):
            await export(daemon, "b", "nobody")
        with pytest.raises(QmpError, match="Enabled bitmap 'b' incompatible with readonly export"):
            await export(daemon, "b", writable=False)
        assert [each.busy for each in bitmaps] == [False, False]
        bitmaps.find("b").enabled = False
        await export(daemon, "b", writable=False)


async def extents(bitmap: DirtyBitmap, offset: int, length: int) -> list[tuple[int, int]]:
    look = look_for(FakeBackend(0), DIRTY, bitmap)  # type: ignore[arg-type]
    return await collect(look, offset, length, only_one=False, extended=False)


async def test_extents_are_what_is_marked() -> None:
    rng = random.Random(5)
    bitmap = DirtyBitmap("b", 512, SIZE)
    model = bytearray(SIZE // 512)
    for _ in range(40):
        at, count = rng.randrange(len(model)), rng.randrange(1, 9)
        count = min(count, len(model) - at)
        bitmap.mark(at * 512, count * 512)
        model[at : at + count] = b"\1" * count
    for offset, length in ((0, SIZE), (1000, 20_000), (SIZE - 700, 700)):
        flat = [flags for size, flags in await extents(bitmap, offset, length) for _ in range(size)]
        assert flat == [model[at // 512] for at in range(offset, offset + length)]


async def test_a_reply_has_a_limit_and_goes_on_where_it_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nbd_status, "MAX_DESCRIPTORS", 4)
    bitmap = DirtyBitmap("b", 512, SIZE)
    for at in range(0, 8192, 1024):
        bitmap.mark(at, 512)
    assert await extents(bitmap, 0, SIZE) == [(512, 1), (512, 0)] * 2
    assert await extents(bitmap, 2048, 1024) == [(512, 1), (512, 0)]


async def test_what_is_beyond_a_shorter_bitmap_is_clean() -> None:
    """Of a backing file that is shorter than what is exported."""
    bitmap = DirtyBitmap("b", 4096, 10_000)
    bitmap.mark(0, 10_000)
    assert await extents(bitmap, 0, SIZE) == [(10_000, 1), (SIZE - 10_000, 0)]
    assert await extents(bitmap, 20_000, 4096) == [(4096, 0)]


@pytest.mark.parametrize("mode", [Mode.STRUCTURED, Mode.EXTENDED])
async def test_an_unknown_context_is_none(sock_dir: Path, mode: int) -> None:
    async with serving(sock_dir) as daemon:
        await export(daemon, "b")
        async with client(sock_dir, DIRTY + "a", mode=mode) as nbd:
            with pytest.raises(NbdError) as caught:
                await nbd.block_status(0, 512)
            assert caught.value.errno == errno.EINVAL
