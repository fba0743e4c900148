"""Real NBD clients against our server: libnbd's tools, qemu-img, qemu-io; several at once."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.oracle import OURS, Daemon, requires

pytestmark = requires("nbdinfo", "nbdcopy", "qemu-img", "qemu-io")

SIZE = 8 << 20


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Run our daemon: ``disk`` is half random, half hole; ``target`` is empty; ``cow`` has a backing file."""
    with tempfile.TemporaryDirectory(prefix="q-") as name:
        folder = Path(name)
        with open(folder / "disk.img", "wb") as image:
            image.write(random.Random(1).randbytes(SIZE // 2))
            image.truncate(SIZE)
        with open(folder / "target.img", "wb") as image:
            image.truncate(SIZE)
        run(
            folder, "qemu-img", "create", "-qf", "qcow2", "-b", "disk.img", "-F", "raw", "cow.qcow2"
        )
        run(folder, "qemu-io", "-c", "write -P 7 64k 64k", "-f", "qcow2", "cow.qcow2")
        argv = [
            *("--blockdev", "driver=file,node-name=disk,filename=disk.img,discard=unmap"),
            *("--blockdev", "driver=file,node-name=target,filename=target.img,discard=unmap"),
            *("--blockdev", "driver=file,node-name=f,filename=cow.qcow2"),
            *("--blockdev", "driver=raw,node-name=base,file=disk,read-only=on"),
            *("--blockdev", "driver=qcow2,node-name=cow,file=f,backing=base"),
            *("--nbd-server", "addr.type=unix,addr.path=s"),
            *("--export", "nbd,id=e1,node-name=disk,description=half of it is a hole"),
            *("--export", "nbd,id=e2,node-name=target,writable=on"),
            *("--export", "nbd,id=e3,node-name=cow,writable=on,allocation-depth=on"),
        ]
        with Daemon(OURS, argv, folder, monitor=False):
            yield folder


def run(folder: Path, *argv: str) -> str:
    # libnbd's Python module belongs to the system's Python.
    env = {**os.environ, "PATH": f"/usr/bin:{os.environ['PATH']}"}
    done = subprocess.run(
        argv, cwd=folder, capture_output=True, text=True, timeout=60, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def uri(name: str) -> str:
    return f"nbd+unix:///{name}?socket=s"


def test_nbdinfo(folder: Path) -> None:
    text = run(folder, "nbdinfo", "--list", "nbd+unix://?socket=s")
    for name in ("disk", "target", "cow"):
        assert f'export="{name}"' in text
    assert "description: half of it is a hole" in text
    text = run(folder, "nbdinfo", "--map", uri("disk"))
    lines = [line.split() for line in text.splitlines()]
    assert [(int(line[0]), int(line[1]), line[3]) for line in lines] == [
        (0, SIZE // 2, "data"),
        (SIZE // 2, SIZE // 2, "hole,zero"),
    ]
    text = run(folder, "nbdinfo", "--map=qemu:allocation-depth", uri("cow"))
    depths = [(int(line.split()[1]), line.split()[2]) for line in text.splitlines()]
    assert depths == [(65536, "2"), (65536, "1"), (SIZE - 131072, "2")]


@pytest.mark.parametrize("options", [[], ["--requests=1"], ["--no-extents"], ["--synchronous"]])
def test_nbdcopy(folder: Path, options: list[str]) -> None:
    run(folder, "nbdcopy", "--flush", *options, uri("disk"), uri("target"))
    assert (folder / "target.img").read_bytes() == (folder / "disk.img").read_bytes()
    run(folder, "nbdcopy", *options, uri("disk"), "copy.img")
    assert (folder / "copy.img").read_bytes() == (folder / "disk.img").read_bytes()


def test_qemu_img(folder: Path) -> None:
    for name in ("disk", "cow"):
        run(folder, "qemu-img", "info", uri(name))
        run(folder, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri(name), f"{name}.copy")
        run(folder, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri(name), f"{name}.copy")
    run(folder, "qemu-img", "compare", "-F", "raw", "-f", "raw", "disk.copy", "disk.img")
    convert = ("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "16")
    run(folder, *convert, "disk.img", uri("target"))
    run(folder, "qemu-img", "compare", "-f", "raw", "-F", "raw", "disk.img", uri("target"))


def test_qemu_io(folder: Path) -> None:
    script = [
        "write -P 1 0 64k",
        "aio_write -P 2 64k 1M",
        "aio_write -P 3 2M 3M",
        "aio_flush",
        "write -f -P 4 1000 513",
        "write -z -u 128k 64k",
        "discard 256k 64k",
        "flush",
        "read -P 1 0 1000",
        "read -P 4 1000 513",
        "read -P 0 128k 64k",
        "read -P 2 192k 64k",
        "read -P 3 2M 3M",
        "readv -P 3 2M 4k 8k 100",
    ]
    arguments = [part for line in script for part in ("-c", line)]
    for name in ("target", "cow"):
        text = run(folder, "qemu-io", "-f", "raw", *arguments, uri(name))
        assert "failed" not in text


@requires("nbdsh")
def test_nbdsh(folder: Path) -> None:
    """libnbd's own calls: strict checks off, flags and sizes at the edges, many commands in flight."""
    script = f"""
import errno, os
h.add_meta_context("base:allocation")
h.connect_uri("{uri("target")}")
h.set_strict_mode(0)
size = h.get_size()
assert size == {SIZE}
data = os.urandom(1 << 20)
h.pwrite(data, 12345)
assert h.pread(1 << 20, 12345) == data
assert h.pread(0, 0) == bytearray()
for call in (lambda: h.pread(1, size), lambda: h.pwrite(b"x", size), lambda: h.zero(1, size),
             lambda: h.trim(1, size), lambda: h.cache(1, size)):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == errno.EINVAL
    else:
        raise AssertionError
h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 0, nbd.CMD_FLAG_FUA)
h.trim(4096, 8192, nbd.CMD_FLAG_FUA)
buffers = [nbd.Buffer.from_bytearray(bytearray([i]) * 5000) for i in range(100)]
cookies = [h.aio_pwrite(b, i * 5000) for i, b in enumerate(buffers)]
while any(not h.aio_command_completed(c) for c in [cookies.pop()]):
    h.poll(-1)
while h.aio_in_flight():
    h.poll(-1)
h.flush()
for i in range(100):
    assert h.pread(5000, i * 5000) == bytes([i]) * 5000
extents = []
h.block_status(size, 0, lambda *args: extents.append(args))
assert extents
h.shutdown()
"""
    run(folder, "nbdsh", "-c", script)


@requires("fio")
def test_fio_verifies_what_it_wrote(folder: Path) -> None:
    for block in ("4k", "200k"):
        text = run(
            folder,
            *("fio", "--name=x", "--ioengine=nbd", f"--uri={uri('cow')}", "--rw=randwrite"),
            *(f"--bs={block}", "--iodepth=16", "--size=4m", "--verify=crc32c", "--do_verify=1"),
        )
        assert "err= 0" in text
