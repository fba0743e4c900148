"""A row of bits that is quick to set, to scan and to fold. Pure.

Bit ``n`` is bit ``n % 8`` of byte ``n // 8``: the order of qcow2's bitmap data, and of QEMU's checksum of a
bitmap on a little-endian host. Ranges are ``start <= bit < stop``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Bytes that a scan compares at once: few at first, as the next change is often near.
NEAR: Final = 64
STEP_BITS: Final = 12
STEP: Final = 1 << STEP_BITS

_BLANK: Final = (bytes(STEP), b"\xff" * STEP)
#: Per byte: its pairs of bits, each as one bit that is set if one of the two is, in the low nibble.
_HALVES: Final = bytes(
    sum(1 << at for at in range(4) if value >> (2 * at) & 3) for value in range(256)
)
_SHIFTED: Final = bytes(value << 4 & 0xFF for value in range(256))
#: Per byte: the bits of its low and its high nibble, each twice.
_DOUBLED_LOW: Final = bytes(
    sum(3 << (2 * at) for at in range(4) if value >> at & 1) for value in range(256)
)
_DOUBLED_HIGH: Final = bytes(_DOUBLED_LOW[value >> 4] for value in range(256))


@final
class BitArray:
    """``length`` bits, all clear at first."""

    __slots__ = ("data", "length")

    def __init__(self, length: int) -> None:
        self.length = length
        #: Bits beyond the length are clear.
        self.data = bytearray((length + 7) >> 3)

    def copy(self) -> BitArray:
        """Return an independent copy."""
        other = BitArray(0)
        other.length = self.length
        other.data = self.data[:]
        return other

    def set(self, start: int, stop: int) -> None:
        """Set a range."""
        if start >= stop:
            return
        data = self.data
        first, last = start >> 3, (stop - 1) >> 3
        head = 0xFF << (start & 7) & 0xFF
        tail = 0xFF >> (-stop & 7)
        if first == last:
            data[first] |= head & tail
            return
        data[first] |= head
        data[last] |= tail
        data[first + 1 : last] = b"\xff" * (last - first - 1)

    def clear(self, start: int, stop: int) -> None:
        """Clear a range."""
        if start >= stop:
            return
        data = self.data
        first, last = start >> 3, (stop - 1) >> 3
        head = ~(0xFF << (start & 7)) & 0xFF
        tail = ~(0xFF >> (-stop & 7)) & 0xFF
        if first == last:
            data[first] &= head | tail
            return
        data[first] &= head
        data[last] &= tail
        data[first + 1 : last] = bytes(last - first - 1)

    def next_set(self, start: int, stop: int) -> int:
        """Return the first set bit of a range, ``stop`` if there is none."""
        return self._next(start, stop, 0)

    def next_clear(self, start: int, stop: int) -> int:
        """Return the first clear bit of a range, ``stop`` if there is none."""
        return self._next(start, stop, 1)

    def _next(self, start: int, stop: int, kind: int) -> int:
        """Return the first bit that is not ``kind``."""
        if start >= stop:
            return stop
        data, flip = self.data, 0xFF * kind
        at, end = start >> 3, (stop + 7) >> 3
        here = (data[at] ^ flip) >> (start & 7)
        if here:
            return min(start + _lowest(here), stop)
        at += 1
        blank = _BLANK[kind]
        step = NEAR
        while at < end:
            piece = data[at : min(at + step, end)]
            if not blank.startswith(piece):
                at += len(piece) - len(piece.lstrip(blank[:1]))
                return min((at << 3) + _lowest(data[at] ^ flip), stop)
            at += step
            step = STEP
        return stop

    def count(self) -> int:
        """Return how many bits are set."""
        return sum(int.from_bytes(piece, "little").bit_count() for _, piece in self._pieces())

    def _pieces(self) -> Iterator[tuple[int, bytearray]]:
        """Go through the (byte number, bytes) of pieces, of STEP bytes, where something is set."""
        data = self.data
        blank = _BLANK[0]
        for at in range(0, len(data), STEP):
            piece = data[at : at + STEP]
            if not blank.startswith(piece):
                yield at, piece

    def resize(self, length: int) -> None:
        """Cut the end off, or add clear bits there."""
        self.length = length
        size = (length + 7) >> 3
        if size > len(self.data):
            self.data += bytes(size - len(self.data))
        else:
            del self.data[size:]
            self._trim()

    def load(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Replace the bytes from number ``at`` on."""
        data = data[: max(len(self.data) - at, 0)]
        self.data[at : at + len(data)] = data
        self._trim()

    def _trim(self) -> None:
        if self.length & 7:
            self.data[-1] &= 0xFF >> (-self.length & 7)

    def merge(self, other: BitArray, shift: int) -> None:
        """Set what ``other`` has set: a bit there stands for ``1 << shift`` bits here.

        With a negative ``shift`` it is the other way round.
        """
        rest = max(-shift - STEP_BITS, 0)  # halvings beyond a byte per piece
        for at, piece in other._pieces():
            for _ in range(shift):
                piece = _double(piece)
            for _ in range(-shift - rest):
                piece = _halve(piece)
            if not rest:
                self._add(at << shift if shift > 0 else at >> -shift, piece)
                continue
            for bit in range(8):
                if piece[0] >> bit & 1:
                    here = ((at >> STEP_BITS << 3) + bit) >> rest
                    self.set(here, here + 1)
        self._trim()

    def _add(self, at: int, piece: bytearray) -> None:
        """Set what is set in ``piece``, which lies at byte number ``at``."""
        piece = piece[: len(self.data) - at]
        size = len(piece)
        both = int.from_bytes(self.data[at : at + size], "little") | int.from_bytes(piece, "little")
        self.data[at : at + size] = both.to_bytes(size, "little")


def _lowest(value: int) -> int:
    return (value & -value).bit_length() - 1


def _halve(data: bytearray) -> bytearray:
    """Return a bit for every two of ``data``."""
    folded = data.translate(_HALVES)
    low, high = folded[0::2], folded[1::2].translate(_SHIFTED)
    both = int.from_bytes(low, "little") | int.from_bytes(high, "little")
    return bytearray(both.to_bytes(len(low), "little"))


def _double(data: bytearray) -> bytearray:
    """Return every bit of ``data`` twice."""
    doubled = bytearray(2 * len(data))
    doubled[0::2] = data.translate(_DOUBLED_LOW)
    doubled[1::2] = data.translate(_DOUBLED_HIGH)
    return doubled
