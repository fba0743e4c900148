"""Turn JSON and keyval values into the types of qsd_trio.qapi, and back.

Two converters on one set of types, as QEMU has two input visitors: QMP is strict (5 is not "5"), keyval takes
every scalar as text. Errors are QmpError with QEMU's texts. They come in QEMU's order: members as the schema
has them, a union's branch after its base, members nobody knows last.

QEMU prints some errors with the full path of the member and some with its name alone; so do we.
"""

# ruff: noqa: ANN401  # the work here is to turn untyped JSON into types, and back

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast, final

import cattrs

from qsd_trio.errors import QmpError
from qsd_trio.qapi._base import NULL, QapiNull, QapiObject
from qsd_trio.qapi._build import INTEGERS, flat_members, make, make_branch
from qsd_trio.qapi._names import member_name
from qsd_trio.qapi._tables import ALTERNATES, COMMANDS, ENUMS, STRUCTS, UNIONS
from qsd_trio.qapi.numbers import (
    INT64_MAX,
    INT64_MIN,
    UINT64_MAX,
    SizeError,
    parse_bool,
    parse_int,
    parse_number,
    parse_size,
    parse_uint,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

WRONG_TYPE = "Invalid parameter type for '{}', expected: {}"
EXPECTS = "Parameter '{}' expects {}"


@final
class _Invalid(Exception):
    """A value does not fit; each level it passes on the way out adds its name to ``path``."""

    def __init__(
        self, text: str, *args: str, local: bool = False, path: str | int | None = None
    ) -> None:
        super().__init__(text)
        self.text = text
        self.args_ = args
        self.local = local
        self.path: list[str | int] = [] if path is None else [path]

    def message(self, *, indices_as_names: bool) -> str:
        if self.local:
            innermost = self.path[0] if self.path else None
            name = innermost if isinstance(innermost, str) else "null"
        else:
            name = ""
            for part in reversed(self.path):
                if isinstance(part, int) and not indices_as_names:
                    name += f"[{part}]"
                else:
                    name += f".{part}" if name else str(part)
        return self.text.format(name or "<anonymous>", *self.args_)


class _Visitor(ABC):
    """What differs between the two converters: how scalars are read."""

    indices_as_names: bool

    @abstractmethod
    def text(self, value: Any) -> str:
        """Return a string."""

    @abstractmethod
    def boolean(self, value: Any) -> bool:
        """Return a bool."""

    @abstractmethod
    def int64(self, value: Any) -> int:
        """Return an int64."""

    @abstractmethod
    def uint64(self, value: Any) -> int:
        """Return an uint64."""

    @abstractmethod
    def size(self, value: Any) -> int:
        """Return a number of bytes."""

    @abstractmethod
    def number(self, value: Any) -> float:
        """Return a number."""


@final
class _Strict(_Visitor):
    """JSON's types are the QAPI's."""

    indices_as_names = False

    def text(self, value: Any) -> str:
        return value if isinstance(value, str) else _wrong_type("string")

    def boolean(self, value: Any) -> bool:
        return value if isinstance(value, bool) else _wrong_type("boolean")

    def int64(self, value: Any) -> int:
        if type(value) is int and INT64_MIN <= value <= INT64_MAX:
            return value
        _wrong_type("integer")

    def uint64(self, value: Any) -> int:
        if type(value) is int and INT64_MIN <= value <= UINT64_MAX:
            return value & UINT64_MAX  # QEMU takes negative numbers, for compatibility
        raise _Invalid(EXPECTS, "uint64")

    size = uint64

    def number(self, value: Any) -> float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
        _wrong_type("number")


@final
class _Lenient(_Visitor):
    """Everything is text, as parse_keyval() leaves it."""

    indices_as_names = True

    def text(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        raise _Invalid("Parameters '{}.*' are unexpected")

    def boolean(self, value: Any) -> bool:
        return self._parsed(parse_bool, value, "'on' or 'off'")

    def int64(self, value: Any) -> int:
        return self._parsed(parse_int, value, "integer")

    def uint64(self, value: Any) -> int:
        return self._parsed(parse_uint, value, "integer")

    def number(self, value: Any) -> float:
        return self._parsed(parse_number, value, "number")

    def size(self, value: Any) -> int:
        return self._parsed(_size_or_none, value, "size")

    def _parsed(self, parse: Callable[[str], T | None], value: Any, expected: str) -> T:
        result = parse(self.text(value))
        if result is None:
            raise _Invalid(EXPECTS, expected)
        return result


def _size_or_none(text: str) -> int | None:
    try:
        return parse_size(text)
    except SizeError:
        return None


def _wrong_type(expected: str) -> NoReturn:
    raise _Invalid(WRONG_TYPE, expected)


@final
class _Converter:
    """A cattrs converter whose hooks are made from the tables, type by type on first use."""

    def __init__(self, visitor: _Visitor) -> None:
        self._visitor = visitor
        self._cattrs = cattrs.Converter(detailed_validation=False)
        self._cattrs.register_structure_hook_factory(_is_qapi, self._make_hook)
        self._hooks: dict[str, Callable[[Any], Any]] = {}

    def structure(self, value: Any, kind: Any) -> Any:
        """Return ``value`` as ``kind``, a type of qsd_trio.qapi. Raises QmpError."""
        try:
            return self._cattrs.structure(value, kind)
        except _Invalid as invalid:
            text = invalid.message(indices_as_names=self._visitor.indices_as_names)
        raise QmpError(text)

    def _make_hook(self, kind: Any) -> Callable[[Any, Any], Any]:
        hook = self._hook(_qapi_name(kind))
        return lambda value, _: hook(value)

    def _hook(self, name: str) -> Callable[[Any], Any]:
        """Return the function that reads the QAPI type ``name``; types name each other in circles."""
        if name not in self._hooks:
            self._hooks[name] = self._make(name)
        return self._hooks[name]

    def _make(self, name: str) -> Callable[[Any], Any]:
        visitor = self._visitor
        if name.startswith("["):
            return self._list_hook(name[1:-1])
        match name:
            case "str":
                return visitor.text
            case "bool":
                return visitor.boolean
            case "number":
                return visitor.number
            case "size":
                return visitor.size
            case "uint64":
                return visitor.uint64
            case "int" | "int64":
                return visitor.int64
            case "null":
                return _null
            case "any":
                return _any
        if name in INTEGERS:
            return self._narrow_hook(name)
        if name in ENUMS:
            return self._enum_hook(name)
        if name in ALTERNATES:
            return self._alternate_hook(name)
        if name in UNIONS:
            return self._union_hook(name)
        return self._struct_hook(name)

    def _narrow_hook(self, name: str) -> Callable[[Any], int]:
        signed = name.startswith("int")
        bits = int(name.removeprefix("u").removeprefix("int"))
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        read = self._visitor.int64 if signed else self._visitor.uint64

        def narrow(value: Any) -> int:
            number = read(value)
            if low <= number <= high:
                return number
            raise _Invalid(EXPECTS, f"{name}_t", local=True)

        return narrow

    def _enum_hook(self, name: str) -> Callable[[Any], Any]:
        members: dict[str, Any] = {}
        read = self._visitor.text

        def enumeration(value: Any) -> Any:
            text = read(value)
            if not members:
                members.update((member.value, member) for member in cast(Any, make(name)))
            if text in members:
                return members[text]
            raise _Invalid("Parameter '{}' does not accept value '{}'", text, local=True)

        return enumeration

    def _list_hook(self, element: str) -> Callable[[Any], list[Any]]:
        def array(value: Any) -> list[Any]:
            if not isinstance(value, list):
                _wrong_type("array")
            read = self._hook(element)
            result = []
            for index, item in enumerate(value):
                try:
                    result.append(read(item))
                except _Invalid as invalid:
                    invalid.path.append(index)
                    raise
            return result

        return array

    def _alternate_hook(self, name: str) -> Callable[[Any], Any]:
        """The JSON type picks the branch."""
        branches = {_json_type(kind): kind for kind in ALTERNATES[name]}

        def alternate(value: Any) -> Any:
            kind = branches.get(type(value))
            if kind is None:
                raise _Invalid(WRONG_TYPE, name, local=True)
            return self._hook(kind)(value)

        return alternate

    def _struct_hook(self, name: str) -> Callable[[Any], Any]:
        cls = cast("type[Any]", make(name))
        members = self._members(flat_members(name))

        def struct(value: Any) -> Any:
            if not isinstance(value, dict):
                _wrong_type("object")
            found = members.read(value)
            if len(found) != len(value):
                _refuse_unknown(value, members.names)
            return cls(**found)

        return struct

    def _union_hook(self, name: str) -> Callable[[Any], Any]:
        common = self._members(flat_members(name))
        tag = member_name(UNIONS[name][0])
        structs = dict(UNIONS[name][1])
        branches: dict[str, _Members] = {}

        def union(value: Any) -> Any:
            if not isinstance(value, dict):
                _wrong_type("object")
            found = common.read(value)
            branch = found[tag].value
            if branch not in branches:
                struct = structs[branch]
                branches[branch] = self._members(flat_members(struct) if struct else [])
            found |= branches[branch].read(value)
            if len(found) != len(value):
                _refuse_unknown(value, common.names | branches[branch].names)
            return cast("Any", make_branch(name, branch))(**found)

        return union

    def _members(self, members: list[tuple[str, str, bool]]) -> _Members:
        return _Members(
            tuple(
                (wire, member_name(wire), optional, partial(self._read_as, kind))
                for wire, kind, optional in members
            )
        )

    def _read_as(self, kind: str, value: Any) -> Any:
        return self._hook(kind)(value)


@final
class _Members:
    """How the members of one object are read: wire name, Python's name, optional, reader."""

    def __init__(self, items: tuple[tuple[str, str, bool, Callable[[Any], Any]], ...]) -> None:
        self._items = items
        self.names = frozenset(item[0] for item in items)

    def read(self, value: dict[str, Any]) -> dict[str, Any]:
        """Return what ``value`` has of them, by Python's names."""
        found: dict[str, Any] = {}
        for wire, name, optional, read in self._items:
            if wire in value:
                try:
                    found[name] = read(value[wire])
                except _Invalid as invalid:
                    invalid.path.append(wire)
                    raise
            elif not optional:
                raise _Invalid("Parameter '{}' is missing", path=wire)
        return found


def _refuse_unknown(value: dict[str, Any], known: frozenset[str]) -> NoReturn:
    unknown = next(name for name in value if name not in known)
    raise _Invalid("Parameter '{}' is unexpected", path=unknown)


def _null(value: Any) -> QapiNull:
    return NULL if value is None else _wrong_type("null")


def _any(value: Any) -> Any:
    return NULL if value is None else value  # None would be an absent member


def _json_type(kind: str) -> type[object]:
    if kind.startswith("["):
        return list
    if kind in STRUCTS:
        return dict
    if kind in INTEGERS:
        return int
    scalars: dict[str, type[object]] = {"bool": bool, "number": float, "null": type(None)}
    return scalars.get(kind, str)


def _is_qapi(kind: Any) -> bool:
    return _qapi_name(kind) != ""


def _qapi_name(kind: Any) -> str:
    """Return the QAPI type a Python type stands for, or ""."""
    name = getattr(kind, "__name__", "")
    if name in STRUCTS or name in ENUMS:
        return str(name) if make(name) is kind else ""
    return ""


def _json_object(value: QapiObject) -> dict[str, Any]:
    """Write an object's members in the order of the schema, without those that are absent."""
    return {
        wire: _out.unstructure(member)
        for name, wire in value.qapi_members
        if (member := getattr(value, name)) is not None
    }


_strict: Final = _Converter(_Strict())
_lenient: Final = _Converter(_Lenient())
_out: Final = cattrs.Converter()
_out.register_unstructure_hook(QapiObject, _json_object)


def from_qmp(kind: type[T], value: object) -> T:
    """Return JSON ``value`` as ``kind``, strictly. Raises QmpError with QEMU's text."""
    return cast("T", _strict.structure(value, kind))


def from_keyval(kind: type[T], value: object) -> T:
    """Return what parse_keyval() gave as ``kind``: text becomes numbers, switches, sizes, enums.

    Raises QmpError with QEMU's text.
    """
    return cast("T", _lenient.structure(value, kind))


def to_qmp(value: object) -> Any:
    """Return a QAPI object, a list of them or a scalar as JSON; absent members are left out."""
    return _out.unstructure(value)


def command_arg_type(command: str) -> type[QapiObject] | None:
    """Return the type of a command's arguments; None if it has none. Raises KeyError if there is no such command."""
    name = COMMANDS[command][0]
    return cast("type[QapiObject]", make(name)) if name else None


def args_from_qmp(command: str, arguments: Mapping[str, object]) -> Any:
    """Return a command's arguments as its type, None if it takes none.

    Raises QmpError with QEMU's text, KeyError if there is no such command.
    """
    kind = command_arg_type(command)
    if kind is not None:
        return from_qmp(kind, arguments)
    for name in arguments:
        raise QmpError(f"Parameter '{name}' is unexpected")
    return None
