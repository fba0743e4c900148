"""What block nodes do now and then: one task per graph calls it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable


@final
@attrs.define(eq=False)
class _Timer:
    seconds: float
    function: Callable[[], None]
    due: float


@final
class Timers:
    """Functions that are called every so many seconds while ``run`` runs."""

    def __init__(self) -> None:
        self._timers: list[_Timer] = []
        self._changed = trio.Event()

    @property
    def count(self) -> int:
        """How many functions are called."""
        return len(self._timers)

    def every(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        """Call ``function`` every ``seconds``; return what ends that, and may be called twice."""
        timer = _Timer(seconds, function, trio.current_time() + seconds)
        self._timers.append(timer)
        self._changed.set()

        def cancel() -> None:
            if timer in self._timers:
                self._timers.remove(timer)

        return cancel

    async def run(self) -> None:
        """Call what is due, until cancelled."""
        while True:
            self._changed = trio.Event()
            due = min((timer.due for timer in self._timers), default=math.inf)
            with trio.move_on_at(due):
                await self._changed.wait()
            now = trio.current_time()
            for timer in tuple(self._timers):
                if timer.due <= now and timer in self._timers:
                    timer.due = now + timer.seconds
                    timer.function()
