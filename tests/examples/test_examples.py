"""Every example is run, as a user would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_quickstart_copies_through_a_running_daemon() -> None:
    # Its shell half installs the package; tests/run has done that, and the stamp says so.
    lines = run(sys.executable, str(EXAMPLES / "quickstart.py")).splitlines()
    assert lines[-1].startswith("64 MiB were copied through a running qsd-trio (pid ")
    assert " and match: sha256 " in lines[-1]


def test_fd_passing_talks_to_the_daemon_at_once() -> None:
    greeting, *replies = run(sys.executable, str(EXAMPLES / "fd_passing.py")).splitlines()
    assert greeting.startswith('{"QMP": ')
    assert len(replies) == 3
    assert replies[0] == replies[2] == '{"return": {}}'


def test_embedding_needs_no_process() -> None:
    lines = run(sys.executable, str(EXAMPLES / "embed.py")).splitlines()
    assert "'node-name': 'disk'" in lines[0]
    assert lines[1] == "the server says b'NBDMAGIC'"
    assert lines[-1].startswith("left: ")


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_no_example_is_left_out(path: Path) -> None:
    if path.suffix == ".py":
        assert path.name in Path(__file__).read_text()
    else:
        assert path.stat().st_mode & 0o111, "a program without a suffix is for a shell"
        assert path.with_suffix(".py").name in path.read_text()
