"""Chardev backends that are paths: ``file`` and ``pipe``."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, final

import trio

from qsd_trio.chardevs._streams import RECEIVE_SIZE, FdPairStream
from qsd_trio.chardevs.abc import SingleSessionChardev, chardev_backend
from qsd_trio.errors import with_errno

if TYPE_CHECKING:
    from qsd_trio.chardevs.abc import ChardevOpener
    from qsd_trio.untyped import Options


def open_path(path: str, flags: int) -> int:
    """Open ``path``, without waiting for the other end of a FIFO; QmpError if that fails."""
    try:
        # The mode that open(2) gives under the usual umask: it is a log, anyone may read it.
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY, 0o666)
    except OSError as exc:
        raise with_errno(f"Could not open '{path}'", exc) from None


@final
@chardev_backend("file")
class FileChardev(SingleSessionChardev):
    """Output goes to ``out``; input, if any, comes from ``in``."""

    @classmethod
    def create(cls, id_: str, options: Options, opener: ChardevOpener) -> FileChardev:
        """Nothing can contradict here."""
        return cls(id_, options)

    @property
    def filename(self) -> str:
        """Always 'file'."""
        return "file"

    async def open_stream(self) -> trio.abc.Stream:
        """Open both files."""
        end = os.O_APPEND if self.options.append else os.O_TRUNC
        out_fd = open_path(self.options.out, os.O_WRONLY | os.O_CREAT | end)
        in_fd = None
        if self.options.in_ is not None:
            try:
                in_fd = open_path(self.options.in_, os.O_RDONLY)
            except BaseException:
                os.close(out_fd)
                raise
        await trio.lowlevel.checkpoint()
        if stat.S_ISREG(os.fstat(out_fd).st_mode):
            return RegularFileStream(FdPairStream(in_fd, None), out_fd)
        return FdPairStream(in_fd, out_fd)


@final
@chardev_backend("pipe")
class PipeChardev(SingleSessionChardev):
    """Two FIFOs, ``device``.in and ``device``.out, or one device for both directions."""

    @classmethod
    def create(cls, id_: str, options: Options, opener: ChardevOpener) -> PipeChardev:
        """Nothing can contradict here."""
        return cls(id_, options)

    @property
    def filename(self) -> str:
        """Always 'pipe'."""
        return "pipe"

    async def open_stream(self) -> trio.abc.Stream:
        """Open the FIFOs for both directions, so that neither opening nor a leaving peer matters."""
        device = self.options.device
        await trio.lowlevel.checkpoint()
        fds = []
        for path in (f"{device}.in", f"{device}.out"):
            try:
                fds.append(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY))
            except OSError:
                for fd in fds:
                    os.close(fd)
                fd = open_path(device, os.O_RDWR)
                return FdPairStream(fd, fd)
        return FdPairStream(*fds)


@final
class RegularFileStream(trio.abc.Stream):
    """Writes to a file on a disk, which may be slow: in a worker thread."""

    def __init__(self, reader: FdPairStream, out_fd: int) -> None:
        self._reader = reader
        self._file = trio.wrap_file(os.fdopen(out_fd, "wb", buffering=0))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Append ``data``."""
        rest = memoryview(data)
        while rest:
            rest = rest[await self._file.write(rest) :]

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: files are always ready."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return what the input file has; b"" at its end."""
        return await self._reader.receive_some(max_bytes or RECEIVE_SIZE)

    async def aclose(self) -> None:
        """Close both files."""
        try:
            await self._reader.aclose()
        finally:
            await self._file.aclose()
