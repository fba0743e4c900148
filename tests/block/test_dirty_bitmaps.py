"""Dirty bitmaps and the table of a node's."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.block.dirty_bitmaps import DirtyBitmap, DirtyBitmaps, default_granularity
from qsd_trio.errors import QmpError

KIB = 1024


def test_default_granularity() -> None:
    sizes = [None, 512, 4 * KIB, 8 * KIB, 64 * KIB, 2048 * KIB]
    assert [default_granularity(size) for size in sizes] == [
        64 * KIB, 4 * KIB, 4 * KIB, 8 * KIB, 64 * KIB, 64 * KIB,
    ]  # fmt: skip


@given(
    st.sampled_from([512, 1024, 4096]),
    st.lists(st.tuples(st.integers(0, 49_999), st.integers(1, 9000)), max_size=6),
    st.integers(0, 50_000) | st.integers(49_900, 52_000),
    st.integers(0, 60_000),
)
def test_marks_against_bytes(
    granularity: int, marks: list[tuple[int, int]], offset: int, end: int
) -> None:
    size = 50_000
    bitmap = DirtyBitmap("b", granularity, size)
    pieces = set()
    for at, length in marks:
        length = min(length, size - at)
        bitmap.mark(at, length)
        pieces.update(range(at // granularity, (at + length - 1) // granularity + 1))
    assert bitmap.count() == len(pieces) * granularity
    end = max(offset, end)

    def first(dirty: bool) -> int:
        places = range(offset, end)
        found = (at for at in places if (at < size and at // granularity in pieces) is dirty)
        return next(found, end)

    assert bitmap.next_dirty(offset, end) == first(True)
    assert bitmap.next_clean(offset, end) == first(False)


def test_unmark_spares_the_rest() -> None:
    bitmap = DirtyBitmap("b", 512, 3000)
    bitmap.mark(0, 3000)
    bitmap.unmark(512, 1024)
    assert (bitmap.next_clean(0, 3000), bitmap.next_dirty(512, 3000)) == (512, 1536)
    bitmap.unmark(1536, 3000 - 1536)
    assert bitmap.count() == 512


def test_taken_bits_can_be_put_back() -> None:
    bitmap = DirtyBitmap("b", 512, 4096)
    bitmap.mark(600, 1)
    before = bitmap.snapshot()
    taken = bitmap.take()
    assert bitmap.count() == 0
    bitmap.mark(0, 4096)
    bitmap.restore(taken)
    assert bitmap.data == before.data == bytearray([2])


def test_resize_keeps_what_is_left_and_adds_clean_parts() -> None:
    bitmap = DirtyBitmap("b", 512, 4096)
    bitmap.mark(0, 4096)
    bitmap.resize(1000)
    bitmap.resize(8192)
    assert (bitmap.count(), bitmap.next_clean(0, 8192)) == (1024, 1024)


@pytest.mark.parametrize(("size", "length"), [(0, 8), (512, 8), (64 * 512, 8), (65 * 512, 16)])
def test_checksum_is_of_whole_words(size: int, length: int) -> None:
    bitmap = DirtyBitmap("b", 512, size)
    assert bitmap.sha256() == hashlib.sha256(bytes(length)).hexdigest()
    lost = DirtyBitmap("b", 512, size, inconsistent=True)
    assert lost.sha256() == bitmap.sha256()


def test_what_may_be_done() -> None:
    """Each state refuses what the real daemon refuses in it, with its text."""
    busy = "Bitmap 'b' is currently in use by another operation and cannot be used"
    readonly = "Bitmap 'b' is readonly and cannot be modified"
    lost = "Bitmap 'b' is inconsistent and cannot be used"
    states: list[tuple[dict[str, bool], list[str | None]]] = [
        ({}, [None, None, None]),
        ({"busy": True}, [busy, busy, busy]),
        ({"readonly": True}, [readonly, None, readonly]),
        ({"inconsistent": True}, [None, lost, lost]),
        ({"busy": True, "readonly": True, "inconsistent": True}, [busy, busy, busy]),
        ({"readonly": True, "inconsistent": True}, [readonly, lost, readonly]),
    ]
    for state, texts in states:
        bitmap = DirtyBitmap("b", 512, 4096)
        for name, value in state.items():
            setattr(bitmap, name, value)
        checks = (bitmap.check_removable, bitmap.check_usable, bitmap.check_changeable)
        for check, text in zip(checks, texts, strict=True):
            said = None
            try:
                check()
            except QmpError as exc:
                said = str(exc)
            assert said == text, (state, check)


def test_info() -> None:
    bitmap = DirtyBitmap("b", 512, 4096)
    bitmap.mark(0, 513)
    assert bitmap.info() == {
        "name": "b", "recording": True, "persistent": False, "busy": False, "granularity": 512,
        "count": 1024,
    }  # fmt: skip
    assert DirtyBitmap("b", 512, 4096, inconsistent=True).info()["inconsistent"] is True


def test_a_bitmap_that_takes_all_memory_is_refused() -> None:
    with pytest.raises(QmpError, match="use larger granularity"):
        DirtyBitmap("b", 512, 1 << 62)
    with pytest.raises(QmpError, match="use larger granularity"):
        DirtyBitmaps().create("b", 512, 1 << 62)
    table = DirtyBitmaps()
    table.create("b", 512, 0)
    table.check_size(1 << 40)
    with pytest.raises(QmpError, match="use larger granularity"):
        table.check_size(1 << 62)


def test_table() -> None:
    table = DirtyBitmaps()
    changes: list[tuple[str, ...]] = []
    table.on_change = lambda: changes.append(tuple(each.name for each in table.recording))
    first = table.create("first", 512, 4096)
    table.create("second", 512, 4096)
    assert [each.name for each in table] == ["second", "first"]
    first.enabled = False
    first.enabled = True
    table.set_readonly(["first", "nobody"], True)
    assert first.readonly
    assert table.has_readonly
    table.remove(first)
    assert changes == [
        ("first",), ("first", "second"), ("second",), ("first", "second"), ("first", "second"),
        ("second",),
    ]  # fmt: skip
    assert (len(table), table.get("first"), table.has_readonly) == (1, None, False)
    first.enabled = False  # nobody listens any more
    assert len(changes) == 6
    for name, text in [
        ("second", "Bitmap already exists: second"),
        ("é" * 512, f"Bitmap name too long: {'é' * 512}"),
    ]:
        with pytest.raises(QmpError) as caught:
            table.create(name, 512, 4096)
        assert str(caught.value) == text
    with pytest.raises(QmpError, match="Dirty bitmap 'first' not found"):
        table.find("first")
    table.resize(8192)
    assert table.find("second").size == 8192
