"""What is done to a server, and what is read off it: each load returns named figures."""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import attrs

from tests.bench.images import Image, make_large
from tests.bench.servers import Server
from tests.oracle import QmpClient

Figures: TypeAlias = dict[str, float]

PING_INTERVAL = 0.005  # seconds
EVICT_INTERVAL = 0.02  # seconds


@attrs.frozen(kw_only=True)
class Fio:
    """One fio job through its nbd engine, over one connection."""

    rw: str
    block_size: int
    depth: int
    amount: int | None = None  # bytes; None: for as long as the bench says

    def argv(self, server: Server, export: str, image: Image, seconds: float) -> list[str]:
        argv = [
            "fio",
            f"--name={export}",
            "--ioengine=nbd",
            f"--uri={server.uri(export)}",
            f"--rw={self.rw}",
            f"--bs={self.block_size}",
            f"--iodepth={self.depth}",
            f"--size={image.size}",
            "--output-format=json",
            f"--output={server.directory / (export + '.json')}",
        ]
        if self.amount is None:
            return [*argv, "--time_based", f"--runtime={round(seconds * 1000)}ms"]
        return [*argv, f"--io_size={self.amount}"]


def fio_result(text: str) -> tuple[int, int, float]:
    """Return requests, bytes and seconds of fio's only job."""
    report: Any = json.loads(text[text.index("{") :])
    (job,) = report["jobs"]
    if job["error"]:
        raise RuntimeError(f"fio failed with error {job['error']}")
    both = [job["read"], job["write"]]
    requests = sum(side["total_ios"] for side in both)
    amount = sum(side["io_bytes"] for side in both)
    return requests, amount, max(side["runtime"] for side in both) / 1000


def run_fio(server: Server, image: Image, job: Fio, seconds: float) -> Figures:
    """Run one job and return rates and the server's CPU time per request and per byte."""
    argv = job.argv(server, "disk", image, seconds)
    before = server.cpu_seconds()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=120 + 10 * seconds)
    cpu = server.cpu_seconds() - before
    requests, amount, took = fio_result((server.directory / "disk.json").read_text())
    return {
        "IOPS": requests / took,
        "MB/s": amount / took / 1e6,
        "CPU us/request": cpu / requests * 1e6,
        "CPU ns/KiB": cpu / (amount / 1024) * 1e9,
        "peak RSS MiB": server.memory_mib()[1],
    }


def run_nbdcopy(server: Server, image: Image, *, write: bool) -> Figures:
    """Copy the whole disk out of the server, or into it, over one connection."""
    uri = server.uri("disk")
    options = ["--connections=1", "--no-extents", "--request-size=1048576"]
    if write:
        # The same bytes again: what is measured is the way, and the image stays what it was.
        source = server.directory / image.name
        argv = ["nbdcopy", *options, "--sparse=0", os.fspath(source), uri]
    else:
        argv = ["nbdcopy", *options, uri, "null:"]
    before = server.cpu_seconds()
    started = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=300)
    took = time.perf_counter() - started
    cpu = server.cpu_seconds() - before
    return {"MB/s": image.size / took / 1e6, "CPU ns/KiB": cpu / (image.size / 1024) * 1e9}


def percentile(values: list[float], percent: float) -> float:
    """Return the smallest value that `percent` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def ping(client: QmpClient, seconds: float) -> list[float]:
    """Send a command every 5 ms for a while and return the latencies in seconds."""
    latencies = []
    start = time.perf_counter()
    due = start
    while due < start + seconds:
        time.sleep(max(0.0, due - time.perf_counter()))
        sent = time.perf_counter()
        client.command("query-version")
        latencies.append(time.perf_counter() - sent)
        # A late answer delays the next ping; it does not let pings pile up.
        due = max(due + PING_INTERVAL, time.perf_counter())
    return latencies


@contextlib.contextmanager
def evicting(path: Path) -> Iterator[None]:
    """Keep throwing a file out of the page cache, so that its readers meet the disk."""
    stop = threading.Event()

    def evict() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # dirty pages cannot be thrown out
            while not stop.is_set():
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                stop.wait(EVICT_INTERVAL)
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=evict)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def run_stall(server: Server, image: Image, cold: Image, seconds: float) -> Figures:
    """Ping a monitor while one client writes at full speed and another reads a cold file."""
    writer = Fio(rw="randwrite", block_size=64 << 10, depth=32)
    reader = Fio(rw="randread", block_size=4 << 10, depth=32)
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    client = server.qmp()
    clients = []
    try:
        for export, job, target in (("disk", writer, image), ("cold", reader, cold)):
            argv = job.argv(server, export, target, seconds + 1)
            clients.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL))
        time.sleep(min(0.5, seconds))  # fio connects
        with contextlib.suppress(PermissionError):
            # What is asked is how long the daemon takes, not how long this process waits for a core.
            os.setpriority(os.PRIO_PROCESS, 0, -10)
        with evicting(server.directory / cold.name):
            latencies = ping(client, seconds)
    finally:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, priority)
        codes = [process.wait(60 + 10 * seconds) for process in clients]
        client.close()
    if any(codes):
        raise RuntimeError(f"fio failed under the stall load: {codes}")
    written, read = (
        fio_result((server.directory / f"{export}.json").read_text()) for export in ("disk", "cold")
    )
    return {
        "ping p50 ms": statistics.median(latencies) * 1e3,
        "ping p99 ms": percentile(latencies, 99) * 1e3,
        "ping max ms": max(latencies) * 1e3,
        "writer MB/s": written[1] / written[2] / 1e6,
        "cold reader IOPS": read[0] / read[2],
    }


def run_start(server: Server) -> Figures:
    """Report how long the server took to serve, and what it weighs then."""
    milliseconds = server.start_seconds * 1e3
    imports = import_milliseconds(3)  # at the same time, as the machine's speed varies
    return {
        "ms": milliseconds,
        "x of imports": milliseconds / imports,
        "RSS MiB": server.memory_mib()[0],
    }


def run_open(server: Server, name: str, *, clusters: int, rounds: int) -> Figures:
    """Add and delete a qcow2 node on a large image, often; both commands together are one opening."""
    make_large(server.directory / name, clusters=clusters)
    client = server.qmp()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        file = {"driver": "file", "filename": name}
        client.command("blockdev-add", driver="qcow2", node_name="large", file=file)
        client.command("blockdev-del", node_name="large")
        times.append(time.perf_counter() - started)
    client.close()
    return {"ms": statistics.median(times) * 1e3}


def import_milliseconds(runs: int) -> float:
    """Return the median time of starting Python with the packages nobody can do without."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import trio, attrs, cattrs"], check=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3
