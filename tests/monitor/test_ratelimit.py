"""Rate limits, with the time as an argument."""

from __future__ import annotations

import math

from qsd_trio.events import Event
from qsd_trio.monitor.ratelimit import RateLimiter


def bad(node: str, number: int) -> Event:
    return Event("QUORUM_REPORT_BAD", {"node-name": node, "sector-num": number}, (0, number))


def test_the_first_and_the_latest_go_out() -> None:
    limiter = RateLimiter()
    assert limiter.offer(bad("a", 1), now=10.0)
    assert not limiter.offer(bad("a", 2), now=10.1)
    assert not limiter.offer(bad("a", 3), now=10.9)
    assert limiter.next_deadline() == 11.0
    assert limiter.due(10.95) == []
    assert limiter.due(11.0) == [bad("a", 3)]
    # That one was an emission as well: the next has to wait again.
    assert not limiter.offer(bad("a", 4), now=11.5)
    assert limiter.due(12.0) == [bad("a", 4)]
    assert limiter.due(13.0) == []
    assert limiter.next_deadline() == math.inf
    assert limiter.offer(bad("a", 5), now=13.1)


def test_a_late_timer_delays_nothing_new() -> None:
    limiter = RateLimiter()
    assert limiter.offer(bad("a", 1), now=10.0)
    assert limiter.offer(bad("a", 2), now=11.0)  # nobody called due() in between


def test_nodes_have_limits_of_their_own() -> None:
    limiter = RateLimiter()
    assert limiter.offer(bad("a", 1), now=0)
    assert limiter.offer(bad("b", 1), now=0)
    assert not limiter.offer(bad("b", 2), now=0)


def test_other_events_have_none() -> None:
    limiter = RateLimiter()
    for number in range(3):
        assert limiter.offer(Event("JOB_STATUS_CHANGE", {"id": "j"}, (0, number)), now=0)
    assert limiter.next_deadline() == math.inf


def test_what_stopped_a_guest_is_told() -> None:
    limiter = RateLimiter()
    for action in ("report", "stop", "stop"):
        assert limiter.offer(Event("BLOCK_IO_ERROR", {"action": action}, (0, 0)), now=0)
    assert not limiter.offer(Event("BLOCK_IO_ERROR", {"action": "report"}, (0, 0)), now=0)
