"""JSON values from tokens, with QEMU's limits and its words for what is wrong."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, final

from qsd_trio.errors import QmpError
from qsd_trio.protocol.qmp.lexer import (
    ERROR,
    FLOAT,
    INTEGER,
    KEYWORD,
    MAX_TOKEN_SIZE,
    STRING,
    TOO_LONG,
    Lexer,
)
from qsd_trio.protocol.qmp.unicode import NONCHARACTER, decode_lossy, decode_strict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qsd_trio.protocol.qmp.lexer import Token
    from qsd_trio.untyped import Json

MAX_TOKEN_COUNT: Final = 2 << 20  # QEMU's: bounds the memory a value of tiny tokens takes
MAX_NESTING: Final = 1024  # QEMU's: its parser recurses

_ESCAPES: Final = {
    b'"': '"', b"'": "'", b"\\": "\\", b"/": "/",
    b"b": "\b", b"f": "\f", b"n": "\n", b"r": "\r", b"t": "\t",
}  # fmt: skip
_ESCAPE = re.compile(rb"\\(u[0-9A-Fa-f]{4}|.)", re.DOTALL)
_KEYWORDS: Final = {b"true": True, b"false": False, b"null": None}
_INT64_DIGITS = 20  # with a sign; what is longer is a floating-point number


@final
class JsonError(QmpError):
    """The input is not JSON as QEMU reads it; the text is QEMU's."""


def _syntax_error(text: str) -> JsonError:
    return JsonError(f"JSON parse error, {text}")


@final
class JsonStream:
    """A stream of JSON values: bytes in, values and errors out.

    After an error the stream begins anew with the next token; byte 0xFF always is an error, so a
    client sends it to get rid of what is left of earlier input.
    """

    def __init__(self, *, max_token_size: int = MAX_TOKEN_SIZE) -> None:
        self._lexer = Lexer(max_token_size=max_token_size)
        self._max_token_size = max_token_size
        self._reset()

    def _reset(self) -> None:
        self._tokens: list[Token] = []
        self._size = 0
        self._braces = 0
        self._brackets = 0

    def feed(self, data: bytes) -> Iterator[Json]:
        """Yield each value, or ``JsonError`` object, that ``data`` completes."""
        for token in self._lexer.feed(data):
            yield from self._add(token)

    def flush(self) -> Iterator[Json]:
        """Yield what the end of the input completes: a number, a keyword or an error."""
        for token in self._lexer.flush():
            yield from self._add(token)
        if self._tokens:
            yield self._parse()

    def _add(self, token: Token) -> Iterator[Json]:
        kind, text = token
        if kind == "{":
            self._braces += 1
        elif kind == "}":
            self._braces -= 1
        elif kind == "[":
            self._brackets += 1
        elif kind == "]":
            self._brackets -= 1
        elif kind == ERROR:
            self._reset()
            yield _syntax_error(f"stray '{decode_lossy(text)}'")
            return

        # Each token also costs its terminator, as in QEMU's account.
        self._size += len(text) + 1
        limit = None
        if kind == TOO_LONG or self._size > self._max_token_size:
            limit = "token size"
        elif len(self._tokens) >= MAX_TOKEN_COUNT:
            limit = "token count"
        elif self._braces + self._brackets > MAX_NESTING:
            limit = "nesting depth"
        if limit is not None:
            self._reset()
            yield JsonError(f"JSON {limit} limit exceeded")
            return

        self._tokens.append(token)
        if self._braces < 0 or self._brackets < 0 or not (self._braces or self._brackets):
            yield self._parse()

    def _parse(self) -> object:
        tokens = self._tokens
        self._reset()
        try:
            return parse_tokens(tokens)
        except JsonError as exc:
            return exc


def parse_json(text: str) -> Json:
    """Return the one JSON value in ``text``, as for options of the command line.

    Raises JsonError with QEMU's text.
    """
    stream = JsonStream()
    found: list[object] = []
    data = text.encode(errors="surrogateescape")
    for items in (stream.feed(data), stream.flush()):
        for item in items:
            if found:
                raise JsonError("Expecting at most one JSON value")
            if isinstance(item, JsonError):
                raise item
            found.append(item)
    if not found:
        raise JsonError("Expecting a JSON value")
    return found[0]


def parse_tokens(tokens: Sequence[Token]) -> Json:
    """Return the value that ``tokens`` begin with; raise JsonError at the first that does not fit.

    Written with its own stack: the nesting allowed is deeper than Python's.
    """
    position = 0
    containers: list[dict[str, Json] | list[Json]] = []
    keys: list[str | None] = []  # per container: the key whose value is awaited

    def take() -> Token:
        nonlocal position
        if position == len(tokens):
            raise _syntax_error("premature EOI")
        position += 1
        return tokens[position - 1]

    while True:
        kind, text = take()
        value: Json
        if kind == "{" or kind == "[":
            containers.append({} if kind == "{" else [])
            keys.append(None)
            if take()[0] != ("}" if kind == "{" else "]"):
                position -= 1
                continue
            value = containers.pop()
            keys.pop()
        else:
            value = _scalar(kind, text)

        # Hand the value to what awaits it; that may complete a container, which is a value again.
        while containers:
            container = containers[-1]
            if isinstance(container, dict):
                key = keys[-1]
                if key is None:
                    if not isinstance(value, str):
                        raise _syntax_error("key is not a string in object")
                    if take()[0] != ":":
                        raise _syntax_error("missing : in object pair")
                    keys[-1] = value
                    break
                if key in container:
                    raise _syntax_error("duplicate key")
                container[key] = value
                keys[-1] = None
                closing, what = "}", "dict"
            else:
                container.append(value)
                closing, what = "]", "list"
            kind, _ = take()
            if kind == ",":
                break
            if kind != closing:
                raise _syntax_error(f"expected separator in {what}")
            value = containers.pop()
            keys.pop()
        else:
            return value


def _scalar(kind: str, text: bytes) -> object:
    if kind == STRING:
        return _string(text)
    if kind == INTEGER:
        return _integer(text)
    if kind == FLOAT:
        return float(text)
    if kind == KEYWORD:
        try:
            return _KEYWORDS[text]
        except KeyError:
            raise _syntax_error(f"invalid keyword '{text.decode()}'") from None
    raise _syntax_error("expecting value")


def _integer(text: bytes) -> int | float:
    """Return an int if the number fits int64 or uint64, else the nearest float."""
    if len(text) <= _INT64_DIGITS:
        value = int(text)
        if -(2**63) <= value < 2**64:
            return value
    return float(text)


def _string(token: bytes) -> str:
    """Return the text of a string token, which includes its quotes."""
    body = token[1:-1]
    if b"\\" not in body:
        return _raw_text(body)
    out: list[str] = []
    position = 0
    while True:
        start = body.find(b"\\", position)
        if start < 0:
            out.append(_raw_text(body[position:]))
            return "".join(out)
        out.append(_raw_text(body[position:start]))
        char = body[start + 1 : start + 2]
        if char != b"u":
            try:
                out.append(_ESCAPES[char])
            except KeyError:
                raise _syntax_error("invalid escape sequence in string") from None
            position = start + 2
            continue
        code = _hex4(body, start)
        position = start + 6
        if code is not None and 0xD800 <= code < 0xDC00:
            low = _hex4(body, position) if body.startswith(b"\\u", position) else None
            if low is not None and 0xDC00 <= low < 0xE000:
                code = 0x10000 + ((code & 0x3FF) << 10) + (low & 0x3FF)
                position += 6
        if code is None or 0xD800 <= code < 0xE000 or NONCHARACTER.match(chr(code)):
            quoted = decode_lossy(token[start + 1 : position + 1])
            raise _syntax_error(f"{quoted} is not a valid Unicode character")
        out.append(chr(code))


def _hex4(body: bytes, start: int) -> int | None:
    """Return the number in an escape ``\\uXXXX`` at ``start``."""
    digits = body[start + 2 : start + 6]
    return int(digits, 16) if re.fullmatch(rb"[0-9A-Fa-f]{4}", digits) else None


def _raw_text(data: bytes) -> str:
    text = decode_strict(data)
    if text is None:
        raise _syntax_error("invalid UTF-8 sequence in string")
    return text
