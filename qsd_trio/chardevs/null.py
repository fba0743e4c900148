"""Chardev backend ``null``: nobody is there."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, final

import trio

from qsd_trio.chardevs.abc import Chardev, chardev_backend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qsd_trio.chardevs.abc import ChardevOpener
    from qsd_trio.untyped import Options


@final
@chardev_backend("null")
class NullChardev(Chardev):
    """Has no session, ever."""

    @classmethod
    def create(cls, id_: str, options: Options, opener: ChardevOpener) -> NullChardev:
        """Nothing can contradict here."""
        return cls(id_, options)

    @property
    def filename(self) -> str:
        """Always 'null'."""
        return "null"

    @asynccontextmanager
    async def backend_opened(self) -> AsyncGenerator[None]:
        """Nothing to open."""
        yield

    async def serve(self) -> None:
        """Wait for the end."""
        await trio.sleep_forever()
