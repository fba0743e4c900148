"""Going into the background: the parent waits until the daemon is ready, or has failed."""

from __future__ import annotations

import os
from typing import final


@final
class Daemonized:
    """The daemon's side after the fork: ``ready()`` lets the parent go."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def ready(self) -> None:
        """Leave the terminal and the working directory; the parent exits with 0."""
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        if null > 2:
            os.close(null)
        try:
            os.write(self._pipe, b"\0")
        except OSError:
            pass  # the parent was killed while it waited
        os.close(self._pipe)


_done = False


def is_daemonized() -> bool:
    """Return whether this process has gone, or is about to go, into the background."""
    return _done


def daemonize() -> Daemonized:
    """Fork twice; return in the daemon, which leads no session and so gets no terminal.

    The parent never returns: it exits with 0 after ``ready()``, and with 1 if the daemon ends before
    that. Until then the daemon keeps stdin, stdout and stderr. Call it before threads and event loops.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write_end)
        try:
            ready = os.read(read_end, 1) == b"\0"
        except BaseException:  # an interrupted wait is a failed start
            os._exit(1)
        os._exit(0 if ready else 1)
    os.close(read_end)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.umask(0o027)
    global _done  # of the process, as the terminal is
    _done = True
    return Daemonized(write_end)
