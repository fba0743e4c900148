"""What the types and the converter are made from; _tables.json is generated from schemas/.

JSON, because it is read in a fortieth of the time Python takes to compile the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict, cast


class _Tables(TypedDict):
    structs: dict[str, tuple[str, list[tuple[str, str, bool]]]]
    unions: dict[str, tuple[str, list[tuple[str, str]]]]
    enums: dict[str, list[str]]
    alternates: dict[str, list[str]]
    commands: dict[str, tuple[str, str]]
    events: dict[str, str]


_tables = cast("_Tables", json.loads(Path(__file__).with_suffix(".json").read_bytes()))

# name: base or "", members in the order of the wire (name, type, optional); of a union the common ones
STRUCTS = _tables["structs"]
# name: discriminator, branches (value, struct or ""), one for each value of the discriminator
UNIONS = _tables["unions"]
# name: values
ENUMS = _tables["enums"]
# name: types of the branches
ALTERNATES = _tables["alternates"]
# name: type of the arguments or "", type of the return value or ""
COMMANDS = _tables["commands"]
# name: type of the data or ""
EVENTS = _tables["events"]
