"""The contract of an export."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, TypeVar, final

import attrs

from qsd_trio import trace
from qsd_trio.block.abc import Perm
from qsd_trio.registry import export_types
from qsd_trio.services import Service

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd_trio.block.backend import BlockBackend
    from qsd_trio.block.graph import BlockGraph
    from qsd_trio.events import EventBus
    from qsd_trio.exports.nbd_server import NbdServer
    from qsd_trio.untyped import Options

_trace_deleted = trace.point("export_deleted")


@final
@attrs.frozen(kw_only=True)
class ExportContext:
    """What an export sees of the daemon that it belongs to."""

    events: EventBus
    graph: BlockGraph
    nbd_server: NbdServer | None


class Export(Service):
    """A node made visible to clients of one protocol.

    The command block-export-add makes the backend (permissions, length) and hands it over: the export
    closes it when it ends. ``events`` is where BLOCK_EXPORT_DELETED goes then.
    """

    type_name: ClassVar[str]
    backend: BlockBackend
    events: EventBus
    shutting_down: bool = False
    #: What other users of the node may do.
    shared_permissions: ClassVar[Perm] = Perm.ALL

    @classmethod
    @abstractmethod
    def create(cls, context: ExportContext, backend: BlockBackend, options: Options) -> Export:
        """Check ``options`` (the generated BlockExportOptionsX) and return the export, not yet open.

        Raises QmpError and leaves nothing behind.
        """

    def gone(self) -> None:
        """Tell the monitors."""
        _trace_deleted(self.id)
        self.events.emit("BLOCK_EXPORT_DELETED", id=self.id)

    @property
    @abstractmethod
    def in_use(self) -> bool:
        """Whether clients are connected: block-export-del in mode ``safe`` is refused then."""


ExportT = TypeVar("ExportT", bound=type[Export])


def export_type(name: str) -> Callable[[ExportT], ExportT]:
    """Register an export class under its QAPI name."""

    def decorate(cls: ExportT) -> ExportT:
        cls.type_name = name
        return export_types.register(name)(cls)

    return decorate
