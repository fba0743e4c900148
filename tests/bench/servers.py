"""A daemon under measurement."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self, final

from tests.bench.images import Image
from tests.oracle import QmpClient

NBD_SOCKET = "nbd.sock"
QMP_SOCKET = "qmp.sock"
START_TIMEOUT = 30.0  # seconds


@final
class Server:
    """Run `program` with NBD and QMP on unix sockets in `directory` and weigh what it takes."""

    def __init__(self, program: list[str], images: dict[str, Image], directory: Path) -> None:
        self.directory = directory
        self.argv = [
            *program,
            "--chardev",
            f"socket,path={QMP_SOCKET},server=on,wait=off,id=qmp",
            "--monitor",
            "chardev=qmp",
            "--nbd-server",
            f"addr.type=unix,addr.path={NBD_SOCKET}",
        ]
        for export, image in images.items():
            self.argv += image.argv(export)
        self.start_seconds = 0.0

    def __enter__(self) -> Self:
        for name in (NBD_SOCKET, QMP_SOCKET):
            (self.directory / name).unlink(missing_ok=True)
        started = time.perf_counter()
        with open(self.directory / "stderr", "wb") as stderr:
            self.process = subprocess.Popen(
                self.argv, cwd=self.directory, stdout=subprocess.DEVNULL, stderr=stderr
            )
        try:
            self._wait_for_greeting()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        self.start_seconds = time.perf_counter() - started
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def _wait_for_greeting(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        path = os.fspath(self.directory / NBD_SOCKET)
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                stderr = (self.directory / "stderr").read_text(errors="replace")
                raise RuntimeError(f"{self.argv[:2]} does not serve: {stderr[-400:]}")
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(START_TIMEOUT)
                try:
                    sock.connect(path)
                    if sock.recv(8) == b"NBDMAGIC":
                        return
                except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
                    pass  # not bound yet, not listening yet, or on its way out
            time.sleep(0.001)

    def uri(self, export: str) -> str:
        return f"nbd+unix:///{export}?socket={self.directory / NBD_SOCKET}"

    def qmp(self) -> QmpClient:
        return QmpClient.connect(self.directory / QMP_SOCKET)

    def cpu_seconds(self) -> float:
        """Return the CPU time of the process so far, all threads, also ended ones."""
        # clock_getcpuclockid(3), as the kernel encodes it (posix-timers): ~pid << 3 | CPUCLOCK_SCHED
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def memory_mib(self) -> tuple[float, float]:
        """Return resident memory now and at its peak."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        now, peak = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
        return now, peak
