"""The oracle itself: equal daemons pass, every kind of difference is found."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.oracle import (
    REAL,
    Call,
    Pair,
    Raw,
    Step,
    Wait,
    compare,
    compare_exit,
    qmp,
    requires,
    run_script,
)

pytestmark = requires("qemu-storage-daemon")

NULL = ["--blockdev", "null-co,node-name=a,size=1048576"]
SCRIPT: list[Step] = [
    {"execute": "blockdev-add", "arguments": {"driver": "null-co"}},
    qmp("blockdev-add", driver="raw", node_name="b", file={"driver": "null-co"}),
    qmp("query-named-block-nodes", flat=True),
    qmp("nbd-server-start", addr={"type": "unix", "data": {"path": "nbd.sock"}}),
    qmp("block-export-add", type="nbd", id="e", node_name="b"),
    qmp("block-export-del", id="e"),
    Wait("BLOCK_EXPORT_DELETED"),
    qmp("block-export-del", id="e"),
    Raw(b'{"execute": 1}\n{"execute": "query-block"}\n', replies=2),
    Call(lambda directory: sorted(path.name for path in directory.glob("*.sock"))),
]


def test_the_real_daemon_equals_itself() -> None:
    theirs, mine = compare(NULL, SCRIPT, ours=REAL)
    assert mine == theirs
    assert [event["event"] for event in mine.events] == ["BLOCK_EXPORT_DELETED"]
    assert mine.replies[3] == {"return": {}}
    assert "#block<0>" in str(mine.replies[2])
    assert mine.replies[-1] == {"call": ["nbd.sock", "oracle.sock"]}
    assert mine.returncode == 0
    assert mine.files == []
    assert mine.sockets == ["nbd.sock"]  # which 7.2 forgets; the monitor's it removes


@pytest.mark.parametrize(
    ("argv", "steps"),
    [
        (["--blockdev", "null-co,node-name=a,size=512"], [qmp("query-named-block-nodes")]),
        (["--blockdev", "null-co,node-name=c"], [qmp("blockdev-del", node_name="c")]),
        (["--blockdev", "null-co"], []),
        (["--help"], []),
    ],
    ids=["reply", "error-text", "stderr", "stdout"],
)
def test_a_difference_is_found(argv: list[str], steps: list[Step]) -> None:
    # The second program is the real one with an option of its own.
    with pytest.raises(AssertionError):
        compare(NULL, steps, ours=(*REAL, *argv))


def test_a_different_exit_and_leftover_are_found(tmp_path: Path) -> None:
    messy = tmp_path / "messy"
    messy.write_text('#!/bin/sh\n: >left\nqemu-storage-daemon "$@"\n')
    messy.chmod(0o755)
    with pytest.raises(AssertionError, match="left"):
        compare_exit(["--version"], ours=(str(messy),))
    with pytest.raises(AssertionError):
        compare_exit(["--version"], ours=("false",))


def test_a_signal_ends_it_as_quit_does() -> None:
    outcome = run_script(REAL, NULL, stop=signal.SIGTERM, monitor=False)
    assert outcome.returncode == 0
    assert outcome.files == []


def test_a_bad_option_is_an_outcome_too() -> None:
    theirs, _ = compare(["--blockdev", "driver=foo"], SCRIPT, ours=REAL)
    assert theirs.returncode == 1
    assert theirs.stderr == (
        "PROGRAM: --blockdev driver=foo: Parameter 'driver' does not accept value 'foo'\n"
    )
    assert theirs.replies == []


def test_the_pair_compares_step_by_step() -> None:
    with Pair(NULL, ours=REAL) as pair:
        assert pair.command("query-block") == {"return": []}
        assert "error" in pair.command("blockdev-del", node_name="nope")
        pair.real.qmp.command("blockdev-del", node_name="a")
        with pytest.raises(AssertionError):
            pair.command("query-named-block-nodes")
