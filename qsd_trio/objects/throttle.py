"""Throttling: limits, their validation, and the buckets that enforce them. Pure: time is handed in.

Each limit is a leaky bucket: a request pours its operations or bytes in, and they leak out at the permitted
rate. While a bucket holds more than it may, the next request waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Mapping
#: The largest rate, and the largest product of burst rate and burst length.
MAX_RATE: Final = 10**15
#: The burst length is 32 bits wide.
MAX_LENGTH: Final = (1 << 32) - 1
#: What a bucket may hold when no burst is allowed, in seconds at the permitted rate: small enough that
#: the rate is even, large enough that not each request waits.
EVEN_SECONDS: Final = 0.1

#: A wait that is shorter is none: it may be too short for a clock, as a float, to move.
_NOTHING: Final = 1e-9

#: The six buckets, in the order in which their limits are checked.
BUCKETS: Final = ("bps-total", "bps-read", "bps-write", "iops-total", "iops-read", "iops-write")
#: Every limit, by its name in ThrottleLimits, with its default.
DEFAULTS: Final = {
    **{
        name: default
        for bucket in BUCKETS
        for name, default in (
            (bucket, 0),
            (f"{bucket}-max", 0),
            (f"{bucket}-max-length", 1),
        )
    },
    "iops-size": 0,
}


def check(limits: Mapping[str, int]) -> None:
    """Check a complete set of limits for sense; QmpError names the first rule that is broken."""
    for unit in ("bps", "iops"):
        for suffix in ("", "-max"):
            total = limits[f"{unit}-total{suffix}"]
            if total and (limits[f"{unit}-read{suffix}"] or limits[f"{unit}-write{suffix}"]):
                raise QmpError(
                    "bps/iops/max total values and read/write values cannot be used at the same time"
                )
    if limits["iops-size"] and not any(
        limits[f"iops-{which}"] for which in ("total", "read", "write")
    ):
        raise QmpError("iops size requires an iops value to be set")
    for bucket in BUCKETS:
        rate, burst, length = (limits[bucket + suffix] for suffix in ("", "-max", "-max-length"))
        if not 0 <= rate <= MAX_RATE or not 0 <= burst <= MAX_RATE:
            raise QmpError(f"bps/iops/max values must be within [0, {MAX_RATE}]")
        if not length:
            raise QmpError("the burst length cannot be 0")
        if length > 1 and not burst:
            raise QmpError("burst length set without burst rate")
        if burst and length > MAX_RATE // burst:
            raise QmpError("burst length too high for this burst rate")
        if burst and not rate:
            raise QmpError("bps_max/iops_max require corresponding bps/iops values")
        if burst and burst < rate:
            raise QmpError("bps_max/iops_max cannot be lower than bps/iops")


@final
class Bucket:
    """One limit: ``rate`` per second for ever, ``burst`` per second for ``length`` seconds."""

    __slots__ = ("_burst_level", "_level", "_now", "burst", "length", "rate")

    def __init__(self, rate: int, burst: int = 0, length: int = 1) -> None:
        self.rate = rate
        self.burst = burst
        self.length = length
        self._level = 0.0
        self._burst_level = 0.0
        self._now: float | None = None

    def _leak(self, now: float) -> None:
        if self._now is not None:
            elapsed = max(0.0, now - self._now)
            self._level = max(0.0, self._level - elapsed * self.rate)
            self._burst_level = max(0.0, self._burst_level - elapsed * self.burst)
        self._now = now

    def wait(self, now: float) -> float:
        """Return the seconds until a request may go, 0 for at once."""
        if not self.rate:
            return 0.0
        self._leak(now)
        room = self.burst * self.length if self.burst else self.rate * EVEN_SECONDS
        wait = (self._level - room) / self.rate
        if wait > _NOTHING:
            return wait
        if self.burst and self.length > 1:
            # A long burst is itself kept even.
            wait = self._burst_level / self.burst - EVEN_SECONDS
            if wait > _NOTHING:
                return wait
        return 0.0

    def pour(self, amount: float) -> None:
        """Count a request that goes."""
        if self.rate:
            self._level += amount
            if self.burst and self.length > 1:
                self._burst_level += amount


@final
class Throttle:
    """The buckets of one throttle group, with its limits."""

    def __init__(self, limits: Mapping[str, int]) -> None:
        check(limits)
        self.limits = dict(limits)
        buckets = {
            name: Bucket(limits[name], limits[f"{name}-max"], limits[f"{name}-max-length"])
            for name in BUCKETS
        }
        self._read = [buckets[n] for n in BUCKETS if not n.endswith("write") and buckets[n].rate]
        self._write = [buckets[n] for n in BUCKETS if not n.endswith("read") and buckets[n].rate]
        self._bytes = {id(buckets[n]) for n in BUCKETS if n.startswith("bps")}

    def wait(self, is_write: bool, now: float) -> float:
        """Return the seconds until the next read or write may go, 0 for at once."""
        return max(
            (bucket.wait(now) for bucket in (self._write if is_write else self._read)), default=0.0
        )

    def pour(self, is_write: bool, length: int) -> None:
        """Count a read or write of ``length`` bytes that goes."""
        size = self.limits["iops-size"]
        operations = length / size if size and length > size else 1.0
        for bucket in self._write if is_write else self._read:
            bucket.pour(length if id(bucket) in self._bytes else operations)
