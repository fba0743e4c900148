"""Throttling is arithmetic on handed-in time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.errors import QmpError
from qsd_trio.objects.throttle import DEFAULTS, EVEN_SECONDS, Bucket, Throttle


def limits(**given: int) -> dict[str, int]:
    return {**DEFAULTS, **{name.replace("_", "-"): value for name, value in given.items()}}


def test_without_limits_nothing_waits() -> None:
    throttle = Throttle(limits())
    for _ in range(100):
        assert throttle.wait(True, 0.0) == 0
        throttle.pour(True, 1 << 30)


def test_a_rate_is_kept_over_time() -> None:
    throttle = Throttle(limits(iops_total=100))
    now, done = 0.0, 0
    while now < 10:
        wait = throttle.wait(done % 2 == 0, now)
        if wait:
            now += wait
            continue
        throttle.pour(done % 2 == 0, 4096)
        done += 1
    assert 1000 <= done <= 1000 + 100 * EVEN_SECONDS + 1


def test_a_burst_may_be_faster_for_its_length() -> None:
    bucket = Bucket(rate=10, burst=100, length=5)
    now, done = 0.0, 0
    while now < 5:
        wait = bucket.wait(now)
        if wait:
            now += wait
            continue
        bucket.pour(1)
        done += 1
    assert 450 <= done <= 560  # 100 a second for 5 seconds, not 10
    while now < 60:
        wait = bucket.wait(now)
        if wait:
            now += wait
            continue
        bucket.pour(1)
        done += 1
    assert done <= 100 * 5 + 10 * 61 + 1  # and then 10 a second


def test_reads_and_writes_have_their_own_limits() -> None:
    throttle = Throttle(limits(bps_read=1000, iops_write=1))
    throttle.pour(False, 1 << 20)
    assert throttle.wait(False, 0.0) > 0
    assert throttle.wait(True, 0.0) == 0


def test_large_operations_count_as_several() -> None:
    throttle = Throttle(limits(iops_total=10, iops_size=4096))
    throttle.wait(False, 0.0)
    throttle.pour(False, 4096 * 21)
    assert throttle.wait(False, 0.0) == pytest.approx(2.0)


@given(
    st.integers(1, 10**6),
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 10**6)), max_size=50),
)
def test_a_wait_is_never_too_short_nor_negative(
    rate: int, requests: list[tuple[float, int]]
) -> None:
    bucket, now = Bucket(rate), 0.0
    for pause, amount in requests:
        now += pause
        wait = bucket.wait(now)
        assert wait >= 0
        now += wait
        assert bucket.wait(now) <= 1e-6 * (1 + amount / rate + wait)
        bucket.pour(amount)


@pytest.mark.parametrize(
    ("given_limits", "text"),
    [
        ({"iops_total": -1}, "bps/iops/max values must be within [0, 1000000000000000]"),
        ({"bps_read": 10**15 + 1}, "bps/iops/max values must be within [0, 1000000000000000]"),
        ({"bps_total": 1, "bps_total_max_length": 0}, "the burst length cannot be 0"),
        ({"bps_total": 1, "bps_total_max_length": 2}, "burst length set without burst rate"),
        ({"bps_total_max": 1}, "bps_max/iops_max require corresponding bps/iops values"),
        ({"bps_total": 2, "bps_total_max": 1}, "bps_max/iops_max cannot be lower than bps/iops"),
        ({"iops_size": 1}, "iops size requires an iops value to be set"),
    ],
)
def test_limits_that_make_no_sense(given_limits: dict[str, int], text: str) -> None:
    with pytest.raises(QmpError) as caught:
        Throttle(limits(**given_limits))
    assert str(caught.value) == text
