"""Bitmaps of extended L2 entries: which of a cluster's 32 subclusters are allocated or zero. Pure.

Source: qcow2 specification, "Extended L2 Entries". Bit n of the low half: subcluster n is allocated; bit n
of the high half: it reads as zeroes. Sets of subclusters are given as integers of 32 bits.
"""

from __future__ import annotations

from typing import Final

COUNT_BITS: Final = 5  # log2 of subclusters per cluster
COUNT: Final = 1 << COUNT_BITS
ALL: Final = (1 << COUNT) - 1
#: Bitmaps of a cluster where all subclusters are allocated, and where all read as zeroes.
ALL_ALLOCATED: Final = ALL
ALL_ZERO: Final = ALL << COUNT


def span(low: int, high: int, bits: int) -> int:
    """Return the subclusters, ``1 << bits`` bytes long, that bytes ``low`` to ``high - 1`` touch."""
    return (2 << ((high - 1) >> bits)) - (1 << (low >> bits))


def allocated(bitmap: int) -> int:
    """Return the subclusters with data."""
    return bitmap & ALL


def zero(bitmap: int) -> int:
    """Return the subclusters that read as zeroes."""
    return bitmap >> COUNT


def is_valid(bitmap: int) -> bool:
    """Say whether no subcluster is both allocated and zero."""
    return not bitmap >> COUNT & bitmap


def with_allocated(bitmap: int, which: int) -> int:
    """Return the bitmap after subclusters got data."""
    return (bitmap | which) & ~(which << COUNT)


def with_zero(bitmap: int, which: int) -> int:
    """Return the bitmap after subclusters were zeroed."""
    return (bitmap | which << COUNT) & ~which


def run_length(which: int, first: int) -> int:
    """Return how many subclusters from ``first`` on are in ``which``."""
    missing = ~(which >> first) & (ALL >> first)
    return (missing & -missing).bit_length() - 1 if missing else COUNT - first


def lowest(which: int) -> int:
    """Return the first subcluster in ``which``, COUNT if there is none."""
    return (which & -which).bit_length() - 1 if which else COUNT


def highest(which: int) -> int:
    """Return the last subcluster in ``which``, -1 if there is none."""
    return which.bit_length() - 1
