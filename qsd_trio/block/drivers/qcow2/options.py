"""Check the run-time options of an image, with QEMU's rules and texts. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import attrs

from qsd_trio.block.drivers.qcow2 import encryption, overlap
from qsd_trio.block.drivers.qcow2.layout import INCOMPAT_EXTENDED_L2
from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from qsd_trio.block.drivers.qcow2.header import Header
    from qsd_trio.untyped import Options

MAX_DEFAULT_L2_CACHE: Final = 32 << 20
DEFAULT_CLEAN_INTERVAL: Final = 600  # seconds
MIN_L2_ENTRIES: Final = 2
DEFAULT_SLICE_SIZE: Final = 65536
MIN_REFCOUNT_ENTRIES: Final = 4
_SIZES: Final = (
    "cache-size",
    "l2-cache-size",
    "l2-cache-entry-size",
    "refcount-cache-size",
)
_INT_MAX: Final = 2**31 - 1


@final
@attrs.frozen(kw_only=True)
class RuntimeOptions:
    """What the options of blockdev-add come to for one image."""

    l2_slices: int
    #: Bytes of an L2 table that are cached at once.
    l2_slice_size: int
    refcount_blocks: int
    #: Whether freed clusters are discarded in the file: on request, of snapshots, other.
    pass_discard: tuple[bool, bool, bool]
    #: Whether clusters that are discarded stay allocated.
    discard_no_unref: bool
    #: Seconds after which unused tables leave the caches; 0: never.
    cache_clean_interval: int
    #: Kinds of metadata that writes must not overlap.
    overlap_check: frozenset[str]


def check(options: Options, header: Header, *, discard_unmap: bool) -> RuntimeOptions:
    """Return the options' meaning for an image; QmpError as the real daemon gives it."""
    encryption.check_options(options, header)
    l2_slices, slice_size, refcount_blocks = _cache_sizes(options, header)
    interval = options.cache_clean_interval
    if interval is not None and not 0 <= interval < 2**32:
        raise QmpError("Cache clean interval too big")
    if options.lazy_refcounts and header.version < 3:
        raise QmpError(
            "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level"
        )
    if options.discard_no_unref and header.version < 3:
        raise QmpError("discard-no-unref is only supported since qcow2 version 3")

    def choose(value: bool | None, default: bool) -> bool:
        return default if value is None else value

    return RuntimeOptions(
        l2_slices=l2_slices,
        l2_slice_size=slice_size,
        refcount_blocks=refcount_blocks,
        pass_discard=(
            choose(options.pass_discard_request, discard_unmap),
            choose(options.pass_discard_snapshot, True),
            choose(options.pass_discard_other, False),
        ),
        discard_no_unref=bool(options.discard_no_unref),
        cache_clean_interval=DEFAULT_CLEAN_INTERVAL if interval is None else interval,
        overlap_check=overlap.kinds(options.overlap_check),
    )


def _cache_sizes(options: Options, header: Header) -> tuple[int, int, int]:
    """Return how many L2 slices, of which size, and refcount blocks to keep in memory."""
    given: dict[str, int | None] = {}
    for name in _SIZES:
        value = getattr(options, name.replace("-", "_"))
        if value is not None and value < 0:
            raise QmpError(f"Parameter '{name}' expects a non-negative number below 2^64")
        given[name] = value
    total, l2, entry, refcounts = (given[name] for name in _SIZES)
    size = header.cluster_size
    clusters = _div_up(header.size, size)
    entry_bytes = 16 if header.incompatible & INCOMPAT_EXTENDED_L2 else 8
    largest_l2 = _div_up(clusters * entry_bytes, size) * size
    smallest_refcounts = MIN_REFCOUNT_ENTRIES * size
    l2_size = min(largest_l2, MAX_DEFAULT_L2_CACHE if l2 is None else l2)
    if total is not None:
        if l2 is not None and refcounts is not None:
            raise QmpError(
                "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time"
            )
        if l2 is not None and l2 > total:
            raise QmpError("l2-cache-size may not exceed cache-size")
        if refcounts is not None and refcounts > total:
            raise QmpError("refcount-cache-size may not exceed cache-size")
        if l2 is not None:
            refcounts = total - l2_size
        elif refcounts is not None:
            l2_size = total - refcounts
        elif total >= largest_l2 + smallest_refcounts:
            l2_size = largest_l2
            refcounts = total - l2_size
        else:
            refcounts = min(total, smallest_refcounts)
            l2_size = total - refcounts
    if refcounts is None:
        refcounts = smallest_refcounts
    if entry is not None and (not 512 <= entry <= size or entry & (entry - 1)):
        raise QmpError(
            f"L2 cache entry size must be a power of two between 512 and the cluster size ({size})"
        )
    entry = min(size, DEFAULT_SLICE_SIZE) if entry is None else entry
    if l2_size // entry > _INT_MAX:
        raise QmpError("L2 cache size too big")
    if refcounts // size > _INT_MAX:
        raise QmpError("Refcount cache size too big")
    blocks = max(refcounts // size, MIN_REFCOUNT_ENTRIES)
    return max(l2_size // entry, MIN_L2_ENTRIES), entry, blocks


def _div_up(value: int, unit: int) -> int:
    return (value + unit - 1) // unit
