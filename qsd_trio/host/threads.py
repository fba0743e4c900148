"""A thread of its own that sleeps: what a thread-context object gives an affinity to."""

from __future__ import annotations

import os
import re
import threading
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Iterable


@final
class SleepingThread:
    """A thread that does nothing but exist until ``close()``."""

    def __init__(self, name: str) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._end.wait, name=name, daemon=True)
        self._thread.start()

    @property
    def native_id(self) -> int:
        """The kernel's thread id."""
        assert self._thread.native_id is not None
        return self._thread.native_id

    def set_affinity(self, cpus: Iterable[int]) -> None:
        """Pin the thread to ``cpus``; OSError if the kernel refuses."""
        os.sched_setaffinity(self.native_id, cpus)

    def affinity(self) -> list[int]:
        """Return the CPUs that the thread may run on."""
        return sorted(os.sched_getaffinity(self.native_id))

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join()


def node_cpus(node: int) -> set[int]:
    """Return the CPUs of a NUMA node, none if there is no such node."""
    try:
        with open(f"/sys/devices/system/node/node{node}/cpulist", encoding="ascii") as file:
            text = file.read()
    except FileNotFoundError:
        # A kernel without NUMA has one node, 0, with all CPUs.
        return set(range(os.cpu_count() or 1)) if node == 0 else set()
    cpus: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus
