"""host/malloc.py: a process of its own, as the settings are the process's."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource
from qsd_trio.host.malloc import keep_freed_memory
for kept in (False, True):
    if kept:
        keep_freed_memory()
    for _ in range(3):
        [bytearray(65536) for _ in range(8)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        [bytearray(65536) for _ in range(8)]
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_buffers_are_used_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    before, after = map(int, done.stdout.split())
    assert after < 50 < before  # page faults
