"""Character devices. The table below is the room's index, in the order of ``--chardev help``."""

from __future__ import annotations

from qsd_trio.registry import chardev_backends

chardev_backends.index(
    {
        "pty": "qsd_trio.chardevs.pty",
        "udp": "qsd_trio.chardevs.udp",
        "memory": "qsd_trio.chardevs.ringbuf",
        "file": "qsd_trio.chardevs.files",
        "socket": "qsd_trio.chardevs.socket",
        "stdio": "qsd_trio.chardevs.stdio",
        "ringbuf": "qsd_trio.chardevs.ringbuf",
        "null": "qsd_trio.chardevs.null",
        "parallel": "qsd_trio.chardevs.ports",
        "pipe": "qsd_trio.chardevs.files",
        "mux": "qsd_trio.chardevs.mux",
        "serial": "qsd_trio.chardevs.ports",
        "hub": "qsd_trio.chardevs.hub",
    }
)
