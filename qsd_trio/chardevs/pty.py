"""Chardev backend ``pty``: a pseudo terminal of our own, for whoever opens its other side."""

from __future__ import annotations

import os
import select
import termios
import tty
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio.chardevs._streams import FdPairStream
from qsd_trio.chardevs.abc import Chardev, chardev_backend
from qsd_trio.errors import with_errno

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qsd_trio.chardevs.abc import ChardevOpener
    from qsd_trio.untyped import Options

#: Seconds between two looks whether someone opened the terminal: the kernel tells nobody.
POLL_INTERVAL: Final = 0.1


@final
@chardev_backend("pty")
class PtyChardev(Chardev):
    """A session lasts as long as someone has the other side open."""

    def __init__(self, id_: str, options: Options) -> None:
        super().__init__(id_, options)
        self._fd = -1

    @classmethod
    def create(cls, id_: str, options: Options, opener: ChardevOpener) -> PtyChardev:
        """Nothing can contradict here."""
        return cls(id_, options)

    @property
    def filename(self) -> str:
        """Name the other side."""
        return f"pty:{self.pty}"

    @asynccontextmanager
    async def backend_opened(self) -> AsyncGenerator[None]:
        """Make the terminal, and a symbolic link to it if asked for."""
        try:
            self._fd, other = os.openpty()
        except OSError as exc:
            raise with_errno("Failed to create PTY", exc) from None
        try:
            try:
                self.pty = os.ttyname(other)
                tty.setraw(other, termios.TCSANOW)
            finally:
                os.close(other)
            link = self.options.path
            if link is not None:
                try:
                    os.symlink(self.pty, link)
                except OSError as exc:
                    raise with_errno(f"Failed to create PTY symlink '{link}'", exc) from None
            try:
                yield
            finally:
                if link is not None:
                    _remove_link(link, self.pty)
        finally:
            os.close(self._fd)

    async def serve(self) -> None:
        """Offer a session each time someone is there."""
        while True:
            if self._is_open():
                await self.offer(FdPairStream(*[os.dup(self._fd)] * 2))
            await trio.sleep(POLL_INTERVAL)

    def _is_open(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, 0)
        return not any(event & select.POLLHUP for _, event in poll.poll(0))


def _remove_link(link: str, target: str) -> None:
    try:
        if os.readlink(link) == target:  # else someone has put his own there
            os.unlink(link)
    except OSError:
        pass
