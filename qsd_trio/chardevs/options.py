"""``--chardev``: from the command line's option syntax to the QAPI type that chardev-add takes."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final, final

from qsd_trio.errors import QmpError
from qsd_trio.qapi.converter import from_qmp
from qsd_trio.qapi.qemuopts import CHARDEV_OPTIONS, OptsError, describe_options, parse_opts
from qsd_trio.registry import chardev_backends

if TYPE_CHECKING:
    from qsd_trio.qapi import ChardevBackend
    from qsd_trio.qapi.qemuopts import Kind, QemuOpts
    from qsd_trio.untyped import Json

#: 7.2's options and newer ones: each is accepted for all backends, and read by the ones it is for.
KNOWN: Final[dict[str, Kind]] = {**CHARDEV_OPTIONS, "encoding": "str", "input-path": "str"}
#: Of a hub: its list, one option for each member.
_HUB_MEMBER: Final = re.compile(r"chardevs\.(\d+)")

log = logging.getLogger("qsd_trio.chardevs")

_OLD_NAMES: Final = {"tty": "serial", "parport": "parallel"}


@final
class HelpWanted(Exception):  # no error
    """The user asked for help: print ``listing`` and leave with ``exit_status``."""

    def __init__(self, listing: str, exit_status: int) -> None:
        super().__init__(listing)
        self.listing = listing
        self.exit_status = exit_status


def parse_chardev(text: str) -> list[tuple[str, ChardevBackend]]:
    """Return (id, backend) of the chardevs to add: one, or two with ``mux=on``.

    Raises QmpError if the argument is wrong, HelpWanted if it asks for help; warnings are logged.
    """
    opts = _parse(text)
    backend = opts.get("backend")
    if backend in ("help", "?"):
        names = "".join(f"  {name}\n" for name in chardev_backends)
        raise HelpWanted(f"Available chardev backend types: \n{names}", 0)
    if opts.wants_help:
        raise HelpWanted(describe_options("chardev", KNOWN) + "\n", 1)
    if opts.id is None:
        raise QmpError("chardev: no id specified")
    if backend is None:
        raise QmpError(f'chardev: "{opts.id}" missing backend')
    if backend in _OLD_NAMES:
        new = _OLD_NAMES[backend]
        log.warning("warning: The alias '%s' is deprecated, use '%s' instead", backend, new)
        backend = new
    if backend not in chardev_backends:
        raise QmpError(f"'{backend}' is not a valid char driver name")
    id_ = opts.id
    backends = []
    data = _data(backend, opts)
    if opts.get_bool("mux", False):
        backends.append((f"{id_}-base", _typed(backend, data)))
        backend, data = "mux", {"chardev": f"{id_}-base"}
    backends.append((id_, _typed(backend, data)))
    return backends


def _typed(backend: str, data: dict[str, Json]) -> ChardevBackend:
    from qsd_trio import qapi

    members = {name: value for name, value in data.items() if value is not None}
    return from_qmp(qapi.ChardevBackend, {"type": backend, "data": members})


def _parse(text: str) -> QemuOpts:
    try:
        return parse_opts(text, "backend", options=KNOWN, warn=_warn)
    except OptsError as exc:
        if exc.hint:
            exc.add_note(exc.hint)
        raise


def _warn(message: str, hint: str) -> None:
    log.warning("warning: %s\n%s", message, hint)


def _signed(value: int | None) -> int | None:
    """Return a number as C's cast to int64 gives it: options are unsigned, so -1 wraps around."""
    return value if value is None or value < 1 << 63 else value - (1 << 64)


def _data(backend: str, opts: QemuOpts) -> dict[str, Json]:
    """Return the backend's members in QMP form, None for what is absent."""
    common = {
        "logfile": opts.get("logfile"),
        "logappend": opts.get_bool("logappend"),
        "logtimestamp": opts.get_bool("logtimestamp"),
    }
    match backend:
        case "socket":
            return common | _socket(opts)
        case "udp":
            return common | _udp(opts)
        case "stdio":
            return common | {"signal": opts.get_bool("signal", True)}
        case "file":
            return common | {
                "out": _needed(opts, "path", "chardev: file: no filename given"),
                "in": opts.get("input-path"),
                "append": opts.get_bool("append"),
            }
        case "pipe":
            return common | {"device": _needed(opts, "path", "chardev: pipe: no device path given")}
        case "serial":
            return common | {
                "device": _needed(opts, "path", "chardev: serial/tty: no device path given")
            }
        case "parallel":
            return common | {
                "device": _needed(opts, "path", "chardev: parallel: no device path given")
            }
        case "pty":
            return common | {"path": opts.get("path")}
        case "ringbuf" | "memory":
            return common | {"size": _signed(opts.get_size("size"))}
        case "mux":
            return common | {"chardev": _needed(opts, "chardev", "chardev: mux: no chardev given")}
        case "hub":
            members = [
                (int(match[1]), value)
                for name, value in opts.items
                if (match := _HUB_MEMBER.fullmatch(name)) is not None
            ]
            return common | {"chardevs": [value for _, value in sorted(members)]}
        case _:
            return common


def _needed(opts: QemuOpts, name: str, text: str) -> str:
    value = opts.get(name)
    if value is None:
        raise QmpError(text)
    return value


def _socket(opts: QemuOpts) -> dict[str, Json]:
    path, host, fd = opts.get("path"), opts.get("host"), opts.get("fd")
    port = opts.get("port")
    if sum(option is not None for option in (path, host, fd)) > 1:
        raise QmpError("None or one of 'path', 'fd' or 'host' option required.")
    if host is not None and port is None:
        raise QmpError("chardev: socket: no port given")
    nodelay = opts.get_bool("nodelay")
    delay = opts.get_bool("delay")
    if nodelay is not None and delay is not None:
        raise QmpError("'delay' and 'nodelay' are mutually exclusive")
    if delay is not None:
        nodelay = not delay
    if path is not None:
        unix = {
            "path": path,
            "abstract": opts.get_bool("abstract"),
            "tight": opts.get_bool("tight"),
        }
        address = _address("unix", unix)
    elif fd is not None or port is None:
        address = _address("fd", {"str": fd or ""})
    else:
        last = opts.get_number("to")
        address = _inet(opts, host or "", port, to=None if last is None else last & 0xFFFF)
    server = opts.get_bool("server", False)
    return {
        "addr": address,
        "server": server,
        # The command line waits unless it is told not to, QMP does not.
        "wait": opts.get_bool("wait", True if server else None),
        "nodelay": nodelay,
        "telnet": opts.get_bool("telnet"),
        "tn3270": opts.get_bool("tn3270"),
        "websocket": opts.get_bool("websocket"),
        "reconnect": _signed(opts.get_number("reconnect")),
        "reconnect-ms": _signed(opts.get_number("reconnect-ms")),
        "tls-creds": opts.get("tls-creds"),
        "tls-authz": opts.get("tls-authz"),
    }


def _udp(opts: QemuOpts) -> dict[str, Json]:
    port = opts.get("port")
    if not port:
        raise QmpError("chardev: udp: remote port not specified")
    data: dict[str, Json] = {"remote": _inet(opts, opts.get("host") or "localhost", port)}
    local_host, local_port = opts.get("localaddr"), opts.get("localport")
    if local_host is not None or local_port is not None:
        local = {"host": local_host or "", "port": local_port or "0"}
        data["local"] = _address("inet", local)
    return data


def _inet(opts: QemuOpts, host: str, port: str, to: int | None = None) -> dict[str, Json]:
    return _address(
        "inet",
        {
            "host": host,
            "port": port,
            "to": to,
            "ipv4": opts.get_bool("ipv4"),
            "ipv6": opts.get_bool("ipv6"),
        },
    )


def _address(kind: str, members: dict[str, Json]) -> dict[str, Json]:
    present = {name: value for name, value in members.items() if value is not None}
    return {"type": kind, "data": present}
