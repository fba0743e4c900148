"""Registries: name -> implementation, filled by the rooms' decorators at import."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Generic, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from qsd_trio.untyped import Options as Implementation

T = TypeVar("T")
Item = TypeVar("Item")


@final
class Registry(Generic[T]):
    """A table of named implementations of one kind.

    A name is registered once; a second registration is a bug and raises ValueError. A room's index may
    only say which module has a name: the module is imported when the name is first asked for.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}
        self._modules: dict[str, str] = {}

    def index(self, modules: Mapping[str, str]) -> None:
        """File names with the modules that register them at import."""
        self._modules.update(modules)

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
        if name not in self._items and name in self._modules:
            importlib.import_module(self._modules[name])
        return self._items.get(name)

    def __getitem__(self, name: str) -> T:
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._items or name in self._modules

    def __iter__(self) -> Iterator[str]:
        yield from self._modules
        yield from (name for name in tuple(self._items) if name not in self._modules)

    def __len__(self) -> int:
        return len(self._items.keys() | self._modules.keys())


# The interfaces stand in higher layers (block/abc.py, exports/abc.py ...), whose decorators are
# typed; these tables only hold what they file.
block_drivers: Registry[Implementation] = Registry("block driver")
create_drivers: Registry[Implementation] = Registry("blockdev-create driver")
export_types: Registry[Implementation] = Registry("export type")
chardev_backends: Registry[Implementation] = Registry("chardev backend")
user_creatable: Registry[Implementation] = Registry("object type")
job_types: Registry[Implementation] = Registry("job type")
commands: Registry[Implementation] = Registry("command")
