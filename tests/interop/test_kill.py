"""kill -9 of the daemon while clients write: images stay sound, and what was flushed is there.

Fifty rounds on the same images, each opened again as the round before left it. What the clients do, and what
they may find then, is kept by the same books as in the simulated crashes (qcow2/test_crash.py).
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

import attrs
import trio

from qsd_trio.block.abc import SECTOR, ReqFlag
from qsd_trio.protocol.nbd.constants import CmdFlag
from qsd_trio.testing.guest import Guest, stamp, stamps
from qsd_trio.testing.nbd_client import NbdClient, connect_nbd
from qsd_trio.testing.recorder import Journal
from tests.block.drivers.qcow2.checker import Report, check
from tests.block.drivers.qcow2.workload import Workload
from tests.oracle import OURS, Daemon, requires

ROUNDS = 50
SECTORS = 1024
SIZE = SECTORS * SECTOR
BELOW = stamp(1 << 40) * (SECTORS // 2)
PER_ROUND = 4  # images that a daemon has
TASKS = 3  # per image
MOST = 8 << 20  # bytes of an image file that hold something: lazy refcounts make it much longer
LEAKS_ONLY = 3  # exit code of qemu-img check
SECRET = "secret,id=s,data=swordfish"
LUKS = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"


@attrs.frozen
class Kind:
    """A kind of image: its name, and how qemu-img makes it."""

    name: str
    options: str = ""
    cluster: int = 65536
    backed: bool = False
    open: str = ""  # further options of blockdev-add


KINDS = [
    Kind("plain"),
    Kind("small", "cluster_size=512,compat=0.10", 512),
    Kind("backed", "cluster_size=4k,backing_file=below.raw,backing_fmt=raw", 4096, backed=True),
    Kind("lazy", "cluster_size=4k,lazy_refcounts=on", 4096),
    Kind("subclusters", "cluster_size=32k,extended_l2=on", 32768),
    Kind("external", "cluster_size=4k,data_file=external.data", 4096),
    Kind(
        "encrypted",
        f"cluster_size=4k,{LUKS}",
        4096,
        open="encrypt.format=luks,encrypt.key-secret=s",
    ),
]


@attrs.define(eq=False)
class Image:
    """An image through the rounds: its guest's books and what it held last."""

    kind: Kind
    path: Path
    content: bytes
    number: int = 0
    guest: Guest | None = None
    ended: int = 0  # position in the journal when the daemon was dead


class Remote:
    """What ``Workload`` takes for a node: an NBD client's side of one."""

    def __init__(self, client: NbdClient) -> None:
        self._client = client

    def map_write(self, offset: int, length: int) -> None:
        return None

    async def preadv(self, offset: int, iov: Sequence[memoryview]) -> None:
        data = await self._client.pread(offset, sum(map(len, iov)))
        for piece in iov:
            piece[:] = data[: len(piece)]
            data = data[len(piece) :]

    async def pwritev(
        self, offset: int, iov: Sequence[memoryview], flags: ReqFlag = ReqFlag.NONE
    ) -> None:
        await self._client.pwrite(offset, b"".join(iov))

    async def pwrite_zeroes(self, offset: int, length: int, flags: ReqFlag) -> None:
        no_hole = 0 if flags & ReqFlag.MAY_UNMAP else CmdFlag.NO_HOLE
        await self._client.zero(offset, length, flags=no_hole)

    async def pdiscard(self, offset: int, length: int) -> None:
        await self._client.trim(offset, length)

    async def flush(self) -> None:
        await self._client.flush()


@requires("qemu-img")
def test_fifty_kills(sock_dir: Path) -> None:
    (sock_dir / "below.raw").write_bytes(BELOW)
    images = []
    for kind in KINDS:
        path = sock_dir / kind.name
        options = ["-o", kind.options] if kind.options else []
        subprocess.run(
            ["qemu-img", "create", "--object", SECRET, "-qf", "qcow2", *options, path, str(SIZE)],
            check=True,
            cwd=sock_dir,
        )
        images.append(Image(kind, path, BELOW.ljust(SIZE, b"\0") if kind.backed else bytes(SIZE)))
    rng = random.Random(1)
    kills = 0
    for _ in range(ROUNDS):
        some = rng.sample(images, PER_ROUND)
        with Daemon(OURS, daemon_argv(some), sock_dir, monitor=False) as daemon:
            trio.run(write_until_killed, daemon, some, rng)
            assert daemon.returncode == -9
        (sock_dir / "oracle.pid").unlink()  # else it seems to serve at once
        kills += 1
        for image in some:
            check_after_kill(image, with_qemu=rng.random() < 0.2)
    with Daemon(OURS, daemon_argv(images), sock_dir, monitor=False):
        trio.run(read_again, sock_dir, images)
    for image in images:
        report = report_on(image)
        assert report.errors == []
        assert image.kind.open or report.content == image.content
    assert kills == ROUNDS
    assert sum(image.number for image in images) > ROUNDS * PER_ROUND * 5


def daemon_argv(images: list[Image]) -> list[str]:
    argv = ["--nbd-server", "addr.type=unix,addr.path=s", "--object", SECRET]
    for image in images:
        name = image.kind.name
        file = f"file.driver=file,file.filename={name},file.discard=unmap,discard=unmap"
        further = f",{image.kind.open}" if image.kind.open else ""
        argv += ["--blockdev", f"driver=qcow2,node-name={name},{file}{further}"]
        argv += ["--export", f"nbd,id={name},node-name={name},name={name},writable=on"]
    return argv


async def read_again(directory: Path, images: list[Image]) -> None:
    """Read all images, and check that they hold what they may."""
    for image in images:
        async with connect_nbd(directory / "s", image.kind.name) as client:
            image.content = await client.pread(0, SIZE)
        if image.guest is not None:
            image.guest.check_crash(image.ended, image.content)


async def write_until_killed(daemon: Daemon, images: list[Image], rng: random.Random) -> None:
    """Make requests on all images for a while, kill the daemon, and end the books."""
    await read_again(daemon.directory, images)
    journal = Journal()
    async with trio.open_nursery() as nursery:
        for image in images:
            image.guest = Guest(journal, SECTORS, stamps(image.content))
            kinds = "wwwwwwzZrf" if image.kind.backed else "wwwwwwzZdrf"
            work = Workload(rng, image.guest, image.kind.cluster, kinds)
            work.number = image.number
            nursery.start_soon(client_of, daemon, image, work)
        await trio.sleep(0.1 + rng.random() * 0.1)
        daemon.process.kill()
        await trio.to_thread.run_sync(daemon.process.wait)
    for image in images:
        image.ended = journal.now()


async def client_of(daemon: Daemon, image: Image, work: Workload) -> None:
    """Make requests over one connection until the daemon is gone."""
    try:
        async with connect_nbd(daemon.directory / "s", image.kind.name) as client:
            async with trio.open_nursery() as nursery:
                for _ in range(TASKS):
                    nursery.start_soon(run_until_gone, work, Remote(client))
    except* (ConnectionResetError, trio.BrokenResourceError):
        pass
    image.number = work.number


async def run_until_gone(work: Workload, node: Remote) -> None:
    try:
        await work.run(node, 1 << 30)
    except (ConnectionResetError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass


def report_on(image: Image) -> Report:
    data = image.path.with_name("external.data") if image.kind.name == "external" else None
    backing = BELOW if image.kind.backed else b""
    return check(start_of(image), backing, data.read_bytes() if data else None)


def start_of(image: Image) -> bytes:
    """Return what the image file holds."""
    with open(image.path, "rb") as file:
        return file.read(MOST)


def check_after_kill(image: Image, *, with_qemu: bool) -> None:
    """Check what the daemon's death left: nothing but leaks."""
    report = report_on(image)
    assert report.errors == []
    if not image.kind.open:  # else the content is what is stored; `read_again` will see
        assert image.guest is not None
        image.guest.check_crash(image.ended, report.content)
    if with_qemu:
        copy = image.path.with_name("copy")
        copy.write_bytes(start_of(image))
        repair = ["-r", "all"] if report.dirty else []
        options = f"driver=qcow2,file.driver=file,file.filename={copy}"
        if image.kind.open:
            options += f",{image.kind.open}"
        result = subprocess.run(
            ["qemu-img", "check", *repair, "--object", SECRET, "--image-opts", options],
            capture_output=True,
            text=True,
            check=False,
            cwd=image.path.parent,
            timeout=60,
        )
        assert result.returncode in (0, LEAKS_ONLY), result.stdout + result.stderr
