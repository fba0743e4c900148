"""The pid file: one holder, no leftovers, races included."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from qsd_trio.host import pidfile
from qsd_trio.host.pidfile import PidFile, PidFileError


def test_it_holds_our_pid_and_goes_with_us(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    held = PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    held.close()
    assert not path.exists()


def test_a_second_holder_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    first = PidFile(str(path))
    before = path.read_bytes()
    with pytest.raises(PidFileError) as caught:
        PidFile(str(path))
    assert str(caught.value) == "Cannot lock pid file: Resource temporarily unavailable"
    assert path.read_bytes() == before
    first.close()
    PidFile(str(path)).close()


def test_a_stale_file_is_taken_over_whatever_its_length(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("123456789012\nmore\n")
    held = PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    held.close()


@pytest.mark.parametrize(
    ("name", "reason"), [("no/such", "No such file or directory"), (".", "Is a directory")]
)
def test_a_bad_path(tmp_path: Path, name: str, reason: str) -> None:
    path = f"{tmp_path}/{name}"
    with pytest.raises(PidFileError) as caught:
        PidFile(path)
    assert str(caught.value) == f"Could not create '{path}': {reason}"


def test_a_file_removed_between_open_and_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pid"
    lock = pidfile._lock
    rounds = []

    def racing(fd: int) -> None:
        if not rounds:
            path.unlink()  # the previous owner ends now
        rounds.append(fd)
        lock(fd)

    monkeypatch.setattr(pidfile, "_lock", racing)
    held = PidFile(str(path))
    assert len(rounds) == 2
    assert path.read_text() == f"{os.getpid()}\n"
    held.close()


def test_a_file_that_is_no_longer_ours_stays(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    held = PidFile(str(path))
    path.unlink()
    path.write_text("someone else's\n")
    held.close()
    assert path.read_text() == "someone else's\n"


def test_a_changed_working_directory_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    held = PidFile("pid")
    monkeypatch.chdir("/")
    held.close()
    assert not (tmp_path / "pid").exists()
