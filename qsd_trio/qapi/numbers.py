"""Numbers, sizes and booleans as QEMU reads them from text."""

from __future__ import annotations

import re

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
UINT64_MAX = 2**64 - 1

_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)")
_DECIMAL = re.compile(r"[ \t\n\v\f\r]*\+?([0-9]+)(\.[0-9]*)?")
_HEX = re.compile(r"[ \t\n\v\f\r]*\+?0[xX]([0-9a-fA-F]+)")
_FLOAT = re.compile(
    r"[ \t\n\v\f\r]*[+-]?(?:0[xX][0-9a-fA-F]+(?:\.[0-9a-fA-F]*)?(?:[pP][+-]?[0-9]+)?"
    r"|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)$"
)

_TRUE = frozenset(["on", "yes", "true", "y"])
_FALSE = frozenset(["off", "no", "false", "n"])


def parse_bool(text: str) -> bool | None:
    """Return what a switch says, or None if it is none."""
    return True if text in _TRUE else False if text in _FALSE else None


def parse_int(text: str) -> int | None:
    """Return an int64 written as C's strtoll(base 0) takes it, or None."""
    value = _parse_integer(text)
    return value if value is not None and INT64_MIN <= value <= INT64_MAX else None


def parse_uint(text: str) -> int | None:
    """Return an uint64 written as C's strtoull(base 0) takes it, or None; a minus wraps around."""
    value = _parse_integer(text)
    if value is None or not -UINT64_MAX <= value <= UINT64_MAX:
        return None
    return value & UINT64_MAX


def _parse_integer(text: str) -> int | None:
    match = _INTEGER.fullmatch(text)
    if match is None:
        return None
    sign, digits = match.groups()
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
    if _FLOAT.match(text) is None:
        return None
    try:
        value = float.fromhex(text) if "x" in text.lower() else float(text)
    except OverflowError:
        return None
    return value if abs(value) != float("inf") else None


class SizeError(ValueError):
    """A text is no size; ``too_large`` tells the two reasons apart."""

    def __init__(self, *, too_large: bool) -> None:
        super().__init__("too large" if too_large else "not a size")
        self.too_large = too_large


_SHIFTS = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}


def parse_size(text: str, *, default_suffix: str = "b") -> int:
    """Return bytes: a decimal with an optional fraction and one of the suffixes b k M G T P E.

    Hexadecimal takes no fraction; its suffixes b and E would be digits. A fraction of bytes is refused.
    Raises SizeError.
    """
    match = _HEX.match(text)
    if match is not None:
        suffix = text[match.end() :].lower() or "b"
        if suffix not in _SHIFTS:
            raise SizeError(too_large=False)
        value = int(match[1], 16) << _SHIFTS[suffix]
        if value > UINT64_MAX:
            raise SizeError(too_large=True)
        return value
    match = _DECIMAL.match(text)
    if match is None:
        raise SizeError(too_large=False)
    suffix = text[match.end() :].lower() or default_suffix
    if suffix not in _SHIFTS:
        raise SizeError(too_large=False)
    scale = 1 << _SHIFTS[suffix]
    fraction = match[2] or ""
    part = float(f"0{fraction}") if len(fraction) > 1 else 0.0
    if part and scale == 1:
        raise SizeError(too_large=False)
    value = int(match[1]) * scale + int(part * scale + 0.5)
    if value > UINT64_MAX:
        raise SizeError(too_large=True)
    return value
