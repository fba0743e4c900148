"""qemu-storage-daemon in pure Python, as a tree of trio tasks.

``async with qsd_trio.open_daemon() as daemon`` embeds it; ``python -m qsd_trio`` is the program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd_trio._version import VERSION as __version__

if TYPE_CHECKING:
    from qsd_trio.api import EmbeddedDaemon, EventStream, open_daemon
    from qsd_trio.errors import QmpError
    from qsd_trio.events import Event

__all__ = ["EmbeddedDaemon", "Event", "EventStream", "QmpError", "__version__", "open_daemon"]

_HOMES = {
    "EmbeddedDaemon": "api",
    "EventStream": "api",
    "open_daemon": "api",
    "QmpError": "errors",
    "Event": "events",
}


def __getattr__(name: str) -> object:
    # Lazily: the command line forks before it imports anything heavy.
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
