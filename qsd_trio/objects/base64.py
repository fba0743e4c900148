"""Base64 as the real daemon reads it, which is more tolerant than RFC 4648."""

from __future__ import annotations

from typing import Final

from qsd_trio.errors import QmpError

_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_VALUES: Final = {letter: value for value, letter in enumerate(_ALPHABET)} | {"=": 0}


def decode(text: str) -> bytes:
    """Decode ``text``; letters beyond the last group of four are dropped, ``=`` may stand anywhere.

    Raises QmpError for a character outside of the alphabet; line feeds are skipped.
    """
    if any(letter not in _VALUES and letter != "\n" for letter in text):
        raise QmpError("Base64 data contains invalid characters")
    letters = text.replace("\n", "")
    decoded = bytearray()
    for at in range(0, len(letters) - 3, 4):
        group = letters[at : at + 4]
        bits = 0
        for letter in group:
            bits = bits << 6 | _VALUES[letter]
        decoded.append(bits >> 16)
        if group[2] != "=":
            decoded.append(bits >> 8 & 0xFF)
        if group[3] != "=":
            decoded.append(bits & 0xFF)
    return bytes(decoded)
