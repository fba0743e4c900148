"""Event loop objects: ``iothread`` and ``main-loop``.

One trio loop serves everything here, so an iothread is a name that exports and jobs may be given, and its
properties are kept and validated for clients that set and read them. Nothing is polled; worker threads
are a matter of the host room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from qsd_trio.errors import QmpError
from qsd_trio.objects.abc import INT64_MAX, UserCreatable, as_int, user_creatable_object

if TYPE_CHECKING:
    from typing import Self

    from qsd_trio.objects.abc import ObjectTable
    from qsd_trio.untyped import Json, Options

#: Threads in the pool of an event loop unless told otherwise.
THREAD_POOL_MAX = 64
#: Nanoseconds an iothread polls at most before it sleeps, in the real daemon.
POLL_MAX_NS = 32768


class EventLoop(UserCreatable):
    """What both have in common: integer properties with a range."""

    DEFAULTS: ClassVar[dict[str, int]] = {
        "thread-pool-min": 0,
        "thread-pool-max": THREAD_POOL_MAX,
        "aio-max-batch": 0,
    }

    def __init__(self, id_: str) -> None:
        self.id = id_
        self._values = dict(self.DEFAULTS)

    def _fill(self, options: Options) -> None:
        given = {
            name: value
            for name in self.DEFAULTS
            if (value := getattr(options, name.replace("-", "_"), None)) is not None
        }
        for name, value in given.items():
            self._check_range(name, value)
        self._values.update(given)

    async def complete(self, table: ObjectTable) -> None:
        """Check what the properties say together."""
        self._check_pool(self._values)

    @staticmethod
    def _check_range(name: str, value: int) -> None:
        if value < 0:
            raise QmpError(f"{name} value must be in range [0, {INT64_MAX}]")

    @staticmethod
    def _check_pool(values: dict[str, int]) -> None:
        if (
            not 0 <= values["thread-pool-min"] <= values["thread-pool-max"]
            or not values["thread-pool-max"]
        ):
            raise QmpError("bad thread-pool-min/thread-pool-max values")

    def get_property(self, name: str) -> Json:
        """Return a property's value."""
        return self._values[name]

    async def set_property(self, name: str, value: Json) -> None:
        """Change a property; the loop itself has nothing to adjust."""
        number = as_int(name, value)
        self._check_range(name, number)
        changed = {**self._values, name: number}
        if name.startswith("thread-pool"):
            self._check_pool(changed)
        self._values = changed


@user_creatable_object("iothread")
@final
class IOThread(EventLoop):
    """A name for an event loop; all of them are this process's one loop."""

    DEFAULTS: ClassVar[dict[str, int]] = {
        **EventLoop.DEFAULTS,
        "poll-max-ns": POLL_MAX_NS,
        "poll-grow": 0,
        "poll-shrink": 0,
        "poll-weight": 0,
    }

    @classmethod
    def create(cls, options: Options) -> Self:
        """Make an iothread of validated properties."""
        new = cls(options.id)
        new._fill(options)
        return new


@user_creatable_object("main-loop")
@final
class MainLoop(EventLoop):
    """The properties of the main loop: one object, and it stays."""

    @classmethod
    def create(cls, options: Options) -> Self:
        """Make the object of validated properties."""
        new = cls(options.id)
        new._fill(options)
        return new

    async def complete(self, table: ObjectTable) -> None:
        """Refuse to be the second."""
        if any(isinstance(other, MainLoop) for other in table):
            raise QmpError("only one main-loop instance allowed")
        await super().complete(table)

    @property
    def deletable(self) -> bool:
        """Never: the loop it describes runs as long as the daemon."""
        return False
