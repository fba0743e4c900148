"""The bench's own arithmetic, and one short run of its plumbing."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench import loads, report
from tests.bench.cases import CASES, Row
from tests.oracle import OURS, REAL, requires


def test_percentile_is_a_value_that_occurred() -> None:
    assert loads.percentile([float(n) for n in range(1, 101)], 99) == 99
    assert loads.percentile([5.0], 99) == 5
    assert loads.percentile([3.0, 1.0, 2.0], 50) == 2


def test_fio_result_sums_reads_and_writes() -> None:
    job = {
        "error": 0,
        "read": {"total_ios": 3, "io_bytes": 12288, "runtime": 1500},
        "write": {"total_ios": 1, "io_bytes": 4096, "runtime": 1000},
    }
    text = "fio: connected to NBD server\n" + json.dumps({"jobs": [job]})
    assert loads.fio_result(text) == (4, 16384, 1.5)
    job["error"] = 5
    with pytest.raises(RuntimeError, match="error 5"):
        loads.fio_result(json.dumps({"jobs": [job]}))


@pytest.mark.parametrize(
    ("row", "value", "met"),
    [
        (Row(figure="IOPS", at_least=3), 3.0, True),
        (Row(figure="IOPS", at_least=3), 2.99, False),
        (Row(figure="CPU", at_most=0.35), 0.35, True),
        (Row(figure="CPU", at_most=0.35), 0.36, False),
        (Row(figure="RSS"), 9.0, None),
    ],
)
def test_targets(row: Row, value: float, met: bool | None) -> None:
    assert row.is_met(value) is met


def test_ratio_is_the_median_of_the_pairs_and_absolute_targets_look_at_ours() -> None:
    (case,) = bench.chosen("start to ready")
    pairs = [
        (
            {"ms": 10.0, "x of imports": 0.1, "RSS MiB": 8.0},
            {"ms": 100.0, "x of imports": x, "RSS MiB": 16.0},
        )
        for x in (2.0, 2.4, 9.0)
    ]
    milliseconds, imports, memory = report.lines(case, pairs)
    assert (milliseconds.ratio, milliseconds.is_met) == (10, None)
    assert (imports.ours, imports.is_met) == (2.4, True)
    assert report.table([milliseconds, imports, memory]).splitlines()[2:] == [
        "| start to ready | ms | 10.0 | 100 | 10.00x |  |  |",
        "|  | x of imports | 0.10 | 2.40 | 24.00x | ≤ 2.5 | yes |",
        "|  | RSS MiB | 8.00 | 16.0 | 2.00x |  |  |",
    ]


def test_a_pattern_chooses_cases() -> None:
    assert bench.chosen(None) == list(CASES)
    assert {case.name.split()[0] for case in bench.chosen("qcow2*write")} == {"qcow2"}
    assert bench.chosen("no such case") == []


@requires("qemu-storage-daemon", "qemu-img", "fio", "nbdcopy")
@pytest.mark.parametrize("pattern", ["raw, 4 KiB random read, QD 32", "QMP ping"])
def test_plumbing(pattern: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    argv = ["--quick", "--seconds", "0.3", "--only", pattern, "--json", str(figures)]
    assert bench.main([*argv, "--ours", shlex.join(OURS), "--real", REAL[0]]) == 0
    ((_, pairs),) = json.loads(figures.read_text()).items()
    ((real, ours),) = pairs
    assert real.keys() == ours.keys()
    assert all(value > 0 for value in (*real.values(), *ours.values()))
    assert pattern in capsys.readouterr().out
