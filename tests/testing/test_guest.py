"""A guest's books: what may be read now, and after a crash."""

from __future__ import annotations

import pytest

from qsd_trio.testing.guest import MIXED, Guest, stamp, stamps
from qsd_trio.testing.recorder import Journal


def test_stamps() -> None:
    assert stamps(stamp(5) + stamp(0) + b"x" + stamp(7)[1:]) == [5, 0, MIXED]


@pytest.fixture
def guest() -> Guest:
    return Guest(Journal(), 3, below=[9])


def after_crash(guest: Guest, position: int) -> list[set[int]]:
    """Return what each sector may hold, by asking for every number."""
    usual = [9, 0, 0]
    return [
        {
            number
            for number in range(10)
            if fits(guest, position, [*usual[:sector], number, *usual[sector + 1 :]])
        }
        for sector in range(guest.sectors)
    ]


def fits(guest: Guest, position: int, numbers: list[int]) -> bool:
    try:
        guest.check_crash(position, b"".join(map(stamp, numbers)))
    except AssertionError:
        return False
    return True


def test_what_was_not_flushed_is_old_or_new(guest: Guest) -> None:
    before = guest.journal.now()
    guest.end(guest.begin(1, 1, 4))
    assert after_crash(guest, before) == [{9}, {0}, {0}]
    assert after_crash(guest, guest.journal.now()) == [{9}, {0, 4}, {0}]


def test_what_was_flushed_is_there(guest: Guest) -> None:
    guest.end(guest.begin(0, 1, 4))
    pending = guest.begin(0, 1, 5)
    begun = guest.journal.now()
    guest.end(pending)  # the flush had begun: it need not cover it
    later = guest.journal.now()
    guest.flushed(begun)
    now = guest.journal.now()
    guest.check_crash(now, stamp(4) + stamp(0) * 2)
    guest.check_crash(now, stamp(5) + stamp(0) * 2)
    with pytest.raises(AssertionError, match="sector 0 holds 9"):
        guest.check_crash(now, stamp(9) + stamp(0) * 2)
    guest.check_crash(later, stamp(9) + stamp(0) * 2)


def test_a_read_sees_what_was_there_meanwhile(guest: Guest) -> None:
    old = guest.begin(0, 1, 1)
    guest.end(old)
    begun = guest.journal.now()
    guest.end(guest.begin(0, 1, 2))
    after = guest.journal.now()
    assert guest.may_read(0, begun, after) == {1, 2}
    assert guest.may_read(0, after, after) == {2}
    guest.end(guest.begin(0, 1, 3), sure=False)
    now = guest.journal.now()
    assert guest.may_read(0, now, now) == {2, 3}
    guest.check_read(0, stamp(3) + stamp(0), now)
    with pytest.raises(AssertionError, match="sector 1 reads as 3"):
        guest.check_read(0, stamp(3) * 2, now)


def test_a_resize_cuts_for_good(guest: Guest) -> None:
    guest.end(guest.begin(2, 1, 6))
    before = guest.journal.now()
    guest.flushed(before)
    guest.end_resize(guest.begin_resize(1))
    cut = guest.journal.now()
    guest.check_crash(cut, stamp(9))
    guest.check_crash(cut, stamp(9) + stamp(0) + stamp(6))
    guest.end_resize(guest.begin_resize(4))
    grown = guest.journal.now()
    guest.check_crash(grown, stamp(9) + stamp(0) * 3)
    with pytest.raises(AssertionError, match="2 sectors"):
        guest.check_crash(grown, stamp(9) * 2)
    guest.flushed(grown)
    now = guest.journal.now()
    guest.check_crash(now, stamp(9) + stamp(0) * 3)
    with pytest.raises(AssertionError, match="sector 2 holds 6"):
        guest.check_crash(now, stamp(9) + stamp(0) + stamp(6) + stamp(0))
    assert guest.may_read(2, now, now) == {0}
