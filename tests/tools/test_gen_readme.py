"""The README's table says what schemas/support.toml says."""

from __future__ import annotations

import pytest

from tools import gen_readme

SUPPORT: gen_readme.Support = {
    "exports": {
        "nbd": {"status": "done"},
        "fuse": {"status": "partial", "missing": "lseek"},
        "vduse-blk": {"status": "refused", "why": "not built yet"},
    }
}
TABLE = """\
| | works | in part | not yet |
|---|---|---|---|
| exports (1 of 3) | `nbd` | `fuse` | `vduse-blk` |

What works in part:

- `fuse` (exports) lacks: lseek
"""


def test_table() -> None:
    assert gen_readme.table(SUPPORT) == TABLE


def test_only_what_stands_between_the_marks_changes() -> None:
    readme = f"# x\n{gen_readme.BEGIN}old\n{gen_readme.END}rest\n"
    new = gen_readme.updated(readme, SUPPORT)
    assert new == f"# x\n{gen_readme.BEGIN}\n{TABLE}\n{gen_readme.END}rest\n"
    assert gen_readme.updated(new, SUPPORT) == new
    with pytest.raises(ValueError):
        gen_readme.updated("no marks", SUPPORT)


def test_the_readme_is_fresh() -> None:
    assert gen_readme.main(["--check"]) == 0
