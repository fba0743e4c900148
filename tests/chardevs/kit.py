"""What the tests of chardevs share: making one from its QMP form, and a daemon's tables without a daemon."""

from __future__ import annotations

from typing import Any

from qsd_trio import qapi
from qsd_trio.chardevs.abc import Chardev
from qsd_trio.objects.abc import ObjectTable
from qsd_trio.qapi.converter import from_qmp
from qsd_trio.registry import chardev_backends


class Opener:
    """Stands for the daemon."""

    def __init__(self, *chardevs: Chardev) -> None:
        self.objects = ObjectTable()
        self.chardevs = {chardev.id: chardev for chardev in chardevs}
        self.quits = 0

    def request_quit(self) -> None:
        self.quits += 1


def make(kind: str, opener: Opener | None = None, id_: str = "c", **members: Any) -> Chardev:
    import qsd_trio.chardevs

    assert qsd_trio.chardevs
    data = {name.replace("_", "-").rstrip("-"): value for name, value in members.items()}
    backend = from_qmp(qapi.ChardevBackend, {"type": kind, "data": data})
    implementation: Any = chardev_backends[kind]
    made: Chardev = implementation.create(id_, backend.data, opener or Opener())
    return made


def unix(path: object, **members: Any) -> dict[str, Any]:
    return {"type": "unix", "data": {"path": str(path), **members}}


def inet(host: str = "127.0.0.1", port: str = "0", **members: Any) -> dict[str, Any]:
    return {"type": "inet", "data": {"host": host, "port": port, **members}}
