"""Write the two generated files of qsd_trio/qapi: the tables and their typed face."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import attrs

from qsd_trio.qapi._names import branch_name, camel, member_name, value_name
from qsd_trio.qapi._schema import flat_members, union_branches

if TYPE_CHECKING:
    from qsd_trio.qapi._schema import Definition, Member, Schema

HEAD = '"""{doc}\n\nGenerated from schemas/ by tools/gen_qapi.py: don\'t edit.\n"""\n'
STUB_DOC = "The QAPI types as attrs classes; what stands here is made on first use by _build.py."
PYTHON_TYPES = {
    "str": "str",
    "bool": "bool",
    "number": "float",
    "any": "object",
    "null": "QapiNull",
}
INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)} | {"int", "size"}
SHADOWED = {"str", "int", "bool", "float", "object", "list"}


@attrs.define
class Types:
    """The types to emit: the schema's, and those made of commands' and events' implicit members."""

    structs: dict[str, tuple[str, list[Member]]] = attrs.field(factory=dict)
    unions: dict[str, tuple[str, dict[str, str | None]]] = attrs.field(factory=dict)
    enums: dict[str, list[str]] = attrs.field(factory=dict)
    alternates: dict[str, list[str]] = attrs.field(factory=dict)
    commands: dict[str, tuple[str, str]] = attrs.field(factory=dict)
    events: dict[str, str] = attrs.field(factory=dict)


def collect(schema: Schema) -> Types:
    """Sort the definitions by kind and name the implicit ones."""
    types = Types()
    for name, item in schema.items():
        match item["kind"]:
            case "enum":
                types.enums[name] = [value["name"] for value in item["values"]]
            case "alternate":
                types.alternates[name] = [branch["type"] for branch in item["alternatives"]]
            case "command":
                types.commands[name] = (_args(types, item, "Arg"), item.get("returns", ""))
            case "event":
                types.events[name] = _args(types, item, "Event")
            case _:
                types.structs[name] = (item.get("base", ""), item.get("members", []))
                if "discriminator" in item:
                    types.unions[name] = (item["discriminator"], union_branches(schema, name))
    for name in types.structs:
        members = (
            [member["name"] for member in flat_members(schema, name)] if name in schema else []
        )
        if len(set(members)) != len(members):
            raise ValueError(f"'{name}' has a member twice")
        if "_" in name:
            raise ValueError(f"'{name}': type names with '_' would clash with branches")
    return types


def _args(types: Types, item: Definition, suffix: str) -> str:
    args = item.get("args")
    if isinstance(args, str):
        return args
    if not args:
        return ""
    name = camel(item["name"]) + suffix
    if name in types.structs:
        raise ValueError(f"'{name}' is taken")
    types.structs[name] = ("", args)
    return name


def emit_tables(types: Types) -> str:
    """Return the text of _tables.json, a name a line; _tables.py tells the form."""
    tables = {
        "structs": {
            name: [base, [[m["name"], m["type"], bool(m.get("optional"))] for m in members]]
            for name, (base, members) in types.structs.items()
        },
        "unions": {
            name: [tag, [[value, struct or ""] for value, struct in branches.items()]]
            for name, (tag, branches) in types.unions.items()
        },
        "enums": types.enums,
        "alternates": types.alternates,
        "commands": types.commands,
        "events": types.events,
    }
    parts = []
    for key, table in tables.items():
        items = sorted(cast("dict[str, object]", table).items())
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in items)
        parts.append(f'"{key}": {{\n{lines}\n}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def emit_stub(types: Types) -> str:
    """Return the text of __init__.pyi."""
    out = [HEAD.format(doc=STUB_DOC), "# ruff: noqa: PYI021"]
    out.append(
        "import builtins\nimport enum\nfrom typing import TypeAlias, final\n\nimport attrs\n"
    )
    out.extend(
        f"from ._base import {name} as {name}" for name in ("NULL", "QapiNull", "QapiObject")
    )
    for name, values in sorted(types.enums.items()):
        out.append(f"@final\nclass {name}(enum.Enum):")
        out.extend(f'    {value_name(value)} = "{value}"' for value in values)
        out.append("")
    for name, (base, members) in sorted(types.structs.items()):
        end = "" if members else " ..."
        out.append(f"@attrs.frozen(kw_only=True)\nclass {name}({base or 'QapiObject'}):{end}")
        shadowed = {m["name"] for m in members} & SHADOWED
        for member in members:
            hint = _hint(member["type"], shadowed)
            optional = " | None = None" if member.get("optional") else ""
            out.append(f"    {member_name(member['name'])}: {hint}{optional}")
        out.append("")
    for name, (tag, branches) in sorted(types.unions.items()):
        for value, struct in branches.items():
            bases = f"{struct}, {name}" if struct else name
            enum = _tag_type(types, name, tag)  # its default is the branch's value
            out.append(
                f"@final\n@attrs.frozen(kw_only=True)\nclass {branch_name(name, value)}({bases}):"
            )
            out.append(f"    {member_name(tag)}: {enum} = ...\n")
    for name, alternatives in sorted(types.alternates.items()):
        hint = " | ".join(_hint(item, set()) for item in alternatives)
        out.append(f"{name}: TypeAlias = {hint}")
    return "\n".join(out) + "\n"


def _tag_type(types: Types, name: str, tag: str) -> str:
    base, members = types.structs[name]
    for member in members:
        if member["name"] == tag:
            return member["type"]
    return _tag_type(types, base, tag)


def _hint(kind: str, shadowed: set[str]) -> str:
    if kind.startswith("["):
        return f"{_builtin('list', shadowed)}[{_hint(kind[1:-1], shadowed)}]"
    if kind in INTEGERS:
        return _builtin("int", shadowed)
    return _builtin(PYTHON_TYPES.get(kind, kind), shadowed)


def _builtin(name: str, shadowed: set[str]) -> str:
    return f"builtins.{name}" if name in shadowed else name
