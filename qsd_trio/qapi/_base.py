"""What all generated types have in common."""

from __future__ import annotations

import enum
from typing import ClassVar, Final, final


class QapiObject:
    """Base of all QAPI structs: compares and prints by its members; attrs gives the rest."""

    # Of Python's name and the name on the wire, in the order of the wire; set by _build.py.
    qapi_members: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *(repr(value) for value in vars(self).values())))

    def __repr__(self) -> str:
        present = ((name, getattr(self, name)) for name, _ in self.qapi_members)
        members = ", ".join(f"{name}={value!r}" for name, value in present if value is not None)
        return f"{type(self).__name__}({members})"


@final
class QapiNull(enum.Enum):
    """The type of NULL."""

    NULL = None

    def __repr__(self) -> str:
        return "NULL"


# A JSON null where null is a value of its own; None stands for an absent member.
NULL: Final = QapiNull.NULL
