"""host/inline.py: the policy sees only durations; the test plays the clock."""

from __future__ import annotations

from qsd_trio.host.inline import (
    FIRST_HOLD,
    FORGIVEN_AFTER,
    LONGEST_HOLD,
    SLOW_PER_UNIT,
    UNIT,
    InlinePolicy,
)

FAST, SLOW = SLOW_PER_UNIT / 10, SLOW_PER_UNIT * 3


def stall(policy: InlinePolicy, now: float) -> float:
    """Let a call stall at ``now`` and return when the policy lets calls in again."""
    assert not policy.observe(4096, now, now + SLOW)
    end = now + SLOW
    for _ in range(10_000):
        end += FIRST_HOLD / 4
        if policy.observe(4096, end - FAST, end):
            return end
    raise AssertionError("never inline again")


def test_fast_calls_stay_inline() -> None:
    policy = InlinePolicy()
    assert all(policy.observe(4096, now, now + FAST) for now in range(100))
    assert policy.stalls == 0


def test_one_slow_call_ends_it_and_fast_ones_of_a_worker_bring_it_back() -> None:
    policy = InlinePolicy()
    assert not policy.observe(4096, 10.0, 10.0 + SLOW)
    assert not policy.inline
    assert not policy.observe(4096, 10.0, 10.0 + SLOW + FIRST_HOLD / 2 - FAST), "too early"
    later = 10.0 + SLOW + FIRST_HOLD
    assert not policy.observe(4096, later, later + SLOW), "still slow: a worker found out"
    assert policy.observe(4096, later + 1, later + 1 + FAST)


def test_long_transfers_may_take_longer() -> None:
    policy = InlinePolicy()
    assert policy.observe(16 * UNIT, 0.0, 10 * SLOW_PER_UNIT)
    assert not policy.observe(16 * UNIT, 0.0, 18 * SLOW_PER_UNIT)


def test_repeated_stalls_keep_it_away_longer_up_to_a_limit_and_are_forgiven() -> None:
    policy = InlinePolicy()
    now, holds = 100.0, []
    for _ in range(12):
        back = stall(policy, now)
        holds.append(back - now - SLOW)
        now = back + FAST
    assert holds == sorted(holds)
    assert FIRST_HOLD <= holds[0] <= FIRST_HOLD * 1.5
    assert LONGEST_HOLD <= holds[-1] <= LONGEST_HOLD * 1.1
    start = now + FORGIVEN_AFTER + LONGEST_HOLD
    assert stall(policy, start) - start - SLOW <= FIRST_HOLD * 1.5
