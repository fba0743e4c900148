"""The header: what is written is what is read; anything else is refused or harmless."""

from __future__ import annotations

import struct

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qsd_trio.block.drivers.qcow2 import header as hdr
from qsd_trio.block.drivers.qcow2.header import Header, parse
from qsd_trio.errors import QmpError

GOOD = Header(
    size=1 << 26,
    l1_size=1,
    l1_table_offset=3 << 16,
    refcount_table_offset=1 << 16,
    refcount_table_clusters=1,
)
FIELDS = {
    "version": (4, ">I"),
    "backing_offset": (8, ">Q"),
    "backing_size": (16, ">I"),
    "cluster_bits": (20, ">I"),
    "size": (24, ">Q"),
    "crypt_method": (32, ">I"),
    "l1_size": (36, ">I"),
    "l1_offset": (40, ">Q"),
    "reftable_offset": (48, ">Q"),
    "reftable_clusters": (56, ">I"),
    "nb_snapshots": (60, ">I"),
    "snapshots_offset": (64, ">Q"),
    "incompatible": (72, ">Q"),
    "refcount_order": (96, ">I"),
    "header_length": (100, ">I"),
    "compression_type": (104, ">B"),
}


def good(**changes: int) -> bytes:
    """Return the good header with raw values in some of its fields."""
    data = bytearray(GOOD.to_bytes().ljust(65536, b"\0"))
    for name, value in changes.items():
        at, form = FIELDS[name]
        struct.pack_into(form, data, at, value)
    return bytes(data)


# Texts that the real daemon gave for these values (see also tests/interop/test_qcow2.py).
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"version": 1}, "Unsupported qcow2 version 1"),
        ({"version": 4}, "Unsupported qcow2 version 4"),
        ({"cluster_bits": 8}, "Unsupported cluster size: 2^8"),
        ({"cluster_bits": 22}, "Unsupported cluster size: 2^22"),
        ({"cluster_bits": 9}, "L1 table is too small"),
        ({"cluster_bits": 21}, "Reference count table offset invalid"),
        ({"header_length": 103}, "qcow2 header too short"),
        ({"header_length": 65537}, "qcow2 header exceeds cluster size"),
        ({"backing_offset": 65537}, "Invalid backing file offset"),
        ({"backing_offset": 65000, "backing_size": 1000}, "Backing file name too long"),
        ({"backing_offset": 600, "backing_size": 1024}, "Backing file name too long"),
        ({"refcount_order": 7}, "Reference count entry width too large; may not exceed 64 bits"),
        ({"crypt_method": 3}, "Unsupported encryption method 3"),
        ({"crypt_method": 2**32 - 1}, "Unsupported encryption method -1"),
        ({"reftable_clusters": 0}, "Image does not contain a reference count table"),
        ({"reftable_clusters": 129}, "Reference count table too large"),
        ({"reftable_offset": 1}, "Reference count table offset invalid"),
        ({"reftable_offset": 2**63}, "Reference count table offset invalid"),
        ({"nb_snapshots": 65537}, "Snapshot table too large"),
        ({"snapshots_offset": 512}, "Snapshot table offset invalid"),
        ({"l1_size": 0}, "L1 table is too small"),
        ({"l1_size": (4 << 20) + 1}, "Active L1 table too large"),
        ({"l1_offset": 512}, "Active L1 table offset invalid"),
        ({"l1_offset": 2**63}, "Active L1 table offset invalid"),
        ({"size": 2**63}, "Image is too big"),
        ({"size": 2**40}, "L1 table is too small"),
        ({"incompatible": 2}, "qcow2: Image is corrupt; cannot be opened read/write"),
        ({"incompatible": 8}, "qcow2: Compression type incompatible feature bit must not be set"),
        ({"compression_type": 1}, "qcow2: Compression type incompatible feature bit must be set"),
        ({"compression_type": 2}, "qcow2: unknown compression type: 2"),
        ({"incompatible": 0x60}, "Unsupported qcow2 feature(s): Unknown incompatible feature: 60"),
        (
            {"incompatible": 1 << 63},
            "Unsupported qcow2 feature(s): Unknown incompatible feature: 8000000000000000",
        ),
    ],
)
def test_bad_fields(changes: dict[str, int], text: str) -> None:
    with pytest.raises(QmpError) as caught:
        parse(good(**changes), read_only=False)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "changes",
    [
        {"reftable_clusters": 128},
        {"l1_size": 4 << 20},
        {"nb_snapshots": 65536},
        {"backing_offset": 65536},
        {"refcount_order": 0},
        {"refcount_order": 6},
        {"header_length": 104},
        {"header_length": 65536},
        {"incompatible": 1},
        {"size": 1 << 29},
    ],
)
def test_fields_at_their_limits(changes: dict[str, int]) -> None:
    parse(good(**changes), read_only=False)


def test_a_corrupt_image_can_be_read() -> None:
    assert parse(good(incompatible=2), read_only=True).incompatible == 2


def test_short_and_foreign_files() -> None:
    for data in (b"", b"QFI\xfb", b"x" * 71):
        with pytest.raises(QmpError, match="Could not read qcow2 header"):
            parse(data, read_only=True)
    with pytest.raises(QmpError, match="Image is not in qcow2 format"):
        parse(b"x" * 72, read_only=True)
    with pytest.raises(QmpError, match="Could not read qcow2 header"):
        parse(good()[:100], read_only=True)


def test_a_feature_is_named_by_the_images_own_table() -> None:
    table = struct.pack(">BB46s", 0, 40, b"time travel") + struct.pack(">BB46s", 1, 41, b"not me")
    data = bytearray(good())
    struct.pack_into(">Q", data, 72, 3 << 40)
    struct.pack_into(">II", data, 112, hdr.EXT_FEATURE_TABLE, len(table))
    data[120 : 120 + len(table)] = table
    with pytest.raises(QmpError) as caught:
        parse(bytes(data), read_only=False)
    assert str(caught.value) == (
        "Unsupported qcow2 feature(s): time travel, Unknown incompatible feature: 20000000000"
    )


def test_extensions() -> None:
    data = bytearray(good())
    struct.pack_into(">II", data, 112, 0x12345678, 65536)
    with pytest.raises(QmpError, match="Header extension too large"):
        parse(bytes(data), read_only=False)
    struct.pack_into(">II", data, 112, hdr.EXT_BACKING_FORMAT, 16)
    with pytest.raises(QmpError, match=r"ext_backing_format: len=16 too large"):
        parse(bytes(data), read_only=False)
    struct.pack_into(">II3s", data, 112, 0x12345678, 3, b"abc")
    assert parse(bytes(data), read_only=False).extensions[0] == (0x12345678, b"abc")


@given(
    version=st.sampled_from([2, 3]),
    cluster_bits=st.integers(12, 21),
    name=st.text("abc/é. ", min_size=1, max_size=200),
    format_=st.sampled_from([None, "raw", "qcow2"]),
    extensions=st.lists(st.tuples(st.integers(1, 1000), st.binary(max_size=20)), max_size=4),
)
def test_round_trip(
    version: int,
    cluster_bits: int,
    name: str,
    format_: str | None,
    extensions: list[tuple[int, bytes]],
) -> None:
    header = attrs.evolve(
        GOOD,
        version=version,
        header_length=hdr.OUR_V3_SIZE if version == 3 else hdr.V2_SIZE,
        cluster_bits=cluster_bits,
        l1_table_offset=3 << cluster_bits,
        l1_size=1024,
        refcount_table_offset=1 << cluster_bits,
        backing_file=name,
        backing_format=format_,
        extensions=extensions,
    )
    header, data = header.packed()
    assert len(data) <= header.cluster_size
    found = parse(data.ljust(header.cluster_size, b"\0"), read_only=False)
    kept = [item for item in found.extensions if item[0] != hdr.EXT_FEATURE_TABLE]
    assert attrs.evolve(found, extensions=kept) == header
    assert found.to_bytes() == data


@given(
    changes=st.dictionaries(st.sampled_from(sorted(FIELDS)), st.integers(0, 2**64 - 1), max_size=3),
    noise=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=8),
    length=st.sampled_from([72, 104, 112, 600, 65536]),
)
def test_any_header_is_parsed_or_refused(
    changes: dict[str, int], noise: list[tuple[int, int]], length: int
) -> None:
    limited = {
        name: value % (1 << 8 * struct.calcsize(FIELDS[name][1])) for name, value in changes.items()
    }
    data = bytearray(good(**limited))
    for at, value in noise:
        data[at] = value
    try:
        header = parse(bytes(data[:length]), read_only=False)
    except QmpError:
        return
    assert header.l1_size * 8 <= 32 << 20
    assert header.refcount_table_clusters << header.cluster_bits <= 8 << 20


names = st.one_of(st.none(), st.text("ab/", min_size=1, max_size=400))
areas = st.lists(st.tuples(st.integers(1, 1000), st.binary(max_size=60)), max_size=3)


@settings(max_examples=300)
# The old extensions end behind the first sector, where the new name would be.
@example(
    bits=16,
    before=(None, [(1, b"")]),
    after=("a", []),
    keep=False,
    autoclear=0,
    kept_sectors=set(),
    crash_in=1,
)
@given(
    bits=st.sampled_from([10, 12, 16]),
    before=st.tuples(names, areas),
    after=st.tuples(names, areas),
    keep=st.booleans(),
    autoclear=st.integers(0, 3),
    kept_sectors=st.sets(st.integers(0, 3)),
    crash_in=st.integers(0, 2),
)
def test_a_crash_while_a_header_is_rewritten_leaves_the_old_or_the_new_one(
    bits: int,
    before: tuple[str | None, list[tuple[int, bytes]]],
    after: tuple[str | None, list[tuple[int, bytes]]],
    keep: bool,
    autoclear: int,
    kept_sectors: set[int],
    crash_in: int,
) -> None:
    start = attrs.evolve(
        GOOD,
        cluster_bits=bits,
        header_length=hdr.OUR_V3_SIZE,
        l1_size=1024,
        size=1 << 20,
        l1_table_offset=3 << bits,
        refcount_table_offset=1 << bits,
        backing_file=before[0],
        extensions=before[1],
    )
    old, data = start.packed()
    new = attrs.evolve(
        old,
        backing_file=before[0] if keep else after[0],
        extensions=after[1],
        autoclear=autoclear,
    )
    disk = bytearray(data.ljust(1 << bits, b"\0"))
    moved, writes = hdr.rewrite(old, new)
    for turn, (offset, piece) in enumerate(writes):
        for sector in range(offset // 512, (offset + len(piece) - 1) // 512 + 1):
            if turn < crash_in or sector % 4 in kept_sectors:
                low, high = max(offset, sector * 512), min(offset + len(piece), sector * 512 + 512)
                disk[low:high] = piece[low - offset : high - offset]
        if turn == crash_in:
            break
    found = parse(bytes(disk), read_only=False)
    kept = [item for item in found.extensions if item[0] != hdr.EXT_FEATURE_TABLE]
    found = attrs.evolve(found, extensions=kept, backing_offset=0)
    assert found in (attrs.evolve(old, backing_offset=0), attrs.evolve(moved, backing_offset=0))
    if crash_in >= len(writes):
        assert found == attrs.evolve(moved, backing_offset=0)
