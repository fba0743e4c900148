"""The options of the second pass, each turned into the command that it stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol, final

from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qsd_trio.daemon import Daemon
    from qsd_trio.getopt import Option
    from qsd_trio.untyped import Json, Options


class Console(Protocol):
    """Where texts go; only the program itself prints."""

    def say(self, text: str) -> None:
        """Print ``text``, with its line feeds, on stdout."""

    def warn(self, place: str, text: str) -> None:
        """Print a warning on stderr; ``place`` follows the program's name and a colon."""


@final
class Help(Exception):
    """The option asked for a text, and for the end of the program with ``status``."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


@final
class LocatedError(QmpError):
    """An error whose text begins with a place other than the option."""


async def carry_out(daemon: Daemon, option: Option, console: Console) -> None:
    """Carry out one option; raises QmpError, or Help with what to print."""
    await _ACTIONS[option.name](daemon, option, console)


async def _stray(daemon: Daemon, option: Option, console: Console) -> None:
    raise QmpError("Unexpected argument")


async def _run(daemon: Daemon, name: str, arguments: Options) -> None:
    from qsd_trio.monitor.dispatcher import run_typed

    await run_typed(daemon, name, arguments)


def _typed(option: Option, type_name: str, implied_key: str | None) -> Options:
    """Turn an option's argument, keyval or JSON, into an object of a QAPI type."""
    from qsd_trio import qapi
    from qsd_trio.qapi.converter import from_keyval, from_qmp
    from qsd_trio.qapi.keyval import parse_keyval_help

    kind: type[Options] = getattr(qapi, type_name)
    if option.argument.startswith("{"):
        from qsd_trio.protocol.qmp import parse_json

        return from_qmp(kind, parse_json(option.argument))
    value, wants_help = parse_keyval_help(option.argument, implied_key)
    if wants_help:
        if type_name == "ObjectOptions":
            _object_help(value)
        raise QmpError("Help is not available for this option")
    return from_keyval(kind, value)


async def _blockdev(daemon: Daemon, option: Option, console: Console) -> None:
    await _run(daemon, "blockdev-add", _typed(option, "BlockdevOptions", "driver"))


async def _chardev(daemon: Daemon, option: Option, console: Console) -> None:
    from qsd_trio.commands.chardev import chardev_option

    outcome = await chardev_option(daemon, option.argument)
    if outcome.exit_status is not None:
        raise Help(outcome.stdout, outcome.exit_status)
    console.say(outcome.stdout)


async def _export(daemon: Daemon, option: Option, console: Console) -> None:
    await _run(daemon, "block-export-add", _typed(option, "BlockExportOptions", "type"))


async def _monitor(daemon: Daemon, option: Option, console: Console) -> None:
    from qsd_trio.monitor.service import add_monitor

    await add_monitor(daemon, _typed(option, "MonitorOptions", "chardev"))


async def _nbd_server(daemon: Daemon, option: Option, console: Console) -> None:
    # Its options say the address in another way than the command's do.
    await _run(daemon, "nbd-server-start", _typed(option, "NbdServerOptions", None))


async def _object(daemon: Daemon, option: Option, console: Console) -> None:
    await _run(daemon, "object-add", _typed(option, "ObjectOptions", "qom-type"))


def _object_help(value: Json) -> NoReturn:
    from qsd_trio.objects import qom

    type_name = value.get("qom-type")
    if type_name not in qom.TYPES:
        raise Help("\n  ".join(["List of user creatable objects:", *qom.creatable()]) + "\n")
    settable = {
        name: property_
        for name, property_ in qom.properties(type_name).items()
        if property_.settable
    }
    if not settable:
        raise Help(f"There are no options for {type_name}.\n")
    lines = sorted(f"{name}=<{property_.type}>" for name, property_ in settable.items())
    raise Help("\n  ".join([f"{type_name} options:", *lines]) + "\n")


def _read_lines(path: str) -> list[str]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read().splitlines()


async def _trace(daemon: Daemon, option: Option, console: Console) -> None:
    from qsd_trio import trace
    from qsd_trio.qapi.introspect import command_names
    from qsd_trio.qapi.qemuopts import parse_opts

    opts = parse_opts(
        option.argument, "enable", options={"enable": "str", "events": "str", "file": "str"}
    )
    enable = opts.get("enable")
    if enable in ("help", "?") or opts.wants_help:
        raise Help("".join(f"{name}\n" for name in trace.names(command_names())))
    patterns = [(f" {option.words}", enable)] if enable is not None else []
    events = opts.get("events")
    if events is not None:
        try:
            lines = _read_lines(events)
        except OSError as exc:
            raise LocatedError(f"{events}: {exc.strerror}") from None
        patterns += [
            (f"{events}:{number}", line.strip())
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.startswith("#")
        ]
    for location, pattern in patterns:
        warning = trace.enable(pattern, command_names)
        if warning is not None:
            console.warn(location, warning)
    path = opts.get("file")
    if path is not None:
        try:
            trace.log_to(path)
        except OSError as exc:
            raise QmpError(f"Error opening logfile {path}: {exc.strerror}") from None


_ACTIONS: dict[str, Callable[[Daemon, Option, Console], Awaitable[None]]] = {
    "": _stray,
    "blockdev": _blockdev,
    "chardev": _chardev,
    "export": _export,
    "monitor": _monitor,
    "nbd-server": _nbd_server,
    "object": _object,
    "trace": _trace,
}
