"""The bitmap commands as actions: what an abort undoes (tests/interop has texts and replies)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from qsd_trio.block.dirty_bitmaps import DirtyBitmap
from qsd_trio.block.io import Node
from qsd_trio.commands.actions import Action
from qsd_trio.commands.dirty_bitmap import Add, Clear, Merge, Remove, Switch
from qsd_trio.daemon import Daemon, open_daemon_tables
from qsd_trio.errors import QmpError, os_error
from qsd_trio.qapi import BlockDirtyBitmap, BlockDirtyBitmapAdd, BlockDirtyBitmapMerge
from qsd_trio.qapi.converter import args_from_qmp

SIZE = 1 << 20
B = BlockDirtyBitmap(node="n", name="b")


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    async with open_daemon_tables() as opened:
        for name in ("n", "other"):
            options = {"driver": "null-co", "node-name": name, "size": SIZE}
            await opened.graph.add_node(args_from_qmp("blockdev-add", options))
        yield opened


@pytest.fixture
def node(daemon: Daemon) -> Node:
    return daemon.graph.nodes["n"]


@pytest.fixture
def bitmap(node: Node) -> DirtyBitmap:
    made = node.bitmaps.create("b", 4096, SIZE)
    made.mark(0, 1)
    return made


async def aborted(action: Action) -> None:
    await action.prepare()
    await action.abort()
    await action.clean()


async def test_an_aborted_add_leaves_nothing(daemon: Daemon, node: Node) -> None:
    await aborted(Add(daemon.graph, BlockDirtyBitmapAdd(node="n", name="b", disabled=True)))
    assert node.bitmaps.get("b") is None
    assert not node.bitmaps.recording


async def test_a_failed_add_leaves_the_older_one(
    daemon: Daemon, node: Node, bitmap: DirtyBitmap
) -> None:
    action = Add(daemon.graph, BlockDirtyBitmapAdd(node="n", name="b"))
    with pytest.raises(QmpError, match="Bitmap already exists: b"):
        await action.prepare()
    await action.abort()
    assert node.bitmaps.find("b") is bitmap


async def test_an_aborted_clear_puts_the_bits_back(daemon: Daemon, bitmap: DirtyBitmap) -> None:
    await aborted(Clear(daemon.graph, B))
    assert bitmap.count() == 4096
    await Clear(daemon.graph, B).prepare()
    assert bitmap.count() == 0


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
async def test_an_aborted_switch_does_as_before(
    daemon: Daemon, node: Node, bitmap: DirtyBitmap, before: bool, wanted: bool
) -> None:
    bitmap.enabled = before
    action = Switch(daemon.graph, B, wanted)
    await action.prepare()
    assert bitmap.enabled is wanted
    assert (bitmap in node.bitmaps.recording) is wanted
    await action.abort()
    assert bitmap.enabled is before


async def test_an_aborted_merge_puts_the_bits_back(
    daemon: Daemon, node: Node, bitmap: DirtyBitmap
) -> None:
    source = node.bitmaps.create("source", 65536, SIZE)
    source.mark(SIZE - 1, 1)
    merge = BlockDirtyBitmapMerge(node="n", target="b", bitmaps=["source"])
    await aborted(Merge(daemon.graph, merge))
    assert bitmap.count() == 4096
    await Merge(daemon.graph, merge).prepare()
    assert bitmap.count() == 4096 + 65536


async def test_a_merge_that_fails_late_has_changed_nothing(
    daemon: Daemon, node: Node, bitmap: DirtyBitmap
) -> None:
    source = node.bitmaps.create("source", 4096, SIZE)
    source.mark(SIZE - 1, 1)
    elsewhere = BlockDirtyBitmap(node="other", name="nobody")
    merge = BlockDirtyBitmapMerge(node="n", target="b", bitmaps=["source", elsewhere])
    with pytest.raises(QmpError, match="'nobody' not found"):
        await Merge(daemon.graph, merge).prepare()
    assert bitmap.count() == 4096


class Store:
    """Keeps bitmaps by name, unless it is told to fail."""

    def __init__(self) -> None:
        self.removed: list[str] = []
        self.fail = False

    def check_can_store(self, name: str, granularity: int) -> None:
        if self.fail:
            raise QmpError("no room")

    async def remove(self, name: str) -> None:
        if self.fail:
            raise QmpError(str(os_error(5)))
        self.removed.append(name)


async def test_a_removal_holds_the_bitmap_until_it_is_decided(
    daemon: Daemon, node: Node, bitmap: DirtyBitmap
) -> None:
    store = node.driver.bitmap_store = Store()
    bitmap.persistent = True
    action = Remove(daemon.graph, B)
    await action.prepare()
    assert (bitmap.busy, store.removed) == (True, ["b"])
    with pytest.raises(QmpError, match="currently in use"):
        await Remove(daemon.graph, B).prepare()
    await action.abort()
    await action.clean()
    assert not bitmap.busy
    action = Remove(daemon.graph, B)
    await action.prepare()
    await action.commit()
    await action.clean()
    assert node.bitmaps.get("b") is None


async def test_a_bitmap_that_cannot_be_removed_from_its_image_stays(
    daemon: Daemon, node: Node, bitmap: DirtyBitmap
) -> None:
    store = node.driver.bitmap_store = Store()
    bitmap.persistent = store.fail = True
    action = Remove(daemon.graph, B)
    with pytest.raises(QmpError):
        await action.prepare()
    await action.abort()
    await action.clean()
    assert node.bitmaps.find("b") is bitmap
    assert not bitmap.busy


async def test_the_store_is_asked_before_a_persistent_one_is_made(
    daemon: Daemon, node: Node
) -> None:
    store = node.driver.bitmap_store = Store()
    store.fail = True
    with pytest.raises(QmpError) as caught:
        await Add(daemon.graph, BlockDirtyBitmapAdd(node="n", name="b", persistent=True)).prepare()
    assert str(caught.value) == "Can't make bitmap 'b' persistent in 'n': no room"
    assert len(node.bitmaps) == 0
