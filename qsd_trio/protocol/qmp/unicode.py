"""Modified UTF-8 as QEMU reads it: NUL is C0 80, surrogates and noncharacters are invalid."""

from __future__ import annotations

import re

#: U+FDD0..FDEF and the last two code points of each plane (Unicode 15, 23.7): QEMU refuses them.
NONCHARACTER = re.compile(
    "[\ufdd0-\ufdef"
    + "".join(chr(p << 16 | 0xFFFE) + chr(p << 16 | 0xFFFF) for p in range(17))
    + "]"
)

REPLACEMENT = "\ufffd"


def decode_strict(data: bytes) -> str | None:
    """Return the text of ``data`` (without NUL bytes), or None if a sequence is invalid."""
    try:
        text = data.replace(b"\xc0\x80", b"\0").decode()
    except UnicodeDecodeError:
        return None
    if not text.isascii() and NONCHARACTER.search(text):
        return None
    return text


def decode_lossy(data: bytes) -> str:
    """Return the text of ``data`` up to its first NUL, U+FFFD for each invalid sequence.

    A sequence is a lead byte and the continuation bytes that it asks for, as far as they are there,
    whatever it would encode: what a C string looks like in QEMU's output.
    """
    data = data.split(b"\0", 1)[0]
    text = decode_strict(data)
    if text is not None:
        return text
    out: list[str] = []
    position = 0
    while position < len(data):
        end = position + 1
        limit = min(len(data), position + _sequence_length(data[position]))
        while end < limit and data[end] & 0xC0 == 0x80:
            end += 1
        out.append(decode_strict(data[position:end]) or REPLACEMENT)
        position = end
    return "".join(out)


def _sequence_length(lead: int) -> int:
    """Return the length of the sequence that begins with ``lead``, in the old form up to 6 bytes."""
    for length, bound in enumerate((0xC0, 0xE0, 0xF0, 0xF8, 0xFC, 0xFE), 1):
        if lead < bound:
            return length
    return 1
