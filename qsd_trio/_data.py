"""Find the data files that travel with the package."""

from __future__ import annotations

from pathlib import Path


def schemas_dir() -> Path:
    """Return the folder of the QAPI schemas: in a wheel a folder, in a checkout a link to it."""
    return Path(__file__).parent / "_schemas"
