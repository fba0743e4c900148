"""Start a daemon, make a qcow2 image through it, copy a disk into the image over NBD, compare.

Run it through examples/quickstart, which installs the package first. The daemon is an ordinary process;
this program talks to it as any client would: QMP on one unix socket, NBD on another.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TypeAlias, final

JsonObject: TypeAlias = "dict[str, object]"

MIB = 1 << 20
SIZE = 64 * MIB
PIECE = 2 * MIB  # of one NBD request


def receive(sock: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = sock.recv(length - len(data))
        if not piece:
            raise ConnectionError("the daemon hung up")
        data += piece
    return bytes(data)


@final
class Nbd:
    """The smallest useful NBD client: one request at a time, simple replies."""

    READ, WRITE, DISCONNECT, FLUSH = range(4)

    def __init__(self, path: Path, export: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.fspath(path))
        magic, option_magic, flags = struct.unpack(">8s8sH", receive(self.sock, 18))
        assert (magic, option_magic) == (b"NBDMAGIC", b"IHAVEOPT"), "not an NBD server"
        name = export.encode()
        # Fixed newstyle, no zeroes after the answer; option 1 is EXPORT_NAME.
        self.sock.sendall(struct.pack(">I8sII", flags & 3, b"IHAVEOPT", 1, len(name)) + name)
        self.size, _ = struct.unpack(">QH", receive(self.sock, 10))

    def request(self, command: int, offset: int = 0, length: int = 0, data: bytes = b"") -> bytes:
        header = struct.pack(">IHHQQI", 0x25609513, 0, command, 42, offset, length)
        self.sock.sendall(header + data)
        if command == self.DISCONNECT:
            return b""
        magic, error, cookie = struct.unpack(">IIQ", receive(self.sock, 16))
        assert (magic, cookie) == (0x67446698, 42), "not an NBD reply"
        if error:
            raise OSError(error, os.strerror(error))
        return receive(self.sock, length) if command == self.READ else b""

    def close(self) -> None:
        self.request(self.DISCONNECT)
        self.sock.close()


@final
class Qmp:
    """Send commands to the daemon's monitor and show what is said."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.fspath(path))
        self.lines = self.sock.makefile("rb")
        print(f"<- {self.lines.readline().decode().strip()}")
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: object) -> object:
        request: JsonObject = {"execute": name}
        if arguments:
            request["arguments"] = {key.replace("_", "-"): v for key, v in arguments.items()}
        print(f"-> {json.dumps(request)}")
        self.sock.sendall(json.dumps(request).encode() + b"\n")
        while "event" in (reply := json.loads(self.lines.readline())):
            print(f"<- event {reply['event']} {json.dumps(reply.get('data'))}")
        print(f"<- {json.dumps(reply)}")
        if "error" in reply:
            raise RuntimeError(f"{name}: {reply['error']['desc']}")
        result: object = reply["return"]
        return result

    def create(self, **options: object) -> None:
        """Run a blockdev-create job and wait until it has concluded."""
        self.command("blockdev-create", job_id="create", options=options)
        while True:
            jobs = self.command("query-jobs")
            assert isinstance(jobs, list)
            (job,) = jobs
            if job["status"] == "concluded":
                break
            time.sleep(0.01)
        if "error" in job:
            raise RuntimeError(f"blockdev-create: {job['error']}")
        self.command("job-dismiss", id="create")

    def close(self) -> None:
        self.lines.close()
        self.sock.close()


def make_disk(path: Path) -> str:
    """Write a raw disk with data and holes and return its SHA-256."""
    block = random.Random(7).randbytes(MIB)
    with open(path, "wb") as file:
        for index in range(0, SIZE // MIB, 2):  # every other MiB stays a hole
            file.seek(index * MIB)
            file.write(block[index:] + block[:index])
        file.truncate(SIZE)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wait_for(path: Path, daemon: subprocess.Popen[bytes]) -> None:
    while not path.exists():
        if daemon.poll() is not None:
            raise RuntimeError(f"the daemon ended with exit code {daemon.returncode}")
        time.sleep(0.01)


def copy(source: Nbd, target: Nbd) -> None:
    for offset in range(0, source.size, PIECE):
        length = min(PIECE, source.size - offset)
        data = source.request(Nbd.READ, offset, length)
        target.request(Nbd.WRITE, offset, length, data)
    target.request(Nbd.FLUSH)


def checksum(disk: Nbd) -> str:
    digest = hashlib.sha256()
    for offset in range(0, disk.size, PIECE):
        digest.update(disk.request(Nbd.READ, offset, min(PIECE, disk.size - offset)))
    return digest.hexdigest()


def run(directory: Path, daemon: subprocess.Popen[bytes]) -> str:
    """Drive the daemon; return the checksum of what arrived in the qcow2 image."""
    pid_file = directory / "daemon.pid"
    wait_for(pid_file, daemon)  # written when everything on the command line is done
    qmp = Qmp(directory / "qmp.sock")
    image = os.fspath(directory / "copy.qcow2")
    qmp.create(driver="file", filename=image, size=0)
    qmp.command("blockdev-add", driver="file", node_name="copy-file", filename=image)
    qmp.create(driver="qcow2", file="copy-file", size=SIZE)
    qmp.command("blockdev-add", driver="qcow2", node_name="copy", file="copy-file")
    qmp.command("block-export-add", type="nbd", id="copy", node_name="copy", writable=True)

    nbd = directory / "nbd.sock"
    source, target = Nbd(nbd, "disk"), Nbd(nbd, "copy")
    started = time.perf_counter()
    copy(source, target)
    took = time.perf_counter() - started
    print(f"copied {SIZE // MIB} MiB from export 'disk' to export 'copy' in {took:.2f} s")
    arrived = checksum(target)
    source.close()
    target.close()
    qmp.command("quit")
    qmp.close()
    if daemon.wait(30):
        raise RuntimeError(f"the daemon ended with exit code {daemon.returncode}")
    if shutil.which("qemu-img"):
        done = subprocess.run(["qemu-img", "check", image], capture_output=True, text=True)
        print(f"qemu-img check: {done.stdout.splitlines()[0] if done.stdout else done.stderr}")
        done.check_returncode()
    return arrived


def main() -> int:
    program = Path(sys.executable).parent / "qsd-trio"
    with tempfile.TemporaryDirectory(prefix="qsd-") as name:
        directory = Path(name)
        expected = make_disk(directory / "disk.img")
        argv = [
            os.fspath(program),
            "--blockdev",
            f"driver=file,node-name=disk,filename={directory}/disk.img",
            "--chardev",
            f"socket,path={directory}/qmp.sock,server=on,wait=off,id=char1",
            "--monitor",
            "chardev=char1",
            "--nbd-server",
            f"addr.type=unix,addr.path={directory}/nbd.sock",
            "--export",
            "type=nbd,id=disk,node-name=disk",
            "--pidfile",
            f"{directory}/daemon.pid",
        ]
        print("$", " ".join(argv))
        daemon = subprocess.Popen(argv)
        try:
            arrived = run(directory, daemon)
        finally:
            if daemon.poll() is None:
                daemon.terminate()
                daemon.wait(30)
    if arrived != expected:
        print(f"MISMATCH: sent {expected}, got {arrived}", file=sys.stderr)
        return 1
    print(
        f"{SIZE // MIB} MiB were copied through a running qsd-trio (pid {daemon.pid})"
        f" and match: sha256 {arrived}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
