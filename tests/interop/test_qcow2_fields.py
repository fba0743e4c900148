"""Each field of each structure of qcow2 images at and around its limits: the real daemon's answers.

The mutants of a structure go to one pair of daemons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from qsd_trio.protocol.nbd.constants import Mode
from qsd_trio.testing.nbd_client import connect_nbd
from tests.fuzz import seeds
from tests.fuzz.fields import Field
from tests.oracle import Call, Wait, compare, qmp
from tests.peers import requires
from tests.qcow2_recipes import KIB, SECRET, Recipe

pytestmark = requires("qemu-storage-daemon", "qemu-img", "qemu-io")

PIECE = 16 * KIB
#: Fields of a structure that are tried: so many from its start, so many from its end.
MOST, LAST = 22, 4


def values(seed: seeds.Seed, field: Field) -> list[int]:
    """Return what to try: 0, 1, the maximum, off the end, overlapping, itself, and near what was there."""
    old = int.from_bytes(seed.image[field.offset : field.offset + field.size], "big")
    top = (1 << 8 * field.size) - 1
    found = [0, 1, top, top >> 1, 1 << (8 * field.size - 1), old - 1, old + 1]
    if field.size == 8:
        cluster = seed.recipe.cluster_size
        end = -(-len(seed.image) // cluster) * cluster
        own = field.offset // cluster * cluster
        l1 = int.from_bytes(seed.image[40:48], "big")
        found += [end, end + cluster, own, l1, cluster, old + cluster, old + 512]
    return sorted({value & top for value in found} - {old})


def mutants(
    seed: seeds.Seed, group: str, is_left_out: Callable[[Field, int], bool]
) -> Iterator[bytes]:
    """Yield the image with each value in each field of the group; of tables, in the first ones."""
    for field in (*seed.groups[group][:MOST], *seed.groups[group][MOST:][-LAST:]):
        for value in values(seed, field):
            if not is_left_out(field, value):
                image = bytearray(seed.image)
                image[field.offset : field.offset + field.size] = value.to_bytes(field.size, "big")
                yield bytes(image)


def nothing(field: Field, value: int) -> bool:
    return False


def a_size_overflow(field: Field, value: int) -> bool:
    """Say what to leave out: a size that becomes 0 when the real daemon rounds it up."""
    return field.name == "size" and value == 2**64 - 1


def a_luks_overflow(field: Field, value: int) -> bool:
    """Say what to leave out: numbers of iterations, which take their time, and sums beyond 32 bits.

    Where the real daemon adds up such an offset and a length, the sum is small again and passes.
    """
    if "iter" in field.name:
        return True
    return (field.name == "key_bytes" and value == 1 << 31) or (
        "key_material_offset" in field.name and value == 2**32 - 1
    )


def a_bitmap_overflow(field: Field, value: int) -> bool:
    """Say what to leave out: lengths that make the real daemon's sum negative."""
    return "extra_data_size" in field.name and value >= 2**31 - 1


def a_lost_format(field: Field, value: int) -> bool:
    """Say what to leave out: a backing file without a format, which we refuse and never probe."""
    return field.name == "type" or (field.name == "length" and value == 0)


def prepared(seed: seeds.Seed, images: list[bytes]) -> Callable[[Path], None]:
    def setup(directory: Path) -> None:
        for number, image in enumerate(images):
            (directory / str(number)).write_bytes(image)
        for name, content in (("image.data", seed.data), ("below", seed.below)):
            if content is not None:
                (directory / name).write_bytes(content)

    return setup


def added(seed: seeds.Seed, number: int, **options: Any) -> dict[str, Any]:
    file = {"driver": "file", "filename": str(number)}
    if seed.recipe.encryption != "none":
        options["encrypt"] = {"format": seed.recipe.encryption, "key-secret": "s"}
    return qmp("blockdev-add", driver="qcow2", node_name="n", file=file, **options)


@pytest.mark.parametrize(
    ("recipe", "group", "is_left_out", "read_only"),
    [
        (Recipe(cluster_size=4 * KIB), "header", a_size_overflow, False),
        (Recipe(cluster_size=4 * KIB), "header", a_size_overflow, True),
        (Recipe(cluster_size=4 * KIB), "extensions", nothing, False),
        (Recipe(cluster_size=4 * KIB, backing="raw"), "extensions", a_lost_format, False),
        (Recipe(cluster_size=4 * KIB), "reftable", nothing, False),
        (Recipe(cluster_size=4 * KIB, snapshots=True), "snapshots", nothing, False),
        (Recipe(cluster_size=4 * KIB, snapshots=True), "snapshots", nothing, True),
        (Recipe(cluster_size=4 * KIB, version="v2", snapshots=True), "snapshots", nothing, False),
        (Recipe(cluster_size=4 * KIB, bitmap=True), "bitmaps", a_bitmap_overflow, False),
        (Recipe(cluster_size=4 * KIB, bitmap=True), "bitmaps", a_bitmap_overflow, True),
        (Recipe(cluster_size=4 * KIB, encryption="luks"), "luks", a_luks_overflow, True),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_opening(
    recipe: Recipe,
    group: str,
    is_left_out: Callable[[Field, int], bool],
    read_only: bool,
    tmp_path: Path,
) -> None:
    """The same text, or the same node."""
    seed = seeds.make(seeds.sized(recipe), tmp_path)
    images = list(mutants(seed, group, is_left_out))
    steps: list[Any] = []
    if recipe.encryption != "none":
        steps.append(qmp("object-add", qom_type="secret", id="s", data=SECRET))
    for number in range(len(images)):
        steps += [
            added(seed, number, read_only=read_only),
            qmp("query-named-block-nodes", flat=True),
            qmp("blockdev-del", node_name="n"),
        ]
    # What is said of clusters that were free already, and how often, is a matter of taste.
    setup = prepared(seed, images)
    compare([], steps, setup=setup, ignore=["actual-size"], check_stderr=False)


def read_over_nbd(directory: Path) -> list[str | int]:
    """Read the disk in pieces; return the errors and the beginnings."""

    async def read() -> list[str | int]:
        found: list[str | int] = []
        with trio.fail_after(20):
            # Simple replies: with others the real daemon hangs up on errors in the middle of one.
            async with connect_nbd(directory / "nbd.sock", "n", mode=Mode.SIMPLE) as client:
                for offset in range(0, seeds.SIZE, PIECE):
                    try:
                        found.append((await client.pread(offset, PIECE)).hex()[:64])
                    except OSError as exc:
                        found.append(exc.errno or 0)
        return found

    return trio.run(read)


@pytest.mark.parametrize(
    ("recipe", "group", "read_only"),
    [
        (Recipe(cluster_size=512), "l1", False),
        (Recipe(cluster_size=512), "l1", True),
        (Recipe(cluster_size=4 * KIB), "l2", False),
        (Recipe(cluster_size=4 * KIB), "l2", True),
        (Recipe(cluster_size=4 * KIB, version="v2"), "l2", False),
        (Recipe(cluster_size=16 * KIB, extended_l2=True), "l2", False),
        (Recipe(cluster_size=4 * KIB, compressed=True), "l2", True),
        (Recipe(cluster_size=4 * KIB, data_file="file"), "l2", False),
        (Recipe(cluster_size=4 * KIB, data_file="raw"), "l2", True),
    ],
    ids=str,
)
def test_reading(recipe: Recipe, group: str, read_only: bool, tmp_path: Path) -> None:
    """The same bytes, errors and BLOCK_IMAGE_CORRUPTED events."""
    seed = seeds.make(seeds.sized(recipe), tmp_path)
    images = list(mutants(seed, group, nothing))
    images = images[:: -(-len(images) // 16)]
    address = {"type": "unix", "data": {"path": "nbd.sock"}}
    steps: list[Any] = [qmp("nbd-server-start", addr=address)]
    for number in range(len(images)):
        steps += [
            added(seed, number, read_only=read_only),
            qmp("block-export-add", type="nbd", id="e", node_name="n"),
            Call(read_over_nbd),
            qmp("block-export-del", id="e", mode="hard"),
            Wait("BLOCK_EXPORT_DELETED", skip=number),
            qmp("blockdev-del", node_name="n"),
        ]
    compare([], steps, setup=prepared(seed, images), check_stderr=False)
