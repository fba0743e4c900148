"""The snapshot table: what is written is parsed again; limits; unknown data stays."""

from __future__ import annotations

import struct

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.block.drivers.qcow2 import snapshot_table
from qsd_trio.block.drivers.qcow2.snapshot_table import Entry
from tests.texts import refused

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
strings = st.binary(max_size=40).map(lambda data: data.replace(b"\0", b"."))
entries = st.builds(
    Entry,
    l1_table_offset=u64,
    l1_size=u32,
    id_str=strings,
    name=strings,
    date_sec=u32,
    date_nsec=u32,
    vm_clock_nsec=u64,
    vm_state_size=u64,
    disk_size=u64,
    icount=u64,
    unknown_extra=st.binary(max_size=1000),
)
ENTRY = Entry(
    l1_table_offset=0x50000,
    l1_size=1,
    id_str=b"1",
    name=b"one",
    date_sec=1,
    date_nsec=2,
    vm_clock_nsec=3,
    disk_size=1 << 20,
)


def parse(data: bytes, count: int, image_size: int = 512) -> list[Entry]:
    """Feed the parser; past the data there are zeroes."""
    parser = snapshot_table.parse(count, image_size)
    at = 0
    try:
        wanted = next(parser)
        while True:
            at += wanted
            wanted = parser.send(data[at - wanted : at].ljust(wanted, b"\0"))
    except StopIteration as stop:
        assert at >= len(data)
        answer: list[Entry] = stop.value
        return answer


@given(st.lists(entries, max_size=5))
def test_what_is_written_is_parsed_again(table: list[Entry]) -> None:
    data = snapshot_table.to_bytes(table)
    assert not len(data) % 8
    assert parse(data, len(table)) == table


def fixed(extra: bytes, *, id_length: int = 0, name_length: int = 0, vm_state: int = 0) -> bytes:
    head = struct.pack(">QIHHIIQII", 0, 0, id_length, name_length, 0, 0, 0, vm_state, len(extra))
    return head + extra


def test_fields_that_are_not_there_have_their_defaults() -> None:
    (entry,) = parse(fixed(b"", vm_state=7), 1, image_size=1024)
    assert (entry.vm_state_size, entry.disk_size) == (7, 1024)
    assert entry.icount == snapshot_table.NO_ICOUNT
    (entry,) = parse(fixed(struct.pack(">QQ", 1 << 40, 2048), vm_state=7), 1, image_size=1024)
    assert (entry.vm_state_size, entry.disk_size) == (1 << 40, 2048)
    assert entry.icount == snapshot_table.NO_ICOUNT


def test_strings_end_at_a_nul() -> None:
    (entry,) = parse(fixed(b"", id_length=3, name_length=5) + b"1\0xna\0me", 1)
    assert (entry.id_str, entry.name) == (b"1", b"na")


def test_what_is_shown_of_long_names() -> None:
    entry = attrs.evolve(ENTRY, id_str=b"9" * 200, name=b"n" * 300)
    assert (entry.shown_id, entry.shown_name) == (b"9" * 127, b"n" * 255)


def test_limits() -> None:
    parse(fixed(bytes(1024)), 1)
    with refused("Too much extra metadata in snapshot table entry 1"):
        parse(ENTRY.to_bytes() + fixed(bytes(1025)), 2)
    long = fixed(b"", name_length=65535) + bytes(65536)
    assert len(long) == 65576
    parse(long * 1023, 1023)
    with refused("Snapshot table is too big"):
        parse(long * 1024, 1024)


@pytest.mark.parametrize(
    ("offset", "size", "text"),
    [
        (0x10000, 1 << 22, None),
        (0x10000, (1 << 22) + 1, "Snapshot L1 table too large"),
        (0x10200, 1, "Snapshot L1 table offset invalid"),
        (2**63 - 0x10000, 1, None),
        (2**63 - 0x10000, 8192, "Snapshot L1 table offset invalid"),
        (2**63, 0, "Snapshot L1 table offset invalid"),
    ],
)
def test_l1_tables(offset: int, size: int, text: str | None) -> None:
    entry = attrs.evolve(ENTRY, l1_table_offset=offset, l1_size=size)
    if text is None:
        snapshot_table.check_l1(entry, 65536)
    else:
        with refused(text):
            snapshot_table.check_l1(entry, 65536)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([], b"1"), ([b"1", b"7", b"3"], b"8"), ([b"x", b"12y", b""], b"13")],
)
def test_a_new_id_is_one_more_than_the_largest(ids: list[bytes], expected: bytes) -> None:
    table = [attrs.evolve(ENTRY, id_str=id_) for id_ in ids]
    assert snapshot_table.next_id(table) == expected
