"""Images that are no longer what they were: one to three fields changed, or the end gone. Deterministic."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import final

import attrs

from tests.fuzz.fields import EVERYTHING, Field
from tests.fuzz.seeds import Seed


@final
@attrs.frozen(eq=False)
class Mutant:
    """An image, and which part of the disk may read otherwise than that of its seed."""

    number: int
    seed: Seed
    image: bytes
    changes: Sequence[str]
    affected: Sequence[range]

    def __str__(self) -> str:
        """Return what one has to know to see the failure again."""
        return f"mutant {self.number} of {self.seed.format} {self.seed.recipe}: {', '.join(self.changes)}"

    def expects(self, offset: int) -> bool:
        """Say whether the bytes of this sector must be what they were, if they can be read."""
        return not any(offset in part for part in self.affected)


def mutant(seeds: Sequence[Seed], number: int) -> Mutant:
    """Return mutant ``number``: the same one for the same number."""
    rng = random.Random(number)
    seed = seeds[number % len(seeds)]
    image = bytearray(seed.image)
    changes: list[str] = []
    affected: list[range] = []
    if rng.random() < 0.04:
        del image[rng.randrange(len(image)) :]
        return Mutant(number, seed, bytes(image), [f"cut to {len(image)} bytes"], [EVERYTHING])
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        field = rng.choice(seed.groups[rng.choice(list(seed.groups))])
        where = slice(field.offset, field.offset + field.size)
        old = int.from_bytes(image[where], "big")
        new = _value(rng, seed, field, old)
        image[where] = new.to_bytes(field.size, "big")
        changes.append(f"{field.name}: {old:#x} -> {new:#x}")
        affected.append(field.affects)
    return Mutant(number, seed, bytes(image), changes, affected)


def _value(rng: random.Random, seed: Seed, field: Field, old: int) -> int:
    bits = field.size * 8
    top = (1 << bits) - 1
    end = len(seed.image)
    cluster = seed.recipe.cluster_size
    kind = rng.randrange(6)
    if kind == 0:
        value = rng.choice([0, 1, 2, top, top - 1, top >> 1, 1 << (bits - 1)])
    elif kind == 1:
        value = old ^ (1 << rng.randrange(bits))
    elif kind == 2:
        value = old + rng.choice([-1, 1, -8, 8, -512, 512, -cluster, cluster])
    elif kind == 3:
        # Off the end, just inside it, and on top of something else or of itself.
        other = rng.choice(seed.groups[rng.choice(list(seed.groups))])
        place = rng.choice([end, end - cluster, end + cluster, field.offset, other.offset])
        value = place & ~(cluster - 1) if rng.random() < 0.8 else place
        value |= rng.choice([0, 0, 1 << 63, 1 << 62, 1])
    elif kind == 4:
        value = 1 << rng.randrange(bits)
        value += rng.choice([-1, 0, 1])
    else:
        value = rng.getrandbits(bits)
    value &= top
    if "iter" in field.name and 1 << 16 < value < 1 << 29:
        # So much work is a slow key, not an error; what no key asks for is one.
        value &= 0xFFFF
    return value
