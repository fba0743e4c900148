"""Some thousand mutants of real images; ``tests/fuzz/run`` makes more."""

from __future__ import annotations

import attrs
import pytest

from tests.fuzz import seeds
from tests.fuzz.mutants import Mutant, mutant
from tests.fuzz.trial import TooSlowError, limited, trial
from tests.peers import requires

pytestmark = requires("qemu-img", "qemu-io")

MUTANTS = 3000
PARTS = 8  # so that a failure leaves the others


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[seeds.Seed]:
    return seeds.make_all(tmp_path_factory.mktemp("seeds"))


@pytest.mark.parametrize("part", range(PARTS))
async def test_a_mutant_is_refused_or_reads_right(made: list[seeds.Seed], part: int) -> None:
    count = MUTANTS // PARTS
    opened = 0
    for number in range(part * count, (part + 1) * count):
        opened += await trial(mutant(made, number))
    # Both must happen, or nothing is tried.
    assert count * 0.2 < opened < count * 0.95


async def test_the_trial_notices_wrong_data(made: list[seeds.Seed]) -> None:
    """An L2 entry that leads elsewhere, with nothing said to be affected."""
    seed = next(one for one in made if one.recipe.compressed)
    first, second = (field for field in seed.groups["l2"] if field.name in ("l2[0]", "l2[1]"))
    image = bytearray(seed.image)
    entry = image[second.offset : second.offset + 8]
    image[first.offset : first.offset + 8] = entry
    wrong = Mutant(0, seed, bytes(image), ["l2[0]: as l2[1]"], [])
    with pytest.raises(AssertionError, match="wrong data") as caught:
        await trial(wrong)
    assert "l2[0]: as l2[1]" in str(caught.value.__notes__)
    await trial(attrs.evolve(wrong, affected=[first.affects]))


def test_what_takes_too_long_is_stopped() -> None:
    with pytest.raises(TooSlowError), limited(0.005):
        while True:
            pass
