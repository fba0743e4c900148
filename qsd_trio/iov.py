"""Scattered buffers: sequences of memoryviews. Pure."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    Iov: TypeAlias = Sequence[memoryview]

CHUNK = 1 << 20  # bytes looked at or filled at a time
ZEROES = memoryview(bytes(CHUNK))


def iov_size(iov: Iov) -> int:
    """Return the bytes that ``iov`` spans."""
    return sum(map(len, iov))


def iov_slice(iov: Iov, start: int, length: int) -> list[memoryview]:
    """Return the ``length`` bytes of ``iov`` from ``start``, as views."""
    pieces: list[memoryview] = []
    for piece in iov:
        if length <= 0:
            break
        if start >= len(piece):
            start -= len(piece)
            continue
        part = piece[start : start + length]
        pieces.append(part)
        length -= len(part)
        start = 0
    return pieces


def iov_skip(iov: Iov, count: int) -> list[memoryview]:
    """Return ``iov`` without its first ``count`` bytes."""
    return iov_slice(iov, count, sys.maxsize)


def iov_zero(iov: Iov) -> None:
    """Fill ``iov`` with zeroes."""
    for piece in iov:
        for start in range(0, len(piece), CHUNK):
            part = piece[start : start + CHUNK]
            part[:] = ZEROES[: len(part)]


def iov_is_zero(iov: Iov) -> bool:
    """Return whether ``iov`` holds nothing but zeroes."""
    for piece in iov:
        if len(piece) and (piece[0] or piece[-1]):
            return False
        for start in range(0, len(piece), CHUNK):
            part = bytes(piece[start : start + CHUNK])
            if part.count(0) != len(part):
                return False
    return True


def iov_fill(iov: Iov, source: memoryview) -> None:
    """Copy ``source`` into ``iov``."""
    at = 0
    for piece in iov:
        piece[:] = source[at : at + len(piece)]
        at += len(piece)


def iov_gather(target: memoryview, iov: Iov) -> None:
    """Copy what ``iov`` holds into ``target``."""
    at = 0
    for piece in iov:
        target[at : at + len(piece)] = piece
        at += len(piece)
