"""The structures of the bitmaps extension, from bytes to entries and back."""

from __future__ import annotations

import struct
from array import array

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.block.drivers.qcow2 import bitmap_directory as form
from qsd_trio.block.drivers.qcow2.bitmap_directory import Entry, Extension
from qsd_trio.block.drivers.qcow2.header import EXT_BITMAPS, Header, parse_extensions
from qsd_trio.errors import QmpError

CLUSTER = 4096
SIZE = 1 << 20
GOOD = Entry(name=b"one", table_offset=CLUSTER, table_size=1, granularity_bits=16, flags=form.AUTO)
entries = st.builds(
    Entry,
    name=st.binary(max_size=20).filter(lambda name: 0 not in name),
    table_offset=st.integers(1, 1 << 40).map(lambda number: number * CLUSTER),
    table_size=st.integers(1, 100),
    granularity_bits=st.integers(9, 31),
    flags=st.sampled_from([form.IN_USE, form.IN_USE | form.AUTO]),
)


def parse(data: bytes, count: int = 1, size: int = SIZE) -> list[Entry]:
    return list(form.parse(data, count, size=size, cluster_size=CLUSTER))


@given(st.lists(entries, max_size=5))
def test_what_is_packed_is_parsed(some: list[Entry]) -> None:
    data = form.pack(some)
    assert len(data) == sum(form.entry_size(len(entry.name)) for entry in some)
    found = parse(data, len(some))
    assert [attrs.evolve(entry, at=0) for entry in found] == some
    for entry in found:
        assert data[entry.at :].startswith(entry.to_bytes())


@given(st.binary(max_size=200), st.integers(0, 3))
def test_any_bytes_are_refused_or_sound(data: bytes, count: int) -> None:
    try:
        found = parse(data, count)
    except QmpError:
        return
    assert len(found) == count
    for entry in found:
        assert entry.table_size * CLUSTER <= form.MAX_PHYSICAL


# (struct format, offset in the entry, value, whether it is refused)
LIMITS = [
    (">Q", 0, 0, True), (">Q", 0, 1, True), (">Q", 0, CLUSTER // 2, True), (">Q", 0, 1 << 62, False),
    (">I", 8, 0, True), (">I", 8, form.MAX_PHYSICAL // CLUSTER, False),
    (">I", 8, form.MAX_PHYSICAL // CLUSTER + 1, True), (">I", 8, 2**32 - 1, True),
    (">I", 12, 0, False), (">I", 12, 3, False), (">I", 12, 4, True), (">I", 12, 1 << 31, True),
    (">B", 16, 0, True), (">B", 16, 2, True), (">B", 17, 8, True), (">B", 17, 9, False),
    (">B", 17, 31, False), (">B", 17, 32, True), (">I", 20, 1, True), (">I", 20, 2**32 - 1, True),
    (">H", 18, 2, False), (">H", 18, 9, True), (">H", 18, 2**16 - 1, True),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "at", "value", "refused"), LIMITS)
def test_each_field_at_its_limits(kind: str, at: int, value: int, refused: bool) -> None:
    data = bytearray(GOOD.to_bytes())
    struct.pack_into(kind, data, at, value)
    if refused:
        with pytest.raises(QmpError):
            parse(bytes(data))
    else:
        assert len(parse(bytes(data))) == 1


def test_names_have_a_limit_and_end_at_nul() -> None:
    longest = attrs.evolve(GOOD, name=b"x" * form.MAX_NAME)
    assert parse(longest.to_bytes())[0].name == longest.name
    with pytest.raises(QmpError, match="doesn't satisfy the constraints"):
        parse(attrs.evolve(GOOD, name=b"x" * (form.MAX_NAME + 1)).to_bytes())
    assert parse(attrs.evolve(GOOD, name=b"a\0b").to_bytes())[0].name == b"a"


def test_a_table_too_short_for_the_image_is_refused_unless_nobody_reads_it() -> None:
    size = (CLUSTER * 8) << 16
    assert parse(GOOD.to_bytes(), size=size)
    with pytest.raises(QmpError, match="constraints"):
        parse(GOOD.to_bytes(), size=size + 1)
    assert parse(attrs.evolve(GOOD, flags=form.IN_USE).to_bytes(), size=size + 1)


@pytest.mark.parametrize(
    ("data", "count", "text"),
    [
        (GOOD.to_bytes(), 0, "More bitmaps found"),
        (GOOD.to_bytes(), 2, "Less bitmaps found"),
        (GOOD.to_bytes()[:-8], 1, "Broken bitmap directory"),
        (GOOD.to_bytes() + bytes(8), 1, "Broken bitmap directory"),
        (GOOD.to_bytes() + bytes(32), 2, "Bitmap '' doesn't satisfy"),
    ],
)
def test_a_directory_of_another_length(data: bytes, count: int, text: str) -> None:
    with pytest.raises(QmpError, match=text):
        parse(data, count)


def test_marking_in_use_changes_one_flag() -> None:
    data = bytearray(form.pack([GOOD, attrs.evolve(GOOD, name=b"two", flags=0)]))
    before = bytes(data)
    marked = form.mark_in_use(data, parse(before, 2)[1:])
    assert [entry.flags for entry in parse(bytes(data), 2)] == [form.AUTO, form.IN_USE]
    assert [entry.flags for entry in marked] == [form.IN_USE]
    assert sum(a != b for a, b in zip(before, data, strict=True)) == 1


def header(extension: bytes, autoclear: int = 1) -> Header:
    return Header(extensions=[(EXT_BITMAPS, extension)], autoclear=autoclear)


@pytest.mark.parametrize(
    ("count", "reserved", "size", "offset", "text"),
    [
        (0, 0, 32, 65536, "found bitmaps extension with zero bitmaps"),
        (65536, 0, 32, 65536, "bitmaps_ext: Image has 65536 bitmaps"),
        (1, 1, 32, 65536, "bitmaps_ext: Reserved field is not zero"),
        (1, 0, 0, 65536, "Requested bitmap directory size is zero"),
        (1, 0, form.MAX_DIRECTORY + 1, 65536, "exceeds the maximum supported size"),
        (1, 0, 2**64 - 1, 65536, "exceeds the maximum supported size"),
        (1, 0, 32, 1, "bitmaps_ext: invalid bitmap directory offset"),
    ],
)
def test_bad_extensions(count: int, reserved: int, size: int, offset: int, text: str) -> None:
    data = form.EXTENSION.pack(count, reserved, size, offset)
    with pytest.raises(QmpError, match=text):
        form.find_extension(header(data))
    assert form.find_extension(header(data, autoclear=0)) is None


def test_extension() -> None:
    extension = Extension(count=65535, size=form.MAX_DIRECTORY, offset=65536)
    assert form.find_extension(header(extension.to_bytes())) == extension
    assert form.find_extension(Header(autoclear=1)) is None
    for length in (16, 32):
        start = struct.pack(">II", EXT_BITMAPS, length) + bytes(40)
        with pytest.raises(QmpError, match="bitmaps_ext: Invalid extension length"):
            parse_extensions(start, 0, len(start))


@pytest.mark.parametrize("word", [2, 512, 1 << 63, CLUSTER | 1, 1 << 56])
def test_table_entries_that_are_none(word: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        form.check_table(array("Q", [0, word]), CLUSTER)


def test_table_entries() -> None:
    form.check_table(array("Q", [0, 1, CLUSTER, (1 << 56) - CLUSTER]), CLUSTER)


@pytest.mark.parametrize(
    ("name", "granularity", "text"),
    [
        (b"x", 1 << 32, "Granularity exceeds maximum (2147483648 bytes)"),
        (b"x", 256, "Granularity is under minimum (512 bytes)"),
        (b"x", 512, "Too much space will be occupied by the bitmap. Use larger granularity"),
        (b"x" * 1024, 1 << 20, "Name length exceeds maximum (1023 characters)"),
    ],
)
def test_new_bitmaps_that_cannot_be(name: bytes, granularity: int, text: str) -> None:
    with pytest.raises(QmpError) as caught:
        form.check_new(name, granularity, form.MAX_PHYSICAL * 8 * 512 + 512)
    assert str(caught.value) == text
    form.check_new(b"x" * 1023, 512, form.MAX_PHYSICAL * 8 * 512)
