"""The command line: eleven options, turned into the commands they stand for.

The first pass looks for what comes before everything (``-h -V --daemonize --pidfile``) and imports
next to nothing, so that the fork happens in a small process. ``_serve`` does the second pass.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, final

from qsd_trio._version import PACKAGE, QEMU_VERSION
from qsd_trio.getopt import UsageError, parse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from qsd_trio.daemon import Daemon
    from qsd_trio.getopt import Option
    from qsd_trio.host.daemonize import Daemonized
    from qsd_trio.host.pidfile import PidFile

#: In the order in which getopt_long names them when it lists possibilities.
TAKES_ARGUMENT = {
    "blockdev": True,
    "chardev": True,
    "daemonize": False,
    "export": True,
    "help": False,
    "monitor": True,
    "nbd-server": True,
    "object": True,
    "pidfile": True,
    "trace": True,
    "version": False,
}
SHORT = {"h": "help", "T": "trace", "V": "version"}

HELP = """\
Usage: {program} [options]
Serves disk images over NBD and other protocols, controlled by QMP

  -h, --help             show this text and exit
  -V, --version          show the version and exit
  -T, --trace [[enable=]<pattern>][,events=<file>][,file=<file>]
                         write a line for each event that matches; 'help' lists them

  --blockdev [driver=]<driver>[,node-name=<N>][,discard=ignore|unmap]
             [,cache.direct=on|off][,cache.no-flush=on|off]
             [,read-only=on|off][,auto-read-only=on|off]
             [,force-share=on|off][,detect-zeroes=on|off|unmap]
             [,<driver's own options>...]
                         add a block node

  --chardev <backend>,id=<id>[,<options>...]
                         add a character device, for monitors; 'help' lists the backends

  --daemonize            go into the background; return when the daemon is ready

  --export [type=]nbd,id=<id>,node-name=<node-name>[,name=<export-name>]
           [,writable=on|off][,bitmap=<name>]
                         serve a block node over NBD (needs --nbd-server)
  --export [type=]fuse,id=<id>,node-name=<node-name>,mountpoint=<file>
           [,growable=on|off][,writable=on|off][,allow-other=on|off|auto]
                         serve a block node as a file
  --export [type=]vhost-user-blk,id=<id>,node-name=<node-name>,
           addr.type=unix,addr.path=<socket-path>|addr.type=fd,addr.str=<fd>
           [,writable=on|off][,logical-block-size=<block-size>]
           [,num-queues=<num-queues>]
                         serve a block node as a vhost-user-blk device
  --export [type=]vduse-blk,id=<id>,node-name=<node-name>,name=<vduse-name>
           [,writable=on|off][,num-queues=<num-queues>]
           [,queue-size=<queue-size>][,logical-block-size=<block-size>]
           [,serial=<serial-number>]
                         serve a block node as a vDPA device

  --monitor [chardev=]<id>[,mode=control][,pretty[=on|off]]
                         talk QMP on a character device

  --nbd-server addr.type=inet,addr.host=<host>,addr.port=<port>
               [,tls-creds=<id>][,tls-authz=<id>][,max-connections=<n>]
  --nbd-server addr.type=unix,addr.path=<path>
               [,tls-creds=<id>][,tls-authz=<id>][,max-connections=<n>]
                         listen for NBD clients

  --object <type>,id=<id>[,<property>=<value>...]
                         add an object; 'help' lists the types, '<type>,help' properties

  --pidfile <path>       write the process id to a file, and keep it locked
"""


@final
class _Exit(Exception):
    """Leave the program with ``status`` before it serves."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with the words of ``argv`` (default: sys.argv); return its exit status."""
    words = list(sys.argv if argv is None else argv)
    # Kill us while we import; the event loop brings its own handling.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # Words of argv come out as the bytes they were.
            stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # a TextIOWrapper
    name = words[0] if words else ""
    if not name or os.path.basename(name) == "__main__.py":
        name = "qsd-trio"
    program = os.path.basename(name)
    try:
        options = list(_first_pass(words[1:], program))
    except UsageError as exc:
        print(f"{name}: {exc}", file=sys.stderr)
        return 1
    except _Exit as exc:
        return _flushed(exc.status)
    daemonized = None
    if any(option.name == "daemonize" for option in options):
        from qsd_trio.host.daemonize import daemonize

        daemonized = daemonize()
    pidfiles = [option.argument for option in options if option.name == "pidfile"]
    return _flushed(_serve(program, options, pidfiles[-1] if pidfiles else None, daemonized))


def _flushed(status: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:  # whoever read our help is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return status


def _first_pass(words: Sequence[str], program: str) -> list[Option]:
    options = []
    for option in parse(words, TAKES_ARGUMENT, SHORT):
        if option.name == "help":
            print(HELP.format(program=program), end="")
            raise _Exit(0)
        if option.name == "version":
            version = ".".join(map(str, QEMU_VERSION))
            print(f"{program} version {version} ({PACKAGE})")
            print("Copyright (c) 2026 the qsd-trio authors")
            raise _Exit(0)
        options.append(option)
    return options


def _serve(
    program: str, options: Sequence[Option], pid_path: str | None, daemonized: Daemonized | None
) -> int:
    """Do the second pass and serve until the daemon is asked to quit; return the exit status."""
    import gc

    gc.disable()  # what is imported now stays: nothing to find
    import trio

    from qsd_trio.daemon import open_daemon_tables

    console = _Console(program)

    async def run(leaving: ExitStack) -> int:
        status = 0
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGHUP, signal.SIGTERM) as signals:
            async with trio.open_nursery() as watchers:
                async with open_daemon_tables(held=True) as daemon:
                    with trio.CancelScope() as starting:
                        watchers.start_soon(_watch, signals, daemon, starting.cancel)
                        try:
                            await _second_pass(daemon, console, options)
                            if pid_path is not None:
                                leaving.callback(_write_pidfile(console, pid_path).close)
                        except _Exit as exc:
                            status = exc.status
                            daemon.request_quit()
                    if not daemon.quit_requested:
                        # What is here now stays; what comes is little: a dozen collections in 50,000
                        # NBD requests were measured, so the thresholds stay as they are.
                        gc.freeze()
                        gc.enable()
                        if daemonized is not None:
                            daemonized.ready()
                        daemon.start_serving()
                        await daemon.wait_quit_requested()
                watchers.cancel_scope.cancel()
        return status

    with ExitStack() as leaving:  # whatever happens, the pid file goes, and last
        return trio.run(run, leaving)


async def _watch(
    signals: AsyncIterator[int], daemon: Daemon, cancel_start: Callable[[], None]
) -> None:
    async for _ in signals:
        cancel_start()
        daemon.request_quit()


def _write_pidfile(console: _Console, path: str) -> PidFile:
    from qsd_trio.host.pidfile import PidFile, PidFileError

    try:
        return PidFile(path)
    except PidFileError as exc:
        console.fail(" cannot create PID file: ", exc)
        raise _Exit(1) from None


@final
class _Console:
    """The terminal of the second pass; texts of the log get the option they belong to in front."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._handler = logging.StreamHandler(sys.stderr)
        self.name_option(None)
        logging.getLogger().addHandler(self._handler)

    def name_option(self, words: str | None) -> None:
        """Begin with option ``words``; None: no option."""
        place = f"{words}: " if words is not None else ""
        text = f"{self._program}: {place}".replace("%", "%%")
        self._handler.setFormatter(logging.Formatter(f"{text}%(message)s"))

    def say(self, text: str) -> None:
        print(text, end="", flush=True)

    def warn(self, place: str, text: str) -> None:
        print(f"{self._program}:{place}: warning: {text}", file=sys.stderr)

    def fail(self, place: str, error: Exception) -> None:
        """Print an error, and on the lines that follow its hints."""
        print(f"{self._program}:{place}{error}", file=sys.stderr)
        for hint in getattr(error, "__notes__", ()):
            print(hint, file=sys.stderr)


async def _second_pass(daemon: Daemon, console: _Console, options: Sequence[Option]) -> None:
    """Carry out ``options`` from left to right; _Exit at the first that fails, or asks for help."""
    from qsd_trio.errors import QmpError
    from qsd_trio.options import Help, LocatedError, carry_out

    for option in options:
        if option.name in ("daemonize", "pidfile"):
            continue
        console.name_option(option.words)
        try:
            await carry_out(daemon, option, console)
        except Help as exc:
            console.say(str(exc))
            raise _Exit(exc.status) from None
        except QmpError as exc:
            console.fail("" if isinstance(exc, LocatedError) else f" {option.words}: ", exc)
            raise _Exit(1) from None
    console.name_option(None)
