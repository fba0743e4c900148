"""Refcount blocks: arrays of 1 to 64 bit wide counters, big endian on disk. Pure.

Widths from 8 bits up are kept as native arrays, so that looking for a free cluster is a C loop; narrower
ones stay packed, and a regular expression finds the bytes that hold a zero.
"""

from __future__ import annotations

import functools
import re
import sys
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

SWAP: Final = sys.byteorder == "little"
_TYPECODES: Final = {3: "B", 4: "H", 5: "I", 6: "Q"}


class RefBlock(ABC):
    """The counters of one refcount block."""

    @classmethod
    @abstractmethod
    def parse(cls, data: bytes | bytearray, order: int) -> Self:
        """Take the block as it is on disk; a counter is ``1 << order`` bits wide."""

    @abstractmethod
    def get(self, index: int) -> int:
        """Return a counter."""

    @abstractmethod
    def put(self, index: int, value: int) -> None:
        """Set a counter."""

    @abstractmethod
    def put_run(self, start: int, count: int, value: int) -> None:
        """Set counters ``start`` to ``start + count - 1`` to ``value``."""

    @abstractmethod
    def find_zero(self, start: int) -> int:
        """Return the index of the first counter from ``start`` that is zero, or -1."""

    @abstractmethod
    def to_bytes(self, first: int, last: int) -> tuple[int, bytes]:
        """Return (byte offset, data) of a piece that has the counters ``first`` to ``last``."""

    @abstractmethod
    def count_zero(self) -> int:
        """Return how many counters are zero."""

    @abstractmethod
    def add(self, indices: Sequence[int], delta: int) -> None:
        """Add to counters, to one that is given twice twice.

        Raises OverflowError, with nothing changed, if one would leave its width.
        """

    @abstractmethod
    def find_last_used(self) -> int:
        """Return the index of the last counter that is not zero, or -1."""

    def zero_run(self, start: int, limit: int) -> int:
        """Return how many counters from ``start`` on are zero, at most ``limit``, within the block."""
        count = 0
        while count < limit and self.get(start + count) == 0:
            count += 1
        return count


@final
class WideBlock(RefBlock):
    """Counters of 8 bits and more."""

    __slots__ = ("_values",)

    def __init__(self, values: array[int]) -> None:
        self._values = values

    @classmethod
    def parse(cls, data: bytes | bytearray, order: int) -> WideBlock:
        """Take a block as it is on disk."""
        values = array(_TYPECODES[order], data)
        if SWAP:
            values.byteswap()
        return cls(values)

    def get(self, index: int) -> int:
        """Return a counter."""
        return self._values[index]

    def put(self, index: int, value: int) -> None:
        """Set a counter."""
        self._values[index] = value

    def put_run(self, start: int, count: int, value: int) -> None:
        """Set a run of counters."""
        if count == 1:
            self._values[start] = value
        else:
            self._values[start : start + count] = array(self._values.typecode, [value]) * count

    def add(self, indices: Sequence[int], delta: int) -> None:
        """Add to counters."""
        values = self._values
        done = 0
        try:
            for index in indices:
                values[index] += delta
                done += 1
        except OverflowError:
            for index in indices[:done]:
                values[index] -= delta
            raise

    def find_zero(self, start: int) -> int:
        """Return the first index from ``start`` with a zero, or -1."""
        try:
            return self._values.index(0, start)
        except ValueError:
            return -1

    def count_zero(self) -> int:
        """Return how many counters are zero."""
        return self._values.count(0)

    def find_last_used(self) -> int:
        """Return the last index that is not zero, or -1."""
        used = len(self._values.tobytes().rstrip(b"\0"))
        return (used - 1) // self._values.itemsize

    def zero_run(self, start: int, limit: int) -> int:
        """Return how many counters from ``start`` on are zero."""
        part = self._values[start : start + limit].tobytes()
        return (len(part) - len(part.lstrip(b"\0"))) // self._values.itemsize

    def to_bytes(self, first: int, last: int) -> tuple[int, bytes]:
        """Return (byte offset, data)."""
        part = self._values[first : last + 1]
        if SWAP:
            part.byteswap()
        return first * part.itemsize, part.tobytes()


@functools.cache
def _has_zero(order: int) -> re.Pattern[bytes]:
    bits = 1 << order
    mask = (1 << bits) - 1
    members = b"".join(
        re.escape(bytes([byte]))
        for byte in range(256)
        if any(byte >> shift & mask == 0 for shift in range(0, 8, bits))
    )
    return re.compile(b"[" + members + b"]", re.DOTALL)


@functools.cache
def _zeroes(order: int) -> list[int]:
    """Return for each byte how many counters of it are zero."""
    bits = 1 << order
    mask = (1 << bits) - 1
    return [sum(byte >> shift & mask == 0 for shift in range(0, 8, bits)) for byte in range(256)]


@final
class PackedBlock(RefBlock):
    """Counters of 1, 2 or 4 bits; the first of a byte is in its low bits."""

    __slots__ = ("_data", "_mask", "_order", "_per_byte", "_shift")

    def __init__(self, data: bytearray, order: int) -> None:
        self._data = data
        self._order = order
        self._shift = 3 - order  # index -> byte
        self._per_byte = 8 >> order
        self._mask = (1 << (1 << order)) - 1

    @classmethod
    def parse(cls, data: bytes | bytearray, order: int) -> PackedBlock:
        """Take a block as it is on disk."""
        return cls(bytearray(data), order)

    def get(self, index: int) -> int:
        """Return a counter."""
        byte = self._data[index >> self._shift]
        return byte >> ((index & (self._per_byte - 1)) << self._order) & self._mask

    def count_zero(self) -> int:
        """Return how many counters are zero."""
        table = _zeroes(self._order)
        return sum(count * table[byte] for byte, count in Counter(self._data).items())

    def put(self, index: int, value: int) -> None:
        """Set a counter."""
        at = index >> self._shift
        shift = (index & (self._per_byte - 1)) << self._order
        self._data[at] = self._data[at] & ~(self._mask << shift) | value << shift

    def put_run(self, start: int, count: int, value: int) -> None:
        """Set a run of counters."""
        for index in range(start, start + count):
            self.put(index, value)

    def add(self, indices: Sequence[int], delta: int) -> None:
        """Add to counters."""
        for turn, index in enumerate(indices):
            value = self.get(index) + delta
            if not 0 <= value <= self._mask:
                for changed in indices[:turn]:
                    self.put(changed, self.get(changed) - delta)
                raise OverflowError
            self.put(index, value)

    def find_zero(self, start: int) -> int:
        """Return the first index from ``start`` with a zero, or -1."""
        end = len(self._data) << self._shift
        while start < end and start & (self._per_byte - 1):
            if self.get(start) == 0:
                return start
            start += 1
        match = _has_zero(self._order).search(self._data, start >> self._shift)
        if match is None:
            return -1
        index = match.start() << self._shift
        while self.get(index):
            index += 1
        return index

    def find_last_used(self) -> int:
        """Return the last index that is not zero, or -1."""
        used = len(self._data.rstrip(b"\0"))
        index = (used << self._shift) - 1
        while index >= 0 and not self.get(index):
            index -= 1
        return index

    def to_bytes(self, first: int, last: int) -> tuple[int, bytes]:
        """Return (byte offset, data)."""
        start = first >> self._shift
        return start, bytes(self._data[start : (last >> self._shift) + 1])


def parse_refblock(data: bytes | bytearray, order: int) -> RefBlock:
    """Make a refcount block of its bytes."""
    return (WideBlock if order >= 3 else PackedBlock).parse(data, order)


def unpack(data: bytes | bytearray, order: int) -> array[int]:
    """Return the counters of a block's bytes."""
    if order >= 3:
        values = array(_TYPECODES[order], data)
        if SWAP:
            values.byteswap()
        return values
    per_byte = 8 >> order
    mask = (1 << (1 << order)) - 1
    counters = bytearray(len(data) * per_byte)
    for turn in range(per_byte):
        shift = turn << order
        counters[turn::per_byte] = data.translate(
            bytes(byte >> shift & mask for byte in range(256))
        )
    return array("B", counters)


def pack(counters: array[int], order: int) -> bytes:
    """Return a block's bytes; the counters must fill whole bytes and fit their width."""
    if order >= 3:
        values = array(_TYPECODES[order], counters)
        if SWAP:
            values.byteswap()
        return values.tobytes()
    per_byte = 8 >> order
    flat = bytes(counters)
    # All bytes at once: as one long integer per position in the byte, which no carry can leave.
    total = 0
    for turn in range(per_byte):
        total |= int.from_bytes(flat[turn::per_byte], "little") << (turn << order)
    return total.to_bytes(len(flat) // per_byte, "little")
