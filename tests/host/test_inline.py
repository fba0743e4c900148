"""host/inline.py: the policy sees only durations; the test plays the clock."""

from __future__ import annotations

import time

import pytest

from qsd_trio.host.inline import (
    CERTAIN,
    FIRST_HOLD,
    FORGIVEN_AFTER,
    LONGEST_HOLD,
    SLOW_PER_UNIT,
    SUSPICION,
    UNIT,
    InlinePolicy,
    sleeps,
)

FAST, SLOW, STALL = SLOW_PER_UNIT / 10, SLOW_PER_UNIT * 3, CERTAIN * 2


def stall(policy: InlinePolicy, now: float) -> float:
    """Let a call stall at ``now`` and return when the policy lets calls in again."""
    assert not policy.observe(4096, now, now + STALL)
    end = now + STALL
    for _ in range(10_000):
        end += FIRST_HOLD / 4
        if policy.observe(4096, end - FAST, end):
            return end
    raise AssertionError("never inline again")


def test_fast_calls_stay_inline() -> None:
    policy = InlinePolicy()
    assert all(policy.observe(4096, now, now + FAST) for now in range(100))
    assert (policy.stalls, policy.suspicious) == (0, False)


def test_one_stall_ends_it_and_fast_calls_of_a_worker_bring_it_back() -> None:
    policy = InlinePolicy()
    assert not policy.observe(4096, 10.0, 10.0 + STALL)
    assert not policy.inline
    assert not policy.observe(4096, 10.0, 10.0 + STALL + FIRST_HOLD / 2 - FAST), "too early"
    later = 10.0 + STALL + FIRST_HOLD
    assert not policy.observe(4096, later, later + SLOW), "still slow: a worker found out"
    assert policy.observe(4096, later + 1, later + 1 + FAST)


@pytest.mark.parametrize(("slept", "inline"), [(True, False), (False, True)])
def test_a_slow_call_is_a_reason_to_look_whether_the_next_one_sleeps(
    slept: bool, inline: bool
) -> None:
    policy = InlinePolicy()
    assert policy.observe(4096, 1.0, 1.0 + SLOW), "perhaps it only lost its processor"
    assert policy.suspicious
    assert policy.observe(4096, 1.1 + FAST, 1.1 + 2 * FAST, slept=False)
    assert policy.suspicious, "still within the time of suspicion"
    assert policy.observe(4096, 1.1, 1.1 + SLOW, slept=slept) is inline


def test_suspicion_ends_by_itself() -> None:
    policy = InlinePolicy()
    policy.observe(4096, 1.0, 1.0 + SLOW)
    now = 1.0 + SLOW + SUSPICION + FAST
    policy.observe(4096, now, now + FAST, slept=False)
    assert not policy.suspicious


def test_sleeps_counts_sleeps() -> None:
    before = sleeps()
    time.sleep(1e-4)
    assert sleeps() > before


def test_long_transfers_may_take_longer() -> None:
    policy = InlinePolicy()
    policy.observe(16 * UNIT, 0.0, 10 * SLOW_PER_UNIT)
    assert not policy.suspicious
    policy.observe(16 * UNIT, 0.0, 18 * SLOW_PER_UNIT)
    assert policy.suspicious


def test_repeated_stalls_keep_it_away_longer_up_to_a_limit_and_are_forgiven() -> None:
    policy = InlinePolicy()
    now, holds = 100.0, []
    for _ in range(12):
        back = stall(policy, now)
        holds.append(back - now - STALL)
        now = back + FAST
    assert holds == sorted(holds)
    assert FIRST_HOLD <= holds[0] <= FIRST_HOLD * 1.5
    assert LONGEST_HOLD <= holds[-1] <= LONGEST_HOLD * 1.1
    start = now + FORGIVEN_AFTER + LONGEST_HOLD
    assert stall(policy, start) - start - STALL <= FIRST_HOLD * 1.5
