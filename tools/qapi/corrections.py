"""Apply schemas/corrections.toml to what was read from the manual page."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, TypeAlias, cast

if TYPE_CHECKING:
    from pathlib import Path

    from tools.qapi.manpage import Definition

Items: TypeAlias = "list[dict[str, object]]"

TRUE_WORDS = {"on": "true", "true": "true", "enabled": "true"}
FALSE_WORDS = {"off": "false", "false": "false", "disabled": "false"}
NUMBER = re.compile(r"\d+$|0x[0-9a-f]+$")
INTEGER_TYPES = {"int", "number", "size"}


class CorrectionError(Exception):
    """An entry of corrections.toml fits nothing on the page."""


def correct(modules: dict[str, list[Definition]], path: Path) -> None:
    """Change ``modules`` in place."""
    table = tomllib.loads(path.read_text())
    by_name = {definition_name(item): item for items in modules.values() for item in items}
    for item in by_name.values():
        _unify(item)
    for name, type_name in table["args"].items():
        by_name[name]["args"] = type_name
    for name, type_name in table["returns"].items():
        if "command" not in by_name[name]:
            raise CorrectionError(f"'{name}' is no command")
        by_name[name]["returns"] = type_name
    for name, order in table["order"].items():
        key = _items_key(by_name[name])
        by_name[name][key] = _in_order(name, by_name[name][key], order)
    for name, last in table["last"].items():
        key = _items_key(by_name[name])
        items = cast("Items", by_name[name][key])
        by_name[name][key] = [i for i in items if i["name"] not in last] + _in_order(
            name, [i for i in items if i["name"] in last], last
        )
    for dotted, width in table["integers"].items():
        owner, _, name = dotted.rpartition(".")
        member = _member(by_name[owner], name)
        if member["type"] not in {"int", "[int]"}:
            raise CorrectionError(f"'{dotted}' is no integer")
        member["type"] = str(member["type"]).replace("int", width)
    for item in by_name.values():
        for key in ("members", "args"):
            members = item.get(key)
            for member in members if isinstance(members, list) else []:
                _check_default(member, by_name)


def definition_name(item: Definition) -> str:
    """Return the name of a definition: the value of its first key."""
    return str(next(iter(item.values())))


def _unify(item: Definition) -> None:
    """Let an event's data and an alternate's branches have names of their own kind."""
    if "data" in item:
        item["args"] = item.pop("data")
    if "alternate" in item:
        item["alternatives"] = item.pop("branches")


def _items_key(item: Definition) -> str:
    return next(key for key in ("members", "args", "values") if isinstance(item.get(key), list))


def _member(item: Definition, name: str) -> dict[str, object]:
    for member in cast("Items", item[_items_key(item)]):
        if member["name"] == name:
            return member
    raise CorrectionError(f"'{definition_name(item)}' has no '{name}'")


def _in_order(name: str, items: object, order: list[str]) -> Items:
    """Put the items of ``order`` first, and keep what it doesn't name behind them."""
    by_name = {item["name"]: item for item in cast("Items", items)}
    if unknown := set(order) - set(by_name):
        raise CorrectionError(f"'{name}' has no {sorted(unknown)}")
    return [by_name.pop(key) for key in order] + list(by_name.values())


def _check_default(member: dict[str, object], by_name: dict[str, Definition]) -> None:
    """Keep a default only if it is a value of the member's type: the page's prose is free."""
    default: str | None = str(member.pop("default", ""))
    if not default:
        return
    kind = str(member["type"])
    if kind == "bool":
        default = (TRUE_WORDS | FALSE_WORDS).get(default)
    elif kind in INTEGER_TYPES or kind.startswith(("int", "uint")):
        default = default if NUMBER.match(default) else None
    elif kind in by_name and "enum" in by_name[kind]:
        values = cast("Items", by_name[kind]["values"])
        default = default if default in {value["name"] for value in values} else None
    else:
        default = None
    if default is not None:
        member["default"] = default
