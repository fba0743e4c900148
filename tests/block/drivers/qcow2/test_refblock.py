"""Refcount blocks of every width against a list."""

from __future__ import annotations

import random

import pytest

from qsd_trio.block.drivers.qcow2.refblock import parse_refblock


@pytest.mark.parametrize("order", range(7))
def test_counters(order: int) -> None:
    rng = random.Random(order)
    size = 512
    count = size * 8 >> order
    largest = (1 << (1 << order)) - 1
    block = parse_refblock(bytes(size), order)
    model = [0] * count
    for _ in range(60):
        start = rng.randrange(count)
        run = min(rng.choice([1, 3, 70]), count - start)
        value = rng.choice([0, 1, largest])
        block.put_run(start, run, value)
        model[start : start + run] = [value] * run
        assert [block.get(at) for at in range(count)] == model
        assert block.count_zero() == model.count(0)
        start = rng.randrange(count)
        assert block.find_zero(start) == (model.index(0, start) if 0 in model[start:] else -1)
        limit = rng.randrange(1, count - start + 1)
        free = next((at for at in range(limit) if model[start + at]), limit)
        assert block.zero_run(start, limit) == free
    _, data = block.to_bytes(0, count - 1)
    assert len(data) == size
    again = parse_refblock(data, order)
    assert [again.get(at) for at in range(count)] == model
    at, piece = block.to_bytes(5, 77 % count if count > 77 else count - 1)
    assert data[at : at + len(piece)] == piece


def test_a_full_block_has_no_zero() -> None:
    for order in range(7):
        block = parse_refblock(b"\xff" * 512, order)
        assert block.find_zero(0) == -1


def test_byte_order_and_bit_order() -> None:
    assert parse_refblock(b"\x01\x02" + bytes(510), 4).get(0) == 0x102
    assert parse_refblock(b"\x80" + bytes(511), 0).get(7) == 1
    assert parse_refblock(b"\x21" + bytes(511), 2).get(1) == 2


@pytest.mark.parametrize("order", range(7))
def test_adding(order: int) -> None:
    """Counters that are given twice count twice; one that leaves its width changes nothing."""
    largest = (1 << (1 << order)) - 1
    block = parse_refblock(bytes(512), order)
    block.put_run(0, 4, largest - 1)
    block.add([0, 1, 3], 1)
    assert [block.get(at) for at in range(5)] == [largest, largest, largest - 1, largest, 0]
    before = block.to_bytes(0, 7)
    with pytest.raises(OverflowError):
        block.add([2, 4, 1, 2], 1)
    assert block.to_bytes(0, 7) == before
    with pytest.raises(OverflowError):
        block.add([0, 5], -1)
    assert block.to_bytes(0, 7) == before
    if order:
        block.add([0, 0, 1], -1)
        assert [block.get(at) for at in range(2)] == [largest - 2, largest - 1]
