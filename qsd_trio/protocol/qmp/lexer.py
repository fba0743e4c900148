"""Tokens of QEMU's JSON dialect, found incrementally.

The dialect: strings in single or double quotes, keywords of lower-case letters, no control
characters in strings. A byte that fits nowhere makes an ERROR token of what was read of the token
so far; then everything up to the next structural or control character is skipped.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeAlias, final

if TYPE_CHECKING:
    from collections.abc import Iterator

    #: Kind and text. Structural characters are their own kind.
    Token: TypeAlias = tuple[str, bytes]

STRING: Final = "string"
INTEGER: Final = "integer"
FLOAT: Final = "float"
KEYWORD: Final = "keyword"
ERROR: Final = "error"
TOO_LONG: Final = "too long"

#: QEMU's bound on the text of one value, hence of one token (64 MiB): a monitor's memory is bounded.
MAX_TOKEN_SIZE: Final = 64 << 20

# A whole token whose end is certain: what follows a number or keyword must be there and unrelated.
_WHOLE = re.compile(
    rb"""[ \t\r\n]*(?:
        (?P<structural>[{}\[\]:,])
      | (?P<string>"[^"\\\x00-\x1f\xfe\xff]*(?:\\[\x20-\xfd][^"\\\x00-\x1f\xfe\xff]*)*"
                  |'[^'\\\x00-\x1f\xfe\xff]*(?:\\[\x20-\xfd][^'\\\x00-\x1f\xfe\xff]*)*')
      | (?P<keyword>[a-z]+)(?=[^a-z])
      | (?P<integer>-?(?:0|[1-9][0-9]*))(?=[^0-9.eE])
      | (?P<float>-?(?:0(?=\.)|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)(?=[^0-9.eE])
    )""",
    re.VERBOSE,
)

# The machine for what _WHOLE cannot decide: tokens split between chunks, and errors.
_CLASSES: Final = bytearray(b"o" * 256)
for _class, _members in {
    b"c": bytes(range(0x20)),
    b"h": b"\xfe\xff",
    b"w": b" \t\r\n",
    b"0": b"0",
    b"9": b"123456789",
    b"a": b"abcdefghijklmnopqrstuvwxyz",
    b"e": b"e",
    b"E": b"E",
    b"-": b"-",
    b"+": b"+",
    b".": b".",
    b'"': b'"',
    b"'": b"'",
    b"\\": b"\\",
    b"{": b"{}[]:,",
}.items():
    for _member in _members:
        _CLASSES[_member] = _class[0]

_START, _RECOVERY, _DONE, _FAIL = "start", "recovery", "done", "fail"
#: Pseudo states: the token ends before this character.
_ENDS: Final = {
    "zero": INTEGER,
    "digits": INTEGER,
    "mantissa digits": FLOAT,
    "exponent digits": FLOAT,
    "keyword": KEYWORD,
}


def _table() -> dict[str, dict[int, str]]:
    """Return state -> character class -> state; what is missing ends the token or fails."""
    rows = {
        _START: {
            '"': "dq", "'": "sq", "0": "zero", "9": "digits", "-": "sign", "ae": "keyword",
            "{": _DONE, "w": _START,
        },
        "dq": {'ow09aeE-+.\'{': "dq", '"': _DONE, "\\": "dq escape"},
        "sq": {'ow09aeE-+."{': "sq", "'": _DONE, "\\": "sq escape"},
        "dq escape": {"ow09aeE-+.'\"\\{": "dq"},
        "sq escape": {"ow09aeE-+.'\"\\{": "sq"},
        "keyword": {"ae": "keyword"},
        "sign": {"0": "zero", "9": "digits"},
        "zero": {"09": _FAIL, ".": "mantissa"},
        "digits": {"09": "digits", ".": "mantissa", "eE": "exponent"},
        "mantissa": {"09": "mantissa digits"},
        "mantissa digits": {"09": "mantissa digits", "eE": "exponent"},
        "exponent": {"+-": "exponent sign", "09": "exponent digits"},
        "exponent sign": {"09": "exponent digits"},
        "exponent digits": {"09": "exponent digits"},
    }  # fmt: skip
    return {
        state: {ord(c): target for classes, target in row.items() for c in classes}
        for state, row in rows.items()
    }


_TABLE: Final = _table()
# In strings, white space but the blank is a control character.
_STRING_RUN: Final = {
    "dq": re.compile(rb'[^"\\\x00-\x1f\xfe\xff]+'),
    "sq": re.compile(rb"[^'\\\x00-\x1f\xfe\xff]+"),
}
_RECOVERY_RUN = re.compile(rb"[\t\x20-+\--9;-Z\\^-z|~-\xfd]+")


@final
class Lexer:
    """Cut bytes into tokens; what is incomplete waits for more bytes."""

    def __init__(self, *, max_token_size: int = MAX_TOKEN_SIZE) -> None:
        self._state = _START
        self._token = bytearray()
        self._max_token_size = max_token_size

    def feed(self, data: bytes) -> Iterator[Token]:
        """Yield the tokens that ``data`` completes."""
        position, end = 0, len(data)
        while position < end:
            if self._state == _START:
                match = _WHOLE.match(data, position)
                if match is not None:
                    position = match.end()
                    kind = match.lastgroup or ""
                    text = match[kind]
                    if len(text) > self._max_token_size:
                        kind = TOO_LONG
                    yield (text.decode() if kind == "structural" else kind, text)
                    continue
            position, token = self._step(data, position)
            if token is not None:
                yield token

    def flush(self) -> Iterator[Token]:
        """Yield the token that the end of the input completes, and begin anew."""
        state, text = self._state, bytes(self._token)
        self._reset()
        if state in _ENDS:
            yield _ENDS[state], text
        elif state not in (_START, _RECOVERY):
            yield ERROR, text

    def _reset(self, state: str = _START) -> None:
        self._state = state
        self._token.clear()

    def _step(self, data: bytes, position: int) -> tuple[int, Token | None]:
        """Take one character, or a run of them; return the new position and a token, if any."""
        if self._state == _RECOVERY:
            run = _RECOVERY_RUN.match(data, position)
            if run is None or run.end() < len(data):
                self._reset()
            return (position if run is None else run.end()), None
        if self._state in _STRING_RUN:
            run = _STRING_RUN[self._state].match(data, position)
            if run is not None:
                stop = min(run.end(), position + self._max_token_size + 1 - len(self._token))
                self._token += data[position:stop]
                return stop, self._check_length()
        char = data[position]
        class_ = _CLASSES[char]
        if class_ == 0x77 and char != 0x20 and self._state != _START:  # "w"
            class_ = 0x63  # "c": outside of START only the blank is like other characters
        target = _TABLE[self._state].get(class_)
        if target is None and self._state in _ENDS:
            token = _ENDS[self._state], bytes(self._token)
            self._reset()
            return position, token
        if target == _START:
            return position + 1, None
        self._token.append(char)
        position += 1
        if target is None or target == _FAIL:
            token = ERROR, bytes(self._token)
            self._reset(_RECOVERY)
            return position, token
        if target == _DONE:
            structural = self._state == _START
            text = bytes(self._token)
            self._reset()
            return position, (text.decode() if structural else STRING, text)
        self._state = target
        return position, self._check_length()

    def _check_length(self) -> Token | None:
        if len(self._token) <= self._max_token_size:
            return None
        token = TOO_LONG, bytes(self._token)
        self._reset()
        return token
