"""Whether to look again before parking. Pure.

Parking a task and waking it costs 20 microseconds of Python and, where the processor goes idle meanwhile, a
wake-up of the processor: 100 more in a virtual machine. A client that waits for each reply before it sends its
next request is often back sooner. Looking again for that long halves its latency and, measured, costs
less processor time than going to sleep and waking up.
"""

from __future__ import annotations

from typing import Final, final

#: Seconds to look again for: the client's own wake-up, and some. What is shorter misses it by a little.
SPIN: Final = 150e-6

#: Waits that must have been one's own, with nobody else's between, before one may spin: others want the loop.
ALONE: Final = 8

#: Waits without spinning after one was in vain; doubled with each that follows.
PENALTY: Final = 32
LONGEST_PENALTY: Final = 2048


@final
class Spin:
    """Decides for all clients of one event loop which of them, if any, may spin."""

    __slots__ = ("_penalty", "_streak", "_who")

    def __init__(self) -> None:
        self._who: object = None
        self._streak = 0
        self._penalty = PENALTY

    def may(self, who: object) -> bool:
        """Take note that ``who`` is about to park; return whether it may spin before."""
        if who is not self._who:
            self._who = who
            self._streak = 0
            return False
        self._streak += 1
        if self._streak > ALONE + 1:  # the last one was not in vain
            self._penalty = PENALTY
        return self._streak > ALONE

    def missed(self) -> None:
        """Take note that spinning was in vain."""
        self._streak = ALONE - self._penalty
        self._penalty = min(2 * self._penalty, LONGEST_PENALTY)
