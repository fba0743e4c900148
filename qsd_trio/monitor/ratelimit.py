"""Rate limits of events: of many in a short time, the first and the latest go out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeAlias, final

if TYPE_CHECKING:
    from qsd_trio.events import Event

    Key: TypeAlias = tuple[object, ...]

#: Event -> (seconds between two, members that tell apart what has a limit of its own).
#: As QEMU's; that of BLOCK_IO_ERROR is newer than 7.2 (since 9.2).
LIMITS: Final[dict[str, tuple[float, tuple[str, ...]]]] = {
    "BLOCK_IO_ERROR": (1.0, ("qom-path", "node-name")),
    "QUORUM_FAILURE": (1.0, ()),
    "QUORUM_REPORT_BAD": (1.0, ("node-name",)),
    "VSERPORT_CHANGE": (1.0, ("id",)),
}


@final
class RateLimiter:
    """Holds back events that follow too closely. Knows no clock: the caller says what time it is."""

    def __init__(self) -> None:
        #: When the next of a kind may go out, and the one that waits for it.
        self._windows: dict[Key, tuple[float, Event | None]] = {}

    def offer(self, event: Event, now: float) -> bool:
        """Return whether ``event`` goes out at once; if not, it replaces an earlier one that waits."""
        limit = LIMITS.get(event.name)
        if limit is None or event.data.get("action") == "stop":
            return True  # what stopped a guest is told at any rate
        seconds, members = limit
        key = (event.name, *(event.data.get(member) for member in members))
        window = self._windows.get(key)
        if window is None or (window[1] is None and window[0] <= now):
            self._windows[key] = (now + seconds, None)
            return True
        self._windows[key] = (window[0], event)
        return False

    def next_deadline(self) -> float:
        """Return when ``due`` has something to do; infinity: not before another ``offer``."""
        return min((window[0] for window in self._windows.values()), default=math.inf)

    def due(self, now: float) -> list[Event]:
        """Return the events whose time has come; each begins a new wait for its kind."""
        events = []
        for key, (deadline, event) in tuple(self._windows.items()):
            if deadline > now:
                continue
            del self._windows[key]
            if event is not None:
                events.append(event)
                self._windows[key] = (now + LIMITS[event.name][0], None)
        return events
