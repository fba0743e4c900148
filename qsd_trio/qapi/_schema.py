"""Load schemas/*.json: the QAPI definitions of one version, or of the union of all.

Used by the generator and by query-qmp-schema; the converter works from the generated tables.
"""

from __future__ import annotations

import copy
import json
import tomllib
from functools import cache
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast

from qsd_trio._data import schemas_dir

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("struct", "union", "enum", "alternate", "command", "event")
BASELINE = "7.2"


class Member(TypedDict):
    """A member of an object, a branch of an alternate (name, type) or an enum's value (name)."""

    name: str
    type: str
    optional: NotRequired[bool]
    default: NotRequired[str]
    since: NotRequired[str]
    features: NotRequired[list[str]]


class Branch(TypedDict):
    """One branch of a union; a value without a struct of its own has none."""

    value: str
    type: str


class Definition(TypedDict):
    """One QAPI definition, in the form of schemas/*.json."""

    kind: str
    name: str
    module: str
    base: NotRequired[str]
    members: NotRequired[list[Member]]
    values: NotRequired[list[Member]]
    discriminator: NotRequired[str]
    branches: NotRequired[list[Branch]]
    alternatives: NotRequired[list[Member]]
    # A type's name, or members of an implicit type; absent: no arguments.
    args: NotRequired[str | list[Member]]
    returns: NotRequired[str]
    features: NotRequired[list[str]]


Schema = dict[str, Definition]


@cache
def load_schema(version: str | None = None) -> Schema:
    """Return the definitions by name, those whose conditions hold.

    ``version`` "7.2" leaves the overlay out; None is the union of everything known.
    """
    if version not in {None, BASELINE}:
        raise ValueError(f"no schema of version {version}")
    return build_schema(schemas_dir(), overlay=version is None)


def build_schema(folder: Path, *, overlay: bool) -> Schema:
    """Read the folder's files and merge them; see schemas/README.md for the form."""
    newer = _read(folder / "overlay.json") if overlay else {}
    conditions = tomllib.loads((folder / "conditions.toml").read_text())
    holds = set(conditions["build"])
    known = holds | set(conditions["not-built"])
    schema: Schema = {}
    for path in sorted(folder.glob("*.json")):
        if path.name != "overlay.json":
            content = _read(path)
            for item in cast("list[dict[str, object]]", content["definitions"]):
                _add(schema, item, str(content["module"]))
    for item in cast("list[dict[str, object]]", newer.get("new", [])):
        _add(schema, item, str(item["module"]))
    for change in cast("list[dict[str, object]]", newer.get("changes", [])):
        _change(cast("dict[str, object]", schema[str(change["definition"])]), change)
    dropped = {
        name
        for name, definition in schema.items()
        if not _holds(cast("dict[str, object]", definition), holds, known)
    }
    for name in dropped:
        del schema[name]
    for definition in schema.values():
        for key in ("members", "values", "branches", "alternatives", "args"):
            items = definition.get(key)
            if isinstance(items, list):
                definition[key] = [item for item in items if _holds(item, holds, known)]
    return schema


def _read(path: Path) -> dict[str, object]:
    return cast("dict[str, object]", json.loads(path.read_bytes()))


def _add(schema: Schema, item: dict[str, object], module: str) -> None:
    kind = next(kind for kind in KINDS if kind in item)
    definition = {"kind": kind, "module": module, **item}
    definition["name"] = definition.pop(kind)
    name = str(definition["name"])
    if name in schema:
        raise ValueError(f"'{name}' is defined twice")
    schema[name] = cast("Definition", definition)


def _change(definition: dict[str, object], change: dict[str, object]) -> None:
    """Apply one entry of the overlay: "add" and "replace" items by name, "drop" names, "set" keys."""
    change = copy.deepcopy(change)
    definition.update(cast("dict[str, object]", change.get("set", {})))
    for key in cast("list[str]", change.get("unset", [])):
        definition.pop(key, None)
    for key, names in cast("dict[str, list[str]]", change.get("drop", {})).items():
        items = cast("list[dict[str, object]]", definition[key])
        definition[key] = [item for item in items if _name(item) not in names]
    for key, replaced in cast(
        "dict[str, list[dict[str, object]]]", change.get("replace", {})
    ).items():
        by_name = {_name(item): item for item in replaced}
        items = cast("list[dict[str, object]]", definition[key])
        definition[key] = [by_name.get(_name(item), item) for item in items]
    for key, added in cast("dict[str, list[dict[str, object]]]", change.get("add", {})).items():
        if key in {"members", "args"}:
            for item in added:
                item["optional"] = True  # an older peer doesn't send it, and may not expect it
        definition[key] = [*cast("list[dict[str, object]]", definition.get(key, [])), *added]


def _name(item: dict[str, object]) -> str:
    return str(item["value"] if "value" in item else item["name"])


def _holds(item: object, holds: set[str], known: set[str]) -> bool:
    condition = cast("dict[str, object]", item).get("if")
    if condition is None:
        return True
    if condition not in known:
        raise ValueError(f"conditions.toml does not know {condition}")
    return condition in holds


def flat_members(schema: Schema, name: str) -> list[Member]:
    """Return the members of an object as they are on the wire, the base's first."""
    definition = schema[name]
    base = flat_members(schema, definition["base"]) if "base" in definition else []
    return [*base, *definition.get("members", [])]


def union_branches(schema: Schema, name: str) -> dict[str, str | None]:
    """Return value -> struct of a union, for every value of its discriminator's enum."""
    definition = schema[name]
    tag = definition["discriminator"]
    enum = next(m["type"] for m in flat_members(schema, name) if m["name"] == tag)
    types = {branch["value"]: branch.get("type") for branch in definition.get("branches", [])}
    return {value["name"]: types.get(value["name"]) for value in schema[enum]["values"]}
