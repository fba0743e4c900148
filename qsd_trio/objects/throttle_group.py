"""Throttle groups: limits that several nodes share."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from qsd_trio.errors import QmpError
from qsd_trio.objects.abc import UserCreatable, as_int, user_creatable_object
from qsd_trio.objects.throttle import DEFAULTS, MAX_LENGTH, Throttle, check

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from qsd_trio.objects.abc import ObjectTable
    from qsd_trio.untyped import Json, Options


UINT64_MAX = (1 << 64) - 1


def _member(name: str) -> str:
    return name.replace("-", "_")


@user_creatable_object("throttle-group")
@final
class ThrottleGroup(UserCreatable):
    """Limits, and what has been used of them."""

    def __init__(self, id_: str, limits: dict[str, int]) -> None:
        self.id = id_
        self._limits = limits
        self.throttle: Throttle

    @classmethod
    def create(cls, options: Options) -> Self:
        """Make a group of ``limits`` and, deprecated, of the ``x-`` properties; ``limits`` win."""
        limits = dict(DEFAULTS)
        for name, value in _given(options, "x_"):
            _check_old(name, value)
            limits[name] = value
        if options.limits is not None:
            limits.update(_checked(dict(_given(options.limits, ""))))
            check(limits)
        return cls(options.id, limits)

    async def complete(self, table: ObjectTable) -> None:
        """Check that the limits make sense together."""
        self.throttle = Throttle(self._limits)

    def get_property(self, name: str) -> Json:
        """Return ``limits`` in full, or one limit."""
        limits = self.throttle.limits
        return dict(limits) if name == "limits" else limits[name.removeprefix("x-")]

    async def set_property(self, name: str, value: Json) -> None:
        """Set the members of ``limits`` that are given; the others stay. Buckets begin empty."""
        if name != "limits":
            raise QmpError("Property cannot be set after initialization")
        if not isinstance(value, dict):
            raise QmpError(f"Invalid parameter type for '{name}', expected: object")
        new = {}
        for limit in DEFAULTS:
            if limit in value:
                new[limit] = as_int(f"limits.{limit}", value[limit])
        for member in value:
            if member not in DEFAULTS:
                raise QmpError(f"Parameter 'limits.{member}' is unexpected")
        self.throttle = Throttle({**self.throttle.limits, **_checked(new)})


def _given(options: Options, prefix: str) -> Iterator[tuple[str, int]]:
    for name in DEFAULTS:
        value = getattr(options, prefix + _member(name), None)
        if value is not None:
            yield name, value


def _checked(limits: dict[str, int]) -> dict[str, int]:
    for name, value in limits.items():
        if name.endswith("-length"):
            if value > MAX_LENGTH:
                raise QmpError(f"{name} value must be in the range [0, {MAX_LENGTH}]")
            limits[name] = value & UINT64_MAX  # a negative one is far too long
    return limits


def _check_old(name: str, value: int) -> None:
    if value < 0:
        raise QmpError("Property values cannot be negative")
    if name.endswith("-length") and value > MAX_LENGTH:
        # The missing blank is the real daemon's.
        raise QmpError(f"x-{name} value must be in therange [0, {MAX_LENGTH}]")
