"""Nothing is half added: rooms, their indexes, schemas/support.toml and the schemas name the same things."""

from __future__ import annotations

import ast
import importlib
import tomllib
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from qsd_trio import registry
from qsd_trio._data import schemas_dir
from qsd_trio.qapi.introspect import command_names, event_names, query_qmp_schema
from qsd_trio.registry import Registry
from qsd_trio.untyped import Options

PACKAGE = Path(__file__).parents[1] / "qsd_trio"


def enum_values(command: str, *path: str) -> set[str]:
    """Follow members from a command's arguments to an enumeration and return its values."""
    infos = {str(info["name"]): info for info in query_qmp_schema()}
    info = infos[str(infos[command]["arg-type"])]
    for name in path:
        members = info["members"]
        assert isinstance(members, list)
        (member,) = (member for member in members if member["name"] == name)
        info = infos[member["type"]]
    values = info["members"]
    assert isinstance(values, list)
    return {value["name"] for value in values}


@attrs.frozen
class Kind:
    """One kind of thing that can be added."""

    section: str  # of support.toml
    room: str
    decorator: str
    registry: Registry[Options]
    known: Callable[[], set[str]]


KINDS = (
    Kind("commands", "commands", "command", registry.commands, lambda: set(command_names())),
    Kind(
        "block-drivers",
        "block.drivers",
        "block_driver",
        registry.block_drivers,
        lambda: enum_values("blockdev-add", "driver"),
    ),
    Kind(
        "blockdev-create",
        "block.drivers",
        "create_driver",
        registry.create_drivers,
        lambda: enum_values("blockdev-create", "options", "driver"),
    ),
    Kind(
        "exports",
        "exports",
        "export_type",
        registry.export_types,
        lambda: enum_values("block-export-add", "type"),
    ),
    Kind(
        "chardevs",
        "chardevs",
        "chardev_backend",
        registry.chardev_backends,
        lambda: enum_values("chardev-add", "backend", "type"),
    ),
    Kind(
        "objects",
        "objects",
        "user_creatable_object",
        registry.user_creatable,
        lambda: enum_values("object-add", "qom-type"),
    ),
)
BY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.section)


def support() -> dict[str, dict[str, dict[str, str]]]:
    return tomllib.loads((schemas_dir() / "support.toml").read_text())


def decorated(kind: Kind) -> dict[str, str]:
    """Read the names that the room's files give to the decorator: name -> module."""
    result = {}
    folder = PACKAGE / kind.room.replace(".", "/")
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            for call in node.decorator_list:
                match call:
                    case ast.Call(func=ast.Name(id=kind.decorator), args=names):
                        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
                        for name in names:
                            assert isinstance(name, ast.Constant), f"{path}: a name is a literal"
                            result[str(name.value)] = f"qsd_trio.{module}"
    return result


@BY_KIND
def test_what_a_room_holds_its_index_names(kind: Kind) -> None:
    importlib.import_module(f"qsd_trio.{kind.room}")
    assert set(kind.registry) == decorated(kind).keys()


@BY_KIND
def test_what_an_index_names_is_there(kind: Kind) -> None:
    importlib.import_module(f"qsd_trio.{kind.room}")
    assert [name for name in kind.registry if kind.registry.get(name) is None] == []


@BY_KIND
def test_what_is_there_the_schemas_know(kind: Kind) -> None:
    importlib.import_module(f"qsd_trio.{kind.room}")
    assert set(kind.registry) <= kind.known()


@BY_KIND
def test_support_table_says_what_is_there(kind: Kind) -> None:
    importlib.import_module(f"qsd_trio.{kind.room}")
    entries = support()[kind.section]
    assert entries.keys() == kind.known()
    there = {name for name, entry in entries.items() if entry["status"] in ("done", "partial")}
    assert there == set(kind.registry)


def test_support_table_knows_every_event() -> None:
    assert support()["events"].keys() == set(event_names())


def test_support_table_gives_reasons() -> None:
    kinds = support()
    assert kinds.keys() == {"events", *(kind.section for kind in KINDS)}
    for entries in kinds.values():
        for name, entry in entries.items():
            wanted = {"done": set(), "partial": {"missing"}, "refused": {"why"}}[entry["status"]]
            assert entry.keys() == {"status", *wanted}, name
            assert all(entry[key].strip() for key in wanted), name
