"""Every member of every command with wrong values: our converter says what the C daemon says."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from qsd_trio.errors import QmpError
from qsd_trio.qapi._schema import load_schema
from qsd_trio.qapi.converter import args_from_qmp
from tests.peers import requires
from tests.qapi.samples import Samples

PARTS = 2


def ask_real(commands: list[tuple[str, Any]]) -> list[str]:
    """Return the real daemon's error texts."""
    lines = [{"execute": "qmp_capabilities"}]
    lines += [{"execute": name, "arguments": arguments} for name, arguments in commands]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"execute":"quit"}\n'
    argv = ["qemu-storage-daemon", "--chardev", "stdio,id=c", "--monitor", "c"]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=60, check=True)
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    replies = [reply for reply in replies if "return" in reply or "error" in reply]
    return [reply.get("error", {}).get("desc", "OK") for reply in replies[1:-1]]


def ask_ours(commands: list[tuple[str, Any]]) -> list[str]:
    """Return our converter's error texts."""
    texts = []
    for name, arguments in commands:
        try:
            args_from_qmp(name, arguments)
        except QmpError as error:
            texts.append(str(error))
        else:
            texts.append("OK")
    return texts


def is_newer(name: str, arguments: Any) -> bool:
    """Tell where 11.1's schema, which ours includes, takes what 7.2 refuses."""
    if name == "block-export-add":
        return not isinstance(arguments.get("iothread", ""), str)
    options = arguments.get("options")
    return (
        name == "blockdev-create"
        and isinstance(options, dict)
        and options.get("driver") == "luks"
        and "file" not in options
    )


@requires("qemu-storage-daemon")
@pytest.mark.parametrize("part", range(PARTS))
def test_wrong_arguments_give_the_same_error_text(part: int) -> None:
    commands = [item for item in Samples(load_schema("7.2")).all() if not is_newer(*item)]
    commands = commands[part::PARTS]
    assert len(commands) > 10000 / PARTS
    real, ours = ask_real(commands), ask_ours(commands)
    differ = [
        (command, theirs, mine)
        for command, theirs, mine in zip(commands, real, ours, strict=True)
        if theirs != mine
    ]
    assert differ == []
    assert len(set(real)) > 1000 / PARTS


ODD: list[tuple[str, Any]] = [
    ("blockdev-add", {"driver": "qcow2", "file": {"driver": "null-co", "zzz": 1}}),
    ("blockdev-reopen", {"options": [{"driver": "raw", "file": {"driver": "file"}}]}),
    ("blockdev-reopen", {"options": [{"driver": "raw", "file": "a", "cache": {"direct": 5}}]}),
    ("blockdev-reopen", {"options": ["a", 5]}),
    ("block-export-add", {"type": "nbd", "id": "e", "node-name": "a", "bitmaps": ["a", 5]}),
    ("block-export-add", {"type": "nbd", "id": "e", "node-name": "a", "bitmaps": ["a", {}]}),
    ("transaction", {"actions": [{"type": "abort", "data": {"a": 1}}]}),
    ("query-block", {"foo": 1}),
    ("quit", {"foo": 1}),
    ("blockdev-add", {"driver": "qcow2", "file": {"driver": "qcow2", "file": {"driver": "raw"}}}),
    ("blockdev-add", {"driver": "quorum", "vote-threshold": 1, "children": ["a", None]}),
    ("blockdev-add", {"driver": "qcow2", "file": "a", "backing": False}),
    ("blockdev-add", {"driver": "qcow2", "file": "a", "overlap-check": {"template": "foo"}}),
    ("blockdev-add", {"driver": "", "file": "a"}),
    ("blockdev-add", {"driver": "QCOW2", "file": "a"}),
]


@requires("qemu-storage-daemon")
def test_errors_deep_inside_name_the_same_path() -> None:
    assert ask_ours(ODD) == ask_real(ODD)
