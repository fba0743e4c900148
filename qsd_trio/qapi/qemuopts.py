"""Parse QemuOpts syntax, which --chardev takes: ``socket,id=a,path=x,,y,server=on,wait=off``.

Unlike keyval it knows its parameters beforehand, has no structure, and takes bare flags (``server``, ``nowait``),
which are deprecated and warned of.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, TypeAlias, final

import attrs

from qsd_trio.errors import QmpError
from qsd_trio.identifiers import HINT, is_well_formed
from qsd_trio.qapi.numbers import SizeError, parse_bool, parse_size, parse_unsigned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Kind: TypeAlias = Literal["str", "bool", "num", "size"]

CHARDEV_OPTIONS: dict[str, Kind] = {
    "abstract": "bool",
    "append": "bool",
    "backend": "str",
    "chardev": "str",
    "clipboard": "bool",
    "cols": "num",
    "debug": "num",
    "delay": "bool",
    "fd": "str",
    "height": "num",
    "host": "str",
    "ipv4": "bool",
    "ipv6": "bool",
    "localaddr": "str",
    "localport": "str",
    "logappend": "bool",
    "logfile": "str",
    "mouse": "bool",
    "mux": "bool",
    "name": "str",
    "nodelay": "bool",
    "path": "str",
    "port": "str",
    "reconnect": "num",
    "rows": "num",
    "server": "bool",
    "signal": "bool",
    "size": "size",
    "telnet": "bool",
    "tight": "bool",
    "tls-authz": "str",
    "tls-creds": "str",
    "tn3270": "bool",
    "to": "num",
    "wait": "bool",
    "websocket": "bool",
    "width": "num",
    # Newer than 7.2.
    "chardevs.0": "str",
    "chardevs.1": "str",
    "chardevs.2": "str",
    "chardevs.3": "str",
    "logtimestamp": "bool",
    "reconnect-ms": "num",
}

HELP_KINDS = {"str": "<str>", "bool": "<bool (on/off)>", "num": "<num>", "size": "<size>"}
BOOL_TEXT = "'on' or 'off'"
SIZE_HINT = (
    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
    "and exabytes, respectively."
)


@final
class OptsError(QmpError):
    """A text is no QemuOpts; ``hint`` is what the command line prints in the lines below."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint


@final
@attrs.frozen(kw_only=True)
class QemuOpts:
    """The parameters of one option, checked against their kinds."""

    id: str | None
    items: tuple[tuple[str, str], ...]
    wants_help: bool = False

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return a parameter's text; of several the last."""
        for key, value in reversed(self.items):
            if key == name:
                return value
        return default

    def get_bool(self, name: str, default: bool | None = None) -> bool | None:  # as dict.get
        """Return a switch."""
        text = self.get(name)
        return default if text is None else parse_bool(text)

    def get_number(self, name: str, default: int | None = None) -> int | None:
        """Return an unsigned number."""
        text = self.get(name)
        return default if text is None else parse_unsigned(text)

    def get_size(self, name: str, default: int | None = None) -> int | None:
        """Return a number of bytes."""
        text = self.get(name)
        return default if text is None else parse_size(text)


def parse_opts(
    text: str,
    implied_key: str | None = None,
    *,
    options: Mapping[str, Kind] = CHARDEV_OPTIONS,
    warn: Callable[[str, str], None] = lambda message, hint: None,
) -> QemuOpts:
    """Return the parameters of ``text``.

    ``warn`` gets the text of each warning, and the line to print below it. Raises OptsError.
    """
    # Looked for without the implied key, as in C: `null,,id=a` has an id, and a comma in its backend.
    identifier = next((v for k, v, _ in _pairs(text, None) if k == "id"), None)
    if identifier is not None and not is_well_formed(identifier):
        raise OptsError("Parameter 'id' expects an identifier", HINT)
    items: list[tuple[str, str]] = []
    for name, value, flag in _pairs(text, implied_key):
        if flag in {"help", "?"}:
            return QemuOpts(id=identifier, items=tuple(items), wants_help=True)
        if flag:
            _warn_of_flag(flag, name, value, warn)
        if name != "id":
            _check(name, value, options)
            items.append((name, value))
    return QemuOpts(id=identifier, items=tuple(items))


def describe_options(title: str, options: Mapping[str, Kind]) -> str:
    """Return the list of parameters as the C daemon prints it for ``help``."""
    lines = [f"  {name}={HELP_KINDS[kind]}" for name, kind in sorted(options.items())]
    return "\n".join([f"{title} options:", *lines])


def _pairs(text: str, implied_key: str | None) -> list[tuple[str, str, str]]:
    """Return name, value and, if it was written as a flag, the flag."""
    pairs: list[tuple[str, str, str]] = []
    position = 0
    while position < len(text):
        match = re.compile(r"[^=,]*").match(text, position)
        end = match.end() if match else position
        name = text[position:end]
        flag = ""
        if text[end : end + 1] == "=":
            value, position = _value(text, end + 1)
        elif not pairs and implied_key is not None:
            name = implied_key
            value, position = _value(text, position)
        else:
            flag, value, position = name, "on", end + 1
            if name.startswith("no"):
                name, value = name[2:], "off"
        pairs.append((name, value, flag))
    return pairs


def _value(text: str, position: int) -> tuple[str, int]:
    match = re.compile(r"(?:[^,]|,,)*").match(text, position)
    end = match.end() if match else position
    return text[position:end].replace(",,", ","), end + 1


def _warn_of_flag(flag: str, name: str, value: str, warn: Callable[[str, str], None]) -> None:
    if name == "delay":  # the flag is written the other way round
        name, value = "nodelay", "off" if value == "on" else "on"
    warn(f"short-form boolean option '{flag}' deprecated", f"Please use {name}={value} instead")


def _check(name: str, value: str, options: Mapping[str, Kind]) -> None:
    kind = options.get(name)
    if kind is None:
        raise OptsError(f"Invalid parameter '{name}'")
    if kind == "bool" and parse_bool(value) is None:
        raise OptsError(f"Parameter '{name}' expects {BOOL_TEXT}")
    if kind == "num":
        try:
            parse_unsigned(value)
        except SizeError as error:
            if error.too_large:
                raise OptsError(f"Value '{value}' is too large for parameter '{name}'") from None
            raise OptsError(f"Parameter '{name}' expects a number") from None
    if kind == "size":
        try:
            parse_size(value)
        except SizeError as error:
            if error.too_large:
                raise OptsError(f"Value '{value}' is out of range for parameter '{name}'") from None
            text = f"Parameter '{name}' expects a non-negative number below 2^64"
            raise OptsError(text, SIZE_HINT) from None
