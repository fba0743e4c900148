"""Crashes at any moment: the image opens, what was flushed is there, and nothing worse than leaks is found.

Each case is a kind of image and workloads on it, whose journals give crashed images: a few hundred, or as
many as `--crash-points` says. Each is checked by code that shares nothing with the driver, opened, read, written to,
closed and checked again; some are shown to qemu-img as well.
"""

from __future__ import annotations

import random
import subprocess
from contextlib import AbstractAsyncContextManager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
import trio

from qsd_trio.block.abc import SECTOR
from qsd_trio.block.drivers.qcow2 import metadata
from qsd_trio.block.io import Node
from qsd_trio.testing.guest import Guest, stamp
from qsd_trio.testing.memory import memory_node
from qsd_trio.testing.recorder import Crash, Journal, RecordingDisk
from tests.block.drivers.qcow2.checker import Report
from tests.block.drivers.qcow2.kit import (
    check,
    luks_options,
    make,
    new_luks,
    opened,
    qemu_img,
    read,
    write,
)
from tests.block.drivers.qcow2.workload import Workload
from tests.block.secrets import secrets
from tests.crypto.kit import PASSWORD
from tests.peers import requires

pytestmark = requires("qemu-img")

BELOW = 1 << 40  # the stamp of the backing file
SESSIONS = (20, 0, 20)  # requests each time the image is open
REPAIRS = 3  # dirty images of a workload whose repair crashes
AGAIN = 0.25  # of the images crash a second time
PER_WORKLOAD = 20  # crashes of a workload that are looked at
SNAPSHOTS = "wwwwzZdfSSD"
GRANULARITY = 4096
LEAKS = 3  # exit code of `qemu-img check`


@attrs.frozen
class Case:
    """A kind of image, in qemu-img's words, and what is done to it."""

    id: str
    options: str
    sectors: int = 96
    kinds: str = "wwwwwzZdf"
    tasks: int = 3
    backed: bool = False
    crypt: bool = False  # the checker cannot read it then
    #: Sectors that are written at first.
    filled: int = 0
    #: Names of bitmaps that the image has from the beginning.
    bitmaps: tuple[str, ...] = ()
    #: Options of blockdev-add.
    runtime: tuple[tuple[str, object], ...] = ()
    points: int = 100
    #: Clusters of rubbish in the free space, as on a device that was in use before.
    rubbish: int = 0

    @property
    def cluster(self) -> int:
        """Bytes of a cluster."""
        for option in self.options.split(","):
            name, _, value = option.partition("=")
            if name == "cluster_size":
                return int(value.removesuffix("k")) * (1024 if value.endswith("k") else 1)
        return 65536


CASES = [
    Case("v3", "cluster_size=4k"),
    Case("v2", "cluster_size=4k,compat=0.10"),
    Case("512-byte clusters", "cluster_size=512,refcount_bits=64", 400),
    Case("512-byte clusters, v2", "cluster_size=512,compat=0.10", 400),
    Case("64 KiB clusters", "", 512),
    Case("2 MiB clusters", "cluster_size=2048k", 8192, points=4),
    Case("preallocated", "cluster_size=4k,preallocation=metadata"),
    Case("1-bit refcounts", "cluster_size=4k,refcount_bits=1"),
    Case("8-bit refcounts", "cluster_size=1k,refcount_bits=8", 200),
    Case("used device", "cluster_size=512,refcount_bits=64", 400, rubbish=1500),
    Case(
        "growing refcount table", "cluster_size=512,refcount_bits=64", 4500, filled=3900, points=20
    ),
    Case("backing file", "cluster_size=4k", backed=True),
    Case("backing file, v2", "cluster_size=4k,compat=0.10", backed=True, kinds="wwwwwzZf"),
    Case("resize", "cluster_size=512", 200, "wwwwwzZdfs", tasks=1),
    Case("resize, backing file", "cluster_size=512", 200, "wwwwwzZdfs", tasks=1, backed=True),
    Case("lazy refcounts", "cluster_size=4k,lazy_refcounts=on"),
    Case("lazy refcounts, 512-byte clusters", "cluster_size=512,lazy_refcounts=on", 400),
    Case(
        "lazy refcounts, resize", "cluster_size=512,lazy_refcounts=on", 200, "wwwwwzZdfs", tasks=1
    ),
    Case("subclusters", "cluster_size=16k,extended_l2=on", 512),
    Case("subclusters, backing file", "cluster_size=16k,extended_l2=on", 512, backed=True),
    Case("data file", "cluster_size=4k,data_file=DATA"),
    Case("data file, backing file", "cluster_size=4k,data_file=DATA", backed=True),
    Case("raw data file", "cluster_size=4k,data_file=DATA,data_file_raw=on"),
    Case("data file, subclusters", "cluster_size=16k,extended_l2=on,data_file=DATA", 512),
    Case("data file, resize", "cluster_size=512,data_file=DATA", 200, "wwwwwzZdfs", tasks=1),
    Case("discard-no-unref", "cluster_size=4k", runtime=(("discard_no_unref", True),)),
    Case("compressed", "cluster_size=4k", kinds="wwcccczZdf"),
    Case("compressed, backing file", "cluster_size=4k", kinds="wwcccczZdf", backed=True),
    Case("compressed, zstd", "cluster_size=4k,compression_type=zstd", kinds="wwcccczZdf"),
    Case("compressed, subclusters", "cluster_size=16k,extended_l2=on", 512, "wwcccczZdf"),
    Case("compressed, lazy refcounts", "cluster_size=4k,lazy_refcounts=on", kinds="wwcccczZdf"),
    Case("encrypted", "cluster_size=4k", crypt=True, points=25),
    Case("encrypted, backing file", "cluster_size=4k", crypt=True, backed=True, points=25),
    Case("encrypted, subclusters", "cluster_size=16k,extended_l2=on", 512, crypt=True, points=25),
    Case("snapshots", "cluster_size=4k", kinds=SNAPSHOTS, tasks=1),
    Case("snapshots, v2", "cluster_size=4k,compat=0.10", kinds=SNAPSHOTS, tasks=1),
    Case("snapshots, 512-byte clusters", "cluster_size=512", 400, SNAPSHOTS, tasks=1),
    Case("snapshots, backing file", "cluster_size=4k", 96, SNAPSHOTS, tasks=1, backed=True),
    Case("snapshots, lazy refcounts", "cluster_size=4k,lazy_refcounts=on", 96, SNAPSHOTS, tasks=1),
    Case("snapshots, compressed", "cluster_size=4k", 96, SNAPSHOTS + "cccc", tasks=1),
    Case("snapshots, resize", "cluster_size=512", 200, SNAPSHOTS + "ss", tasks=1),
    Case("snapshots, subclusters", "cluster_size=16k,extended_l2=on", 512, SNAPSHOTS, tasks=1),
    Case("bitmaps", "cluster_size=4k", bitmaps=("one", "two")),
    Case("bitmaps, 512-byte clusters", "cluster_size=512", 400, bitmaps=("one",)),
    Case("bitmaps, lazy refcounts", "cluster_size=4k,lazy_refcounts=on", bitmaps=("one",)),
    Case("bitmaps, snapshots", "cluster_size=4k", 96, SNAPSHOTS, tasks=1, bitmaps=("one",)),
]


def test_there_are_thousands_of_crash_points() -> None:
    assert sum(case.points for case in CASES) >= 4000


@cache
def new_image(options: str, size: int, bitmaps: tuple[str, ...]) -> tuple[bytes, bytes]:
    """Have qemu-img make an image; return it and its data file."""
    with TemporaryDirectory() as name:
        image, data = Path(name, "image"), Path(name, "data")
        options = options.replace("DATA", str(data))
        qemu_img("create", "-qf", "qcow2", *(["-o", options] if options else []), image, size)
        for bitmap in bitmaps:
            qemu_img("bitmap", "--add", "-g", GRANULARITY, image, bitmap)
        return image.read_bytes(), data.read_bytes() if data.exists() else b""


async def new_encrypted_image(case: Case) -> bytes:
    """Make an encrypted image ourselves: qemu-img takes seconds to find out how fast it is."""
    return await make(
        case.sectors * SECTOR,
        cluster_bits=case.cluster.bit_length() - 1,
        extended="extended_l2" in case.options,
        crypt=new_luks(),
    )


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
async def test_crashes(
    case: Case,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metadata, "LAZY_AHEAD", 64 << 10)  # disks in memory are not sparse
    wanted = request.config.getoption("--crash-points") or case.points
    points = seed = 0
    while points < wanted:
        crashed = await Crashed.after_workload(case, seed)
        seed += 1
        for crash in crashed.journal.crashes(crashed.rng, min(wanted - points, PER_WORKLOAD)):
            points += 1
            await crashed.look(crash)
            if crashed.rng.random() < 0.01:
                crashed.show_qemu(crash, tmp_path)
    assert points == wanted


@pytest.mark.parametrize(
    "case", [case for case in CASES if "lazy_refcounts" in case.options], ids=lambda case: case.id
)
async def test_crashes_while_repairing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dirty bit stays until all that it stands for is repaired."""
    monkeypatch.setattr(metadata, "LAZY_AHEAD", 64 << 10)
    crashed = await Crashed.after_workload(case, 1)
    crashes = [
        crash
        for crash in crashed.journal.crashes(crashed.rng, 30)
        if crashed.check(crash.position, *crash.images).dirty
    ]
    assert len(crashes) >= REPAIRS
    for crash in crashes[-REPAIRS:]:
        journal = Journal()
        disk, data = (RecordingDisk(image, journal=journal) for image in crash.images)
        async with crashed.opened(disk, data) as node:
            content = await read(node, 0, node.getlength())
        snapshots = {
            each.name: each.content
            for each in crashed.check(crash.position, *crash.images).snapshots
        }
        for second in journal.crashes(crashed.rng, 40):
            await crashed.look_again(crash.position, second, content, snapshots)


@attrs.define
class Crashed:
    """A case's image after a workload, and what may be found in it."""

    case: Case
    rng: random.Random
    journal: Journal
    work: Workload
    below: bytes
    #: (position in the journal, content) when the bitmaps were cleared.
    cleared: list[tuple[int, bytes]] = attrs.field(factory=list)

    @classmethod
    async def after_workload(cls, case: Case, seed: int) -> Crashed:
        """Make random requests on a new image."""
        rng = random.Random(f"{case.id} {seed}")
        journal = Journal()
        below = stamp(BELOW) * (case.sectors // 2) if case.backed else b""
        guest = Guest(journal, case.sectors, [BELOW] * (len(below) // SECTOR))
        work = Workload(rng, guest, case.cluster, case.kinds)
        self = cls(case, rng, journal, work, below)
        if case.crypt:
            image, data = await new_encrypted_image(case), b""
        else:
            image, data = new_image(case.options, case.sectors * SECTOR, case.bitmaps)
        image += bytes(-len(image) % case.cluster)
        image += rng.randbytes(case.rubbish * case.cluster)
        disk = RecordingDisk(image, rng, journal)
        data_disk = RecordingDisk(data, rng, journal)
        for steps in SESSIONS:
            async with self.opened(disk, data_disk) as node:
                if case.filled and not work.number:
                    await work.change(node, "w", 0, case.filled)
                async with trio.open_nursery() as nursery:
                    for _ in range(case.tasks):
                        nursery.start_soon(work.run, node, steps // case.tasks)
                await self.clear_bitmaps(node)
        return self

    async def clear_bitmaps(self, node: Node) -> None:
        """Forget what was dirty, so that only what comes later has to be."""
        if self.case.bitmaps:
            content = await read(node, 0, node.getlength())
            for bitmap in node.bitmaps:
                bitmap.take()
            self.cleared.append((self.journal.now(), content))

    def opened(self, disk: RecordingDisk, data: RecordingDisk) -> AbstractAsyncContextManager[Node]:
        """Open the image on disks, with room for two L2 tables: they come and go."""
        backing = memory_node(self.below) if self.below else None
        data_file = data if "data_file" in self.case.options else None
        options: dict[str, object] = {"l2_cache_size": 1024, **dict(self.case.runtime)}
        if self.case.crypt:
            options |= {"encrypt": luks_options(), "objects": secrets()}
        return opened(disk, backing, data=data_file, **options)

    def check(self, position: int, image: bytes, data: bytes) -> Report:
        """Check an image, which may have leaks only."""
        report = check(image, self.below, data)
        if "compat=0.10" in self.case.options and "S" in self.case.kinds:
            # Without a dirty bit, flags that were taken off for a snapshot stay off: harmless.
            assert [each for each in report.errors if "COPIED flag missing" not in each] == []
        else:
            assert report.errors == []
        if not self.case.crypt:
            self.check_bitmaps(report, position)
        return report

    def check_bitmaps(self, report: Report, position: int) -> None:
        """Check that bitmaps which say that they are valid have a bit for everything that changed."""
        assert report.bitmaps.keys() == set(self.case.bitmaps)
        old = self.below.ljust(len(report.content), b"\0")
        for at, content in self.cleared:
            if at < position:
                old = content
        changed = {
            at // GRANULARITY
            for at in range(0, len(old), SECTOR)
            if report.content[at : at + SECTOR] != old[at : at + SECTOR]
        }
        for bitmap in report.bitmaps.values():
            dirty = {at for at in range(len(bitmap.bits) * 8) if bitmap.bits[at // 8] >> at % 8 & 1}
            assert bitmap.in_use or changed <= dirty

    async def look(self, crash: Crash) -> None:
        """Open what a crash left, read it, write to it; check it before and after."""
        found = self.check(crash.position, *crash.images)
        snapshots = {each.name: each.content for each in found.snapshots}
        self.work.check_snapshots(crash.position, snapshots)
        journal = Journal()
        disk, data = (RecordingDisk(image, journal=journal) for image in crash.images)
        async with self.opened(disk, data) as node:
            content = await read(node, 0, node.getlength())
            assert self.case.crypt or content == found.content
            self.work.guest.check_crash(crash.position, content)
            await write(node, 0, stamp(1) * 2)
            now = await read(node, 0, node.getlength())
        assert now == stamp(1) * 2 + content[1024:]
        after = self.check(crash.position, bytes(disk.data), bytes(data.data))
        assert not after.dirty
        assert not found.dirty or after.leaks == [], "a repair leaves no leaks"
        assert self.case.crypt or after.content == now
        assert {each.name: each.content for each in after.snapshots} == snapshots
        if self.rng.random() < AGAIN:
            for second in journal.crashes(self.rng, 1):
                await self.look_again(crash.position, second, content, snapshots)

    async def look_again(
        self, position: int, crash: Crash, content: bytes, snapshots: dict[str, bytes]
    ) -> None:
        """Open what a second crash left, of an image that was being opened, repaired, written to.

        ``position`` is that of the first crash; ``content`` and ``snapshots`` are what it left.
        """
        found = self.check(position, *crash.images)
        assert {each.name: each.content for each in found.snapshots} == snapshots
        disk, data = (RecordingDisk(image) for image in crash.images)
        async with self.opened(disk, data) as node:
            now = await read(node, 0, node.getlength())
        assert now[1024:] == content[1024:]
        for at in (0, SECTOR):
            assert now[at : at + SECTOR] in (content[at : at + SECTOR], stamp(1))
        assert not self.check(position, bytes(disk.data), bytes(data.data)).dirty

    def show_qemu(self, crash: Crash, directory: Path) -> None:
        """Let qemu-img check, or repair what says that it needs it, and read what a crash left."""
        image, data, below, raw = (directory / name for name in ("image", "data", "below", "raw"))
        image.write_bytes(crash.images[0])
        data.write_bytes(crash.images[1])
        below.write_bytes(self.below)
        options = f"driver=qcow2,file.driver=file,file.filename={image}"
        if "data_file" in self.case.options:
            options += f",data-file.driver=file,data-file.filename={data}"
        if self.below:
            options += f",backing.driver=raw,backing.file.driver=file,backing.file.filename={below}"
        if self.case.crypt:
            options += ",encrypt.format=luks,encrypt.key-secret=s"
        arguments = ["--object", f"secret,id=s,data={PASSWORD.decode()}", "--image-opts", options]
        report = self.check(crash.position, *crash.images)
        repair = ["-r", "all"] if report.dirty or report.errors else []
        result = subprocess.run(
            ["qemu-img", "check", *repair, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode in (0, LEAKS), result.stdout + result.stderr
        qemu_img("convert", "-O", "raw", *arguments, raw)
        self.work.guest.check_crash(crash.position, raw.read_bytes())
