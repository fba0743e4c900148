"""Registries: name -> implementation, filled by the rooms' decorators at import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qsd_trio.untyped import Options as Implementation

T = TypeVar("T")
Item = TypeVar("Item")


@final
class Registry(Generic[T]):
    """A table of named implementations of one kind.

    A name is registered once; a second registration is a bug and raises ValueError.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[Item], Item]:
        """Return a decorator that files what it decorates under ``names``."""

        def decorate(item: Item) -> Item:
            for name in names:
                if name in self._items:
                    raise ValueError(f"{self.kind} '{name}' is registered twice")
                self._items[name] = item  # type: ignore[assignment]  # T is fixed by the room's decorator
            return item

        return decorate

    def get(self, name: str) -> T | None:
        """Return what is filed under ``name``, or None."""
        return self._items.get(name)

    def __getitem__(self, name: str) -> T:
        return self._items[name]

    def __contains__(self, name: str) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


# The interfaces stand in higher layers (block/abc.py, exports/abc.py ...), whose decorators are
# typed; these tables only hold what they file.
block_drivers: Registry[Implementation] = Registry("block driver")
create_drivers: Registry[Implementation] = Registry("blockdev-create driver")
export_types: Registry[Implementation] = Registry("export type")
chardev_backends: Registry[Implementation] = Registry("chardev backend")
user_creatable: Registry[Implementation] = Registry("object type")
job_types: Registry[Implementation] = Registry("job type")
commands: Registry[Implementation] = Registry("command")
