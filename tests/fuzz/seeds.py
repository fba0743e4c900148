"""The sound images that mutants are made of: one of each feature, small, made by qemu-img."""

from __future__ import annotations

import random
from pathlib import Path

import attrs

from tests.fuzz.fields import Field, fields, luks_fields
from tests.qcow2_recipes import KIB, Kitchen, Recipe

SIZE = 192 * KIB


def sized(recipe: Recipe) -> Recipe:
    """Return the recipe of an image of this module's size."""
    return attrs.evolve(recipe, given_size=SIZE)


RECIPES = tuple(
    sized(recipe)
    for recipe in (
        Recipe(cluster_size=512, version="v2"),
        Recipe(cluster_size=512, refcount_bits=1),
        Recipe(cluster_size=512, snapshots=True, bitmap=True),
        Recipe(cluster_size=4 * KIB, compressed=True),
        Recipe(cluster_size=4 * KIB, compressed=True, compression_type="zstd"),
        Recipe(cluster_size=4 * KIB, backing="raw", lazy_refcounts=True),
        Recipe(cluster_size=4 * KIB, refcount_bits=64, preallocation="metadata"),
        Recipe(cluster_size=4 * KIB, version="v2", snapshots=True),
        Recipe(cluster_size=16 * KIB, extended_l2=True, snapshots=True, bitmap=True),
        Recipe(
            cluster_size=16 * KIB,
            extended_l2=True,
            compressed=True,
            backing="raw",
        ),
        Recipe(cluster_size=4 * KIB, data_file="file", bitmap=True),
        Recipe(cluster_size=4 * KIB, data_file="raw"),
        Recipe(cluster_size=4 * KIB, encryption="aes"),
        Recipe(cluster_size=64 * KIB, encryption="luks"),
    )
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
    format: str = "qcow2"


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


def make_luks(directory: Path) -> Seed:
    """Make a LUKS volume in an empty folder."""
    directory.mkdir(parents=True, exist_ok=True)
    recipe = sized(Recipe(encryption="luks"))
    kitchen = Kitchen(recipe, directory)
    options = "key-secret=s,iter-time=1"
    kitchen.run("qemu-img", "create", "-q", "-f", "luks", "-o", options, "image", str(SIZE))
    image = kitchen.path.read_bytes()
    return Seed(
        recipe=recipe,
        image=image,
        data=None,
        below=None,
        content=bytes(SIZE),  # in truth noise; with any field changed there is nothing to expect
        groups={"luks": list(luks_fields(image))},
        format="luks",
    )


def make_all(directory: Path) -> list[Seed]:
    """Make every seed in folders of their own."""
    made = [make(recipe, directory / str(number)) for number, recipe in enumerate(RECIPES)]
    return [*made, make_luks(directory / "luks")]
