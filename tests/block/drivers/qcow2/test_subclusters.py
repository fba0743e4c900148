"""Bitmaps of extended L2 entries against lists of 32 states."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.block.drivers.qcow2 import subclusters as sub

states = st.lists(st.sampled_from("-az"), min_size=32, max_size=32)


def bitmap_of(cluster: list[str]) -> int:
    return sum(
        1 << at + (32 if state == "z" else 0) for at, state in enumerate(cluster) if state != "-"
    )


def members(which: int) -> list[int]:
    return [at for at in range(64) if which >> at & 1]


@given(states, st.integers(0, 31), st.integers(0, 31), st.sampled_from("az"))
def test_changes(cluster: list[str], low: int, high: int, state: str) -> None:
    low, high = sorted([low, high])
    bitmap = bitmap_of(cluster)
    assert sub.is_valid(bitmap)
    assert members(sub.allocated(bitmap)) == [at for at in range(32) if cluster[at] == "a"]
    assert members(sub.zero(bitmap)) == [at for at in range(32) if cluster[at] == "z"]
    touched = sub.span(low << 9, (high << 9) + 1, 9)
    assert members(touched) == list(range(low, high + 1))
    change = sub.with_allocated if state == "a" else sub.with_zero
    cluster[low : high + 1] = [state] * (high + 1 - low)
    assert change(bitmap, touched) == bitmap_of(cluster)


@given(states, st.integers(0, 31))
def test_runs(cluster: list[str], first: int) -> None:
    data = sub.allocated(bitmap_of(cluster))
    run = 0
    while first + run < 32 and cluster[first + run] == "a":
        run += 1
    assert sub.run_length(data, first) == run
    there = members(data)
    assert sub.lowest(data) == (there[0] if there else 32)
    assert sub.highest(data) == (there[-1] if there else -1)


def test_a_subcluster_is_not_both() -> None:
    assert not sub.is_valid(1 | 1 << 32)
    assert not sub.is_valid(1 << 31 | 1 << 63)
    assert sub.is_valid(1 << 31 | 1 << 62)
    assert sub.is_valid(sub.ALL_ALLOCATED)
    assert sub.is_valid(sub.ALL_ZERO)
