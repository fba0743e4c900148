"""Names of nodes, and of files as QEMU shows them. Pure."""

from __future__ import annotations

import random
import re
from pathlib import PurePath
from typing import TYPE_CHECKING, final

from qsd_trio.errors import QmpError
from qsd_trio.identifiers import is_well_formed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qsd_trio.untyped import Json

NODE_NAME_MAX = 31
#: A name that QEMU would take for "protocol:...", not for a path.
PROTOCOL_NAME = re.compile(r"[^/:]*:")


def check_node_name(name: str) -> None:
    """Raise QmpError unless a user may give a node this name."""
    if not is_well_formed(name):
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


def json_filename(options: Mapping[str, Json]) -> str:
    """Return the ``json:{...}`` pseudo file name for a node that no plain name describes."""
    from qsd_trio.protocol.qmp import dump_json  # not before somebody asks

    return "json:" + dump_json(options)


def is_protocol_name(name: str) -> bool:
    """Return whether QEMU would take ``name`` for "protocol:...", not for a path."""
    return PROTOCOL_NAME.match(name) is not None


def beside(name: str, image: str) -> str:
    """Return the path ``name``, recorded in the file ``image``, as seen from where the daemon runs."""
    if PurePath(name).is_absolute():
        return name
    directory, slash, _ = image.rpartition("/")
    return f"{directory}{slash}{name}"


@final
class FilenamePolicy:
    """Decides which file names found inside images may be opened.

    Images are untrusted: a name in one is only ever a plain local path, never ``json:`` or a
    protocol, and is opened only with the format that the image names beside it.
    """

    def resolve(self, name: str, image: str) -> str:
        """Return the path to open for ``name``, found in the image file ``image``; or QmpError."""
        if is_protocol_name(name):
            raise QmpError(f"The image names '{name}', which is not a plain local file name")
        if "\0" in name or not name:
            raise QmpError("The image names a file with an impossible name")
        return beside(name, image)
