"""Where metadata is: kinds by option, what snapshots share, tables that are too many to keep."""

from __future__ import annotations

import pytest

from qsd_trio.block.drivers.qcow2 import overlap
from qsd_trio.block.drivers.qcow2.layout import CorruptImageError
from qsd_trio.block.drivers.qcow2.overlap import (
    ACTIVE_L1,
    ACTIVE_L2,
    ALL,
    CACHED,
    CONSTANT,
    HEADER,
    INACTIVE_L1,
    INACTIVE_L2,
    REFBLOCK,
    REFTABLE,
    SNAPSHOT_TABLE,
    Locations,
)
from qsd_trio.qapi import Qcow2OverlapCheckFlags, Qcow2OverlapCheckMode


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (None, CACHED),
        (Qcow2OverlapCheckMode.NONE, frozenset()),
        (Qcow2OverlapCheckMode.CONSTANT, CONSTANT),
        (Qcow2OverlapCheckMode.CACHED, CACHED),
        (Qcow2OverlapCheckMode.ALL, ALL),
        (Qcow2OverlapCheckFlags(), CACHED),
        (
            Qcow2OverlapCheckFlags(template=Qcow2OverlapCheckMode.NONE, main_header=True),
            frozenset({HEADER}),
        ),
        (
            Qcow2OverlapCheckFlags(template=Qcow2OverlapCheckMode.ALL, active_l2=False),
            ALL - {ACTIVE_L2},
        ),
        (Qcow2OverlapCheckFlags(inactive_l2=True), ALL),
    ],
)
def test_kinds(option: object, expected: frozenset[str]) -> None:
    assert overlap.kinds(option) == expected


def test_every_kind_has_a_flag() -> None:
    names = {field.name for field in Qcow2OverlapCheckFlags.__attrs_attrs__}
    assert names == {*overlap.FLAGS, "template"}
    assert set(overlap.FLAGS.values()) == ALL


def test_only_what_is_asked_for_is_kept() -> None:
    locations = Locations(CONSTANT)
    locations.note(0, HEADER)
    locations.note(512, ACTIVE_L2)
    locations.note_many([1024], REFBLOCK)
    assert locations == {0: HEADER}
    locations.reset(CACHED)
    assert locations == {}
    locations.note(512, ACTIVE_L2)
    assert locations == {512: ACTIVE_L2}


def test_what_is_known_first_stays() -> None:
    locations = Locations()
    locations.note(512, REFTABLE)
    locations.note(512, ACTIVE_L2)
    locations.drop(512, ACTIVE_L2)
    assert locations == {512: REFTABLE}


def test_a_table_that_is_shared_stays_the_snapshots() -> None:
    locations = Locations(ALL)
    locations.note(512, ACTIVE_L2)
    locations.set_snapshots({512: INACTIVE_L2, 1024: INACTIVE_L1, 2048: SNAPSHOT_TABLE})
    assert locations[512] == ACTIVE_L2
    locations.drop(512, ACTIVE_L2)
    assert locations == {512: INACTIVE_L2, 1024: INACTIVE_L1, 2048: SNAPSHOT_TABLE}
    locations.set_snapshots({1024: INACTIVE_L1})
    assert locations == {1024: INACTIVE_L1}
    locations.set_snapshots({})
    assert locations == {}


def test_a_write_may_only_meet_its_own_kind() -> None:
    locations = Locations(ALL)
    locations.note(512, ACTIVE_L2)
    locations.check(512, 600, 8, ACTIVE_L2)
    locations.check(1024, 1024, 512)
    with pytest.raises(CorruptImageError) as caught:
        locations.check(512, 600, 8)
    text = "Preventing invalid write on metadata (overlaps with active L2 table)"
    assert (caught.value.message, caught.value.where) == (text, (600, 8))
    assert caught.value.fatal
    locations.set_snapshots({512: INACTIVE_L1})
    with pytest.raises(CorruptImageError) as caught:
        locations.check(512, 512, 8, ACTIVE_L2)
    assert "inactive L1 table" in caught.value.message


def test_what_is_too_much_to_keep_is_kept_while_it_is_cached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(overlap, "MAX_LOCATIONS", 3)
    locations = Locations()
    locations.note(0, ACTIVE_L1)
    locations.note_many([512, 1024], ACTIVE_L2)
    locations.evicted(512, ACTIVE_L2)
    assert 512 in locations  # all of them are kept
    locations.note_many([1536], ACTIVE_L2)
    assert 1536 not in locations
    locations.note(1536, ACTIVE_L2)  # it is read
    assert 1536 in locations
    locations.evicted(1536, ACTIVE_L2)
    assert 1536 not in locations
