"""Keys from passwords: PBKDF2 (RFC 8018), and how many iterations take a given time here."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from typing import Final

from qsd_trio.errors import QmpError

#: What a LUKS header has room for.
MAX_ITERATIONS: Final = 2**32 - 1
#: CPU seconds that a measurement takes at least, so that the clock's steps do not matter.
_MEASURED: Final = 0.02
_FIRST_TRY: Final = 1 << 13


def derive(hash_: str, password: bytes, salt: bytes, iterations: int, length: int) -> bytes:
    """Return ``length`` bytes of key. Takes as long as ``iterations`` say."""
    return hashlib.pbkdf2_hmac(hash_, password, salt, iterations, length)


def iterations_per_second(hash_: str, length: int) -> int:
    """Measure how many iterations this thread does in a second for a key of ``length`` bytes."""
    iterations = _FIRST_TRY
    while True:
        start = time.thread_time()
        derive(hash_, b"password", bytes(32), iterations, length)
        took = time.thread_time() - start
        if took >= _MEASURED:
            return max(1, int(iterations / took))
        iterations *= 2


def iterations_for(hash_: str, length: int, milliseconds: int, *, share: int, least: int) -> int:
    """Return the iterations that take ``milliseconds / share``, at least ``least``.

    ``milliseconds`` is 64 bits unsigned, as QEMU reads the option. QmpError if that is too many.
    """
    milliseconds &= 2**64 - 1
    rate = iterations_per_second(hash_, length)
    reason = os.strerror(errno.ERANGE)
    if rate * milliseconds >= 2**64:
        raise QmpError(f"PBKDF iterations {rate} too large to scale: {reason}")
    iterations = rate * milliseconds // 1000
    if iterations > MAX_ITERATIONS:
        raise QmpError(f"PBKDF iterations {iterations} larger than {MAX_ITERATIONS}: {reason}")
    return max(iterations // share, least)
