"""The choice of combinations: complete, small, the same every time."""

from __future__ import annotations

import itertools

import pytest

from tests.combinations import Row, covering, product

AXES = {"a": [1, 2, 3], "b": [1, 2, 3], "c": [1, 2], "d": [1, 2], "e": [1, 2, 3, 4]}


def allowed(row: Row) -> bool:
    return not (row.get("a") == 1 and row.get("b") == 1) and not (
        row.get("c") == 2 and row.get("d") == 2 and row.get("e") == 4
    )


@pytest.mark.parametrize("strength", [1, 2, 3])
def test_every_possible_tuple_occurs_and_nothing_forbidden(strength: int) -> None:
    rows = covering(AXES, allowed, strength=strength)
    everything = list(product(AXES, allowed))
    assert all(row in everything for row in rows)
    for names in itertools.combinations(AXES, strength):
        wanted = {tuple(row[name] for name in names) for row in everything}
        assert {tuple(row[name] for name in names) for row in rows} == wanted
    assert rows == covering(AXES, allowed, strength=strength)


def test_few_rows_are_enough_for_pairs() -> None:
    # 12 is the least that the two longest axes allow.
    assert len(covering(AXES, allowed)) <= 16
    assert len(list(product(AXES, allowed))) == 3 * 3 * 2 * 2 * 4 - 2 * 2 * 4 - 9 + 1
