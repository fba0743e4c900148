"""Read the QAPI definitions out of the manual page qemu-storage-daemon-qmp-ref(7).

The page is roff made by docutils from QEMU's doc comments; groff_man(7) explains the macros. Names, members,
types, optional, defaults, "since", features and conditions are taken, prose is not. What the page cannot tell
(return types, integer widths, the order on the wire) comes from ``schemas/corrections.toml``.
"""

from __future__ import annotations

import gzip
import re
from typing import TYPE_CHECKING, TypeAlias, cast, final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Definition: TypeAlias = dict[str, object]

# The definition each QAPI module begins with: the page's headings do not follow the modules.
MODULE_STARTS = {
    "IoOperationType": "common",
    "QCryptoTLSCredsEndpoint": "crypto",
    "JobType": "job",
    "NetworkAddressFamily": "sockets",
    "SnapshotInfo": "block-core",
    "NbdServerOptions": "block-export",
    "ChardevInfo": "char",
    "qmp_capabilities": "control",
    "query-qmp-schema": "introspect",
    "QAuthZListPolicy": "authz",
    "ObjectPropertyInfo": "qom",
    "Abort": "transaction",
}

BUILTINS = {"string": "str", "boolean": "bool", "int": "int", "number": "number", "null": "null"}
BUILTINS |= {"value": "any"}

ESCAPES = {r"\-": "-", r"\(dq": '"', r"\(aq": "'", r"\e": "\\", r"\&": "", r"\ ": " "}
ESCAPE = re.compile(r"\\f[BIPR]|\\-|\\\(dq|\\\(aq|\\e|\\&|\\ ")
HEADING = re.compile(r"^\.SS (\S+) \((Object|Enum|Alternate|Command|Event)\)$")
MEMBER = re.compile(r"^(?P<name>\S+): (?P<type>[^(]+?)(?P<optional> \(optional\))?$")
INCLUDE = re.compile(r'^The members of (?P<type>\S+)(?: when (?P<tag>\S+) is "(?P<value>[^"]+)")?$')
CONDITION = re.compile(r" \(If: (?P<if>.+)\)$")
SINCE = re.compile(r"[Ss]ince:? (?:QEMU )?(\d+\.\d+)")
DEFAULT = re.compile(
    r"\bdefault(?:s to|:| is)? '?([\w][\w.+-]*?)'?(?=[\s,;)(]|\.?$|\.\s)", re.IGNORECASE
)
MEMBER_FEATURE = re.compile(r"^Members? ([\w ,-]+?) (?:is|are) ")


class PageError(Exception):
    """The page is not written as this reader expects."""


@final
@attrs.frozen
class Entry:
    """One item of a definition list: its head, and the text below it."""

    head: str
    text: str


@final
@attrs.define
class Block:
    """One definition of the page, cut into its sections."""

    name: str
    kind: str
    sections: dict[str, list[str]] = attrs.field(factory=dict)


def read_page(path: Path) -> tuple[str, dict[str, list[Definition]]]:
    """Return QEMU's version and the definitions of the page, by module, in the page's order."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    title = re.search(r'^\.TH "QEMU-STORAGE-DAEMON-QMP-REF" "7" "[^"]*" "([^"]+)"', text, re.M)
    if title is None:
        raise PageError(f"{path} is not qemu-storage-daemon-qmp-ref(7)")
    modules: dict[str, list[Definition]] = {}
    module = ""
    for block in _blocks(text):
        module = MODULE_STARTS.get(block.name, module)
        if not module:
            raise PageError(f"'{block.name}' stands before the first known module")
        modules.setdefault(module, []).append(_definition(block))
    return title[1], modules


def _blocks(text: str) -> Iterator[Block]:
    block: Block | None = None
    lines: list[str] = []
    for line in map(_clean, text.splitlines()):
        if (heading := HEADING.match(line)) is not None:
            if block is not None:
                yield block
            block = Block(name=heading[1], kind=heading[2])
            lines = block.sections.setdefault("", [])
        elif line.startswith(".SH") and block is not None:
            yield block
            block, lines = None, []
        elif line.startswith(".SS ") and block is not None:
            lines = block.sections.setdefault(line.removeprefix(".SS "), [])
        else:
            lines.append(line)
    if block is not None:
        yield block


def _clean(line: str) -> str:
    return ESCAPE.sub(lambda match: ESCAPES.get(match[0], ""), line)


def _entries(lines: list[str]) -> Iterator[Entry]:
    depth = 0
    head: str | None = None
    text: list[str] = []
    expects_head = False
    for line in lines:
        if line.startswith(".INDENT"):
            depth += 1
        elif line == ".UNINDENT":
            depth -= 1
        elif line == ".TP" and depth == 1:
            if head is not None:
                yield Entry(head=head, text=" ".join(text))
            head, text, expects_head = None, [], True
        elif expects_head:
            head, expects_head = line.removeprefix(".B "), False
        elif not line.startswith("."):
            text.append(line)
        elif line.startswith(".B "):
            text.append(line.removeprefix(".B "))
        if depth == 0 and head is not None:
            yield Entry(head=head, text=" ".join(text))
            head, text = None, []


def _definition(block: Block) -> Definition:
    kind = block.kind.lower()
    result: Definition = {"name": block.name}
    sections = block.sections
    if since := SINCE.search("since " + " ".join(_plain(sections.get("Since", [])))):
        result["since"] = since[1]
    if condition := _plain(sections.get("If", [])):
        result["if"] = " ".join(condition)
    if kind == "enum":
        result = {"enum": block.name, **result}
        result["values"] = [_value(entry) for entry in _entries(sections["Values"])]
    elif kind == "alternate":
        result = {"alternate": block.name, **result}
        result["branches"] = [_member(entry) for entry in _entries(sections["Members"])]
    else:
        section = "Members" if kind == "object" else "Arguments"
        _object(block.name, kind, result, list(_entries(sections.get(section, []))))
        word = {"object": "union" if "discriminator" in result else "struct"}.get(kind, kind)
        result = {word: block.name, **result}
    del result["name"]
    for entry in _entries(sections.get("Features", [])):
        _add_feature(result, entry)
    return result


def _object(name: str, kind: str, result: Definition, entries: list[Entry]) -> None:
    members: list[Definition] = []
    branches: list[Definition] = []
    for entry in entries:
        head, condition = _split_condition(entry.head)
        include = INCLUDE.match(head)
        if include is None:
            members.append(_member(entry))
        elif include["tag"] is None:
            key = "base" if kind == "object" else ("args" if kind == "command" else "data")
            if key in result:
                raise PageError(f"{name} has two bases")
            result[key] = include["type"]
        else:
            result["discriminator"] = include["tag"]
            branch: Definition = {"value": include["value"], "type": include["type"]}
            if condition:
                branch["if"] = condition
            branches.append(branch)
    if members or kind == "object":
        key = "members" if kind == "object" else ("args" if kind == "command" else "data")
        if key in result:
            raise PageError(f"{name} has both a type and members")
        result[key] = members
    if branches:
        result["branches"] = branches


def _split_condition(head: str) -> tuple[str, str | None]:
    condition = CONDITION.search(head)
    return (head, None) if condition is None else (head[: condition.start()], condition["if"])


def _value(entry: Entry) -> Definition:
    name, condition = _split_condition(entry.head)
    value: Definition = {"name": name}
    if condition:
        value["if"] = condition
    if since := SINCE.search(entry.text):
        value["since"] = since[1]
    return value


def _member(entry: Entry) -> Definition:
    head, condition = _split_condition(entry.head)
    match = MEMBER.match(head)
    if match is None:
        raise PageError(f"not a member: '{entry.head}'")
    member: Definition = {"name": match["name"], "type": _type(match["type"])}
    if match["optional"]:
        member["optional"] = True
        if default := DEFAULT.search(entry.text):
            member["default"] = default[1]
    if condition:
        member["if"] = condition
    if since := SINCE.search(entry.text):
        member["since"] = since[1]
    return member


def _type(text: str) -> str:
    if text.startswith("array of "):
        return f"[{_type(text.removeprefix('array of '))}]"
    return BUILTINS.get(text, text)


def _add_feature(result: Definition, entry: Entry) -> None:
    """File a feature with the definition, or with the members its text begins by naming."""
    names: list[str] = []
    if match := MEMBER_FEATURE.match(entry.text):
        names = re.split(r", | and ", match[1])
    key = next(
        (k for k in ("members", "args", "data", "values") if isinstance(result.get(k), list)), ""
    )
    members = cast(list[Definition], result.get(key, []))
    if entry.text.startswith("All members starting with x-"):
        names = [str(member["name"]) for member in members if str(member["name"]).startswith("x-")]
    owners = [member for member in members if member["name"] in names] or [result]
    for owner in owners:
        cast(list[str], owner.setdefault("features", [])).append(entry.head)


def _plain(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith(".")]
