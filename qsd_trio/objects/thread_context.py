"""Thread contexts: a thread with an affinity that others would inherit from."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from qsd_trio.errors import QmpError, with_errno
from qsd_trio.host.threads import SleepingThread, node_cpus
from qsd_trio.objects.abc import UserCreatable, user_creatable_object

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from qsd_trio.untyped import Json, Options


@user_creatable_object("thread-context")
@final
class ThreadContext(UserCreatable):
    """A thread whose CPUs can be chosen. Nothing in a storage daemon makes threads in its image."""

    def __init__(self, id_: str) -> None:
        self.id = id_
        self._thread = SleepingThread(f"TC {id_}")

    @classmethod
    def create(cls, options: Options) -> Self:
        """Start the thread, on the CPUs or nodes that are asked for."""
        new = cls(options.id)
        try:
            if options.cpu_affinity is not None:
                new._set_cpus(options.cpu_affinity)
            if options.node_affinity is not None:
                if options.cpu_affinity is not None:
                    raise QmpError("Mixing CPU and node affinity not supported")
                new._set_nodes(options.node_affinity)
        except QmpError:
            new._thread.close()
            raise
        return new

    async def aclose(self) -> None:
        """End the thread."""
        self._thread.close()

    def _set_cpus(self, cpus: Sequence[int]) -> None:
        if not cpus:
            raise QmpError("CPU list is empty")
        try:
            self._thread.set_affinity(cpus)
        except OSError as exc:
            raise with_errno("Setting CPU affinity failed", exc) from None

    def _set_nodes(self, nodes: Sequence[int]) -> None:
        if not nodes:
            raise QmpError("Node list is empty")
        cpus = set().union(*map(node_cpus, nodes))
        if not cpus:
            raise QmpError("The nodes select no CPUs")
        self._set_cpus(sorted(cpus))

    def get_property(self, name: str) -> Json:
        """Return ``thread-id`` or ``cpu-affinity``."""
        return self._thread.native_id if name == "thread-id" else self._thread.affinity()

    async def set_property(self, name: str, value: Json) -> None:
        """Set ``cpu-affinity`` or ``node-affinity``."""
        if not isinstance(value, list):
            raise QmpError(f"Invalid parameter type for '{name}', expected: array")
        numbers: list[int] = []
        for index, item in enumerate(value):
            if not isinstance(item, int) or isinstance(item, bool):
                raise QmpError(f"Parameter '{name}[{index}]' expects uint64")
            if not 0 <= item < 1 << 16:
                raise QmpError("Parameter 'null' expects uint16_t")  # the real text
            numbers.append(item)
        if name == "cpu-affinity":
            self._set_cpus(numbers)
        else:
            self._set_nodes(numbers)
