"""host/locks.py: two open files of one image, as two processes would have them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd_trio.block.abc import Perm
from qsd_trio.host.locks import ImageLocks, LockConflictError

READ, WRITE, UNCHANGED, RESIZE = (
    Perm.CONSISTENT_READ,
    Perm.WRITE,
    Perm.WRITE_UNCHANGED,
    Perm.RESIZE,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"")
    return path


@pytest.fixture
def fds(path: Path) -> Iterator[list[int]]:
    numbers = [os.open(path, os.O_RDWR) for _ in range(3)]
    yield numbers
    for number in numbers:
        os.close(number)


def locked_bytes(path: Path) -> set[int]:
    """Read from /proc which bytes of the file are locked, by whomever."""
    inode = path.stat().st_ino
    found: set[int] = set()
    for line in Path("/proc/locks").read_text().splitlines():
        match = re.search(rf"OFDLCK +ADVISORY +READ.*:{inode} (\d+) (\d+)$", line)
        if match:
            found.update(range(int(match[1]), int(match[2]) + 1))
    return found


def test_takes_the_bytes_that_qemu_takes(path: Path, fds: list[int]) -> None:
    locks = ImageLocks()
    locks.change(fds[0], READ | WRITE | RESIZE, READ | UNCHANGED)
    assert locked_bytes(path) == {100, 101, 103, 201, 203}
    locks.change(fds[0], READ, Perm.ALL)
    assert locked_bytes(path) == {100}
    locks.change(fds[0], Perm.NONE, Perm.ALL)
    assert locked_bytes(path) == set()


@pytest.mark.parametrize(
    ("held", "wanted", "text"),
    [
        ((WRITE, Perm.ALL & ~WRITE), (WRITE, Perm.ALL), 'Failed to get "write" lock'),
        ((READ, Perm.ALL & ~RESIZE), (RESIZE, Perm.ALL), 'Failed to get "resize" lock'),
        ((WRITE, Perm.ALL), (READ, Perm.ALL & ~WRITE), 'Failed to get shared "write" lock'),
        ((READ, Perm.NONE), (READ, Perm.ALL), 'Failed to get "consistent read" lock'),
        ((UNCHANGED, Perm.ALL), (READ, READ), 'Failed to get shared "write unchanged" lock'),
    ],
)
def test_conflicts_have_their_text_and_change_nothing(
    path: Path, fds: list[int], held: tuple[Perm, Perm], wanted: tuple[Perm, Perm], text: str
) -> None:
    ImageLocks().change(fds[0], *held)
    before = locked_bytes(path)
    mine = ImageLocks()
    with pytest.raises(LockConflictError, match=f"^{text}$"):
        mine.change(fds[1], *wanted)
    assert locked_bytes(path) == before
    os.close(fds[0])
    fds[0] = os.open(path, os.O_RDWR)
    mine.change(fds[1], *wanted)


def test_a_failed_change_keeps_what_was_held(path: Path, fds: list[int]) -> None:
    mine = ImageLocks()
    mine.change(fds[0], READ, Perm.ALL)
    ImageLocks().change(fds[1], WRITE, Perm.ALL)
    with pytest.raises(LockConflictError):
        mine.change(fds[0], READ, Perm.ALL & ~WRITE)
    os.close(fds[1])
    fds[1] = os.open(path, os.O_RDWR)
    assert locked_bytes(path) == {100}
    mine.change(fds[0], READ, Perm.ALL & ~WRITE)
    assert locked_bytes(path) == {100, 201}


def test_readers_share(path: Path, fds: list[int]) -> None:
    for fd in fds:
        ImageLocks().change(fd, READ, Perm.ALL & ~WRITE)
    assert locked_bytes(path) == {100, 201}


def test_moving_to_another_open_file_leaves_no_gap(path: Path, fds: list[int]) -> None:
    mine = ImageLocks()
    mine.change(fds[0], READ | WRITE, READ)
    mine.hold_on(fds[1])
    os.close(fds[0])
    fds[0] = os.open(path, os.O_RDWR)
    assert locked_bytes(path) == {100, 101, 201, 202, 203}
    with pytest.raises(LockConflictError):
        ImageLocks().change(fds[2], WRITE, Perm.ALL)
    mine.change(fds[1], Perm.NONE, Perm.ALL)
    assert locked_bytes(path) == set()
