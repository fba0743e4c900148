"""FUSE exports on real mounts: how they begin and end, and that data arrives. The clients are other processes."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.oracle import OURS, Daemon, qmp
from tests.peers import requires

pytestmark = [
    pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="no access to /dev/fuse"),
]

MIB = 1 << 20
SIZE = 4 * MIB


def fuse(id_: str = "e", node: str = "n", mountpoint: str = "m", **options: str) -> list[str]:
    more = "".join(f",{name}={value}" for name, value in options.items())
    return ["--export", f"fuse,id={id_},node-name={node},mountpoint={mountpoint}{more}"]


def raw(**options: str) -> list[str]:
    more = "".join(f",{name.replace('_', '.')}={value}" for name, value in options.items())
    return ["--blockdev", f"file,node-name=n,filename=disk,discard=unmap{more}"]


def mounts(directory: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line.split()[1] for line in lines if line.split()[1].startswith(f"{directory}/")]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "disk").write_bytes(random.Random(1).randbytes(SIZE))
    for name in ("m", "m2", "m3"):
        (tmp_path / name).touch()
    yield tmp_path
    left = mounts(tmp_path)
    for path in left:
        subprocess.run(["umount", "-l", path], check=False)
    assert left == []


def test_content_and_the_end(directory: Path) -> None:
    disk, mounted = directory / "disk", directory / "m"
    with Daemon(OURS, [*raw(), *fuse(writable="on")], directory):
        assert mounted.read_bytes() == disk.read_bytes()
        with open(mounted, "r+b") as file:
            file.seek(12345)
            file.write(b"written")
        assert disk.read_bytes()[12345:12352] == b"written"
        assert mounts(directory) == [str(mounted)]
    assert mounts(directory) == []


def test_on_the_image_itself(directory: Path) -> None:
    before = (directory / "disk").read_bytes()
    with Daemon(OURS, [*raw(), *fuse(mountpoint="disk", writable="on")], directory):
        with open(directory / "disk", "r+b") as file:
            file.write(b"through the export")
        assert (directory / "disk").read_bytes()[18:] == before[18:]
    assert (directory / "disk").read_bytes() == b"through the export" + before[18:]


@pytest.mark.parametrize("mode", ["safe", "hard"])
def test_deletion_does_not_wait_for_open_files(directory: Path, mode: str) -> None:
    with Daemon(OURS, [*raw(), *fuse(writable="on")], directory) as daemon:
        with open(directory / "m", "rb", buffering=0) as file:
            assert file.read(1)
            daemon.qmp.command("block-export-del", id="e", mode=mode)
            assert daemon.qmp.wait_event("BLOCK_EXPORT_DELETED")["data"] == {"id": "e"}
            assert mounts(directory) == []
            with pytest.raises(OSError) as caught:
                os.pread(file.fileno(), 4096, MIB)
            assert caught.value.errno == errno.ENOTCONN
            with contextlib.suppress(OSError):
                file.close()  # the flush has nobody to go to
        assert daemon.qmp.command("query-block-exports") == []
        daemon.qmp.execute(
            qmp("block-export-add", type="fuse", id="e", node_name="n", mountpoint="m")
        )
        assert (directory / "m").stat().st_size == SIZE


def test_pages_of_a_mapping_are_not_lost(directory: Path) -> None:
    """What was stored in a shared mapping, and never synced, is written when the export goes."""
    with Daemon(OURS, [*raw(), *fuse(writable="on")], directory) as daemon:
        with open(directory / "m", "r+b") as file, mmap.mmap(file.fileno(), 65536) as area:
            area[4096:4103] = b"mapping"
            daemon.qmp.command("block-export-del", id="e")
            assert (directory / "disk").read_bytes()[4096:4103] == b"mapping"
            with contextlib.suppress(OSError):
                file.close()


def test_a_stale_mount_is_removed_at_start(directory: Path) -> None:
    argv = [*raw(), *fuse(writable="on")]
    for _ in range(2):
        with Daemon(OURS, argv, directory) as daemon:
            assert (directory / "m").stat().st_size == SIZE
            daemon.process.kill()
            daemon.process.wait()
        with pytest.raises(OSError, match="not connected"):
            os.statvfs(directory / "m")
        assert mounts(directory) == [str(directory / "m")]
    with Daemon(OURS, argv, directory):
        assert (directory / "m").read_bytes() == (directory / "disk").read_bytes()
        assert len(mounts(directory)) == 1


def test_somebody_else_unmounts(directory: Path) -> None:
    """The export stays until it is deleted, and costs nothing meanwhile (the real one spins)."""
    with Daemon(OURS, [*raw(), *fuse()], directory) as daemon:
        subprocess.run(["umount", directory / "m"], check=True, timeout=20)
        (export,) = daemon.qmp.command("query-block-exports")
        assert export["id"] == "e"
        clock = (~daemon.process.pid << 3) | 2
        before = time.clock_gettime(clock)
        time.sleep(0.2)
        assert time.clock_gettime(clock) - before < 0.05
        daemon.qmp.command("block-export-del", id="e")
        daemon.qmp.wait_event("BLOCK_EXPORT_DELETED")
        assert (directory / "m").stat().st_size == 0


def test_the_same_place_by_another_name(directory: Path) -> None:
    """Refused, and not looked at from the loop that would have to answer."""
    os.symlink("m", directory / "link")
    with Daemon(OURS, [*raw(), *fuse()], directory) as daemon:
        for path in ("m", "./m", "link", str(directory / "m")):
            reply = daemon.qmp.execute(
                qmp("block-export-add", type="fuse", id="f", node_name="n", mountpoint=path)
            )
            assert reply["error"]["desc"] == f"There already is a FUSE export on '{path}'"
    done = subprocess.run(
        [*OURS, *raw(), *fuse(), *fuse("f", mountpoint="./m")],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("There already is a FUSE export on './m'\n")


def test_many_exports_of_one_node(directory: Path) -> None:
    argv = [*raw(), *fuse(writable="on"), *fuse("f", mountpoint="m2", writable="on")]
    with Daemon(OURS, [*argv, *fuse("g", mountpoint="m3")], directory) as daemon:
        with open(directory / "m", "r+b", buffering=0) as file:
            file.write(b"seen by all")
        for name in ("m2", "m3"):
            with open(directory / name, "rb", buffering=0) as file:
                assert file.read(11) == b"seen by all"
        assert [export["id"] for export in daemon.qmp.command("query-block-exports")] == [
            "g",
            "f",
            "e",
        ]
        daemon.qmp.command("block-export-del", id="f")
        assert (directory / "m").read_bytes() == (directory / "m3").read_bytes()


def test_a_node_resized_while_exported(directory: Path) -> None:
    with Daemon(OURS, [*raw(), *fuse()], directory) as daemon:
        daemon.qmp.command("block_resize", node_name="n", size=2 * SIZE)
        deadline = time.monotonic() + 5
        while (directory / "m").stat().st_size != 2 * SIZE:  # the kernel remembers for a second
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (directory / "m").read_bytes() == (directory / "disk").read_bytes()


def test_the_signal_waits_for_requests(directory: Path) -> None:
    """A copy into the export that is under way when the daemon must go ends with an error or is whole."""
    with Daemon(OURS, [*raw(), *fuse(writable="on")], directory) as daemon:
        fd = os.open(directory / "m", os.O_RDWR)
        done = 0
        with contextlib.suppress(OSError):
            while done < SIZE:
                if done == MIB:
                    daemon.process.send_signal(signal.SIGTERM)
                done += os.pwrite(fd, b"w" * 65536, done)
        daemon.wait()
        with contextlib.suppress(OSError):
            os.close(fd)
        assert daemon.returncode == 0
    assert done >= MIB
    assert (directory / "disk").read_bytes()[:done] == b"w" * done


@requires("qemu-img")
@pytest.mark.parametrize("node", ["raw", "direct", "qcow2"])
def test_concurrent_requests_keep_their_data(directory: Path, node: str) -> None:
    """The real 7.2 uses one buffer for all requests: this copy of it is not what was copied."""
    source = directory / "source"
    source.write_bytes(random.Random(2).randbytes(SIZE))
    argv = raw(cache_direct="on") if node == "direct" else raw()
    if node == "qcow2":
        create = ["qemu-img", "create", "-q", "-f", "qcow2", str(directory / "disk"), str(SIZE)]
        subprocess.run(create, check=True, timeout=20)
        argv = ["--blockdev", "file,node-name=file,filename=disk"]
        argv += ["--blockdev", "qcow2,node-name=n,file=file"]
    with Daemon(OURS, [*argv, *fuse(writable="on")], directory):
        copy = ["qemu-img", "convert", "-n", "-t", "none", "-f", "raw", "-O", "raw"]
        subprocess.run([*copy, str(source), str(directory / "m")], check=True, timeout=60)
        assert (directory / "m").read_bytes() == source.read_bytes()


@requires("qemu-img")
def test_a_punched_hole_is_zero(directory: Path) -> None:
    """Also parts of clusters, where the real daemon leaves the data."""
    create = ["qemu-img", "create", "-q", "-f", "qcow2", str(directory / "disk"), str(SIZE)]
    subprocess.run(create, check=True, timeout=20)
    argv = ["--blockdev", "file,node-name=file,filename=disk"]
    argv += ["--blockdev", "qcow2,node-name=n,file=file"]
    with Daemon(OURS, [*argv, *fuse(writable="on")], directory):
        mounted = directory / "m"
        with open(mounted, "r+b", buffering=0) as file:
            file.write(b"a" * MIB)
        punch = ["fallocate", "-p", "-o", "1000", "-l", "200000", str(mounted)]
        subprocess.run(punch, check=True, timeout=20)
        expected = b"a" * 1000 + bytes(200000) + b"a" * (MIB - 201000)
        assert mounted.read_bytes()[:MIB] == expected


@requires("fio")
def test_fio_verifies_while_another_export_reads(directory: Path) -> None:
    argv = [*raw(), *fuse(writable="on"), *fuse("r", mountpoint="m2")]
    with Daemon(OURS, argv, directory):
        job = ["--name=x", f"--filename={directory / 'm'}", "--rw=randwrite", "--bs=4k"]
        job += ["--iodepth=16", "--ioengine=libaio", "--direct=1", "--verify=crc32c"]
        job += [f"--size={SIZE}", "--output=/dev/null"]
        fio = subprocess.Popen(["fio", *job], cwd=directory)
        with open(directory / "m2", "rb", buffering=0) as file:
            while fio.poll() is None:
                assert len(os.pread(file.fileno(), MIB, 0)) == MIB
                time.sleep(0.01)
        assert fio.returncode == 0
        assert (directory / "m2").read_bytes() == (directory / "disk").read_bytes()


def test_descriptors_come_back(directory: Path) -> None:
    with Daemon(OURS, raw(), directory) as daemon:
        descriptors = Path(f"/proc/{daemon.process.pid}/fd")
        counts = []
        for _ in range(3):
            daemon.qmp.command(
                "block-export-add", type="fuse", id="e", node_name="n", mountpoint="m"
            )
            assert (directory / "m").stat().st_size == SIZE
            daemon.qmp.command("block-export-del", id="e")
            counts.append(len(os.listdir(descriptors)))
        assert counts[1] == counts[2]
