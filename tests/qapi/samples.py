"""Make arguments for every command out of the schema, right but for one member.

All have a member `zzz` too that nobody knows, so that a daemon always refuses them and does nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, final

from qsd_trio.qapi._schema import Schema, flat_members, union_branches
from qsd_trio.qapi.introspect import INTEGERS

Json: TypeAlias = Any
Make: TypeAlias = Callable[[Json], Json]

SCALARS = {"str": "x", "bool": True, "number": 1.5, "any": "x", "null": None}
WRONG: list[Json] = [5, "x", True, None, [], {}, [5], 1.5, -1, 70000, 2**32, 2**63, 2**64]
ABSENT = object()


@final
class Samples:
    """Each type is walked where it is first reached."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._done: set[str] = set()

    def all(self) -> Iterator[tuple[str, Json]]:
        """Yield command and arguments."""
        for name, item in self._schema.items():
            if item["kind"] != "command":
                continue
            args = item.get("args")
            if isinstance(args, str):
                found = self._type(args, lambda value: value)
            elif args:
                found = self._members(args, lambda value: value, lambda a=args: self._required(a))  # type: ignore[misc]
            else:
                found = iter([{}])
            for arguments in found:
                if isinstance(arguments, dict):
                    yield name, {**arguments, "zzz": 1}

    def minimal(self, kind: str) -> Json:
        """Return the smallest right value of a type."""
        if kind in SCALARS:
            return SCALARS[kind]
        if kind in INTEGERS or kind == "int":
            return 1
        if kind.startswith("["):
            return []
        item = self._schema[kind]
        if item["kind"] == "enum":
            return item["values"][0]["name"]
        if item["kind"] == "alternate":
            kinds = [branch["type"] for branch in item["alternatives"]]
            return "x" if "str" in kinds else self.minimal(kinds[-1])
        if "discriminator" in item:
            return self._branch(kind, next(iter(item["branches"]))["value"])
        return self._required(flat_members(self._schema, kind))

    def _required(self, members: list[Json]) -> Json:
        return {m["name"]: self.minimal(m["type"]) for m in members if not m.get("optional")}

    def _branch(self, kind: str, value: str) -> Json:
        result = {}
        tag = self._schema[kind]["discriminator"]
        for member in flat_members(self._schema, kind):
            if member["name"] == tag:
                result[tag] = value
            elif not member.get("optional"):
                result[member["name"]] = self.minimal(member["type"])
        struct = union_branches(self._schema, kind)[value]
        return result | (self.minimal(struct) if struct else {})

    def _type(self, kind: str, make: Make) -> Iterator[Json]:
        if kind.startswith("["):
            for wrong in WRONG:
                yield make([wrong])
            yield from self._type(kind[1:-1], lambda value: make([value]))
        if kind not in self._schema or kind in self._done:
            return
        self._done.add(kind)
        item = self._schema[kind]
        if item["kind"] == "alternate":
            for branch in item["alternatives"]:
                yield from self._type(branch["type"], make)
        elif item["kind"] in {"struct", "union"}:
            own = flat_members(self._schema, kind)
            yield from self._members(own, make, lambda: self.minimal(kind))
            if "discriminator" not in item:
                return
            for value, struct in union_branches(self._schema, kind).items():
                yield make(self._branch(kind, value))
                if struct and struct not in self._done:
                    self._done.add(struct)
                    members = flat_members(self._schema, struct)
                    yield from self._members(members, make, lambda v=value: self._branch(kind, v))  # type: ignore[misc]

    def _members(self, members: list[Json], make: Make, base: Callable[[], Json]) -> Iterator[Json]:
        for member in members:
            name = member["name"]

            def put(value: Json, name: str = name) -> Json:
                result = copy.deepcopy(base())
                result.pop(name, None)
                return make(result if value is ABSENT else {**result, name: value})

            yield put(ABSENT)
            for wrong in WRONG:
                yield put(wrong)
            yield from self._type(member["type"], put)
