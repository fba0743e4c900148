"""Images to serve, and a daemon under measurement."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self, final

import attrs

from tests.oracle import QmpClient

MIB = 1 << 20
NBD_SOCKET = "nbd.sock"
QMP_SOCKET = "qmp.sock"
START_TIMEOUT = 30.0  # seconds


@attrs.frozen(kw_only=True)
class Image:
    """A file to export; `fresh` ones are made anew for every run."""

    name: str
    format: str  # raw | qcow2 | qcow2-empty
    size: int

    @property
    def is_fresh(self) -> bool:
        return self.format == "qcow2-empty"

    @property
    def driver(self) -> str:
        return "file" if self.format == "raw" else "qcow2"

    def make(self, directory: Path) -> None:
        """Write the image; contents are random so that nothing is a hole."""
        path = directory / self.name
        if self.is_fresh:
            path.unlink(missing_ok=True)
            _qemu_img("create", "-f", "qcow2", os.fspath(path), str(self.size))
            return
        if path.exists():
            return
        raw = path if self.format == "raw" else path.with_suffix(".tmp")
        block = random.Random(1).randbytes(MIB)
        with open(raw, "wb") as file:
            for index in range(self.size // MIB):
                file.write(block[index % 997 :] + block[: index % 997])
        if raw != path:
            _qemu_img("convert", "-f", "raw", "-O", "qcow2", os.fspath(raw), os.fspath(path))
            raw.unlink()
        _cache_in_pages(path)

    def warm(self, directory: Path) -> None:
        """Bring the file into the page cache, and let no earlier write be under way to the disk."""
        with open(directory / self.name, "rb", buffering=0) as file:
            os.fsync(file.fileno())
            while file.read(4 * MIB):
                pass

    def argv(self, export: str) -> list[str]:
        """Return the options that export this image under the name `export`."""
        argv = ["--blockdev", f"driver=file,node-name={export}-file,filename={self.name}"]
        node = f"{export}-file"
        if self.driver != "file":
            node = f"{export}-format"
            argv += ["--blockdev", f"driver={self.driver},node-name={node},file={export}-file"]
        return [
            *argv,
            "--export",
            f"type=nbd,id={export},node-name={node},name={export},writable=on",
        ]


def _cache_in_pages(path: Path) -> None:
    """Fill the page cache as random I/O does: page by page.

    A file that was just written, or read ahead, lies in the cache in large folios. There a new kernel
    takes 25 microseconds for a write of 4 KiB, ten times what it takes in single pages, whoever writes:
    one would measure the kernel.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for offset in range(0, os.fstat(fd).st_size, 4096):
            os.pread(fd, 4096, offset)
    finally:
        os.close(fd)


def _qemu_img(*argv: str) -> None:
    subprocess.run(["qemu-img", *argv], check=True, stdout=subprocess.DEVNULL)


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
