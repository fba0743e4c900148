"""Errors, told apart by who is to blame.

QmpError           a command cannot be carried out: its text is the ``desc`` of the QMP reply
LocalProtocolError we broke a protocol's rules: a bug of ours
RemoteProtocolError the peer broke them: its connection ends, nothing else does
OSError            the data plane: the errno is mapped to a wire code at an export's edge
"""

from __future__ import annotations

import os
from typing import ClassVar, final


class QmpError(Exception):
    """A command failed; ``str(exc)`` becomes the reply's ``desc``."""

    qmp_class: ClassVar[str] = "GenericError"


@final
class CommandNotFound(QmpError):
    """The command does not exist, or may not be used yet."""

    qmp_class = "CommandNotFound"


@final
class DeviceNotActive(QmpError):
    """The device exists but is not active (or has no job)."""

    qmp_class = "DeviceNotActive"


@final
class DeviceNotFound(QmpError):
    """There is no such device."""

    qmp_class = "DeviceNotFound"


class ProtocolError(Exception):
    """Base of the two protocol errors; never raised itself."""

    def __init__(self, message: str) -> None:
        if type(self) is ProtocolError:
            raise TypeError("raise LocalProtocolError or RemoteProtocolError")
        super().__init__(message)


@final
class LocalProtocolError(ProtocolError):
    """Our side misused a protocol object."""


@final
class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow."""


def os_error(number: int, message: str | None = None) -> OSError:
    """Make an OSError of errno ``number`` with the C library's text, or ``message``."""
    return OSError(number, message if message is not None else os.strerror(number))


def with_errno(prefix: str, error: OSError) -> QmpError:
    """Return the QmpError ``prefix: <text of the errno>``, as QEMU's messages end."""
    text = os.strerror(error.errno) if error.errno is not None else str(error)
    return QmpError(f"{prefix}: {text}")
