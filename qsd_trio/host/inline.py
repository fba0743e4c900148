"""When a call that may block is made on the event loop, and when not: decided by watching it."""

from __future__ import annotations

from typing import final

#: A call that took longer than this (seconds) per started 64 KiB stalled the loop.
SLOW_PER_UNIT = 1.5e-3
UNIT = 65536

#: Seconds that a file is kept off the loop after a stall: doubled each time it stalls again soon after
#: it was let back, up to the longest. The first is short, since on a busy machine a write may only have
#: lost its processor for a moment.
FIRST_HOLD = 0.01
LONGEST_HOLD = 2.0

#: Seconds without a stall after which the next stall is a first one again.
FORGIVEN_AFTER = 2.0


@final
class InlinePolicy:
    """Decides from the calls' durations whether the next one may be made inline.

    It knows no clock: the caller gives the time with what it observed.
    """

    __slots__ = ("_hold", "_until", "inline", "stalls")

    def __init__(self) -> None:
        self.inline = True
        self.stalls = 0
        self._hold = FIRST_HOLD
        self._until = 0.0

    def observe(self, length: int, start: float, end: float) -> bool:
        """Take note of a call for ``length`` bytes, inline or in a worker; return whether inline is fine now."""
        slow = end - start > SLOW_PER_UNIT * (1 + length // UNIT)
        if self.inline:
            if slow:
                if end - self._until > FORGIVEN_AFTER:
                    self._hold = FIRST_HOLD
                self.inline = False
                self.stalls += 1
                self._until = end + self._hold
                self._hold = min(2 * self._hold, LONGEST_HOLD)
        elif not slow and end >= self._until:
            # Judged by a worker's call, so that nobody stalls to find out that it is not over.
            self.inline = True
        return self.inline
