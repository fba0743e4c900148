"""Numbers, sizes and booleans as QEMU reads them from text."""

from __future__ import annotations

import re
from typing import final

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
UINT64_MAX = 2**64 - 1
MAX_DIGITS = 1000  # Python converts a few thousand at most

# Compiled on use, and then kept by re: most starts of the daemon need none of them.
_SPACE = r"[ \t\n\v\f\r]*"
_INTEGER = _SPACE + r"([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)"
_DECIMAL = _SPACE + r"\+?([0-9]+)(\.[0-9]*)?"
_HEX = _SPACE + r"\+?0[xX]([0-9a-fA-F]+)"
_FLOAT = (
    _SPACE + r"[+-]?(?:0[xX][0-9a-fA-F]+(?:\.[0-9a-fA-F]*)?(?:[pP][+-]?[0-9]+)?"
    r"|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
)

_TRUE = frozenset(["on", "yes", "true", "y"])
_FALSE = frozenset(["off", "no", "false", "n"])
_SHIFTS = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}


@final
class SizeError(ValueError):
    """A text is no size or number; ``too_large`` tells the two reasons apart."""

    def __init__(self, *, too_large: bool) -> None:
        super().__init__("too large" if too_large else "not a number")
        self.too_large = too_large


def parse_bool(text: str) -> bool | None:
    """Return what a switch says, or None if it is none."""
    return True if text in _TRUE else False if text in _FALSE else None


def parse_int(text: str) -> int | None:
    """Return an int64 written as C's strtoll(base 0) takes it, or None."""
    value = _parse_integer(text)
    return value if value is not None and INT64_MIN <= value <= INT64_MAX else None


def parse_uint(text: str) -> int | None:
    """Return an uint64 written as C's strtoull(base 0) takes it, or None; a minus wraps around."""
    try:
        return parse_unsigned(text)
    except SizeError:
        return None


def parse_unsigned(text: str) -> int:
    """Return the same, and tell why if it is none. Raises SizeError."""
    value = _parse_integer(text)
    if value is None:
        raise SizeError(too_large=False)
    if not -UINT64_MAX <= value <= UINT64_MAX:
        raise SizeError(too_large=True)
    return value & UINT64_MAX


def _parse_integer(text: str) -> int | None:
    match = re.fullmatch(_INTEGER, text)
    if match is None:
        return None
    sign, digits = match.groups()
    if len(digits) > MAX_DIGITS:
        digits = "0x1" + 16 * "0"  # too large for everyone
    if digits[:2] in {"0x", "0X"}:
        value = int(digits, 16)
    elif digits[0] == "0":
        if not all(digit in "01234567" for digit in digits):
            return None
        value = int(digits, 8)
    else:
        value = int(digits)
    return -value if sign == "-" else value


def parse_number(text: str) -> float | None:
    """Return a finite floating point number, or None."""
    if re.fullmatch(_FLOAT, text) is None:
        return None
    try:
        value = float.fromhex(text) if "x" in text.lower() else float(text)
    except OverflowError:
        return None
    return value if abs(value) != float("inf") else None


def parse_size(text: str) -> int:
    """Return bytes: a decimal with an optional fraction and one of the suffixes b k M G T P E.

    Hexadecimal takes no fraction; its suffixes b and E would be digits. A fraction of bytes is refused.
    Raises SizeError.
    """
    match = re.match(_HEX, text) or re.match(_DECIMAL, text)
    if match is None:
        raise SizeError(too_large=False)
    if len(match[1]) > MAX_DIGITS:
        raise SizeError(too_large=True)
    shift = _SHIFTS.get(text[match.end() :].lower() or "b")
    if shift is None:
        raise SizeError(too_large=False)
    if match.re.pattern == _HEX:
        value = int(match[1], 16) << shift
    else:
        fraction = float(f"0{match[2]}") if match[2] and match[2] != "." else 0.0
        if fraction and not shift:
            raise SizeError(too_large=False)
        value = (int(match[1]) << shift) + int(fraction * (1 << shift) + 0.5)
    if value > UINT64_MAX:
        raise SizeError(too_large=True)
    return value
