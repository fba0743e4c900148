"""Internal snapshots: what a driver offers that keeps snapshots inside its image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, final

import attrs

from qsd_trio.block.abc import ChildRole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsd_trio.block.io import Node
    from qsd_trio.untyped import Json

#: Nanoseconds of a second.
SECOND = 10**9


@final
@attrs.frozen(kw_only=True)
class Snapshot:
    """An internal snapshot as commands show it. Names are bytes: images hold any."""

    id: bytes
    name: bytes
    date_sec: int
    date_nsec: int
    vm_clock_nsec: int
    vm_state_size: int = 0
    icount: int | None = None

    def to_qmp(self) -> dict[str, Json]:
        """Return SnapshotInfo."""
        seconds, nanoseconds = divmod(self.vm_clock_nsec, SECOND)
        info: dict[str, Json] = {
            "id": self.id.decode("utf-8", "replace"),
            "name": self.name.decode("utf-8", "replace"),
            "vm-state-size": self.vm_state_size,
            "date-sec": self.date_sec,
            "date-nsec": self.date_nsec,
            "vm-clock-sec": seconds,
            "vm-clock-nsec": nanoseconds,
        }
        if self.icount is not None:
            info["icount"] = self.icount
        return info


class SnapshotStore(ABC):
    """The snapshots in one image. Callers drain the node around ``create`` and ``delete``."""

    @abstractmethod
    def all(self) -> Sequence[Snapshot]:
        """Return the snapshots; OSError (ENOTSUP) if this image cannot have any."""

    @abstractmethod
    async def create(self, snapshot: Snapshot) -> Snapshot:
        """Take a snapshot like ``snapshot``, but with an id of its own; return it as it is now.

        Raises OSError with nothing changed. Cancelled: nothing is changed.
        """

    @abstractmethod
    async def delete(self, id_: bytes | None, name: bytes | None) -> None:
        """Delete the first snapshot with this id and name, None matching any. Raises QmpError.

        Cancelled: it was not begun.
        """

    def find(self, id_: bytes | None, name: bytes | None) -> Snapshot | None:
        """Return the first snapshot with this id and name, None matching any; None: there is none."""
        for snapshot in self.all():
            if id_ in (None, snapshot.id) and name in (None, snapshot.name):
                return snapshot
        return None


def snapshot_store(node: Node) -> SnapshotStore | None:
    """Return where snapshots of a node are kept: in its image, or in that of its only storage child."""
    while True:
        store = node.driver.snapshots
        if store is not None:
            return store
        primary = node.child(ChildRole.PRIMARY)
        storage = ChildRole.DATA | ChildRole.METADATA | ChildRole.FILTERED
        if primary is None or any(
            edge.role & storage for edge in node.children if edge is not primary
        ):
            return None
        node = primary.node
