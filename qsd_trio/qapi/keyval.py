"""Parse QEMU's keyval syntax: ``driver=qcow2,file.driver=file,file.filename=a,,b``.

Dotted keys make objects, numbers in them make lists, ``,,`` in a value is a comma, and the first key may be
implied. All scalars stay text; qsd_trio.qapi.converter.from_keyval() gives them their types.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

KeyvalDict: TypeAlias = "dict[str, KeyvalValue]"
KeyvalValue: TypeAlias = "str | KeyvalDict | list[KeyvalValue]"

MAX_FRAGMENT = 127  # bytes; the C daemon's buffer, and part of its error texts
_FRAGMENT = r"[0-9]+|(?:__[A-Za-z0-9.-]*_)?[A-Za-z][A-Za-z0-9_-]*"


def parse_keyval(text: str, implied_key: str | None = None) -> KeyvalDict:
    """Return the tree of ``text``. Raises QmpError, also where the text asks for help."""
    result, wants_help = parse_keyval_help(text, implied_key)
    if wants_help:
        raise QmpError("Help is not available for this option")
    return result


def parse_keyval_help(text: str, implied_key: str | None = None) -> tuple[KeyvalDict, bool]:
    """Return the tree of ``text``, and whether it holds ``help`` or ``?`` in the place of a parameter."""
    tree: KeyvalDict = {}
    wants_help = False
    position = 0
    first = True
    while position < len(text):
        end = _find(text, "=,", position)
        key = text[position:end]
        bare = end > position and text[end : end + 1] != "="
        if bare and key in {"help", "?"}:
            wants_help = True
            position = end + 1
        elif bare and first and implied_key is not None:
            _put(tree, implied_key, implied_key, key)
            position = end + 1
        else:
            fragments = _split_key(key)
            parent = _parent(tree, fragments, key)
            if text[end : end + 1] != "=":
                raise QmpError(f"Expected '=' after parameter '{key}'")
            value, position = _value(text, end + 1)
            _put(parent, fragments[-1], key, value)
        first = False
    return cast("KeyvalDict", _listify(tree, "")), wants_help


def parse_option(
    kind: type[T],
    text: str,
    implied_key: str | None,
    parse_json: Callable[[str], object],
) -> T:
    """Return a command-line option's value as ``kind``: JSON if it begins with ``{``, else keyval.

    Raises QmpError with QEMU's text.
    """
    from qsd_trio.qapi.converter import from_keyval, from_qmp

    if text.startswith("{"):
        return from_qmp(kind, parse_json(text))
    return from_keyval(kind, parse_keyval(text, implied_key))


def _find(text: str, characters: str, start: int) -> int:
    for index in range(start, len(text)):
        if text[index] in characters:
            return index
    return len(text)


def _split_key(key: str) -> list[str]:
    """Return the fragments of a dotted key, each checked."""
    fragments: list[str] = []
    position = 0
    while True:
        # A list's index can only follow a name.
        match = re.compile(_FRAGMENT).match(key, position)
        if match is None or (not fragments and match[0].isdigit()):
            raise QmpError(f"Invalid parameter '{key}'")
        fragment = match[0]
        position = match.end()
        if position < len(key) and key[position] != ".":
            raise QmpError(f"Invalid parameter '{key}'")
        if len(fragment.encode()) > MAX_FRAGMENT:
            whole = not fragments and position == len(key)
            raise QmpError(f"Parameter{'' if whole else ' fragment'} '{fragment}' is too long")
        fragments.append(fragment)
        if position == len(key):
            return fragments
        position += 1


def _parent(tree: KeyvalDict, fragments: list[str], key: str) -> KeyvalDict:
    """Return the object the last fragment belongs into, making those on the way."""
    length = -1
    for fragment in fragments[:-1]:
        length += len(fragment) + 1
        child = tree.setdefault(fragment, {})
        if not isinstance(child, dict):
            raise QmpError(f"Parameters '{key[:length]}.*' used inconsistently")
        tree = child
    return tree


def _put(tree: KeyvalDict, fragment: str, key: str, value: str) -> None:
    """Set a value; the last one of a key wins."""
    if isinstance(tree.get(fragment, ""), dict):
        raise QmpError(f"Parameters '{key}.*' used inconsistently")
    tree[fragment] = value


def _value(text: str, position: int) -> tuple[str, int]:
    """Return the value that begins at ``position``, and where the next parameter begins."""
    parts = []
    while True:
        end = text.find(",", position)
        if end < 0:
            parts.append(text[position:])
            return "".join(parts), len(text)
        parts.append(text[position:end])
        if text[end + 1 : end + 2] != ",":
            return "".join(parts), end + 1
        parts.append(",")
        position = end + 2


def _listify(tree: KeyvalDict, prefix: str) -> KeyvalValue:
    """Turn the objects whose keys are all numbers into lists, from the leaves up."""
    for name, child in tree.items():
        if isinstance(child, dict):
            tree[name] = _listify(child, f"{prefix}{name}.")
    numbers = [name for name in tree if name.isdigit()]
    if not numbers:
        return tree
    if len(numbers) < len(tree):
        raise QmpError(f"Parameters '{prefix}*' used inconsistently")
    elements = {int(name): tree[name] for name in numbers}
    for index in range(max(elements) + 1):
        if index not in elements:
            raise QmpError(f"Parameter '{prefix}{index}' missing")
    return [elements[index] for index in range(len(elements))]
