"""query-qmp-schema restricted to 7.2 is the C daemon's answer up to the names of types and order."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from typing import Any

from qsd_trio.qapi.introspect import command_names, query_qmp_schema
from tests.peers import requires


@cache
def ask_real() -> tuple[list[Any], list[Any]]:
    """Return the real daemon's query-qmp-schema and query-commands."""
    names = ("qmp_capabilities", "query-qmp-schema", "query-commands", "quit")
    text = "".join(json.dumps({"execute": name}) + "\n" for name in names)
    argv = ["qemu-storage-daemon", "--chardev", "stdio,id=c", "--monitor", "c"]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=60, check=True)
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    schema, commands = (reply["return"] for reply in replies[2:4])
    return schema, commands


class Canonical:
    """Rename types by the path on which they are first reached, in an order of names alone."""

    def __init__(self, infos: list[Any]) -> None:
        roots = {"command", "event"}
        self.roots = {info["name"]: info for info in infos if info["meta-type"] in roots}
        self.types = {info["name"]: info for info in infos if info["meta-type"] not in roots}
        self.names: dict[str, str] = {}
        self.result: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        for name in sorted(self.roots):
            info = dict(self.roots[name])
            for key in ("arg-type", "ret-type"):
                if key in info:
                    info[key] = self.visit(info[key], f"{name} {key}")
            self.result[name] = self.sorted(info)
        assert set(self.names) == set(self.types), "a type that nothing reaches"
        return self.result

    def visit(self, number: str, path: str) -> str:
        if number in self.names:
            return self.names[number]
        self.names[number] = path
        info = dict(self.types[number])
        info["name"] = path
        if "element-type" in info:
            info["element-type"] = self.visit(info["element-type"], f"{path}[]")
        if info["meta-type"] == "object":
            info["members"] = [
                {**member, "type": self.visit(member["type"], f"{path}.{member['name']}")}
                for member in sorted(info["members"], key=lambda member: member["name"])
            ]
            info["variants"] = [
                {**case, "type": self.visit(case["type"], f"{path}<{case['case']}>")}
                for case in sorted(info.get("variants", []), key=lambda case: case["case"])
            ]
        if info["meta-type"] == "alternate":
            order = sorted(info["members"], key=lambda member: self.json_type(member["type"]))
            kinds = [self.json_type(member["type"]) for member in order]
            info["members"] = [
                self.visit(member["type"], f"{path}|{kind}")
                for kind, member in zip(kinds, order, strict=True)
            ]
        self.result[path] = self.sorted(info)
        return path

    def json_type(self, number: str) -> str:
        info = self.types[number]
        return str(info.get("json-type", info["meta-type"]))

    @staticmethod
    def sorted(info: Any) -> Any:
        for key in ("members", "values", "features"):
            if key in info:
                info[key] = sorted(info[key], key=repr)
        return info


@requires("qemu-storage-daemon")
def test_schema_of_7_2_equals_the_c_daemon_s() -> None:
    theirs = Canonical(ask_real()[0]).run()
    ours = Canonical(json.loads(json.dumps(query_qmp_schema("7.2")))).run()
    assert set(ours) == set(theirs)
    assert {name: ours[name] for name in ours if ours[name] != theirs[name]} == {}
    assert len(ours) > 450


@requires("qemu-storage-daemon")
def test_all_commands_of_7_2_are_there() -> None:
    theirs = {item["name"] for item in ask_real()[1]}
    newer = {"block-job-change", "blockdev-set-active", "qom-list-get"}
    assert set(command_names()) == theirs | newer
