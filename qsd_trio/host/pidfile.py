"""The pid file: written under a lock, so that two daemons never share one."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import final

#: struct flock of Linux, 64 bit: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")
_WHOLE_FILE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


class PidFileError(Exception):
    """The pid file could not be made; the text says why."""


def _lock(fd: int) -> None:
    # Of the open file, not of the process: kept until we close it, whoever else opens it.
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WHOLE_FILE)


@final
class PidFile:
    """A locked file that holds our process id while we live.

    A file left behind by a killed process is not locked, so it is taken over.
    """

    def __init__(self, path: str) -> None:
        """Create, lock and write ``path``; PidFileError if another process holds it."""
        while True:
            try:
                fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            except OSError as exc:
                raise PidFileError(f"Could not create '{path}': {exc.strerror}") from None
            try:
                _lock(fd)
                if self._is_at(fd, path):
                    break
            except OSError as exc:
                os.close(fd)
                raise PidFileError(f"Cannot lock pid file: {exc.strerror}") from None
            # The previous owner removed it between our open and our lock: ours is nameless.
            os.close(fd)
        self._fd = fd
        # The daemon leaves its working directory before the file goes.
        self._path = os.path.realpath(path)
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        except OSError as exc:
            self.close()
            raise PidFileError(f"Failed to write pid file: {exc.strerror}") from None

    @staticmethod
    def _is_at(fd: int, path: str) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(path))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Remove the file, if it is still ours, and then give up the lock."""
        try:
            if self._is_at(self._fd, self._path):
                os.unlink(self._path)
        except OSError:
            pass  # a directory that became unreadable: nothing we could do about it
        finally:
            os.close(self._fd)
