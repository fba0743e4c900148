"""The order of requests that must not overlap: each waits for those in its range that came before."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@final
@attrs.define(eq=False)
class _Held:
    """A range that a request keeps to itself."""

    start: int
    end: int
    done: trio.Event = attrs.field(factory=trio.Event)


@final
class Serialised:
    """The ranges of a node that requests in flight keep to themselves."""

    def __init__(self) -> None:
        self._ranges: list[_Held] = []

    def __len__(self) -> int:
        return len(self._ranges)

    async def wait(self, start: int, end: int) -> None:
        """Wait until nobody holds a part of the range."""
        while True:
            for other in self._ranges:
                if other.start < end and start < other.end:
                    await other.done.wait()
                    break
            else:
                return

    @asynccontextmanager
    async def hold(self, start: int, end: int) -> AsyncGenerator[None]:
        """Wait for the range, and keep it while the context is open."""
        await self.wait(start, end)
        mine = _Held(start, end)
        self._ranges.append(mine)
        try:
            yield
        finally:
            self._ranges.remove(mine)
            mine.done.set()
