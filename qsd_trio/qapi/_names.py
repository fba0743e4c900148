"""Turn QAPI names into Python's."""

from __future__ import annotations

import keyword
import re


def member_name(name: str) -> str:
    """Return ``node_name`` for ``node-name``; a keyword gets a trailing ``_``."""
    result = name.replace("-", "_")
    return f"{result}_" if keyword.iskeyword(result) else result


def value_name(value: str) -> str:
    """Return ``WRITE_UNCHANGED`` for ``write-unchanged``; a digit gets a leading ``_``."""
    result = re.sub(r"[-.]", "_", value).upper()
    return f"_{result}" if result[0].isdigit() else result


def branch_name(union: str, value: str) -> str:
    """Return the class of one branch, ``BlockdevOptions_null_co``."""
    return f"{union}_{value.replace('-', '_')}"


def camel(name: str) -> str:
    """Return ``BlockExportAdd`` for ``block-export-add`` and ``BLOCK_EXPORT_ADD``."""
    return "".join(word[:1].upper() + word[1:].lower() for word in re.split(r"[-_]", name))
