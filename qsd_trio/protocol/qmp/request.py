"""The shape of a QMP request, checked as QEMU does."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import attrs

from qsd_trio.errors import QmpError
from qsd_trio.protocol.qmp.serialise import members_in_order

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qsd_trio.untyped import Json


@final
@attrs.frozen
class Request:
    """A well-formed request; ``arguments`` is ``{}`` where the client gave none."""

    command: str
    arguments: Mapping[str, Json]
    oob: bool = False


def is_oob(value: object) -> bool:
    """Return whether ``value`` asks to be executed out of band."""
    return isinstance(value, dict) and "exec-oob" in value and "execute" not in value


def check_request(value: object, *, allow_oob: bool) -> Request:
    """Return the request that the JSON value ``value`` is; raise QmpError with QEMU's text if it is none."""
    if not isinstance(value, dict):
        raise QmpError("QMP input must be a JSON object")
    verb: str | None = None
    # The first fault in QEMU's order of members is the one it names.
    for name in members_in_order(value):
        member = value[name]
        if name == "execute" or (name == "exec-oob" and allow_oob):
            if not isinstance(member, str):
                raise QmpError(f"QMP input member '{name}' must be a string")
            if verb is not None:
                raise QmpError(f"QMP input member '{name}' clashes with '{verb}'")
            verb = name
        elif name == "arguments":
            if not isinstance(member, dict):
                raise QmpError("QMP input member 'arguments' must be an object")
        elif name != "id":
            raise QmpError(f"QMP input member '{name}' is unexpected")
    if verb is None:
        raise QmpError("QMP input lacks member 'execute'")
    return Request(value[verb], value.get("arguments", {}), verb == "exec-oob")
