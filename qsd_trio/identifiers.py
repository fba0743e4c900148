"""What a user may call a node, an object, an export, a character device."""

from __future__ import annotations

import re
from typing import Final

_WELL_FORMED: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")

#: What QEMU prints below an error about an identifier.
HINT: Final = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."


def is_well_formed(identifier: str) -> bool:
    """Return whether QEMU takes ``identifier`` (its id_wellformed)."""
    return _WELL_FORMED.fullmatch(identifier) is not None
