"""qcow2 images with every pair of options, to and fro between us and QEMU's programs.

``--qcow2-combinations 3`` takes every triple of options instead, ``all`` every combination there is.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import qsd_trio
from qsd_trio.block.abc import Perm, ReqFlag
from qsd_trio.block.backend import BlockBackend
from tests.peers import requires
from tests.qcow2_recipes import KIB, SECRET, Kitchen, Recipe, recipes

pytestmark = requires("qemu-img", "qemu-io")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "recipe" in metafunc.fixturenames:
        creatable = metafunc.function is test_images_of_ours
        chosen = recipes(metafunc.config.getoption("--qcow2-combinations"), creatable=creatable)
        metafunc.parametrize("recipe", chosen, ids=str)


@asynccontextmanager
async def a_daemon(recipe: Recipe) -> AsyncIterator[qsd_trio.EmbeddedDaemon]:
    """Run a daemon that knows the passphrase."""
    async with qsd_trio.open_daemon() as daemon:
        if recipe.encryption != "none":
            await daemon.qmp("object-add", {"qom-type": "secret", "id": "s", "data": SECRET})
        yield daemon


@asynccontextmanager
async def a_user(daemon: qsd_trio.EmbeddedDaemon) -> AsyncIterator[BlockBackend]:
    """Use node ``n`` as an export would."""
    rights = Perm.CONSISTENT_READ | Perm.WRITE
    user = await daemon.tables.graph.open_backend("n", rights, Perm.ALL)
    try:
        yield user
    finally:
        with trio.CancelScope(shield=True):
            await user.aclose()


async def content(user: BlockBackend) -> bytes:
    """Read everything, in pieces, by the slow path."""
    data = bytearray(user.getlength())
    view = memoryview(data)
    for at in range(0, len(data), 300 * KIB):
        piece = view[at : at + 300 * KIB]
        await user.preadv(at, [piece])
    return bytes(data)


class Work:
    """Random requests to node ``n``, and what its content should be."""

    def __init__(
        self, daemon: qsd_trio.EmbeddedDaemon, recipe: Recipe, model: bytearray, below: bytes
    ) -> None:
        self.daemon = daemon
        self.recipe = recipe
        self.model = model
        self.below = below
        self.rng = random.Random(str(recipe))
        self.snapshots: dict[str, bytes] = {}

    def _range(self) -> tuple[int, int]:
        offset = self.rng.randrange(len(self.model) // 512) * 512
        length = self.rng.choice([512, 4 * KIB, 50 * 512, 64 * KIB, 300 * KIB])
        return offset, min(length, len(self.model) - offset)

    async def requests(self, user: BlockBackend, count: int) -> None:
        """Write, zero, discard and flush."""
        for _ in range(count):
            offset, length = self._range()
            kind = self.rng.choice(["write"] * 4 + ["zero", "unmap", "discard", "flush"])
            if kind == "write":
                data = self.rng.randbytes(length)
                self.model[offset : offset + length] = data
                await user.pwritev(offset, [memoryview(data)])
            elif kind == "discard":
                await self._discard(user, offset, length)
            elif kind == "flush":
                await user.flush()
            else:
                self.model[offset : offset + length] = bytes(length)
                flags = ReqFlag.MAY_UNMAP if kind == "unmap" else ReqFlag.NONE
                await user.pwrite_zeroes(offset, length, flags)

    async def _discard(self, user: BlockBackend, offset: int, length: int) -> None:
        """Discard; each cluster of the range is then what it was, zeroes, or what is below."""
        await user.pdiscard(offset, length)
        found = bytearray(length)
        await user.preadv(offset, [memoryview(found)])
        for at in range(0, length, 512):
            piece = bytes(found[at : at + 512])
            where = slice(offset + at, offset + at + 512)
            below = self.below[where].ljust(512, b"\0")
            assert piece in (self.model[where], bytes(512), below), f"discard, {offset + at:#x}"
        self.model[offset : offset + length] = found

    async def resize(self) -> None:
        """Grow or shrink."""
        old = len(self.model)
        size = old + self.rng.choice([-100, 1, 77, 4000]) * 512
        await self.daemon.qmp("block_resize", {"node-name": "n", "size": size})
        del self.model[size:]
        self.model += bytes(size - len(self.model))
        if size > old and self.recipe.has_noise:
            # So is what was behind the end in the last cluster, or all that is new.
            async with a_user(self.daemon) as user:
                await user.preadv(old, [memoryview(self.model)[old:]])

    async def snapshot(self, name: str) -> None:
        """Take an internal snapshot."""
        await self.daemon.qmp("blockdev-snapshot-internal-sync", {"device": "n", "name": name})
        self.snapshots[name] = bytes(self.model)

    async def delete_snapshot(self, name: str) -> None:
        """Delete one."""
        argument = {"device": "n", "name": name}
        await self.daemon.qmp("blockdev-snapshot-delete-internal-sync", argument)
        del self.snapshots[name]

    async def all_kinds(self) -> None:
        """Do everything that this image can have done to it."""
        recipe = self.recipe
        async with a_user(self.daemon) as user:
            assert await content(user) == self.model
            await self.requests(user, 12)
        if recipe.snapshots:
            await self.snapshot("ours")
            if recipe.refcount_bits > 2:  # else there are as many references as it can count
                await self.snapshot("short-lived")
        # A version 2 snapshot knows no size of its own.
        if not (recipe.snapshots and recipe.version == "v2"):
            await self.resize()
        async with a_user(self.daemon) as user:
            await self.requests(user, 12)
            if "short-lived" in self.snapshots:
                await self.delete_snapshot("short-lived")
            await self.requests(user, 4)
            assert await content(user) == self.model


async def test_images_of_qemu_img(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What qemu-img made reads equal; after our requests it is sound and equal to the model."""
    monkeypatch.chdir(tmp_path)  # where data files are looked for
    kitchen = Kitchen(recipe, tmp_path)
    model = kitchen.create()
    theirs = bytes(model)
    if recipe.snapshots:
        kitchen.snapshot("theirs")
        kitchen.write(model, random.Random(2))
    if recipe.bitmap:
        kitchen.add_bitmap("bitmap")
    async with a_daemon(recipe) as daemon:
        await daemon.qmp("blockdev-add", recipe.node_options(kitchen.path))
        work = Work(daemon, recipe, model, kitchen.below)
        if recipe.snapshots:
            work.snapshots["theirs"] = theirs
        await work.all_kinds()
        await daemon.qmp("blockdev-del", {"node-name": "n"})
    kitchen.check()
    assert kitchen.read() == model
    for name, data in work.snapshots.items():
        length = min(len(data), len(model))  # qemu-img reads as much as there is now
        assert kitchen.read(name)[:length] == data[:length], name
    found = kitchen.info()["format-specific"]["data"]
    assert [entry["name"] for entry in found.get("bitmaps", [])] == ["bitmap"] * recipe.bitmap
    assert all("in-use" not in entry["flags"] for entry in found.get("bitmaps", []))


async def create(daemon: qsd_trio.EmbeddedDaemon, options: dict[str, Any]) -> str | None:
    """Run blockdev-create to its end; return its error, or None."""
    with daemon.events() as events:
        await daemon.qmp("blockdev-create", {"job-id": "j", "options": options})
        async for event in events:
            if event.name == "JOB_STATUS_CHANGE" and event.data["status"] == "concluded":
                break
    (job,) = await daemon.qmp("query-jobs")
    await daemon.qmp("job-dismiss", {"id": "j"})
    return job.get("error")


async def test_images_of_ours(recipe: Recipe, tmp_path: Path) -> None:
    """What blockdev-create makes looks like what qemu-img makes, and QEMU can work with it."""
    folders = [tmp_path / "ours", tmp_path / "theirs"]
    ours, theirs = kitchens = [Kitchen(recipe, folder) for folder in folders]
    for folder, kitchen in zip(folders, kitchens, strict=True):
        folder.mkdir()
        kitchen.make_below()
    async with a_daemon(recipe) as daemon:
        names = ["image"] if recipe.data_file == "none" else ["image", "image.data"]
        for name in names:
            path = folders[0] / name
            path.touch()
            await daemon.qmp(
                "blockdev-add", {"driver": "file", "node-name": name, "filename": str(path)}
            )
        error = await create(daemon, recipe.create_options("image", "image.data"))
        assert error is None
        for name in names:
            await daemon.qmp("blockdev-del", {"node-name": name})
    theirs.create_empty()
    ours.check()
    assert ours.info() == theirs.info()
    assert ours.map() == theirs.map()
    model = bytearray(ours.read())
    if recipe.encryption == "none":
        assert model == ours.below
    rng = random.Random(str(recipe))
    if recipe.compressed:
        ours.write_compressed(model, rng)
    ours.write(model, rng)
    if recipe.bitmap:
        ours.add_bitmap("bitmap")
    if recipe.snapshots:
        ours.snapshot("theirs")
    ours.check()
    async with a_daemon(recipe) as daemon:
        await daemon.qmp("blockdev-add", recipe.node_options(ours.path))
        async with a_user(daemon) as user:
            assert await content(user) == model
