"""Locks on an image file, as QEMU takes them: each of its processes sees ours and the other way round.

Open-file-description locks (fcntl(2)), shared ones, on single bytes of the file: byte 100 + n says "I use
permission n", byte 200 + n says "I don't let others use permission n". Before it takes or forbids a permission, a
process looks whether someone else holds the opposite byte.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final, final

_TAKEN: Final = 100
_UNSHARED: Final = 200

_NAMES: Final = ("consistent read", "write", "write unchanged", "resize")
_ALL: Final = (1 << len(_NAMES)) - 1

#: struct flock: l_type, l_whence, l_start, l_len, l_pid
_FLOCK: Final = struct.Struct("hhqqi4x")


@final
class LockConflictError(Exception):
    """Another process uses the image in a way that excludes ours; the text is QEMU's."""


def supported() -> bool:
    """Return whether the kernel knows open-file-description locks."""
    return hasattr(fcntl, "F_OFD_SETLK")


@final
class ImageLocks:
    """The locks of one open file. Permissions are bit sets: bit n is the n-th of QEMU's."""

    def __init__(self) -> None:
        self._taken = 0
        self._unshared = 0

    def change(self, fd: int, needed: int, shared: int) -> None:
        """Hold exactly the locks for ``needed`` and against all but ``shared``.

        Raises LockConflictError or OSError (no locks on this file system); then nothing has changed. Network
        file systems may block.
        """
        unshared = _ALL & ~shared
        old = self._taken, self._unshared
        # The old ones are kept until the new ones are certain, so that nobody slips in between.
        try:
            self._hold(fd, needed | self._taken, unshared | self._unshared)
            _check_others(fd, needed, unshared)
        except (LockConflictError, OSError):
            self._hold(fd, *old)
            raise
        self._hold(fd, needed, unshared)

    def hold_on(self, fd: int) -> None:
        """Take the same locks on another open file of the same image, which then replaces the first.

        They exist already, so nobody can stand against them.
        """
        for bit in range(len(_NAMES)):
            if self._taken >> bit & 1:
                _set(fd, fcntl.F_RDLCK, _TAKEN + bit)
            if self._unshared >> bit & 1:
                _set(fd, fcntl.F_RDLCK, _UNSHARED + bit)

    def _hold(self, fd: int, taken: int, unshared: int) -> None:
        for bit in range(len(_NAMES)):
            for base, now, wanted in (
                (_TAKEN, self._taken, taken),
                (_UNSHARED, self._unshared, unshared),
            ):
                if (now ^ wanted) >> bit & 1:
                    _set(fd, fcntl.F_RDLCK if wanted >> bit & 1 else fcntl.F_UNLCK, base + bit)
                    if base == _TAKEN:
                        self._taken ^= 1 << bit
                    else:
                        self._unshared ^= 1 << bit


def _set(fd: int, kind: int, byte: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EACCES):
            verb = "unlock" if kind == fcntl.F_UNLCK else "lock"
            raise LockConflictError(f"Failed to {verb} byte {byte}") from None
        raise


def _is_held_by_others(fd: int, byte: int) -> bool:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    answer = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    return bool(answer[0] != fcntl.F_UNLCK)


def _check_others(fd: int, needed: int, unshared: int) -> None:
    for bit, name in enumerate(_NAMES):
        if needed >> bit & 1 and _is_held_by_others(fd, _UNSHARED + bit):
            raise LockConflictError(f'Failed to get "{name}" lock')
        if unshared >> bit & 1 and _is_held_by_others(fd, _TAKEN + bit):
            raise LockConflictError(f'Failed to get shared "{name}" lock')
