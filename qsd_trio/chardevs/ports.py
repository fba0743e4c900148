"""Chardev backends ``serial`` and ``parallel``: ports of the host."""

from __future__ import annotations

import os
import termios
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio.chardevs._streams import FdPairStream
from qsd_trio.chardevs.abc import Chardev, SingleSessionChardev, chardev_backend
from qsd_trio.chardevs.files import open_path
from qsd_trio.errors import with_errno
from qsd_trio.host.ports import claim_parallel_port, release_parallel_port, set_break

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qsd_trio.chardevs.abc import ChardevOpener
    from qsd_trio.untyped import Options

#: Seconds; POSIX wants a quarter to half a second of tcsendbreak(3).
_BREAK: Final = 0.25


@final
@chardev_backend("serial")
class SerialChardev(SingleSessionChardev):
    """A serial line at 115200 baud, 8N1, raw; or any device that is read and written like one."""

    _fd: int = -1

    @classmethod
    def create(cls, id_: str, options: Options, opener: ChardevOpener) -> SerialChardev:
        """Nothing can contradict here."""
        return cls(id_, options)

    @property
    def filename(self) -> str:
        """Always 'serial'."""
        return "serial"

    async def open_stream(self) -> trio.abc.Stream:
        """Open the line and set it up."""
        self._fd = open_path(self.options.device, os.O_RDWR | os.O_NONBLOCK)
        if os.isatty(self._fd):
            _set_up_line(self._fd)
        await trio.lowlevel.checkpoint()
        return FdPairStream(self._fd, self._fd)

    async def send_break(self) -> None:
        """Hold the line in break. Cancelling ends the break."""
        try:
            set_break(self._fd, on=True)
            try:
                await trio.sleep(_BREAK)
            finally:
                set_break(self._fd, on=False)
        except OSError as exc:
            raise with_errno(f"Failed to send a break to '{self.options.device}'", exc) from None


def _set_up_line(fd: int) -> None:
    line = termios.tcgetattr(fd)
    line[0] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    line[1] &= ~termios.OPOST
    line[2] &= ~(termios.CSIZE | termios.PARENB | termios.PARODD | termios.CRTSCTS | termios.CSTOPB)
    line[2] |= termios.CS8
    line[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN | termios.ISIG)
    line[4] = line[5] = termios.B115200
    termios.tcsetattr(fd, termios.TCSANOW, line)


@final
@chardev_backend("parallel")
class ParallelChardev(Chardev):
    """A parallel port, claimed as long as the chardev is there.

    It is driven by a guest's ioctls, so in a storage daemon it never has a session.
    """

    @classmethod
    def create(cls, id_: str, options: Options, opener: ChardevOpener) -> ParallelChardev:
        """Nothing can contradict here."""
        return cls(id_, options)

    @property
    def filename(self) -> str:
        """Always 'parallel'."""
        return "parallel"

    @asynccontextmanager
    async def backend_opened(self) -> AsyncGenerator[None]:
        """Claim the port; release it on the way out."""
        fd = open_path(self.options.device, os.O_RDWR)
        try:
            try:
                claim_parallel_port(fd)
            except OSError as exc:
                raise with_errno("not a parallel port", exc) from None
            try:
                yield
            finally:
                release_parallel_port(fd)
        finally:
            os.close(fd)

    async def serve(self) -> None:
        """Wait for the end."""
        await trio.sleep_forever()
