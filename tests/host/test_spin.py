"""Who may spin before parking."""

from __future__ import annotations

from qsd_trio.host.spin import ALONE, PENALTY, Spin


def test_only_who_has_been_alone_for_a_while() -> None:
    spin = Spin()
    assert [spin.may("a") for _ in range(ALONE + 3)] == [False] * (ALONE + 1) + [True] * 2
    assert not spin.may("b")
    assert not spin.may("a")


def test_clients_that_take_turns_never_spin() -> None:
    spin = Spin()
    assert not any(spin.may(who) for _ in range(100) for who in ("a", "b"))


def test_a_miss_is_paid_for() -> None:
    spin = Spin()
    waits = [spin.may("a") for _ in range(ALONE + 2)]
    assert waits[-1]
    spin.missed()
    assert [spin.may("a") for _ in range(PENALTY + 1)] == [False] * PENALTY + [True]


def test_misses_in_a_row_cost_more_and_more_until_a_hit() -> None:
    spin = Spin()

    def waits_until_allowed() -> int:
        waits = 1
        while not spin.may("a"):
            waits += 1
        return waits

    waits_until_allowed()
    costs = []
    for _ in range(8):
        spin.missed()
        costs.append(waits_until_allowed())
    assert costs == [min(PENALTY << n, 2048) + 1 for n in range(8)]
    assert spin.may("a")  # a hit
    spin.missed()
    assert waits_until_allowed() == PENALTY + 1
