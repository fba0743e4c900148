"""QMP commands of dirty bitmaps. Those a transaction may contain are actions."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, final

import attrs

from qsd_trio.block.dirty_bitmaps import MIN_GRANULARITY, DirtyBitmap, default_granularity
from qsd_trio.commands.abc import command
from qsd_trio.commands.actions import Action, perform
from qsd_trio.errors import QmpError, os_error, with_errno

if TYPE_CHECKING:
    from qsd_trio.block.bits import BitArray
    from qsd_trio.block.graph import BlockGraph
    from qsd_trio.block.io import Node
    from qsd_trio.daemon import Daemon
    from qsd_trio.qapi import (
        BlockDirtyBitmap,
        BlockDirtyBitmapAdd,
        BlockDirtyBitmapMerge,
    )
    from qsd_trio.untyped import Json


def lookup(graph: BlockGraph, node_name: str, name: str) -> tuple[Node, DirtyBitmap]:
    """Return a bitmap and its node."""
    node = graph.nodes.get(node_name)
    if node is None:
        raise QmpError(f"Node '{node_name}' not found")
    return node, node.bitmaps.find(name)


@final
@attrs.define(eq=False)
class Add(Action):
    """block-dirty-bitmap-add."""

    graph: BlockGraph
    arg: BlockDirtyBitmapAdd
    _made: tuple[Node, DirtyBitmap] | None = attrs.field(init=False, default=None)

    async def prepare(self) -> None:
        """Make the bitmap."""
        arg = self.arg
        if not arg.name:
            raise QmpError("Bitmap name cannot be empty")
        node = self.graph.find(arg.node)
        granularity = arg.granularity
        if granularity is None:
            info = await node.driver.image_info()
            granularity = default_granularity(info.get("cluster-size"))
        elif granularity < MIN_GRANULARITY or granularity & (granularity - 1):
            raise QmpError("Granularity must be power of 2 and at least 512")
        if arg.persistent:
            store = node.driver.bitmap_store
            if store is None:
                raise with_errno(
                    f"Can't store persistent bitmaps to {node.node_name}", os_error(errno.ENOTSUP)
                )
            try:
                store.check_can_store(arg.name, granularity)
            except QmpError as exc:
                where = f"Can't make bitmap '{arg.name}' persistent in '{node.node_name}'"
                raise QmpError(f"{where}: {exc}") from exc
        bitmap = node.bitmaps.create(arg.name, granularity, node.getlength())
        self._made = node, bitmap
        bitmap.persistent = bool(arg.persistent)
        if arg.disabled:
            bitmap.enabled = False

    async def abort(self) -> None:
        """Take it away again: an image does not know of it before it closes."""
        if self._made is not None:
            node, bitmap = self._made
            node.bitmaps.remove(bitmap)


@final
@attrs.define(eq=False)
class Remove(Action):
    """block-dirty-bitmap-remove. Until the commit the bitmap is busy, so that nobody else touches it."""

    graph: BlockGraph
    arg: BlockDirtyBitmap
    _found: tuple[Node, DirtyBitmap] | None = attrs.field(init=False, default=None)

    async def prepare(self) -> None:
        """Remove the bitmap from the image. Aborted, it is stored again when the image closes."""
        node, bitmap = lookup(self.graph, self.arg.node, self.arg.name)
        bitmap.check_removable()
        store = node.driver.bitmap_store
        bitmap.busy = True
        self._found = node, bitmap
        if bitmap.persistent and store is not None:
            await store.remove(bitmap.name)

    async def commit(self) -> None:
        """Forget it."""
        assert self._found is not None
        node, bitmap = self._found
        node.bitmaps.remove(bitmap)

    async def clean(self) -> None:
        """Let others at it, if it is still there."""
        if self._found is not None:
            self._found[1].busy = False


@final
@attrs.define(eq=False)
class Clear(Action):
    """block-dirty-bitmap-clear."""

    graph: BlockGraph
    arg: BlockDirtyBitmap
    _taken: tuple[DirtyBitmap, BitArray] | None = attrs.field(init=False, default=None)

    async def prepare(self) -> None:
        """Clear the bitmap, keeping what it held."""
        _, bitmap = lookup(self.graph, self.arg.node, self.arg.name)
        bitmap.check_changeable()
        self._taken = bitmap, bitmap.take()

    async def abort(self) -> None:
        """Put it back."""
        if self._taken is not None:
            bitmap, bits = self._taken
            bitmap.restore(bits)


@final
@attrs.define(eq=False)
class Switch(Action):
    """block-dirty-bitmap-enable and -disable."""

    graph: BlockGraph
    arg: BlockDirtyBitmap
    enabled: bool
    _before: tuple[DirtyBitmap, bool] | None = attrs.field(init=False, default=None)

    async def prepare(self) -> None:
        """Begin or cease to record writes."""
        _, bitmap = lookup(self.graph, self.arg.node, self.arg.name)
        bitmap.check_usable()
        self._before = bitmap, bitmap.enabled
        bitmap.enabled = self.enabled

    async def abort(self) -> None:
        """Do as before."""
        if self._before is not None:
            bitmap, enabled = self._before
            bitmap.enabled = enabled


@final
@attrs.define(eq=False)
class Merge(Action):
    """block-dirty-bitmap-merge."""

    graph: BlockGraph
    arg: BlockDirtyBitmapMerge
    _before: tuple[DirtyBitmap, BitArray] | None = attrs.field(init=False, default=None)

    async def prepare(self) -> None:
        """Check all, then mark in the target what is dirty in one of the sources."""
        node, target = lookup(self.graph, self.arg.node, self.arg.target)
        sources = []
        for source in self.arg.bitmaps:
            if isinstance(source, str):
                bitmap = node.bitmaps.find(source)
            else:
                _, bitmap = lookup(self.graph, source.node, source.name)
            bitmap.check_usable()
            if bitmap.size != target.size:
                raise QmpError(
                    f"Bitmaps are of different sizes (destination size is {target.size},"
                    f" source size is {bitmap.size}) and can't be merged"
                )
            sources.append(bitmap)
        target.check_changeable()
        self._before = target, target.snapshot()
        for bitmap in sources:
            target.merge(bitmap)

    async def abort(self) -> None:
        """Put the target's own bits back."""
        if self._before is not None:
            target, bits = self._before
            target.restore(bits)


@command("block-dirty-bitmap-add")
async def block_dirty_bitmap_add(daemon: Daemon, arg: BlockDirtyBitmapAdd) -> None:
    """Begin to record what is written to a node."""
    await perform(Add(daemon.graph, arg))


@command("block-dirty-bitmap-remove")
async def block_dirty_bitmap_remove(daemon: Daemon, arg: BlockDirtyBitmap) -> None:
    """Remove a bitmap, from its image as well."""
    await perform(Remove(daemon.graph, arg))


@command("block-dirty-bitmap-clear")
async def block_dirty_bitmap_clear(daemon: Daemon, arg: BlockDirtyBitmap) -> None:
    """Forget what was recorded so far."""
    await perform(Clear(daemon.graph, arg))


@command("block-dirty-bitmap-enable")
async def block_dirty_bitmap_enable(daemon: Daemon, arg: BlockDirtyBitmap) -> None:
    """Record writes from now on."""
    await perform(Switch(daemon.graph, arg, enabled=True))


@command("block-dirty-bitmap-disable")
async def block_dirty_bitmap_disable(daemon: Daemon, arg: BlockDirtyBitmap) -> None:
    """Record no writes from now on."""
    await perform(Switch(daemon.graph, arg, enabled=False))


@command("block-dirty-bitmap-merge")
async def block_dirty_bitmap_merge(daemon: Daemon, arg: BlockDirtyBitmapMerge) -> None:
    """Add to a bitmap what others have recorded."""
    await perform(Merge(daemon.graph, arg))


@command("x-debug-block-dirty-bitmap-sha256")
async def x_debug_block_dirty_bitmap_sha256(daemon: Daemon, arg: BlockDirtyBitmap) -> Json:
    """Return a checksum of a bitmap's bits."""
    _, bitmap = lookup(daemon.graph, arg.node, arg.name)
    return {"sha256": bitmap.sha256()}
