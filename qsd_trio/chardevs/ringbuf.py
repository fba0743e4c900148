"""Chardev backends ``ringbuf`` and ``memory`` (its old name): output is kept for ringbuf-read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self, final

import trio

from qsd_trio.chardevs.abc import SingleSessionChardev, chardev_backend
from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from qsd_trio.chardevs.abc import ChardevOpener
    from qsd_trio.untyped import Options

_DEFAULT_SIZE: Final = 65536


@final
class RingBuffer:
    """The last ``size`` bytes that were written and not read yet."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._data = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append ``data``; what is too much goes, the oldest first."""
        self._data += data[-self._size :]
        if len(self._data) > self._size:
            del self._data[: len(self._data) - self._size]

    def read(self, length: int) -> bytes:
        """Take out up to ``length`` bytes, the oldest first."""
        data = bytes(self._data[:length])
        del self._data[:length]
        return data


class RingbufChardev(SingleSessionChardev):
    """Its peer is whoever sends ringbuf-read and ringbuf-write."""

    offers_oob = False

    def __init__(self, id_: str, options: Options) -> None:
        super().__init__(id_, options)
        self.buffer = RingBuffer(_DEFAULT_SIZE if options.size is None else options.size)

    @classmethod
    def create(cls, id_: str, options: Options, opener: ChardevOpener) -> Self:
        """Check the size. (The real daemon takes 0 and crashes at the first write.)"""
        if options.size is not None and (options.size <= 0 or options.size & (options.size - 1)):
            raise QmpError("size of ringbuf chardev must be power of two")
        return cls(id_, options)

    @property
    def filename(self) -> str:
        """The backend's name."""
        return self.backend_name

    async def open_stream(self) -> trio.abc.Stream:
        """Open the front-end's side of the buffer."""
        await trio.lowlevel.checkpoint()
        return _RingStream(self.buffer)


@final
class _RingStream(trio.abc.Stream):
    def __init__(self, buffer: RingBuffer) -> None:
        self._buffer = buffer
        self._closed = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._buffer.write(data)
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await self._closed.wait()
        raise trio.ClosedResourceError

    async def aclose(self) -> None:
        self._closed.set()
        await trio.lowlevel.checkpoint()


@final
@chardev_backend("ringbuf")
class Ringbuf(RingbufChardev):
    """Under its proper name."""


@final
@chardev_backend("memory")
class Memory(RingbufChardev):
    """Under its old name."""
