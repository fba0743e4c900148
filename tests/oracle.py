"""Drive a storage daemon from outside, and compare ours with the real one.

Everything here is synchronous: a subprocess, a QMP socket, timeouts. A differential test:

    @requires("qemu-storage-daemon")
    def test_deleting_a_node_in_use() -> None:
        compare(
            ["--blockdev", "null-co,node-name=a,read-zeroes=on"],
            [
                {"execute": "blockdev-add", "arguments": {"driver": "raw", "file": "a"}},
                qmp("blockdev-del", node_name="a"),          # `_` becomes `-`
                Wait("BLOCK_EXPORT_DELETED"),                # until the event is there
                Raw(b'{"execute": 1}\\n', replies=1),         # bytes as they are
                Call(lambda directory: (directory / "disk").stat().st_size),
            ],
            setup=lambda directory: (directory / "disk").write_bytes(bytes(4096)),
        )

Each daemon runs in a folder of its own, so give relative paths. Compared: replies, events in their order,
stdout, stderr, exit code and the files left behind (fewer sockets are allowed). `compare` returns both outcomes for further asserts.
To look at each reply while both daemons run, use `with Pair(argv) as pair: pair.command("query-block")`.
One daemon alone: `with Daemon(OURS, argv, directory) as daemon: daemon.qmp.command("query-block")`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, final

import attrs

from tests.peers import requires

__all__ = [
    "OURS",
    "REAL",
    "Call",
    "Daemon",
    "Outcome",
    "Pair",
    "QmpClient",
    "Raw",
    "Step",
    "Wait",
    "compare",
    "compare_exit",
    "free_port",
    "qmp",
    "requires",
    "run_script",
]

Json: TypeAlias = Any
Program: TypeAlias = tuple[str, ...]

REAL: Program = ("qemu-storage-daemon",)
OURS: Program = tuple(shlex.split(os.environ.get("QSD_OURS", f"{sys.executable} -m qsd_trio")))

TIMEOUT = (
    20.0  # seconds; generous, as the machine may be busy: nothing waits it out when all is well
)
QMP_SOCKET = "oracle.sock"
QMP_ARGV = (
    "--chardev",
    f"socket,path={QMP_SOCKET},server=on,wait=off,id=oracle",
    "--monitor",
    "chardev=oracle",
)


def qmp(name: str, /, **arguments: Json) -> dict[str, Json]:
    """Build a command; `_` in argument names becomes `-`."""
    command: dict[str, Json] = {"execute": name}
    if arguments:
        command["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
    return command


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@final
class QmpClient:
    """Talk QMP over a connected unix socket; `events` collects what came unasked."""

    def __init__(self, sock: socket.socket, *, negotiate: bool = True) -> None:
        self._sock = sock
        self._sock.settimeout(TIMEOUT)
        self._buffer = bytearray()
        self.events: list[dict[str, Json]] = []
        self.greeting: dict[str, Json] = {}
        if negotiate:
            self.greeting = self.receive()
            self.command("qmp_capabilities")

    @classmethod
    def connect(cls, path: Path | str, *, negotiate: bool = True) -> Self:
        """Connect to a unix socket and by default leave negotiation mode."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(TIMEOUT)
            sock.connect(os.fspath(path))
            return cls(sock, negotiate=negotiate)
        except BaseException:
            sock.close()
            raise

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._sock.sendall(data)

    def receive(self) -> dict[str, Json]:
        """Return the next object, be it a reply or an event; EOFError when the peer hung up."""
        while (end := self._buffer.find(b"\n")) < 0:
            try:
                data = self._sock.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError(f"QMP peer hung up after {bytes(self._buffer)!r}")
            self._buffer += data
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        message: dict[str, Json] = json.loads(line)
        return message

    def reply(self) -> dict[str, Json]:
        """Return the next reply; events on the way are collected.

        The real daemon sometimes greets a client twice that connects while it starts.
        """
        while "event" in (message := self.receive()) or "QMP" in message:
            if "event" in message:
                self.events.append(message)
        return message

    def execute(self, command: dict[str, Json]) -> dict[str, Json]:
        """Send a command object and return its whole reply, `return` or `error`."""
        self.send(json.dumps(command).encode() + b"\n")
        return self.reply()

    def command(self, name: str, /, **arguments: Json) -> Json:
        """Run a command and return its value; AssertionError when it fails."""
        reply = self.execute(qmp(name, **arguments))
        assert "return" in reply, f"{name}: {reply}"
        return reply["return"]

    def wait_event(self, name: str, *, skip: int = 0) -> dict[str, Json]:
        """Return the event `name`, now or when it comes; `skip` so many of them first."""
        seen = 0
        index = 0
        while True:
            while index < len(self.events):
                if self.events[index]["event"] == name:
                    if seen == skip:
                        return self.events[index]
                    seen += 1
                index += 1
            message = self.receive()
            assert "event" in message, f"reply while waiting for {name}: {message}"
            self.events.append(message)

    def drain(self) -> None:
        """Collect events until the peer hangs up."""
        with contextlib.suppress(EOFError):
            while True:
                message = self.receive()
                assert "event" in message, f"reply without a command: {message}"
                self.events.append(message)

    def close(self) -> None:
        self._sock.close()


@final
class Daemon:
    """Run one storage daemon as a process, with a QMP socket of its own (`daemon.qmp`).

    Entering waits until the daemon serves; if it ends before, `returncode` is set and `qmp` is absent.
    With `monitor=False` readiness is the pid file. Leaving stops it (SIGTERM, then SIGKILL).
    """

    def __init__(
        self,
        program: Sequence[str],
        argv: Sequence[str],
        directory: Path,
        *,
        monitor: bool = True,
        pass_fds: Sequence[int] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self._own_argv = QMP_ARGV if monitor else ("--pidfile", "oracle.pid")
        self._ready = directory / (QMP_SOCKET if monitor else "oracle.pid")
        self._monitor = monitor
        self._argv = [*program, *self._own_argv, *argv]
        self._pass_fds = pass_fds
        self._env = env
        self._qmp: QmpClient | None = None
        self.stdout = ""
        self.stderr = ""

    def __enter__(self) -> Self:
        with (
            open(self.directory / ".stdout", "wb") as stdout,
            open(self.directory / ".stderr", "wb") as stderr,
        ):
            self.process = subprocess.Popen(
                self._argv,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=self._pass_fds,
                env=None if self._env is None else {**os.environ, **self._env},
            )
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        if exc is not None and self.stderr:
            exc.add_note(f"stderr of {self._argv[0]}:\n{self.stderr}")

    @property
    def qmp(self) -> QmpClient:
        """The QMP client; AssertionError when the daemon ended before it served."""
        assert self._qmp is not None, f"the daemon has not served: {self.read_stderr()}"
        return self._qmp

    @property
    def is_serving(self) -> bool:
        """Whether the daemon came up (it may have ended since)."""
        return self._qmp is not None if self._monitor else self._ready.exists()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.poll()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + TIMEOUT
        while self.process.poll() is None:
            if self._ready.exists():
                if not self._monitor:
                    if self._ready.read_bytes().endswith(b"\n"):
                        return
                else:
                    try:
                        # The path is relative to the daemon's folder and thus as short as can be.
                        path = f"/proc/{self.pid}/cwd/{QMP_SOCKET}"
                        self._qmp = QmpClient.connect(path)
                    except (ConnectionError, FileNotFoundError):
                        pass  # bound and not listening yet, or gone
                    except EOFError:
                        pass  # it ended while we shook hands
                    else:
                        return
            assert time.monotonic() < deadline, f"{self._argv} not ready: {self.read_stderr()}"
            time.sleep(0.002)

    def read_stderr(self) -> str:
        """Return what the daemon has said so far on stderr."""
        return (self.directory / ".stderr").read_text(errors="replace")

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait until the daemon has ended by itself and return its exit code."""
        return self.process.wait(timeout)

    def stop(self) -> None:
        """End the daemon if it still runs, and read what it left on its outputs."""
        if self._qmp is not None:
            self._qmp.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                # The real daemon does so once in a while, when the signal comes at a bad moment.
                if self._argv[0] != REAL[0]:
                    raise AssertionError(
                        f"{self._argv} ignores SIGTERM: {self.read_stderr()}"
                    ) from None
        self.stdout = (self.directory / ".stdout").read_text(errors="replace")
        self.stderr = self.read_stderr()


@attrs.frozen
class Wait:
    """Script step: go on when the event has come (`skip` earlier ones of the name first)."""

    event: str
    skip: int = 0


@attrs.frozen
class Raw:
    """Script step: send bytes to the monitor and await so many replies."""

    data: bytes
    replies: int = 1


@attrs.frozen
class Call:
    """Script step: call a function with the daemon's folder; its result is compared as well."""

    function: Callable[[Path], Json]


Step: TypeAlias = "dict[str, Json] | Wait | Raw | Call"
Setup: TypeAlias = Callable[[Path], object]


@attrs.define(kw_only=True)
class Outcome:
    """What one daemon did with a script, normalised."""

    replies: list[Json]
    events: list[Json]
    stdout: str
    stderr: str
    returncode: int | None
    files: list[str]
    sockets: list[str]


@final
class Normaliser:
    """Replace what may differ between two equal daemons: time, folders, names made up on the way."""

    def __init__(self, directory: Path, *, ignore: Iterable[str] = ()) -> None:
        self._directory = os.fspath(directory)
        self._ignore = frozenset(ignore)
        self._generated: dict[str, str] = {}

    def text(self, text: str) -> str:
        text = text.replace(self._directory, "$DIR")
        text = re.sub(r"\b(qemu-storage-daemon|qsd-trio|__main__\.py)(?=[: ]|$)", "PROGRAM", text)
        text = re.sub(r"/dev/pts/\d+", "/dev/pts/N", text)
        return re.sub(r"#block\d+", self._number, text)

    def _number(self, match: re.Match[str]) -> str:
        return self._generated.setdefault(match[0], f"#block<{len(self._generated)}>")

    def json(self, value: Json) -> Json:
        match value:
            case str():
                return self.text(value)
            case list():
                return [self.json(item) for item in value]
            case dict():
                return {
                    self.text(key): "ignored" if key in self._ignore else self.json(item)
                    for key, item in value.items()
                }
            case _:
                return value

    def event(self, event: dict[str, Json]) -> Json:
        return self.json({key: value for key, value in event.items() if key != "timestamp"})


def _run_step(daemon: Daemon, step: Step) -> Iterator[Json]:
    match step:
        case Wait(event, skip):
            daemon.qmp.wait_event(event, skip=skip)
        case Raw(data, replies):
            daemon.qmp.send(data)
            for _ in range(replies):
                yield daemon.qmp.reply()
        case Call(function):
            yield {"call": function(daemon.directory)}
        case _:
            yield daemon.qmp.execute(step)


def _files(directory: Path, *, sockets: bool = False) -> list[str]:
    return sorted(
        os.fspath(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.name not in (".stdout", ".stderr") and path.is_socket() is sockets
    )


def run_script(
    program: Sequence[str],
    argv: Sequence[str],
    steps: Sequence[Step] = (),
    *,
    setup: Setup | None = None,
    stop: signal.Signals | None = None,
    monitor: bool = True,
    ignore: Iterable[str] = (),
) -> Outcome:
    """Run one daemon through a script and return what it did. For the arguments see `compare`."""
    with tempfile.TemporaryDirectory(prefix="o-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        if setup is not None:
            setup(directory)
        normaliser = Normaliser(directory, ignore=ignore)
        replies: list[Json] = []
        events: list[Json] = []
        with Daemon(program, argv, directory, monitor=monitor) as daemon:
            if daemon.is_serving:
                for step in steps:
                    try:
                        replies += [normaliser.json(reply) for reply in _run_step(daemon, step)]
                    except EOFError:
                        replies.append("the daemon hung up")
                        break
                if stop is not None:
                    daemon.process.send_signal(stop)
                elif monitor:
                    with contextlib.suppress(BrokenPipeError, EOFError):
                        daemon.qmp.execute(qmp("quit"))
                if monitor:
                    daemon.qmp.drain()
                    events = [normaliser.event(event) for event in daemon.qmp.events]
                if stop is not None or monitor:
                    daemon.wait()
        return Outcome(
            replies=replies,
            events=events,
            stdout=normaliser.text(daemon.stdout),
            stderr=normaliser.text(daemon.stderr),
            returncode=daemon.returncode,
            files=_files(directory),
            sockets=_files(directory, sockets=True),
        )


def compare(
    argv: Sequence[str],
    steps: Sequence[Step] = (),
    *,
    setup: Setup | None = None,
    stop: signal.Signals | None = None,
    monitor: bool = True,
    ignore: Iterable[str] = (),
    check_stderr: bool = True,
    real: Program = REAL,
    ours: Program = OURS,
) -> tuple[Outcome, Outcome]:
    """Run both daemons through one script and assert that they did the same.

    Args:
        argv: options; before them the harness puts a QMP monitor (chardev and id `oracle`).
        steps: what to do, one after the other; `quit` is sent at the end.
        setup: called with each daemon's folder before it starts, to make images.
        stop: a signal to end the daemon with, instead of `quit`.
        monitor: False runs without QMP; then only `Call` steps make sense.
        ignore: members whose values may differ (`actual-size`).
        check_stderr: False where ours says more on purpose.

    Returns:
        The real daemon's outcome and ours, both normalised.
    """
    outcomes = [
        run_script(program, argv, steps, setup=setup, stop=stop, monitor=monitor, ignore=ignore)
        for program in (real, ours)
    ]
    theirs, mine = outcomes
    for index, (left, right) in enumerate(zip(theirs.replies, mine.replies, strict=False)):
        assert right == left, f"reply {index}, to {_shown(steps, index)}"
    assert mine.replies == theirs.replies, mine.stderr[-4000:]
    assert mine.events == theirs.events
    if check_stderr:
        assert mine.stderr == theirs.stderr
    assert mine.stdout == theirs.stdout
    assert mine.returncode == theirs.returncode
    assert mine.files == theirs.files
    # 7.2 forgets the sockets of its NBD server; ours may be tidier.
    assert set(mine.sockets) <= set(theirs.sockets)
    return theirs, mine


def _shown(steps: Sequence[Step], index: int) -> str:
    answered: list[Step] = []
    for step in steps:
        match step:
            case Wait():
                pass
            case Raw(_, replies):
                answered += [step] * replies
            case _:
                answered.append(step)
    return str(answered[index]) if index < len(answered) else "?"


def compare_exit(
    argv: Sequence[str],
    *,
    setup: Setup | None = None,
    real: Program = REAL,
    ours: Program = OURS,
) -> subprocess.CompletedProcess[str]:
    """Run both with exactly `argv`, for what ends by itself (`--help`, a bad option); assert equality.

    Returns:
        The real daemon's result, normalised.
    """
    results = []
    for program in (real, ours):
        with tempfile.TemporaryDirectory(prefix="o-", ignore_cleanup_errors=True) as name:
            if setup is not None:
                setup(Path(name))
            done = subprocess.run(
                [*program, *argv],
                cwd=name,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
            normaliser = Normaliser(Path(name))
            done.args = list(argv)
            done.stdout = normaliser.text(done.stdout)
            done.stderr = normaliser.text(done.stderr)
            results.append((done, _files(Path(name))))
    (theirs, their_files), (mine, my_files) = results
    assert mine.stderr == theirs.stderr
    assert mine.stdout == theirs.stdout
    assert mine.returncode == theirs.returncode
    assert my_files == their_files
    return theirs


@final
class Pair:
    """Both daemons side by side; each command goes to both and must get the same answer."""

    def __init__(
        self,
        argv: Sequence[str] = (),
        *,
        setup: Setup | None = None,
        ignore: Iterable[str] = (),
        real: Program = REAL,
        ours: Program = OURS,
    ) -> None:
        self._argv = argv
        self._setup = setup
        self._ignore = tuple(ignore)
        self._programs = (real, ours)
        self._stack = contextlib.ExitStack()
        self._daemons: list[tuple[Daemon, Normaliser]] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for program in self._programs:
                temporary = tempfile.TemporaryDirectory(prefix="o-", ignore_cleanup_errors=True)
                directory = Path(stack.enter_context(temporary))
                if self._setup is not None:
                    self._setup(directory)
                daemon = stack.enter_context(Daemon(program, self._argv, directory))
                self._daemons.append((daemon, Normaliser(directory, ignore=self._ignore)))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(exc_type, exc, traceback)

    @property
    def real(self) -> Daemon:
        return self._daemons[0][0]

    @property
    def ours(self) -> Daemon:
        return self._daemons[1][0]

    def run(self, step: Step) -> Json:
        """Run a step on both, assert that the outcome is the same, and return it."""
        theirs, mine = (
            [normaliser.json(reply) for reply in _run_step(daemon, step)]
            for daemon, normaliser in self._daemons
        )
        assert mine == theirs, step
        return mine[0] if mine else None

    def command(self, name: str, /, **arguments: Json) -> Json:
        """Run a command on both; return the whole reply, `return` or `error`."""
        return self.run(qmp(name, **arguments))

    def events(self) -> list[Json]:
        """Return the events so far, having asserted that both daemons sent the same."""
        theirs, mine = (
            [normaliser.event(event) for event in daemon.qmp.events]
            for daemon, normaliser in self._daemons
        )
        assert mine == theirs
        return theirs
