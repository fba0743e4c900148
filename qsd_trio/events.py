"""The event bus: rooms emit, monitors and embedding programs subscribe."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, final

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from qsd_trio.untyped import Json


@final
@attrs.frozen
class Event:
    """One event as it goes out on the wire.

    ``data`` holds QMP names and plain JSON values. ``timestamp`` is (seconds, microseconds)
    since the epoch, taken when the event was emitted.
    """

    name: str
    data: Mapping[str, Json]
    timestamp: tuple[int, int]

    def to_qmp(self) -> dict[str, Json]:
        """Return the event's JSON object."""
        seconds, microseconds = self.timestamp
        answer: dict[str, Json] = {
            "timestamp": {"seconds": seconds, "microseconds": microseconds},
            "event": self.name,
        }
        if self.data:
            answer["data"] = dict(self.data)
        return answer


@final
class EventBus:
    """Hands each event to every subscriber, in order of emission.

    Subscribers are called at once and must neither block nor raise: a monitor appends to its queue.
    """

    def __init__(self) -> None:
        self._subscribers: list[Callable[[Event], None]] = []

    def emit(self, name: str, /, **data: object) -> None:
        """Emit event ``name``; keyword ``node_name`` becomes member ``node-name``; None is left out."""
        members = {
            key.rstrip("_").replace("_", "-"): value
            for key, value in data.items()
            if value is not None
        }
        microseconds = time.time_ns() // 1000
        event = Event(name, members, divmod(microseconds, 1_000_000))
        for subscriber in tuple(self._subscribers):
            subscriber(event)

    @contextlib.contextmanager
    def subscribed(self, subscriber: Callable[[Event], None]) -> Iterator[None]:
        """Deliver events to ``subscriber`` while the context is open."""
        self._subscribers.append(subscriber)
        try:
            yield
        finally:
            self._subscribers.remove(subscriber)
