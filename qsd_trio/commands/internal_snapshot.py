"""QMP commands of internal snapshots."""

from __future__ import annotations

import errno
import logging
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, final

import attrs

from qsd_trio.block.snapshots import SECOND, Snapshot, snapshot_store
from qsd_trio.commands.abc import command
from qsd_trio.commands.actions import Action, perform
from qsd_trio.errors import QmpError, with_errno

if TYPE_CHECKING:
    from qsd_trio.block.graph import BlockGraph
    from qsd_trio.block.io import Node
    from qsd_trio.block.snapshots import SnapshotStore
    from qsd_trio.daemon import Daemon
    from qsd_trio.qapi import BlockdevSnapshotDeleteInternalSyncArg, BlockdevSnapshotInternal
    from qsd_trio.untyped import Json

log = logging.getLogger(__name__)

#: What QEMU keeps of a name, in bytes.
MAX_NAME = 255


def _root_node(graph: BlockGraph, name: str) -> Node:
    """Return the node ``name``, which no other node may be using."""
    node = graph.find(name)
    if any(edge.parent is not None for edge in node.parents):
        raise QmpError("Need a root block node")
    return node


def _find(store: SnapshotStore | None, id_: str | None, name: str | None) -> Snapshot | None:
    try:
        if store is None:
            raise OSError(errno.ENOTSUP, "")
        return store.find(_encoded(id_), _encoded(name))
    except OSError as exc:
        raise with_errno("Failed to get a snapshot list", exc) from exc


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogateescape")


@final
@attrs.define(eq=False)
class SnapshotInternal(Action):
    """Take an internal snapshot."""

    graph: BlockGraph
    arg: BlockdevSnapshotInternal
    _held: AsyncExitStack = attrs.field(init=False, factory=AsyncExitStack)
    _store: SnapshotStore | None = attrs.field(init=False, default=None)
    #: What has been taken.
    _taken: Snapshot | None = attrs.field(init=False, default=None)

    async def prepare(self) -> None:
        """Take the snapshot; the node stays drained until ``clean``."""
        device, name = self.arg.device, self.arg.name
        node = _root_node(self.graph, device)
        await self._held.enter_async_context(self.graph.drained([node]))
        if node.read_only:
            raise QmpError(f"Device '{device}' is read only")
        self._store = store = snapshot_store(node)
        if store is None:
            raise QmpError(
                f"Block format '{node.driver_name}' used by device '{device}'"
                " does not support internal snapshots"
            )
        if not name:
            raise QmpError("Name is empty")
        if _find(store, None, name) is not None:
            raise QmpError(f"Snapshot with name '{name}' already exists on device '{device}'")
        seconds, nanoseconds = divmod(time.time_ns() // 1000 * 1000, SECOND)
        wanted = Snapshot(
            id=b"",
            name=name.encode("utf-8", "surrogateescape")[:MAX_NAME],
            date_sec=seconds,
            date_nsec=nanoseconds,
            vm_clock_nsec=seconds * SECOND + nanoseconds,
        )
        try:
            self._taken = await store.create(wanted)
        except OSError as exc:
            raise with_errno(
                f"Failed to create snapshot '{name}' on device '{device}'", exc
            ) from exc

    async def abort(self) -> None:
        """Delete the snapshot again."""
        if self._taken is None or self._store is None:
            return
        try:
            await self._store.delete(self._taken.id, self._taken.name)
        except QmpError as exc:
            log.error(
                "Failed to delete snapshot with id '%s' and name '%s' on device '%s' in abort: %s",
                self._taken.id.decode("utf-8", "replace"),
                self.arg.name,
                self.arg.device,
                exc,
            )

    async def clean(self) -> None:
        """Let the node's requests go on."""
        await self._held.aclose()


@command("blockdev-snapshot-internal-sync")
async def blockdev_snapshot_internal_sync(daemon: Daemon, arg: BlockdevSnapshotInternal) -> None:
    """Take a snapshot inside a node's image."""
    async with daemon.graph.changing():
        await perform(SnapshotInternal(daemon.graph, arg))


@command("blockdev-snapshot-delete-internal-sync")
async def blockdev_snapshot_delete_internal_sync(
    daemon: Daemon, arg: BlockdevSnapshotDeleteInternalSyncArg
) -> dict[str, Json]:
    """Delete a snapshot inside a node's image; tell what it was."""
    graph = daemon.graph
    async with graph.changing():
        node = _root_node(graph, arg.device)
        if arg.id is None and arg.name is None:
            raise QmpError("Name or id must be provided")
        store = snapshot_store(node)
        found = _find(store, arg.id, arg.name)
        if store is None or found is None:
            raise QmpError(
                f"Snapshot with id '{_shown(arg.id)}' and name '{_shown(arg.name)}'"
                f" does not exist on device '{arg.device}'"
            )
        async with graph.drained([node]):
            await store.delete(_encoded(arg.id), _encoded(arg.name))
        return found.to_qmp()


def _shown(text: str | None) -> str:
    return "null" if text is None else text
