"""When a call that may block is made on the event loop, and when not: decided by watching it."""

from __future__ import annotations

import resource
from typing import final

#: A call that took longer than this (seconds) per started 64 KiB was slow.
SLOW_PER_UNIT = 1.5e-3
UNIT = 65536

#: A call that took this long (seconds) stalled the loop, for whatever reason. A shorter slow one may
#: have lost its processor to someone else, which says nothing of the file.
CERTAIN = 20e-3

#: Seconds after a slow call in which calls are watched more closely: whether they slept.
SUSPICION = 0.1

#: Seconds that a file is kept off the loop after a stall: doubled each time it stalls again soon after
#: it was let back, up to the longest.
FIRST_HOLD = 0.01
LONGEST_HOLD = 2.0

#: Seconds without a stall after which the next stall is a first one again.
FORGIVEN_AFTER = 2.0


def sleeps() -> int:
    """Return how often this thread has gone to sleep by itself. Losing the processor does not count."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


@final
class InlinePolicy:
    """Decides from the calls' durations whether the next one may be made inline.

    It knows no clock: the caller gives the time with what it observed.
    """

    __slots__ = ("_forgiven", "_hold", "_until", "inline", "stalls", "suspicious")

    def __init__(self) -> None:
        self.inline = True
        #: Whether the caller should find out by ``sleeps`` if a call slept, and say so.
        self.suspicious = False
        self.stalls = 0
        self._hold = FIRST_HOLD
        self._until = 0.0  # of the hold, or of the suspicion
        self._forgiven = 0.0

    def observe(self, length: int, start: float, end: float, slept: bool | None = None) -> bool:
        """Take note of a call for ``length`` bytes; return whether the next may be inline.

        ``slept``: whether it went to sleep, None: not known.
        """
        slow = end - start > SLOW_PER_UNIT * (1 + length // UNIT)
        if not self.inline:
            if not slow and end >= self._until:
                # Judged by a worker's call, so that nobody stalls to find out that it is not over.
                self.inline = True
                self.suspicious = False
            return self.inline
        if slow:
            if slept or end - start > CERTAIN * (1 + length // UNIT / 16):
                self._stalled(end)
            else:
                self.suspicious = True
                self._until = end + SUSPICION
        elif self.suspicious and start > self._until:
            self.suspicious = False
        return self.inline

    def _stalled(self, now: float) -> None:
        if now > self._forgiven:
            self._hold = FIRST_HOLD
        self.inline = False
        self.stalls += 1
        self._until = now + self._hold
        self._forgiven = self._until + FORGIVEN_AFTER
        self._hold = min(2 * self._hold, LONGEST_HOLD)
