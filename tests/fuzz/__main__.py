"""Fuzz qcow2 and LUKS images: change fields of sound ones and see that we refuse them or read what is intact."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import trio

from tests.fuzz import mutants, seeds, trial


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests/fuzz/run", description=__doc__)
    parser.add_argument(
        "count", type=int, nargs="?", default=20_000, help="of mutants (%(default)s)"
    )
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first one")
    options = parser.parse_args(argv)
    if not shutil.which("qemu-img"):
        print("tests/fuzz/run: qemu-img makes the images; it is missing", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="f-") as name:
        made = seeds.make_all(Path(name))
    logging.disable()  # of corruptions, thousands
    failed = opened = 0
    started = time.monotonic()
    for number in range(options.first, options.first + options.count):
        mutant = mutants.mutant(made, number)
        try:
            opened += trio.run(trial.trial, mutant)
        except KeyboardInterrupt:
            raise
        except BaseException:
            failed += 1
            print(f"--first {number} 1: ", end="")
            traceback.print_exc(file=sys.stdout)
    print(
        f"{options.count} mutants, {opened} could be opened, {failed} failed;"
        f" {time.monotonic() - started:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
