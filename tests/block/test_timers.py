"""What is called now and then."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from qsd_trio.block.timers import Timers
from qsd_trio.services import running_beside


async def test_each_is_called_at_its_interval(autojump_clock: MockClock) -> None:
    timers = Timers()
    calls: list[tuple[str, float]] = []

    def note(name: str) -> None:
        calls.append((name, trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        await trio.sleep(1)
        timers.every(10, lambda: note("slow"))
        cancel = timers.every(4, lambda: note("fast"))
        await trio.sleep(12.5)
        cancel()
        cancel()
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert calls == [("fast", 5), ("fast", 9), ("slow", 11), ("fast", 13), ("slow", 21)]


async def test_one_may_end_another(autojump_clock: MockClock) -> None:
    timers = Timers()
    calls: list[str] = []

    def first() -> None:
        calls.append("first")
        cancel_second()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        timers.every(1, first)
        cancel_second = timers.every(1, lambda: calls.append("second"))
        await trio.sleep(1.5)
        nursery.cancel_scope.cancel()
    assert calls == ["first"]


async def test_what_leaves_the_context_beside_them_is_itself() -> None:
    timers = Timers()
    with pytest.raises(KeyError):
        async with running_beside(timers.run):
            raise KeyError
    with trio.move_on_after(0) as scope:
        async with running_beside(timers.run):
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_broken_function_ends_what_runs_beside_it(autojump_clock: MockClock) -> None:
    timers = Timers()
    timers.every(1, lambda: [][0])
    with pytest.raises(ExceptionGroup) as caught:
        async with running_beside(timers.run):
            await trio.sleep(5)
    assert isinstance(caught.value.exceptions[0], IndexError)
