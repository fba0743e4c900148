"""JSON text to the byte as QEMU writes it."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from qsd_trio.protocol.qmp.unicode import NONCHARACTER, REPLACEMENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from qsd_trio.untyped import Json

_ESCAPED = re.compile(r'[^ -~]|["\\]')
_SHORT = {
    '"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t",
}  # fmt: skip


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    if char in _SHORT:
        return _SHORT[char]
    if NONCHARACTER.match(char) or "\ud800" <= char <= "\udfff":
        char = REPLACEMENT  # what QEMU makes of anything that is not Unicode text
    code = ord(char)
    if code > 0xFFFF:
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04X}\\u{0xDC00 + (code & 0x3FF):04X}"
    return f"\\u{code:04X}"


def _string(text: str) -> str:
    return f'"{_ESCAPED.sub(_escape, text)}"'


@lru_cache(maxsize=4096)
def _bucket(key: str) -> int:
    """Return the place of a member: QEMU's dictionaries hash (as the tdb database) into 512 lists."""
    data = key.encode(errors="surrogatepass").replace(b"\0", b"\xc0\x80")
    value = 0x238F13AF * len(data)
    for index, byte in enumerate(data):
        value += byte << (index * 5 % 24)
    return (1103515243 * value + 12345) % 2**32 % 512


def members_in_order(keys: Iterable[str]) -> list[str]:
    """Return ``keys``, given in order of insertion, in the order QEMU lists them."""
    order = list(keys)
    order.reverse()  # the last of a list comes first, and sorting keeps that
    return sorted(order, key=_bucket)


def _scalar(value: object) -> str:
    if isinstance(value, str):
        return _string(value)
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return f"{value:.17g}"
    raise TypeError(f"{type(value).__name__} is not JSON")


def dump_json(value: Json, *, pretty: bool = False) -> str:
    """Return ``value`` as JSON text, compact or with four blanks of indentation a level.

    Raises TypeError for what is not dict, list, tuple, str, int, float, bool or None. Written with its own
    stack: an ``id`` to be echoed may be nested deeper than Python recurses.
    """
    out: list[str] = []
    stack: list[tuple[Iterator[tuple[str, Json]], str]] = []
    rest: Iterator[tuple[str, Json]] = iter((("", value),))
    closing = ""
    first = True
    while True:
        for prefix, item in rest:
            if stack:
                if pretty:
                    out.append(("\n" if first else ",\n") + "    " * len(stack))
                elif not first:
                    out.append(", ")
                out.append(prefix)
            first = False
            if isinstance(item, dict):
                stack.append((rest, closing))
                members = [(f"{_string(key)}: ", item[key]) for key in members_in_order(item)]
                rest, closing, first = iter(members), "}", True
                out.append("{")
                break
            if isinstance(item, list | tuple):
                stack.append((rest, closing))
                rest, closing, first = iter([("", each) for each in item]), "]", True
                out.append("[")
                break
            out.append(_scalar(item))
        else:
            if not stack:
                return "".join(out)
            if pretty:
                out.append("\n" + "    " * (len(stack) - 1))
            out.append(closing)
            rest, closing = stack.pop()
            first = False
