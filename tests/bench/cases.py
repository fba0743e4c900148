"""The table of what is measured, and what each figure has to reach against the real daemon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import attrs

from tests.bench import loads
from tests.bench.images import (
    CHAIN,
    COLD,
    COMPRESSED,
    DATA_FILE,
    EMPTY,
    EXTENDED,
    KIB,
    LAZY,
    LUKS,
    MIB,
    QCOW2,
    QCOW2_LUKS,
    RAW,
    ZSTD,
    Image,
)
from tests.bench.loads import Figures, Fio
from tests.bench.servers import Server


@attrs.frozen(kw_only=True)
class Row:
    """One line of the table.

    Targets are ratios ours / real, or with `absolute` a value of ours. Without a target the line informs.
    """

    figure: str
    at_least: float | None = None
    at_most: float | None = None
    absolute: bool = False

    def is_met(self, value: float) -> bool | None:
        """Tell whether a ratio (or absolute value) reaches the target; None without one."""
        if self.at_least is not None:
            return value >= self.at_least
        if self.at_most is not None:
            return value <= self.at_most
        return None

    def target(self) -> str:
        """Return the target as the table prints it."""
        sign, limit = ("≥", self.at_least) if self.at_least is not None else ("≤", self.at_most)
        return "" if limit is None else f"{sign} {limit:g}{'' if self.absolute else 'x'}"


@attrs.frozen(kw_only=True)
class Setting:
    """How long and where to measure."""

    directory: Path
    seconds: float
    quick: bool


Load: TypeAlias = Callable[[Server, Setting], Figures]


@attrs.frozen(kw_only=True)
class Case:
    """A load on images, and the figures of it that go into the table."""

    name: str
    images: dict[str, Image]
    load: Load
    rows: tuple[Row, ...]

    def measure(self, program: list[str], setting: Setting) -> Figures:
        """Start the program on the case's images, load it, and return all figures."""
        for image in self.images.values():
            image.make(setting.directory)
            image.warm(setting.directory)
        with Server(program, self.images, setting.directory) as server:
            return self.load(server, setting)


def _fio(name: str, image: Image, job: Fio, *rows: Row) -> Case:
    def load(server: Server, setting: Setting) -> Figures:
        quick = setting.quick and job.amount is not None
        used = attrs.evolve(job, amount=(job.amount or 0) // 8) if quick else job
        return loads.run_fio(server, image, used, setting.seconds)

    return Case(name=name, images={"disk": image}, load=load, rows=rows)


def _nbdcopy(name: str, image: Image, *, write: bool) -> Case:
    def load(server: Server, setting: Setting) -> Figures:
        return loads.run_nbdcopy(server, image, write=write)

    rows = (Row(figure="MB/s"), Row(figure="CPU ns/KiB"))
    return Case(name=name, images={"disk": image}, load=load, rows=rows)


CASES = (
    _fio(
        "raw, 4 KiB random read, QD 1",
        RAW,
        Fio(rw="randread", block_size=4 * KIB, depth=1),
        Row(figure="IOPS", at_least=1.3),
    ),
    _fio(
        "raw, 4 KiB random read, QD 32",
        RAW,
        Fio(rw="randread", block_size=4 * KIB, depth=32),
        Row(figure="IOPS", at_least=3),
        Row(figure="CPU us/request", at_most=0.35),
        Row(figure="peak RSS MiB"),
    ),
    _fio(
        "raw, 4 KiB random write, QD 1",
        RAW,
        Fio(rw="randwrite", block_size=4 * KIB, depth=1),
        Row(figure="IOPS", at_least=2),
    ),
    _fio(
        "raw, 4 KiB random write, QD 32",
        RAW,
        Fio(rw="randwrite", block_size=4 * KIB, depth=32),
        Row(figure="IOPS", at_least=3),
        Row(figure="CPU us/request", at_most=0.35),
    ),
    _fio(
        "raw, 1 MiB reads, QD 8",
        RAW,
        Fio(rw="read", block_size=MIB, depth=8),
        Row(figure="MB/s", at_least=1.2),
        Row(figure="CPU ns/KiB", at_most=0.6),
    ),
    _fio(
        "raw, 1 MiB writes, QD 8",
        RAW,
        Fio(rw="write", block_size=MIB, depth=8),
        Row(figure="MB/s", at_least=1),
        Row(figure="CPU ns/KiB"),
    ),
    _nbdcopy("raw, nbdcopy out", RAW, write=False),
    _nbdcopy("raw, nbdcopy in", RAW, write=True),
    _fio(
        "qcow2 allocated, 4 KiB random read, QD 32",
        QCOW2,
        Fio(rw="randread", block_size=4 * KIB, depth=32),
        Row(figure="IOPS", at_least=2.5),
        Row(figure="CPU us/request"),
    ),
    _fio(
        "qcow2 allocated, 4 KiB random write, QD 32",
        QCOW2,
        Fio(rw="randwrite", block_size=4 * KIB, depth=32),
        Row(figure="IOPS", at_least=2.5),
        Row(figure="CPU us/request"),
    ),
    _fio(
        "qcow2 allocating, 64 KiB sequential write, QD 16",
        EMPTY,
        Fio(rw="write", block_size=64 * KIB, depth=16, amount=512 * MIB),
        Row(figure="MB/s", at_least=1),
        Row(figure="CPU ns/KiB"),
    ),
    _fio(
        "qcow2 allocating, 4 KiB random write, QD 32",
        EMPTY,
        Fio(rw="randwrite", block_size=4 * KIB, depth=32, amount=64 * MIB),
        Row(figure="IOPS", at_least=1),
        Row(figure="CPU us/request"),
    ),
    _fio(
        "qcow2 allocating with lazy refcounts, 64 KiB sequential write, QD 16",
        LAZY,
        Fio(rw="write", block_size=64 * KIB, depth=16, amount=512 * MIB),
        Row(figure="MB/s"),
    ),
    _fio(
        "qcow2 with extended L2, 4 KiB random read, QD 32",
        EXTENDED,
        Fio(rw="randread", block_size=4 * KIB, depth=32),
        Row(figure="IOPS"),
    ),
    _fio(
        "qcow2 with extended L2, 4 KiB random write, QD 32",
        EXTENDED,
        Fio(rw="randwrite", block_size=4 * KIB, depth=32),
        Row(figure="IOPS"),
    ),
    _fio(
        "qcow2 with data file, 4 KiB random read, QD 32",
        DATA_FILE,
        Fio(rw="randread", block_size=4 * KIB, depth=32),
        Row(figure="IOPS"),
    ),
    _fio(
        "qcow2 compressed (zlib), 64 KiB sequential read, QD 16",
        COMPRESSED,
        Fio(rw="read", block_size=64 * KIB, depth=16),
        Row(figure="MB/s"),
    ),
    _fio(
        "qcow2 compressed (zstd), 64 KiB sequential read, QD 16",
        ZSTD,
        Fio(rw="read", block_size=64 * KIB, depth=16),
        Row(figure="MB/s"),
    ),
    _fio(
        "chain of 10 qcow2, 4 KiB random read, QD 32",
        CHAIN,
        Fio(rw="randread", block_size=4 * KIB, depth=32),
        Row(figure="IOPS", at_least=2),
        Row(figure="CPU us/request"),
    ),
    *(
        _fio(
            f"{name}, 64 KiB sequential {rw}, QD 16",
            image,
            Fio(rw=rw, block_size=64 * KIB, depth=16),
            Row(figure="MB/s", at_least=target),
            Row(figure="CPU ns/KiB"),
        )
        for name, image, target in (("luks", LUKS, 0.8), ("qcow2 with luks", QCOW2_LUKS, None))
        for rw in ("read", "write")
    ),
    Case(
        name="qcow2, open of 1 TiB with 100,000 clusters",
        images={"disk": RAW},
        load=lambda server, setting: loads.run_open(
            server, "large.qcow2", clusters=100_000, rounds=20 if setting.quick else 100
        ),
        rows=(Row(figure="ms", at_most=1),),
    ),
    Case(
        name="start to ready",
        images={"disk": RAW},
        load=lambda server, _: loads.run_start(server),
        rows=(
            Row(figure="ms"),
            Row(figure="x of imports", at_most=2.5, absolute=True),
            Row(figure="RSS MiB"),
        ),
    ),
    Case(
        name="QMP ping under full load",
        images={"disk": RAW, "cold": COLD},
        load=lambda server, setting: loads.run_stall(server, RAW, COLD, setting.seconds),
        rows=(
            Row(figure="ping p50 ms"),
            Row(figure="ping p99 ms", at_most=20, absolute=True),
            Row(figure="ping max ms"),
            Row(figure="writer MB/s"),
            Row(figure="cold reader IOPS"),
        ),
    ),
)
