"""host/workers.py: results, order, batching, cancellation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import trio

from qsd_trio.host import workers
from qsd_trio.host.workers import WorkerPool, worker_pool


class Gate:
    """Holds worker threads until opened. Never forgotten closed: a failing test must still end."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.waiting = threading.Semaphore(0)

    def wait(self) -> int:
        self.waiting.release()
        assert self.open.wait(10)
        return threading.get_ident()

    async def entered(self) -> None:
        while not self.waiting.acquire(blocking=False):  # noqa: ASYNC110  # set by a thread
            await trio.sleep(0.0005)


@pytest.fixture
def gate() -> Gate:
    return Gate()


async def test_gives_results_and_raises_errors() -> None:
    pool = worker_pool()
    assert await pool.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await pool.run(divmod, 7, 0)
    assert await pool.run(threading.get_ident) != threading.get_ident()


async def test_a_run_has_one_pool_and_the_next_run_another() -> None:
    mine = worker_pool()
    assert worker_pool() is mine

    async def other() -> bool:
        return worker_pool() is mine and await worker_pool().run(bool, 1)

    assert not await trio.to_thread.run_sync(trio.run, other)


async def test_what_queues_up_goes_over_in_one_hop(gate: Gate) -> None:
    pool = WorkerPool(max_workers=1)
    results: list[int] = []

    async def call(number: int) -> None:
        results.append(await pool.run(abs, -number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run, gate.wait)
        await gate.entered()
        for number in range(100):
            nursery.start_soon(call, number)
        await trio.testing.wait_all_tasks_blocked(0.001)
        gate.open.set()
    assert sorted(results) == list(range(100))
    assert pool.wakeups == 1
    assert pool.deliveries < 20


async def test_a_slow_call_keeps_nobody_waiting(gate: Gate) -> None:
    pool = WorkerPool()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run, gate.wait)
        nursery.start_soon(pool.run, gate.wait)
        with trio.fail_after(5):
            await gate.entered()
            await gate.entered()
            assert await pool.run(abs, -1) == 1
        gate.open.set()


async def test_no_more_threads_than_allowed(gate: Gate) -> None:
    pool = WorkerPool(max_workers=2)
    idents: set[int] = set()

    async def call() -> None:
        idents.add(await pool.run(gate.wait))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(call)
        await gate.entered()
        await gate.entered()
        await trio.sleep(0.002)
        assert not gate.waiting.acquire(blocking=False)
        gate.open.set()
    assert len(idents) <= 2


async def test_cancelled_in_the_queue_it_never_happens(gate: Gate) -> None:
    pool = WorkerPool(max_workers=1)
    happened: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run, gate.wait)
        await gate.entered()
        with trio.move_on_after(0) as scope:
            await pool.run(happened.append, 1)
        assert scope.cancelled_caught
        gate.open.set()
    await pool.run(happened.append, 2)
    assert happened == [2]


async def test_cancelled_when_begun_it_is_waited_for(gate: Gate) -> None:
    pool = WorkerPool()
    finished: list[int] = []

    async def call() -> None:
        finished.append(await pool.run(gate.wait))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await gate.entered()
        nursery.cancel_scope.cancel()
        gate.open.set()
    assert len(finished) == 1, "the buffers of a call that runs are not ours to reuse"


async def test_calls_that_do_not_block_wake_no_second_thread() -> None:
    pool = WorkerPool()
    for _ in range(60):
        await pool.run(abs, -1)
    pool._mean = 1e-6
    before = pool.wakeups
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(pool.run, abs, -1)
    assert pool.wakeups - before <= 3


async def test_submit_calls_back_on_the_loop() -> None:
    pool, done = worker_pool(), trio.Event()
    threads: list[int] = []

    def finished(result: object) -> None:
        threads.append(threading.get_ident())
        done.set()

    pool.submit(time.sleep, 0, done=finished)
    await done.wait()
    assert threads == [threading.get_ident()]


async def test_take_turn_lets_others_run_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(workers, "perf_counter", lambda: clock[0])
    pool = WorkerPool()
    turns: list[str] = []

    async def other() -> None:
        for _ in range(3):
            turns.append("other")
            await trio.lowlevel.checkpoint()

    clock[0] = 1.0
    await pool.take_turn()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(50):
            await pool.take_turn()
        assert turns == [], "short work does not give its turn away"
        clock[0] += workers.TURN
        await pool.take_turn()
        clock[0] += workers.TURN
        await pool.take_turn()  # the second: trio lets either task go first
        assert "other" in turns


async def test_take_turn_notices_cancellation() -> None:
    pool: WorkerPool = worker_pool()
    calls: list[Callable[[], object]] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await pool.take_turn()
        calls.append(print)
    assert scope.cancelled_caught
    assert calls == []
