"""schemas/ and what is generated from it are fresh and whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qsd_trio._data import schemas_dir
from qsd_trio.qapi._schema import _change, build_schema, load_schema
from qsd_trio.qapi.introspect import command_names, event_names, query_qmp_schema
from tests.peers import requires

ROOT = Path(__file__).parents[2]
PAGE = "/usr/share/man/man7/qemu-storage-daemon-qmp-ref.7.gz"


def generate(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/gen_qapi.py", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@requires("qemu-storage-daemon")
def test_generated_files_are_fresh() -> None:
    done = generate("--check")
    assert (done.returncode, done.stdout) == (0, "")


def test_a_stale_file_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_text(
        '.TH "QEMU-STORAGE-DAEMON-QMP-REF" "7" "x" "9.9" "QEMU"\n.SS \\fBnonsense\\fP (Command)\n'
    )
    done = generate("--check", "--page", str(page))
    assert done.returncode == 1
    assert "stands before the first known module" in done.stderr


def test_baseline_and_union() -> None:
    old, new = load_schema("7.2"), load_schema()
    assert len(old) < len(new)
    assert set(old) <= set(new)
    assert "blockdev-set-active" not in old
    with pytest.raises(ValueError, match="no schema of version"):
        load_schema("8.0")


def test_every_type_named_is_defined() -> None:
    builtins = {"str", "bool", "number", "any", "null", "int", "size"}
    builtins |= {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
    schema: dict[str, Any] = dict(load_schema())
    named = set()
    for item in schema.values():
        named |= {item.get("base"), item.get("returns")} - {None}
        for key in ("members", "args", "branches", "alternatives"):
            content = item.get(key, [])
            named |= {content} if isinstance(content, str) else {i.get("type") for i in content}
    assert {str(name).strip("[]") for name in named - {None}} <= set(schema) | builtins


def test_overlay_names_the_version_of_all_it_adds() -> None:
    overlay = json.loads((schemas_dir() / "overlay.json").read_text())
    for change in overlay["changes"]:
        for key, items in change.get("add", {}).items():
            for item in items:
                known_by_value = key == "branches"
                # QEMU's own schema does not say it for these values.
                assert known_by_value or "since" in item or change["definition"] == "ObjectType"


def test_changes() -> None:
    definition: dict[str, object] = {
        "base": "A",
        "members": [{"name": "a", "type": "int"}, {"name": "b", "type": "int"}],
    }
    change = {
        "definition": "x",
        "set": {"base": "B"},
        "drop": {"members": ["a"]},
        "replace": {"members": [{"name": "b", "type": "str"}]},
        "add": {"members": [{"name": "c", "type": "bool"}]},
    }
    _change(definition, change)
    assert definition == {
        "base": "B",
        "members": [
            {"name": "b", "type": "str"},
            {"name": "c", "type": "bool", "optional": True},
        ],
    }


def test_unknown_conditions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "conditions.toml").write_text("build = []\nnot-built = ['A']\n")
    definitions = [{"struct": "X", "members": [{"name": "a", "type": "str", "if": "A"}]}]
    (tmp_path / "x.json").write_text(json.dumps({"module": "x", "definitions": definitions}))
    assert build_schema(tmp_path, overlay=False)["X"].get("members") == []
    definitions[0]["if"] = "B"
    (tmp_path / "x.json").write_text(json.dumps({"module": "x", "definitions": definitions}))
    with pytest.raises(ValueError, match="does not know B"):
        build_schema(tmp_path, overlay=False)


def test_introspection_is_whole() -> None:
    infos: list[Any] = list(query_qmp_schema())
    names = [info["name"] for info in infos]
    assert len(set(names)) == len(names)
    for info in infos:
        used = {info[key] for key in ("arg-type", "ret-type", "element-type") if key in info}
        members = info.get("members", []) if info["meta-type"] != "enum" else []
        used |= {member["type"] for member in members}
        used |= {variant["type"] for variant in info.get("variants", [])}
        assert used <= set(names)
    kinds = {info["name"]: info["meta-type"] for info in infos}
    assert {name for name, kind in kinds.items() if kind == "command"} == set(command_names())
    assert {name for name, kind in kinds.items() if kind == "event"} == set(event_names())
    json.dumps(infos)
