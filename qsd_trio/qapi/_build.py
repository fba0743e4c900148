"""Make the classes of the QAPI types from _tables.py.

An attrs class takes half a millisecond to make and there are seven hundred types, so each is made when
it is first asked for, and equality and repr come from the common base.
"""

from __future__ import annotations

import enum
from functools import cache
from types import GenericAlias
from typing import TypeAlias, Union, cast

import attrs

from qsd_trio.qapi._base import QapiNull, QapiObject
from qsd_trio.qapi._names import branch_name, member_name, value_name
from qsd_trio.qapi._tables import ALTERNATES, ENUMS, STRUCTS, UNIONS

# A class, a list of one or a Union: made at run time, so that mypy has nothing to say about it.
Made: TypeAlias = type

MODULE = "qsd_trio.qapi"


INTEGERS = frozenset(
    ["int", "size", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))]
)
SCALARS = {"str": str, "bool": bool, "number": float, "any": object, "null": QapiNull}


@cache
def make(name: str) -> Made:
    """Return the class (or the Union, for an alternate) of the QAPI type ``name``.

    Raises KeyError if there is none.
    """
    if name in STRUCTS:
        return _make_struct(name)
    if name in ENUMS:
        values = [(value_name(value), value) for value in ENUMS[name]]
        return cast(Made, enum.Enum(name, values, module=MODULE))
    if name in ALTERNATES:
        branches = [make_type(item) for item in ALTERNATES[name]]
        return cast(Made, Union[tuple(branches)])  # noqa: UP007  # of a tuple made here
    union, _, _ = name.partition("_")
    for value, struct in UNIONS[union][1]:
        if branch_name(union, value) == name:
            return _make_branch(union, value, struct)
    raise KeyError(name)


def make_branch(union: str, value: str) -> Made:
    """Return the class of one branch of a union."""
    return make(branch_name(union, value))


def make_type(kind: str) -> Made:
    """Return the Python type of a type expression of the tables: "str", "[BlockdevRef]" ..."""
    if kind.startswith("["):
        return cast(Made, GenericAlias(list, (make_type(kind[1:-1]),)))
    if kind in INTEGERS:
        return int
    return SCALARS.get(kind) or make(kind)


def flat_members(name: str) -> list[tuple[str, str, bool]]:
    """Return the members of a struct on the wire, the base's first."""
    base, members = STRUCTS[name]
    return flat_members(base) + members if base else members


def tag_enum(union: str) -> str:
    """Return the name of the enum of a union's discriminator."""
    tag = UNIONS[union][0]
    return next(kind for name, kind, _ in flat_members(union) if name == tag)


def _make_struct(name: str) -> type[QapiObject]:
    base, members = STRUCTS[name]
    fields: dict[str, object] = {}
    for wire, _, optional in members:
        # The types stand in the tables: naming them here would make all that they name.
        default = None if optional else attrs.NOTHING
        fields[member_name(wire)] = attrs.field(default=default, kw_only=True)
    bases = (make(base),) if base else (QapiObject,)
    return _finish(name, fields, bases, flat_members(name))


def _make_branch(union: str, value: str, struct: str) -> type[QapiObject]:
    tag = UNIONS[union][0]
    kind = tag_enum(union)
    default = make(kind)(value)
    fields = {member_name(tag): attrs.field(default=default, kw_only=True)}
    bases = (make(struct), make(union)) if struct else (make(union),)
    members = flat_members(union) + (flat_members(struct) if struct else [])
    return _finish(branch_name(union, value), fields, bases, members)


def _finish(
    name: str,
    fields: dict[str, object],
    bases: tuple[type, ...],
    members: list[tuple[str, str, bool]],
) -> type[QapiObject]:
    made: type[QapiObject] = attrs.make_class(
        name,
        fields,
        bases=bases,
        class_body={
            "qapi_members": tuple((member_name(wire), wire) for wire, _, _ in members),
        },
        frozen=True,
        slots=False,
        eq=False,
        repr=False,
    )
    made.__module__ = MODULE  # make_class takes it from the caller's frame
    return made
