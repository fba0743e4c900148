"""A full memory barrier, for memory that another process reads and writes at the same time."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def make_barrier() -> Callable[[], None]:
    """Return a function that is a full memory barrier. For one thread: make another for another.

    A processor may let a load overtake an earlier store to another place (x86 does that, and nothing else; ARM
    reorders more). Python has no fence, but its locks are made of the instructions that are one: giving a lock
    back orders what is before, taking it orders what is after, and taking is never moved before giving.
    It costs a tenth of a microsecond.
    """
    lock = Lock()
    release, acquire = lock.release, lock.acquire
    acquire()

    def barrier() -> None:
        release()
        acquire()

    return barrier
