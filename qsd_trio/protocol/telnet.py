"""The server's side of telnet (RFC 854) as far as a character device needs it, without I/O.

The peer is told to send characters as they are typed, eight bits each; what it answers is not
waited for. Commands are taken out of the stream, IAC bytes in data are doubled.
"""

from __future__ import annotations

import enum
from typing import ClassVar, Final, final

IAC: Final = 255
DONT: Final = 254
DO: Final = 253
WONT: Final = 252
WILL: Final = 251
SB: Final = 250
BREAK: Final = 243
SE: Final = 240
EOR: Final = 239

OPT_BINARY: Final = 0
OPT_ECHO: Final = 1
OPT_SUPPRESS_GO_AHEAD: Final = 3
OPT_TERMINAL_TYPE: Final = 24
OPT_END_OF_RECORD: Final = 25


class _State(enum.Enum):
    DATA = enum.auto()
    COMMAND = enum.auto()
    OPTION = enum.auto()
    SUBNEGOTIATION = enum.auto()
    SUBNEGOTIATION_COMMAND = enum.auto()


_AFTER_COMMAND: Final = {
    **dict.fromkeys((DO, DONT, WILL, WONT), _State.OPTION),
    SB: _State.SUBNEGOTIATION,
}


@final
class TelnetServer:
    """One connection: feed what arrives, send what ``escape`` returns."""

    #: What a plain terminal is asked for.
    TERMINAL: ClassVar[bytes] = bytes(
        (
            *(IAC, WILL, OPT_ECHO),
            *(IAC, WILL, OPT_SUPPRESS_GO_AHEAD),
            *(IAC, WILL, OPT_BINARY),
            *(IAC, DO, OPT_BINARY),
        )
    )
    #: What a 3270 terminal is asked for (RFC 1576): records, eight bits, and its type.
    TN3270: ClassVar[bytes] = bytes(
        (
            *(IAC, DO, OPT_END_OF_RECORD),
            *(IAC, WILL, OPT_END_OF_RECORD),
            *(IAC, DO, OPT_BINARY),
            *(IAC, WILL, OPT_BINARY),
            *(IAC, DO, OPT_TERMINAL_TYPE),
            *(IAC, SB, OPT_TERMINAL_TYPE, 1, IAC, SE),
        )
    )

    def __init__(self, *, tn3270: bool = False) -> None:
        self._tn3270 = tn3270
        self._state = _State.DATA

    def greeting(self) -> bytes:
        """Return what to send first."""
        return self.TN3270 if self._tn3270 else self.TERMINAL

    def receive_data(self, data: bytes | bytearray) -> bytes:
        """Return the data in ``data``, without telnet's commands. Never fails."""
        if self._state is _State.DATA and IAC not in data:
            return bytes(data)
        out = bytearray()
        for byte in data:
            match self._state:
                case _State.DATA if byte == IAC:
                    self._state = _State.COMMAND
                case _State.DATA:
                    out.append(byte)
                case _State.COMMAND:
                    self._state = _AFTER_COMMAND.get(byte, _State.DATA)
                    if byte == IAC:
                        out.append(IAC)
                    elif byte == EOR and self._tn3270:
                        out += bytes((IAC, EOR))  # the front-end parses 3270 records
                case _State.OPTION:
                    self._state = _State.DATA
                case _State.SUBNEGOTIATION:
                    if byte == IAC:
                        self._state = _State.SUBNEGOTIATION_COMMAND
                case _State.SUBNEGOTIATION_COMMAND:
                    self._state = _State.DATA if byte == SE else _State.SUBNEGOTIATION
        return bytes(out)

    def escape(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return ``data`` as it goes over the wire."""
        return bytes(data).replace(b"\xff", b"\xff\xff")
