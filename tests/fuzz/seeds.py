"""The sound images that mutants are made of: one of each feature, small, made by qemu-img."""

from __future__ import annotations

import random
from pathlib import Path

import attrs

from tests.fuzz.fields import Field, fields
from tests.qcow2_recipes import KIB, Kitchen, Recipe

SIZE = 192 * KIB

RECIPES = (
    Recipe(cluster_size=512, version="v2", given_size=SIZE),
    Recipe(cluster_size=512, refcount_bits=1, given_size=SIZE),
    Recipe(cluster_size=512, snapshots=True, bitmap=True, given_size=SIZE),
    Recipe(cluster_size=4 * KIB, compressed=True, given_size=SIZE),
    Recipe(cluster_size=4 * KIB, compressed=True, compression_type="zstd", given_size=SIZE),
    Recipe(cluster_size=4 * KIB, backing="raw", lazy_refcounts=True, given_size=SIZE),
    Recipe(cluster_size=4 * KIB, refcount_bits=64, preallocation="metadata", given_size=SIZE),
    Recipe(cluster_size=4 * KIB, version="v2", snapshots=True, given_size=SIZE),
    Recipe(cluster_size=16 * KIB, extended_l2=True, snapshots=True, bitmap=True, given_size=SIZE),
    Recipe(
        cluster_size=16 * KIB, extended_l2=True, compressed=True, backing="raw", given_size=SIZE
    ),
    Recipe(cluster_size=4 * KIB, data_file="file", bitmap=True, given_size=SIZE),
    Recipe(cluster_size=4 * KIB, data_file="raw", given_size=SIZE),
    Recipe(cluster_size=4 * KIB, encryption="aes", given_size=SIZE),
    Recipe(cluster_size=64 * KIB, encryption="luks", given_size=SIZE),
)


@attrs.frozen(eq=False)
class Seed:
    """A sound image: its files, what its disk holds, its fields by group."""

    recipe: Recipe
    image: bytes
    data: bytes | None
    below: bytes | None
    content: bytes
    groups: dict[str, list[Field]]


def make(recipe: Recipe, directory: Path) -> Seed:
    """Make an image in an empty folder."""
    directory.mkdir(parents=True, exist_ok=True)
    kitchen = Kitchen(recipe, directory)
    model = kitchen.create()
    if recipe.snapshots:
        kitchen.snapshot("one")
        kitchen.write(model, random.Random(1))
        kitchen.snapshot("two")
        kitchen.write(model, random.Random(2))
    if recipe.bitmap:
        kitchen.add_bitmap("bitmap")
        kitchen.write(model, random.Random(3))
    image = kitchen.path.read_bytes()
    groups: dict[str, list[Field]] = {}
    for field in fields(image):
        groups.setdefault(field.group, []).append(field)
    data = directory / "image.data"
    return Seed(
        recipe,
        image,
        data.read_bytes() if recipe.data_file != "none" else None,
        (directory / "below").read_bytes() if recipe.backing != "none" else None,
        bytes(model),
        groups,
    )
