"""The log file that any chardev may have: a copy of what its front-end writes."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from io import BytesIO
from typing import TYPE_CHECKING, final

import trio

from qsd_trio.errors import with_errno

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qsd_trio.untyped import Options


@final
class LogFile:
    """``logfile``, ``logappend`` and ``logtimestamp`` of ChardevCommon."""

    def __init__(self, options: Options) -> None:
        self._path: str | None = options.logfile
        self._append = bool(options.logappend)
        self._timestamps = bool(options.logtimestamp)
        self._at_line_start = True

    @property
    def wanted(self) -> bool:
        """Whether there is a log file at all."""
        return self._path is not None

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        """Open the file, if there shall be one; QmpError if it cannot be made."""
        if self._path is None:
            yield
            return
        try:
            file = await trio.open_file(self._path, "ab" if self._append else "wb", buffering=0)
        except OSError as exc:
            raise with_errno(f"Could not create '{self._path}'", exc) from None
        async with file:
            self._file = file
            yield

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append ``data``. A log that cannot be written (disk full) does not stop the chardev."""
        rest = memoryview(self._stamped(data) if self._timestamps else data)
        try:
            while rest:
                rest = rest[await self._file.write(rest) :]
        except OSError:
            pass

    def _stamped(self, data: bytes | bytearray | memoryview) -> bytes:
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        prefix = os.fsencode(f"{stamp.removesuffix('+00:00')}Z ")
        out = bytearray()
        for line in BytesIO(data):
            if self._at_line_start:
                out += prefix
            out += line
            self._at_line_start = line.endswith(b"\n")
        return bytes(out)
