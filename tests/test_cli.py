"""The program as a process: pid file, background, signals, what stays behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from qsd_trio.daemon import open_daemon_tables
from qsd_trio.services import Service

PROGRAM = [sys.executable, "-m", "qsd_trio"]
TIMEOUT = 20.0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


@contextmanager
def running(*argv: str, pidfile: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the program and wait until it is ready; kill it at the end if it still runs."""
    process = subprocess.Popen(
        [*PROGRAM, *argv, "--pidfile", str(pidfile)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        ready = f"{process.pid}\n"
        wait_until(lambda: text_of(pidfile) == ready or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT)


def test_each_signal_is_a_clean_end(tmp_path: Path) -> None:
    pidfile, path = tmp_path / "pid", tmp_path / "qmp"
    chardev = f"socket,id=c,path={path},server=on,wait=off"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with running("--chardev", chardev, "--monitor", "c", pidfile=pidfile) as process:
            assert int(pidfile.read_text()) == process.pid
            assert path.is_socket()
            process.send_signal(signal.SIGPIPE)  # ignored
            process.send_signal(number)
            assert process.communicate(timeout=TIMEOUT) == ("", "")
            assert process.returncode == 0
        assert list(tmp_path.iterdir()) == []


def test_a_second_instance_leaves_the_first_alone(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    with running(pidfile=pidfile) as process:
        second = subprocess.run(
            [*PROGRAM, "--pidfile", str(pidfile)], capture_output=True, text=True, timeout=TIMEOUT
        )
        assert second.returncode == 1
        assert second.stderr == (
            "qsd-trio: cannot create PID file:"
            " Cannot lock pid file: Resource temporarily unavailable\n"
        )
        assert int(pidfile.read_text()) == process.pid
        process.kill()
        process.wait(TIMEOUT)
    assert text_of(pidfile)  # killed: it stays, and is taken over
    with running(pidfile=pidfile) as process:
        assert int(pidfile.read_text()) == process.pid


def test_a_failed_start_leaves_nothing(tmp_path: Path) -> None:
    failed = subprocess.run(
        [
            *PROGRAM,
            *("--pidfile", "pid", "--chardev", "socket,id=c,path=qmp,server=on,wait=off"),
            *("--nbd-server", "addr.type=unix,addr.path=nbd"),
            *("--blockdev", "null-co,node-name=a", "--export", "nbd,id=a,node-name=a"),
            *("--blockdev", "file,node-name=f,filename=none"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert failed.returncode == 1
    assert failed.stderr == (
        "qsd-trio: --blockdev file,node-name=f,filename=none:"
        " Could not open 'none': No such file or directory\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_daemonize(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    started = subprocess.run(
        [
            *PROGRAM,
            *("--daemonize", "--pidfile", "pid", "--blockdev", "null-co,node-name=a"),
            *("--chardev", "socket,path=qmp,server=on,wait=off,id=c"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,  # ends only if the daemon has let go of stdout and stderr
        timeout=TIMEOUT,
    )
    assert (started.returncode, started.stdout, started.stderr) == (0, b"", b"")
    # The parent is gone, so the daemon is ready.
    pid = int(pidfile.read_text())
    try:
        proc = Path(f"/proc/{pid}")
        assert os.readlink(proc / "cwd") == "/"
        assert [os.readlink(proc / "fd" / str(fd)) for fd in range(3)] == ["/dev/null"] * 3
        assert os.getsid(pid) not in (pid, os.getsid(0))  # of its own, but led by nobody
        assert "Umask:\t0027" in (proc / "status").read_text()
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not pidfile.exists())
    assert list(tmp_path.iterdir()) == []  # though it is in another directory now


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["stray"], "qsd-trio: stray: Unexpected argument\n"),
        (["--nope"], "qsd-trio: unrecognized option '--nope'\n"),
        (
            ["--pidfile", "/nope/x"],
            "qsd-trio: cannot create PID file:"
            " Could not create '/nope/x': No such file or directory\n",
        ),
    ],
)
def test_daemonize_that_fails(argv: list[str], text: str) -> None:
    failed = subprocess.run(
        [*PROGRAM, "--daemonize", *argv], capture_output=True, text=True, timeout=TIMEOUT
    )
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == text


def test_a_signal_ends_a_start_that_waits(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    process = subprocess.Popen(
        [*PROGRAM, "--chardev", f"socket,id=c,path={path},server=on,wait=on"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: path.exists() or process.poll() is not None)
        process.terminate()
        process.wait(TIMEOUT)
        assert process.returncode == 0
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT)


class Stuck(Service):
    """A service that stops only when it is cancelled."""

    def __init__(self) -> None:
        self.id = "stuck"
        self.serving = False

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        yield

    async def serve(self) -> None:
        self.serving = True
        await trio.sleep_forever()

    def request_stop(self) -> bool:
        return True


async def test_the_second_request_cuts_deadlines(autojump_clock: trio.testing.MockClock) -> None:
    async with open_daemon_tables() as daemon:
        await daemon.monitors.start(Stuck())
        daemon.request_quit()
        daemon.request_quit()
    assert trio.current_time() == 0


async def test_the_first_request_does_not(autojump_clock: trio.testing.MockClock) -> None:
    async with open_daemon_tables() as daemon:
        await daemon.monitors.start(Stuck())
        daemon.request_quit()
    assert trio.current_time() > 1


async def test_nothing_is_served_before_the_command_line_is_done(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_daemon_tables(held=True) as daemon:
        service = Stuck()
        await daemon.monitors.start(service)
        await trio.sleep(1)
        assert not service.serving
        daemon.start_serving()
        await trio.sleep(1)
        assert service.serving


def test_a_session_on_stdio_traced(tmp_path: Path) -> None:
    script = '{"execute": "qmp_capabilities"}\n{"execute": "quit", "id": 7}\n'
    traced = ("--trace", "qmp_*_quit", "--trace", "monitor_qmp_cmd_in_band,file=log")
    ended = subprocess.run(
        [*PROGRAM, *traced, "--chardev", "stdio,id=c", "--monitor", "c"],
        input=script,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout.splitlines()) == 3
    assert (tmp_path / "log").read_text() == (
        "monitor_qmp_cmd_in_band \n"
        "monitor_qmp_cmd_in_band 7\n"
        "qmp_enter_quit {}\n"
        "qmp_exit_quit {} 1\n"
    )


def test_a_listening_socket_is_handed_over_by_number(tmp_path: Path) -> None:
    path = str(tmp_path / "qmp")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        process = subprocess.Popen(
            [
                *PROGRAM,
                *("--chardev", f"socket,fd={listener.fileno()},server=on,id=c"),
                *("--monitor", "c"),
            ],
            pass_fds=[listener.fileno()],
        )
    try:
        # The connection waits in the listener's queue: there is nothing to poll for.
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT)
            client.connect(path)
            assert client.recv(8).startswith(b'{"QMP": ')
            client.sendall(b'{"execute": "qmp_capabilities"}{"execute": "quit"}')
            assert process.wait(TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()
