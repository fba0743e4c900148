"""Choose few combinations of many options: each pair (or triple ...) of values occurs in one of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

Row: TypeAlias = dict[str, object]
Tuple: TypeAlias = tuple[tuple[str, object], ...]
#: Says whether a row, or one that still lacks axes, makes sense.
Rule: TypeAlias = Callable[[Row], bool]


def product(axes: Mapping[str, Sequence[object]], allowed: Rule) -> Iterator[Row]:
    """Yield every row that makes sense, in the order of the axes' values."""
    names = list(axes)

    def extended(row: Row) -> Iterator[Row]:
        if len(row) == len(names):
            yield row
            return
        name = names[len(row)]
        for value in axes[name]:
            longer = {**row, name: value}
            if allowed(longer):
                yield from extended(longer)

    return extended({})


def covering(
    axes: Mapping[str, Sequence[object]], allowed: Rule, *, strength: int = 2
) -> list[Row]:
    """Return rows in which every possible ``strength``-tuple of values occurs. Deterministic.

    Greedy: each row starts from a tuple that is still missing, and each further value is the one
    that brings most missing tuples with it. What no row that makes sense can hold is left out.
    """
    missing: dict[Tuple, None] = {}
    for names in itertools.combinations(axes, strength):
        for values in itertools.product(*(axes[name] for name in names)):
            found = tuple(zip(names, values, strict=True))
            if _completed(axes, allowed, dict(found)) is not None:
                missing[found] = None
    rows: list[Row] = []
    while missing:
        row: Row = dict(next(iter(missing)))
        for name in axes:
            if name in row:
                continue
            best, most = None, -1
            for value in axes[name]:
                longer = {**row, name: value}
                gain = sum(name in dict(new) for new in _tuples(axes, longer, strength, missing))
                if gain > most and _completed(axes, allowed, longer) is not None:
                    best, most = longer, gain
            assert best is not None, "a row that could be completed has no value left"
            row = best
        for found in _tuples(axes, row, strength, missing):
            del missing[found]
        rows.append({name: row[name] for name in axes})
    return rows


def _tuples(
    axes: Mapping[str, Sequence[object]], row: Row, strength: int, among: Mapping[Tuple, None]
) -> list[Tuple]:
    names = [name for name in axes if name in row]
    found = (
        tuple((name, row[name]) for name in chosen)
        for chosen in itertools.combinations(names, strength)
    )
    return [one for one in found if one in among]


def _completed(axes: Mapping[str, Sequence[object]], allowed: Rule, row: Row) -> Row | None:
    """Return some row that makes sense and holds what ``row`` does, or None."""
    if not allowed(row):
        return None
    name = next((name for name in axes if name not in row), None)
    if name is None:
        return row
    for value in axes[name]:
        found = _completed(axes, allowed, {**row, name: value})
        if found is not None:
            return found
    return None
