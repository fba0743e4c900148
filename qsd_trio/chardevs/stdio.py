"""Chardev backend ``stdio``: the daemon's own standard input and output."""

from __future__ import annotations

import os
import termios
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

from qsd_trio.chardevs._streams import FdPairStream
from qsd_trio.chardevs.abc import SingleSessionChardev, chardev_backend
from qsd_trio.errors import QmpError
from qsd_trio.host.daemonize import is_daemonized

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import trio

    from qsd_trio.chardevs.abc import ChardevOpener
    from qsd_trio.untyped import Options

_STDIN: Final = 0
_STDOUT: Final = 1


@final
@chardev_backend("stdio")
class StdioChardev(SingleSessionChardev):
    """Standard input and output; on a terminal it is raw, and restored at the end.

    ``signal`` leaves the keys that make signals (Ctrl-C) to the terminal; it is on by default.
    """

    #: There is one standard input per process, however many daemons live in it.
    _in_use: bool = False

    @classmethod
    def create(cls, id_: str, options: Options, opener: ChardevOpener) -> StdioChardev:
        """Nothing can contradict here."""
        return cls(id_, options)

    @property
    def filename(self) -> str:
        """Always 'stdio'."""
        return "stdio"

    @asynccontextmanager
    async def backend_opened(self) -> AsyncGenerator[None]:
        """Claim standard input and set up the terminal; undo both on the way out."""
        if is_daemonized():
            raise QmpError("cannot use stdio with -daemonize")
        if StdioChardev._in_use:
            raise QmpError("cannot use stdio by multiple character devices")
        StdioChardev._in_use = True
        try:
            before = _set_terminal(signals=self.options.signal is not False)
            try:
                async with super().backend_opened():
                    yield
            finally:
                if before is not None:
                    termios.tcsetattr(_STDIN, termios.TCSANOW, before)
        finally:
            StdioChardev._in_use = False

    async def open_stream(self) -> trio.abc.Stream:
        """Copy the descriptors: 0 and 1 stay open whatever happens to the stream."""
        return FdPairStream(os.dup(_STDIN), os.dup(_STDOUT))


def _set_terminal(*, signals: bool) -> list[int | list[bytes | int]] | None:
    """Make the terminal raw and return how it was; None if standard input is none."""
    if not os.isatty(_STDIN):
        return None
    before = termios.tcgetattr(_STDIN)
    after = termios.tcgetattr(_STDIN)
    after[0] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    after[1] |= termios.OPOST
    after[2] = after[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    after[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
    if not signals:
        after[3] &= ~termios.ISIG
    after[6][termios.VMIN] = 1
    after[6][termios.VTIME] = 0
    termios.tcsetattr(_STDIN, termios.TCSANOW, after)
    return before
