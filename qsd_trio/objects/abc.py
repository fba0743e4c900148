"""The contract of user-creatable objects, and their table."""

from __future__ import annotations

from abc import ABC
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar, TypeVar, final

from qsd_trio.errors import QmpError
from qsd_trio.registry import user_creatable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from typing import Self

    from qsd_trio.untyped import Json, Options

T = TypeVar("T")


class UserCreatable(ABC):
    """An object that object-add makes: secrets, credentials, throttle groups, iothreads ..."""

    type_name: ClassVar[str]
    id: str
    #: How many users hold it; object-del refuses while there are any.
    users: int = 0

    @classmethod
    async def create(cls, table: ObjectTable, options: Options) -> Self:
        """Make the object from the generated ObjectOptions branch; raises QmpError."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Release what the object holds."""

    def properties(self) -> dict[str, str]:
        """Return property name -> QOM type name, for qom-list."""
        return {}

    def get_property(self, name: str) -> Json:
        """Return a property's value in QMP form; KeyError if there is none."""
        raise KeyError(name)

    async def set_property(self, name: str, value: Json) -> None:
        """Set a property at run time; QmpError if it cannot be."""
        raise KeyError(name)


@final
class ObjectTable:
    """The user-creatable objects of one daemon, by id, in order of creation."""

    def __init__(self) -> None:
        self._objects: dict[str, UserCreatable] = {}

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


def user_creatable_object(*names: str) -> Callable[[ObjectT], ObjectT]:
    """Register an object class under its QAPI name(s)."""

    def decorate(cls: ObjectT) -> ObjectT:
        cls.type_name = names[0]
        return user_creatable.register(*names)(cls)

    return decorate
