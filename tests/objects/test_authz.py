"""Access lists."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from qsd_trio.errors import QmpError
from qsd_trio.objects.abc import ObjectTable
from qsd_trio.objects.authz import AuthzListFile, AuthzSimple, Rule, decide


@pytest.mark.parametrize(
    ("rules", "default", "identity", "allowed"),
    [
        ([], "deny", "x", False),
        ([], "allow", "x", True),
        ([Rule("fred", "allow")], "deny", "fred", True),
        ([Rule("fred", "allow")], "deny", "fre", False),
        ([Rule("f*", "allow")], "deny", "fred", False),  # exact unless said otherwise
        ([Rule("f*", "allow", "glob")], "deny", "fred", True),
        ([Rule("f?ed", "allow", "glob")], "deny", "fred", True),
        ([Rule("f?ed", "allow", "glob")], "deny", "fed", False),
        ([Rule("[f]red", "allow", "glob")], "deny", "fred", False),
        ([Rule("a.c", "allow", "glob")], "deny", "abc", False),
        ([Rule("*", "allow", "glob")], "deny", "a\nb", True),
        ([Rule("fred", "deny"), Rule("*", "allow", "glob")], "deny", "fred", False),
        ([Rule("*", "allow", "glob"), Rule("fred", "deny")], "deny", "fred", True),
    ],
)
def test_the_first_rule_that_matches_decides(
    rules: list[Rule], default: str, identity: str, allowed: bool
) -> None:
    assert decide(rules, default, identity) is allowed


def test_simple() -> None:
    authz = AuthzSimple.create(SimpleNamespace(id="a", identity="CN=x"))
    assert authz.is_allowed("CN=x")
    assert not authz.is_allowed("CN=xy")


async def listfile(path: Path, refresh: bool | None = None) -> AuthzListFile:
    authz = AuthzListFile.create(SimpleNamespace(id="a", filename=str(path), refresh=refresh))
    await authz.complete(ObjectTable())
    return authz


def write(path: Path, policy: str) -> None:
    path.write_text(json.dumps({"policy": policy, "rules": []}))
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


async def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "list"
    write(path, "deny")
    watching, fixed = await listfile(path), await listfile(path, refresh=False)
    assert not watching.is_allowed("x")
    write(path, "allow")
    assert watching.is_allowed("x")
    assert not fixed.is_allowed("x")


async def test_a_file_that_went_bad_denies(tmp_path: Path) -> None:
    path = tmp_path / "list"
    write(path, "allow")
    authz = await listfile(path)
    assert authz.is_allowed("x")
    path.unlink()
    assert not authz.is_allowed("x")
    write(path, "allow")
    assert authz.is_allowed("x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"policy": "maybe"}',
        '{"rules": [{"match": "x"}]}',
        '{"rules": [{}]}',
        '{"rules": 1}',
    ],
)
async def test_a_file_that_is_bad_from_the_start_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list"
    path.write_text(text)
    with pytest.raises(QmpError):
        await listfile(path)
