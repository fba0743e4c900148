"""The contract of user-creatable objects, and their table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar, TypeVar, final

from qsd_trio.errors import QmpError
from qsd_trio.registry import user_creatable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from typing import Self

    from qsd_trio.untyped import Json, Options

T = TypeVar("T")

#: What the largest int property takes.
INT64_MAX = (1 << 63) - 1


class UserCreatable(ABC):
    """An object that object-add makes: secrets, credentials, throttle groups, iothreads ...

    Its properties, with their types, stand in ``objects/qom.py`` under ``qom_name``.
    """

    #: The QAPI name (of ObjectType) ...
    type_name: ClassVar[str]
    #: ... and the QOM name, which differs for one type.
    qom_name: ClassVar[str]
    id: str
    #: How many users hold it; object-del refuses while there are any.
    users: int = 0

    @classmethod
    @abstractmethod
    def create(cls, options: Options) -> Self:
        """Make the object from its generated ObjectOptions branch; QmpError for a bad property."""

    async def complete(self, table: ObjectTable) -> None:  # a hook: most are done
        """Make the object usable, with what takes time or looks at ``table``; raises QmpError.

        Failed or cancelled, ``aclose()`` is called.
        """

    async def aclose(self) -> None:  # a hook: most hold nothing
        """Release what the object holds."""

    @property
    def deletable(self) -> bool:
        """Whether object-del may remove it now."""
        return self.users == 0

    def get_property(self, name: str) -> Json:
        """Return a readable property's value in QMP form; the name stands in the QOM table."""
        raise KeyError(name)

    async def set_property(self, name: str, value: Json) -> None:
        """Set a settable property at run time; QmpError if it cannot be."""
        raise KeyError(name)


@final
class ObjectTable:
    """The user-creatable objects of one daemon, by id, in order of creation."""

    def __init__(self) -> None:
        self._objects: dict[str, UserCreatable] = {}
        #: Whether the container ``/objects`` exists yet: the first use of object-add or -del makes it.
        self.visible = False

    def __iter__(self) -> Iterator[UserCreatable]:
        return iter(tuple(self._objects.values()))

    def __contains__(self, id_: str) -> bool:
        return id_ in self._objects

    def get(self, id_: str) -> UserCreatable | None:
        """Return the object ``id_`` or None."""
        return self._objects.get(id_)

    def lookup(self, id_: str, type_: type[T]) -> T:
        """Return the object ``id_`` of class ``type_``; QmpError if there is none."""
        found = self._objects.get(id_)
        if not isinstance(found, type_):
            raise QmpError(f"object '{id_}' not found")
        return found

    def add(self, new: UserCreatable) -> None:
        """File an object."""
        self._objects[new.id] = new

    async def remove(self, id_: str) -> None:
        """Take an object out and close it."""
        await self._objects.pop(id_).aclose()


@asynccontextmanager
async def open_object_table() -> AsyncGenerator[ObjectTable]:
    """Open a table; leaving closes the objects, the youngest first."""
    table = ObjectTable()
    try:
        yield table
    finally:
        for old in reversed(tuple(table)):
            await table.remove(old.id)


ObjectT = TypeVar("ObjectT", bound=type[UserCreatable])


def user_creatable_object(name: str, *, qom_name: str = "") -> Callable[[ObjectT], ObjectT]:
    """Register an object class under its QAPI name; its QOM name is the same unless given."""

    def decorate(cls: ObjectT) -> ObjectT:
        cls.type_name = name
        cls.qom_name = qom_name or name
        return user_creatable.register(name)(cls)

    return decorate


# What a QAPI visitor says of a property's value, for properties that are set one by one.


def as_int(name: str, value: Json) -> int:
    """Return ``value`` if it is an integer that 64 bits hold; QmpError otherwise."""
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or not -INT64_MAX <= value + 1 <= INT64_MAX
    ):
        raise QmpError(f"Invalid parameter type for '{name}', expected: integer")
    return value


def as_str(name: str, value: Json) -> str:
    """Return ``value`` if it is a string; QmpError otherwise."""
    if not isinstance(value, str):
        raise QmpError(f"Invalid parameter type for '{name}', expected: string")
    return value


def as_enum(name: str, value: Json, allowed: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of ``allowed``; QmpError otherwise."""
    if as_str(name, value) not in allowed:
        raise QmpError(f"Parameter '{name}' does not accept value '{value}'")
    return str(value)
