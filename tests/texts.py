"""Say that something is refused with exactly this text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from qsd_trio.errors import QmpError


@contextlib.contextmanager
def refused(text: str, *notes: str) -> Iterator[None]:
    """Expect a QmpError whose text, and notes, are these to the byte."""
    with pytest.raises(QmpError) as caught:
        yield
    assert str(caught.value) == text
    assert tuple(getattr(caught.value, "__notes__", ())) == notes
