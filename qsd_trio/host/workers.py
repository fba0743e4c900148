"""Worker threads for calls that may block: many calls to a hop.

A hop to a thread and back costs as much as dozens of small reads. So calls queue up, and a thread that is
awake takes one after the other, while what it has finished goes back to the loop in one piece. As many threads are
awake as calls are stuck, and one more.
"""

from __future__ import annotations

import threading
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar, cast, final

import outcome
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

T = TypeVar("T")

#: Threads of a pool. A disk gains little from more requests at once than this.
MAX_WORKERS = 8

#: Calls that took less than this on average (seconds) did not block: one thread is the fastest then,
#: as several would only hand the interpreter lock to each other.
BLOCKING = 100e-6

#: Calls that do not block and are worth a thread more.
BACKLOG = 16

#: Inline work on the loop (seconds) after which whoever does it lets the others have a turn.
TURN = 500e-6


@final
class _Call:
    """One call on its way through the pool."""

    __slots__ = ("args", "done", "fn", "result", "slow")

    def __init__(  # type: ignore[explicit-any]  # submit() is what types these
        self,
        fn: Callable[..., object],
        args: tuple[object, ...],
        done: Callable[[outcome.Outcome[Any]], None],
        slow: bool,
    ) -> None:
        self.fn = fn
        self.args = args
        self.done = done
        self.slow = slow
        self.result: outcome.Outcome[object] | None = None


@final
class WorkerPool:
    """The worker threads of one trio run. Get it by ``worker_pool()``."""

    def __init__(self, max_workers: int = MAX_WORKERS) -> None:
        self._max_workers = max_workers
        self._token = trio.lowlevel.current_trio_token()
        self._pending: deque[_Call] = deque()
        self._finished: deque[_Call] = deque()
        self._lock = threading.Lock()  # guards the next three
        self._awake = 0
        self._busy = 0  # of those awake, how many are in a call
        self._slow = 0  # and of those, in one that was said to be slow
        self._begun = 0.0  # when the last call began
        self._delivery_due = False
        self._mean = 2 * BLOCKING  # seconds a call takes, moving; believed to block until seen
        self._turn_ends = 0.0
        self.calls = 0
        self.wakeups = 0
        self.deliveries = 0

    async def run(self, fn: Callable[[Unpack[Ts]], T], *args: *Ts, slow: bool = False) -> T:
        """Run ``fn(*args)`` in a worker thread and return or raise what it does.

        ``slow`` marks calls that are expected to take long (fsync ...): others need not wait behind them.
        Cancelled: a call still in the queue never happens; one that has begun is waited for, since its buffers
        are in use.
        """
        task = trio.lowlevel.current_task()

        def done(result: outcome.Outcome[T]) -> None:
            trio.lowlevel.reschedule(task, result)

        call = self.submit(fn, *args, done=done, slow=slow)

        def abort(_: object) -> trio.lowlevel.Abort:
            return (
                trio.lowlevel.Abort.SUCCEEDED if self.withdraw(call) else trio.lowlevel.Abort.FAILED
            )

        return cast("T", await trio.lowlevel.wait_task_rescheduled(abort))

    def submit(
        self,
        fn: Callable[[Unpack[Ts]], T],
        *args: *Ts,
        done: Callable[[outcome.Outcome[T]], None],
        slow: bool = False,
    ) -> _Call:
        """Queue ``fn(*args)``; ``done`` gets its outcome on the loop. Does not block."""
        call = _Call(fn, args, done, slow)
        self.calls += 1
        self._pending.append(call)
        with self._lock:
            wake = self._awake == self._busy and self._awake < self._max_workers
            if wake and self._awake:
                wake = self._calls_block() or perf_counter() - self._begun > BLOCKING
            if wake:
                self._awake += 1
        if wake:
            self._wake_worker()
        return call

    def withdraw(self, call: _Call) -> bool:
        """Take a call out of the queue; False if it has begun."""
        while True:
            try:
                self._pending.remove(call)
            except ValueError:
                return False
            except IndexError:  # a worker took one while we searched: search again
                continue
            return True

    async def take_turn(self) -> None:
        """Let other tasks run if inline work has held the loop for long; else only notice cancellation."""
        now = perf_counter()
        if now < self._turn_ends:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
            self._turn_ends = perf_counter() + TURN

    # -- in the worker threads, but for _deliver -----------------------------------------------------

    def _wake_worker(self) -> None:
        self.wakeups += 1
        trio.lowlevel.start_thread_soon(self._work, _check, name="qsd-trio worker")

    def _work(self) -> None:
        pending = self._pending
        while True:
            try:
                call = pending.popleft()
            except IndexError:
                with self._lock:
                    if pending:
                        continue
                    self._awake -= 1
                    return
            slow = call.slow
            start = perf_counter()
            with self._lock:
                self._begun = start
                self._busy += 1
                self._slow += slow
                help_wanted = bool(pending) and self._needs_help()
                self._awake += help_wanted
            if help_wanted:
                self._wake_worker()
            call.result = outcome.capture(call.fn, *call.args)
            with self._lock:
                self._busy -= 1
                self._slow -= slow
            if not slow:
                self._mean += (perf_counter() - start - self._mean) / 8
            self._finished.append(call)
            if not self._delivery_due:
                self._delivery_due = True
                try:
                    self._token.run_sync_soon(self._deliver)
                except trio.RunFinishedError:  # nobody is left to wait for results
                    pass

    def _calls_block(self) -> bool:
        return self._slow > 0 or self._mean > BLOCKING

    def _needs_help(self) -> bool:
        """Return whether what is pending should not wait for the threads that are awake."""
        if self._busy < self._awake or self._awake >= self._max_workers:
            return False
        # One more in any case: a call that never blocked may be the first to.
        return self._awake < 2 or self._calls_block() or len(self._pending) > BACKLOG * self._awake

    def _deliver(self) -> None:
        # Cleared before the queue is emptied: what finishes from here on asks for another delivery.
        self._delivery_due = False
        self.deliveries += 1
        finished = self._finished
        while finished:
            call = finished.popleft()
            assert call.result is not None
            call.done(call.result)


def _check(result: outcome.Outcome[None]) -> None:
    result.unwrap()  # a bug in the pool itself: shown by the thread's excepthook


_pool: trio.lowlevel.RunVar[WorkerPool] = trio.lowlevel.RunVar("qsd_trio worker pool")


def worker_pool() -> WorkerPool:
    """Return the pool of the current trio run."""
    try:
        return _pool.get()
    except LookupError:
        pool = WorkerPool()
        _pool.set(pool)
        return pool
