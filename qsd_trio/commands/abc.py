"""How a QMP command is written: one function with ``@command``, typed arguments in, QMP data out."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, final

import attrs

from qsd_trio.registry import commands

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd_trio.untyped import Handler

HandlerT = TypeVar("HandlerT", bound="Handler")


@final
@attrs.frozen(kw_only=True)
class Command:
    """A registered command.

    ``function(daemon, arg)`` gets the generated argument object, or ``function(daemon)`` if the
    command takes none. It returns an object of generated types, plain JSON data, or None for ``{}``.
    ``with_session``: it gets the monitor session as keyword ``session`` (qmp_capabilities).
    """

    name: str
    function: Handler
    with_session: bool = False


def command(name: str, *, with_session: bool = False) -> Callable[[HandlerT], HandlerT]:
    """Register a coroutine function as the handler of QMP command ``name``."""

    def decorate(function: HandlerT) -> HandlerT:
        commands.register(name)(Command(name=name, function=function, with_session=with_session))
        return function

    return decorate
