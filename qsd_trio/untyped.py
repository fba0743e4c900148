"""Where types end: the only explicit ``Any`` outside the converter."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

#: Any JSON value, as QMP carries it before conversion and after.
Json: TypeAlias = Any  # type: ignore[explicit-any]  # a recursive alias would need a cast at each use
#: A generated options object; which class depends on the implementation that gets it.
Options: TypeAlias = Any  # type: ignore[explicit-any]  # an override may not narrow a parameter
#: A command's coroutine function: the schema says what it takes.
Handler: TypeAlias = Callable[..., Awaitable[Any]]  # type: ignore[explicit-any]  # each has its own
