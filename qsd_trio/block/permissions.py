"""Permissions on nodes: who needs what, who leaves what to others. Pure.

An edge carries the permissions its parent needs and those it shares. Two edges to one node
conflict when one needs what the other does not share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from qsd_trio.block.abc import ChildRole, Perm
from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: In QEMU's order of bits, as lists of permissions in texts are sorted.
PERM_NAMES = {
    Perm.CONSISTENT_READ: "consistent-read",
    Perm.WRITE: "write",
    Perm.WRITE_UNCHANGED: "write-unchanged",
    Perm.RESIZE: "resize",
}


def perm_names(perm: Perm) -> list[str]:
    """Return the QAPI names of the permissions in ``perm``."""
    return [name for bit, name in PERM_NAMES.items() if perm & bit]


def default_child_permissions(
    role: ChildRole, needed: Perm, shared: Perm, *, read_only: bool
) -> tuple[Perm, Perm]:
    """Return what a driver without needs of its own takes and shares on a child of ``role``."""
    if role & ChildRole.FILTERED:
        return needed, shared
    if role & ChildRole.COW:
        # Nothing but reading happens on a backing file. If the parent can deal with changing
        # data, so can we: let others write and resize it.
        others = Perm.WRITE | Perm.RESIZE if shared & Perm.WRITE else Perm.NONE
        return needed & Perm.CONSISTENT_READ, others | Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED
    if role & ChildRole.METADATA:
        # A format driver writes metadata even if nobody writes data, and nobody else may.
        if not read_only:
            needed |= Perm.WRITE | Perm.RESIZE
        needed |= Perm.CONSISTENT_READ
        shared &= ~(Perm.WRITE | Perm.RESIZE)
    if role & ChildRole.DATA:
        if needed & Perm.WRITE:
            needed |= Perm.RESIZE  # writing data may have to grow the child
        shared &= ~Perm.RESIZE
    return needed, shared


class PermissionEdge(Protocol):
    """What the conflict check must know of an edge."""

    @property
    def name(self) -> str: ...
    @property
    def perm(self) -> Perm: ...
    @property
    def shared(self) -> Perm: ...
    def parent_desc(self) -> str:
        """Return how texts name the parent: "node 'x'", "an unnamed block device" ..."""
        ...


def cumulative(edges: Iterable[tuple[Perm, Perm]]) -> tuple[Perm, Perm]:
    """Return the union of what is needed and the intersection of what is shared."""
    needed, shared = Perm.NONE, Perm.ALL
    for edge_needed, edge_shared in edges:
        needed |= edge_needed
        shared &= edge_shared
    return needed, shared


def check_conflicts(node_name: str, edges: Sequence[tuple[PermissionEdge, Perm, Perm]]) -> None:
    """Raise QmpError if two of a node's edges (edge, needed, shared), newest first, conflict."""
    for a, _, a_shared in edges:
        for b, b_needed, _ in edges:
            conflict = b_needed & ~a_shared
            if a is b or not conflict:
                continue
            names = ", ".join(name.replace("-", " ") for name in perm_names(conflict))
            raise QmpError(
                f"Permission conflict on node '{node_name}': permissions '{names}' are both required by {b.parent_desc()}"
                f" (uses node '{node_name}' as '{b.name}' child) and unshared by {a.parent_desc()}"
                f" (uses node '{node_name}' as '{a.name}' child)."
            )
