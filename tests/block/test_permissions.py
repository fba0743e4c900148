"""Permissions: defaults per role, conflicts and their text."""

from __future__ import annotations

import attrs
import pytest

from qsd_trio.block.abc import ChildRole, Perm
from qsd_trio.block.permissions import (
    check_conflicts,
    cumulative,
    default_child_permissions,
    perm_names,
)
from qsd_trio.errors import QmpError

READ, WRITE, UNCHANGED, RESIZE = (
    Perm.CONSISTENT_READ,
    Perm.WRITE,
    Perm.WRITE_UNCHANGED,
    Perm.RESIZE,
)


@attrs.frozen
class FakeEdge:
    name: str
    parent: str
    perm: Perm = Perm.NONE
    shared: Perm = Perm.ALL

    def parent_desc(self) -> str:
        return self.parent


@pytest.mark.parametrize(
    ("role", "read_only", "needed", "shared", "child_needed", "child_shared"),
    [
        (ChildRole.FILTERED, False, READ | WRITE, READ, READ | WRITE, READ),
        (ChildRole.IMAGE, False, Perm.NONE, Perm.ALL, READ | WRITE | RESIZE, READ | UNCHANGED),
        (ChildRole.IMAGE, True, Perm.NONE, Perm.ALL, READ, READ | UNCHANGED),
        (ChildRole.DATA, False, Perm.NONE, Perm.ALL, Perm.NONE, READ | WRITE | UNCHANGED),
        (ChildRole.DATA, False, WRITE, Perm.ALL, WRITE | RESIZE, READ | WRITE | UNCHANGED),
        (ChildRole.COW, False, READ | WRITE, Perm.ALL, READ, Perm.ALL),
        (ChildRole.COW, False, Perm.NONE, READ, Perm.NONE, READ | UNCHANGED),
    ],
)
def test_defaults_per_role(
    role: ChildRole,
    read_only: bool,
    needed: Perm,
    shared: Perm,
    child_needed: Perm,
    child_shared: Perm,
) -> None:
    got = default_child_permissions(role, needed, shared, read_only=read_only)
    assert got == (child_needed, child_shared)


def test_conflict_names_both_sides() -> None:
    old = FakeEdge("root", "an unnamed block device")
    new = FakeEdge("file", "node 'q'")
    edges = [(new, READ, READ | UNCHANGED), (old, READ | WRITE | RESIZE, Perm.ALL)]
    with pytest.raises(QmpError) as excinfo:
        check_conflicts("f", edges)
    assert str(excinfo.value) == (
        "Permission conflict on node 'f': permissions 'write, resize' are both required by"
        " an unnamed block device (uses node 'f' as 'root' child) and unshared by"
        " node 'q' (uses node 'f' as 'file' child)."
    )
    check_conflicts("f", [(new, READ, READ | UNCHANGED), (old, READ, Perm.ALL)])
    check_conflicts("f", [(new, WRITE, READ)])


def test_cumulative() -> None:
    assert cumulative([]) == (Perm.NONE, Perm.ALL)
    assert cumulative([(READ, READ | WRITE), (WRITE, READ)]) == (READ | WRITE, READ)


def test_names_are_in_qemus_order() -> None:
    assert perm_names(Perm.ALL) == ["consistent-read", "write", "write-unchanged", "resize"]
