"""The row of bits against a set of integers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.block.bits import NEAR, STEP, BitArray

LENGTHS = st.sampled_from([1, 7, 8, 9, 63, 64, 65, 200, 8 * NEAR + 20])


@st.composite
def ranges(draw: st.DrawFn, length: int) -> tuple[int, int]:
    start = draw(st.integers(0, length))
    return start, draw(st.integers(start, length))


def found(bits: BitArray) -> set[int]:
    """Return the set bits, by the scans."""
    answer: set[int] = set()
    at = bits.next_set(0, bits.length)
    while at < bits.length:
        end = bits.next_clear(at, bits.length)
        answer.update(range(at, end))
        at = bits.next_set(end, bits.length)
    return answer


@given(st.data())
def test_model(data: st.DataObject) -> None:
    length = data.draw(LENGTHS)
    bits, model = BitArray(length), set[int]()
    for _ in range(data.draw(st.integers(0, 12))):
        start, stop = data.draw(ranges(length))
        match data.draw(st.sampled_from(["set", "clear", "resize", "load"])):
            case "set":
                bits.set(start, stop)
                model.update(range(start, stop))
            case "clear":
                bits.clear(start, stop)
                model.difference_update(range(start, stop))
            case "resize":
                length = data.draw(LENGTHS)
                bits.resize(length)
                model = {bit for bit in model if bit < length}
            case "load":
                at = data.draw(st.integers(0, (length + 7) // 8 - 1))
                octets = data.draw(st.binary(max_size=4))
                bits.load(at, octets)
                first, end = 8 * at, 8 * (at + len(octets))
                model = {bit for bit in model if not first <= bit < end}
                number = int.from_bytes(octets, "little")
                model.update(
                    first + bit
                    for bit in range(8 * len(octets))
                    if number >> bit & 1 and first + bit < length
                )
        assert bits.count() == len(model)
        assert found(bits) == model
        assert len(bits.data) == (length + 7) // 8
    start, stop = data.draw(ranges(length))
    inside = [bit for bit in range(start, stop) if bit in model]
    outside = [bit for bit in range(start, stop) if bit not in model]
    assert bits.next_set(start, stop) == (inside or [stop])[0]
    assert bits.next_clear(start, stop) == (outside or [stop])[0]
    assert found(bits.copy()) == model


@given(st.data(), st.integers(-4, 4), st.integers(1, 300))
def test_merge_of_other_granularity(data: st.DataObject, shift: int, units: int) -> None:
    """Bits of 1 << shift units set what they overlap."""
    mine, theirs = 0, shift
    if shift < 0:
        mine, theirs = -shift, 0
    target = BitArray(-(-units // (1 << mine)))
    source = BitArray(-(-units // (1 << theirs)))
    own = data.draw(st.sets(st.integers(0, target.length - 1), max_size=8))
    other = data.draw(st.sets(st.integers(0, source.length - 1), max_size=8))
    for bit in own:
        target.set(bit, bit + 1)
    for bit in other:
        source.set(bit, bit + 1)
    target.merge(source, shift)
    want = set(own)
    for bit in other:
        start, stop = bit << theirs, min((bit + 1) << theirs, units)
        want.update(range(start >> mine, ((stop - 1) >> mine) + 1))
    assert found(target) == want


@pytest.mark.parametrize("shift", [-20, -16, -15, -13, -12, -9, -1, 0, 1, 3])
def test_merge_of_long_ones(shift: int) -> None:
    """Several steps of the scan long, and coarser by more than a step."""
    rng = random.Random(shift)
    fine, coarse = 8 * 5 * STEP + 77, -(-(8 * 5 * STEP + 77) >> abs(shift))
    source, target = BitArray(fine if shift <= 0 else coarse), BitArray(0)
    target.resize(coarse if shift <= 0 else fine)
    want = set()
    for _ in range(20):
        bit = rng.choice([rng.randrange(source.length), source.length - 1, 8 * STEP, 8 * STEP - 1])
        bit = min(bit, source.length - 1)
        source.set(bit, bit + 1)
        if shift <= 0:
            want.add(bit >> -shift)
        else:
            want.update(range(bit << shift, min((bit + 1) << shift, fine)))
    own = rng.randrange(target.length)
    target.set(own, own + 1)
    target.merge(source, shift)
    assert found(target) == want | {own}
    assert target.count() == len(want | {own})


@pytest.mark.parametrize("at", [0, 8 * NEAR, 8 * (NEAR + STEP) - 1, 8 * (NEAR + 3 * STEP) + 5])
def test_scans_cross_their_steps(at: int) -> None:
    length = 8 * (NEAR + 4 * STEP)
    bits = BitArray(length)
    assert bits.next_set(0, length) == length
    bits.set(at, at + 1)
    assert bits.next_set(0, length) == at
    assert bits.next_set(at + 1, length) == length
    bits.set(0, length)
    assert bits.next_clear(0, length) == length
    bits.clear(at, at + 1)
    assert bits.next_clear(0, length) == at


def test_a_copy_is_independent() -> None:
    bits = BitArray(8)
    other = bits.copy()
    other.set(1, 2)
    assert (found(bits), found(other)) == (set(), {1})
