"""Serial and parallel ports: the ioctls that Python's termios lacks."""

from __future__ import annotations

import fcntl
import os
from typing import Final

# linux/ppdev.h: _IO('p', 0x8b) and _IO('p', 0x8c).
_PPCLAIM: Final = 0x708B
_PPRELEASE: Final = 0x708C
# asm-generic/ioctls.h.
_TIOCSBRK: Final = 0x5427
_TIOCCBRK: Final = 0x5428


def set_break(fd: int, *, on: bool) -> None:
    """Begin or end a break on a serial line; no-op on what is none."""
    try:
        fcntl.ioctl(fd, _TIOCSBRK if on else _TIOCCBRK)
    except OSError:
        if os.isatty(fd):
            raise


def claim_parallel_port(fd: int) -> None:
    """Claim the port behind ``fd``; OSError if it is none."""
    fcntl.ioctl(fd, _PPCLAIM)


def release_parallel_port(fd: int) -> None:
    """Give a claimed port back."""
    fcntl.ioctl(fd, _PPRELEASE)
