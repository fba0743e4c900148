"""Chardev backend ``hub`` (QEMU 10.0): one front-end with several chardevs at once."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from qsd_trio.chardevs.abc import Chardev, chardev_backend
from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qsd_trio.chardevs.abc import ChardevOpener
    from qsd_trio.untyped import Options

#: QEMU's limit.
MAX_CHARDEVS: Final = 4


@final
@chardev_backend("hub")
class HubChardev(Chardev):
    """Input of each goes to the front-end, its output to all that have a peer.

    A session begins when the first has a peer and ends when none has.
    """

    def __init__(self, id_: str, options: Options, opener: ChardevOpener) -> None:
        super().__init__(id_, options)
        self._opener = opener
        self._bases: list[Chardev] = []
        # The session that peers join: the running one, or the next.
        self._session = _HubStream()

    @classmethod
    def create(cls, id_: str, options: Options, opener: ChardevOpener) -> HubChardev:
        """Check the list."""
        if not options.chardevs:
            raise QmpError("hub: 'chardevs' list is not defined")
        if len(options.chardevs) > MAX_CHARDEVS:
            raise QmpError(f"hub: too many chardevs (maximum is {MAX_CHARDEVS})")
        return cls(id_, options, opener)

    @property
    def filename(self) -> str:
        """Always 'hub'."""
        return "hub"

    @asynccontextmanager
    async def backend_opened(self) -> AsyncGenerator[None]:
        """Claim the chardevs."""
        try:
            for name in self.options.chardevs:
                base = self._opener.chardevs.get(name)
                if base is None or base is self:
                    raise QmpError(f"hub: chardev can't be found by id '{name}'")
                if base.backend_name in ("hub", "mux"):
                    raise QmpError(f"hub: chardev '{name}' is a hub or mux, they can't be stacked")
                base.attach(self)
                self._bases.append(base)
            yield
        finally:
            for base in self._bases:
                base.detach(self)

    async def serve(self) -> None:
        """Carry the sessions."""
        async with trio.open_nursery() as nursery:
            for base in self._bases:
                nursery.start_soon(self._follow, base)
            while True:
                session = self._session
                await session.joined.wait()
                try:
                    await self.offer(session)
                finally:
                    self._session = _HubStream()
                    session.over.set()
                await session.close_peers()

    async def _follow(self, base: Chardev) -> None:
        async with aclosing(base.sessions()) as sessions:
            async for stream in sessions:
                while self._session.ending:
                    await self._session.over.wait()
                await self._session.carry(stream)


@final
class _HubStream(trio.abc.Stream):
    """What the front-end gets, for all peers that join."""

    def __init__(self) -> None:
        self.joined = trio.Event()
        self.over = trio.Event()
        #: The last peer has gone, or the front-end: nobody may join any more.
        self.ending = False
        self._peers: list[trio.abc.Stream] = []
        self._feed, self._food = trio.open_memory_channel[bytes](0)

    async def carry(self, peer: trio.abc.Stream) -> None:
        """Let ``peer`` join; return when it or the front-end has gone."""
        self._peers.append(peer)
        self.joined.set()
        try:
            while data := await peer.receive_some():
                await self._feed.send(bytes(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._peers.remove(peer)
            if not self._peers:
                self.ending = True
                self._feed.close()
            await trio.aclose_forcefully(peer)

    async def close_peers(self) -> None:
        """Drop who is left after the front-end has gone."""
        for peer in tuple(self._peers):
            await trio.aclose_forcefully(peer)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send to everyone."""
        for peer in tuple(self._peers):
            try:
                await peer.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # its reader sees that it is gone

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what any of the peers sent; b"" when the last has gone."""
        try:
            return await self._food.receive()
        except trio.EndOfChannel:
            return b""

    async def aclose(self) -> None:
        """End the session."""
        self.ending = True
        self._food.close()
        await trio.lowlevel.checkpoint()
