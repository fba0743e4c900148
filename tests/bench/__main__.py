"""Measure qsd-trio against the real storage daemon, alternately, on this machine.

Each case is run in pairs, the two daemons one after the other and the order swapped from pair to pair.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import report
from tests.bench.cases import CASES, Case, Setting
from tests.bench.loads import Figures

TOOLS = ("fio", "nbdcopy", "qemu-img", "qemu-io")


def arguments(argv: list[str]) -> argparse.Namespace:
    default = Path(sys.executable).parent / "qsd-trio"
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    parser.add_argument("--ours", default=str(default), help="command under test (%(default)s)")
    parser.add_argument("--real", default="qemu-storage-daemon", help="command to compare with")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each timed load")
    parser.add_argument("--quick", action="store_true", help="one pair of one second, to look")
    parser.add_argument(
        "--only", metavar="PATTERN", help="cases whose name holds this, `*` as in a shell"
    )
    parser.add_argument("--dir", type=Path, help="where images are made (a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--list", action="store_true", help="print the cases and leave")
    return parser.parse_args(argv)


def chosen(pattern: str | None) -> list[Case]:
    """Return the cases whose name matches."""
    return [case for case in CASES if fnmatch.fnmatch(case.name, f"*{pattern or ''}*")]


def measure_pairs(
    case: Case, programs: tuple[list[str], list[str]], pairs: int, setting: Setting
) -> list[tuple[Figures, Figures]]:
    """Measure (real, ours) so many times, swapping who goes first."""
    result = []
    for index in range(pairs):
        found: dict[int, Figures] = {}
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            found[which] = case.measure(programs[which], setting)
        result.append((found[0], found[1]))
    return result


def main(argv: list[str]) -> int:
    options = arguments(argv)
    cases = chosen(options.only)
    if options.list or not cases:
        print("\n".join(case.name for case in CASES))
        return 0 if options.list else 2
    programs = (shlex.split(options.real), shlex.split(options.ours))
    missing = [name for name in (*TOOLS, *(p[0] for p in programs)) if not shutil.which(name)]
    for program in programs:
        # They run in a folder of their own; the venv's python must stay the link that it is.
        program[0] = os.path.abspath(shutil.which(program[0]) or program[0])
    if missing:
        print(f"tests/bench/run: missing: {', '.join(missing)}", file=sys.stderr)
        return 2
    pairs = 1 if options.quick else options.pairs
    started = time.monotonic()
    everything: dict[str, list[tuple[Figures, Figures]]] = {}
    found: list[report.Line] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="b-", dir=options.dir) as name:
        setting = Setting(
            directory=Path(name),
            seconds=min(1.0, options.seconds) if options.quick else options.seconds,
            quick=options.quick,
        )
        print(*report.HEADER, sep="\n", flush=True)
        for case in cases:
            try:
                everything[case.name] = measure_pairs(case, programs, pairs, setting)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                failed.append(f"{case.name}: {error}")
                continue
            new = report.lines(case, everything[case.name])
            found += new
            for index, line in enumerate(new):
                print(report.table_line(line, with_name=index == 0), flush=True)
    print(
        f"\n{pairs} pair{'s' if pairs > 1 else ''}; medians of each daemon, and the median of the pairs'"
        f" ratios; imports: `python -c 'import trio, attrs, cattrs'`."
        f" {time.monotonic() - started:.0f} s in all."
    )
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1) + "\n")
    for text in failed:
        print(f"FAILED {text}", file=sys.stderr)
    unmet = [line for line in found if line.is_met is False]
    if unmet:
        print(f"{len(unmet)} of {sum(line.is_met is not None for line in found)} targets missed.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
