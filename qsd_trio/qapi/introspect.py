"""Answer query-qmp-schema, query-commands and help from schemas/."""

from __future__ import annotations

from functools import cache
from typing import TypeAlias

from qsd_trio.qapi._schema import (
    Definition,
    Member,
    Schema,
    flat_members,
    load_schema,
    union_branches,
)

Info: TypeAlias = dict[str, object]

JSON_TYPES = {
    "str": "string",
    "int": "int",
    "number": "number",
    "bool": "boolean",
    "null": "null",
    "any": "value",
}
INTEGERS = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "size"}


def command_names() -> list[str]:
    """Return the names of all commands, newest schema file first as the C daemon does."""
    return [name for name, item in reversed(load_schema().items()) if item["kind"] == "command"]


def event_names() -> list[str]:
    """Return the names of all events."""
    return [name for name, item in load_schema().items() if item["kind"] == "event"]


@cache
def query_qmp_schema(version: str | None = None) -> tuple[Info, ...]:
    """Return the SchemaInfo list of ``version``, or of the union of all. Callers don't change it."""
    return tuple(_Writer(load_schema(version)).run())


class _Writer:
    """Number the types that commands and events reach, and describe them."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._numbers: dict[str, str] = {}
        self._pending: list[tuple[str, Definition | str | None]] = []
        self._implicit = 0

    def run(self) -> list[Info]:
        result: list[Info] = []
        for name, item in self._schema.items():
            if item["kind"] in {"command", "event"}:
                info: Info = {"name": name, "meta-type": item["kind"]}
                args = item.get("args")
                if isinstance(args, str):
                    info["arg-type"] = self._ref(args)
                elif args:
                    info["arg-type"] = self._implicit_object(item, args)
                else:
                    info["arg-type"] = self._ref("q_empty")
                if item["kind"] == "command":
                    info["ret-type"] = self._ref(item.get("returns", "q_empty"))
                if item.get("features"):
                    info["features"] = item["features"]
                result.append(info)
        while self._pending:
            number, what = self._pending.pop(0)
            result.append(self._describe(number, what))
        return result

    def _ref(self, name: str) -> str:
        element = name.strip("[]")
        if element in INTEGERS:
            name = name.replace(element, "int")
        if name not in self._numbers:
            if name in JSON_TYPES:
                number = name
            elif name.startswith("["):
                number = f"[{self._ref(name[1:-1])}]"
            else:
                number = str(len(self._numbers) + self._implicit)
            self._numbers[name] = number
            self._pending.append((number, self._schema.get(name, name)))
        return self._numbers[name]

    def _implicit_object(self, item: Definition, members: list[Member]) -> str:
        number = str(len(self._numbers) + self._implicit)
        self._implicit += 1
        what: Definition = {
            "kind": "struct",
            "name": "",
            "module": item["module"],
            "members": members,
        }
        self._pending.append((number, what))
        return number

    def _describe(self, number: str, what: Definition | str | None) -> Info:
        if isinstance(what, str):
            if what in JSON_TYPES:
                return {"name": number, "meta-type": "builtin", "json-type": JSON_TYPES[what]}
            if what.startswith("["):
                return {"name": number, "meta-type": "array", "element-type": number[1:-1]}
            what = None
        if what is None:
            return {"name": number, "meta-type": "object", "members": []}
        info: Info = {"name": number}
        if what["kind"] == "enum":
            info |= {"meta-type": "enum", "members": [_value(value) for value in what["values"]]}
            info["values"] = [value["name"] for value in what["values"]]
        elif what["kind"] == "alternate":
            members = [{"type": self._ref(item["type"])} for item in what["alternatives"]]
            info |= {"meta-type": "alternate", "members": members}
        else:
            own = flat_members(self._schema, what["name"]) if what["name"] else what["members"]
            info |= {"meta-type": "object", "members": [self._member(member) for member in own]}
            if "discriminator" in what:
                info["tag"] = what["discriminator"]
                info["variants"] = [
                    {"case": value, "type": self._ref(struct or "q_empty")}
                    for value, struct in union_branches(self._schema, what["name"]).items()
                ]
        if what.get("features"):
            info["features"] = what["features"]
        return info

    def _member(self, member: Member) -> Info:
        info: Info = {"name": member["name"], "type": self._ref(member["type"])}
        if member.get("optional"):
            info["default"] = None
        if member.get("features"):
            info["features"] = member["features"]
        return info


def _value(value: Member) -> Info:
    info: Info = {"name": value["name"]}
    if value.get("features"):
        info["features"] = value["features"]
    return info
