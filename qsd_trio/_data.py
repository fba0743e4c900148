"""Find the data files that travel with the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def schemas_dir() -> Path:
    """Return the folder of the QAPI schemas.

    A wheel carries it inside the package; a checkout keeps it at the top, beside the package.
    """
    package = Path(__file__).parent
    for candidate in (package / "_schemas", package.parent / "schemas"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError("the QAPI schemas are neither in the package nor beside it")
