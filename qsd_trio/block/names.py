"""Names of nodes, and of files as QEMU shows them. Pure."""

from __future__ import annotations

import json
import random
import re
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING, final

from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qsd_trio.untyped import Json

NODE_NAME_MAX = 31
#: QEMU's id_wellformed(): what a user may call a node, an object, an export ...
WELL_FORMED = re.compile(r"[A-Za-z][A-Za-z0-9._-]*\Z")
#: A name that QEMU would take for "protocol:...", not for a path.
PROTOCOL_NAME = re.compile(r"[^/:]*:")


def check_node_name(name: str) -> None:
    """Raise QmpError unless a user may give a node this name."""
    if not WELL_FORMED.match(name):
        raise QmpError(f"Invalid node-name: '{name}'")


@final
class NodeNames:
    """Makes names for nodes that the user did not name: '#block012', '#block157' ..."""

    def __init__(self) -> None:
        self._count = 0

    def generate(self) -> str:
        """Return the next name: a running number and two random digits, as QEMU's."""
        name = f"#block{self._count}{random.randrange(100):02d}"
        self._count += 1
        return name


@lru_cache(maxsize=1024)
def _bucket(key: str) -> int:
    """Return the slot of ``key`` in QEMU's dictionaries, whose order texts and replies show."""
    data = key.encode()
    value = 0x238F13AF * len(data)
    for i, byte in enumerate(data):
        value += byte << (i * 5 % 24)
    return ((1103515243 * (value & 0xFFFFFFFF) + 12345) & 0xFFFFFFFF) % 512


def qdict_order(mapping: Mapping[str, Json]) -> dict[str, Json]:
    """Return ``mapping`` in the order in which QEMU walks a dictionary, nested ones too."""
    return {
        key: qdict_order(value) if isinstance(value, dict) else value
        for key, value in sorted(mapping.items(), key=lambda item: _bucket(item[0]))
    }


def json_filename(options: Mapping[str, Json]) -> str:
    """Return the ``json:{...}`` pseudo file name for a node that no plain name describes."""
    return "json:" + json.dumps(qdict_order(options))


@final
class FilenamePolicy:
    """Decides which file names found inside images may be opened.

    Images are untrusted: a name in one is only ever a plain local path, never ``json:`` or a
    protocol, and is opened only with the format that the image names beside it.
    """

    def resolve(self, name: str, image: str) -> str:
        """Return the path to open for ``name``, found in the image file ``image``; or QmpError."""
        if PROTOCOL_NAME.match(name):
            raise QmpError(f"The image names '{name}', which is not a plain local file name")
        if "\0" in name or not name:
            raise QmpError("The image names a file with an impossible name")
        if PurePath(name).is_absolute():
            return name
        directory, slash, _ = image.rpartition("/")
        return f"{directory}{slash}{name}"
