"""From a QMP request to its reply."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import qsd_trio.commands  # noqa: F401  # the index of the commands
from qsd_trio import trace
from qsd_trio.errors import CommandNotFound, QmpError
from qsd_trio.protocol.qmp import JsonError, check_request, dump_json
from qsd_trio.registry import commands
from qsd_trio.services import run_isolated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qsd_trio.daemon import Daemon
    from qsd_trio.protocol.qmp import Request
    from qsd_trio.untyped import Json, Options

_trace_in_band = trace.point("monitor_qmp_cmd_in_band")
_trace_oob = trace.point("monitor_qmp_cmd_out_of_band")
_trace_error = trace.point("monitor_qmp_err_in_band")


class Negotiation(Protocol):
    """What a monitor session has agreed on with its client."""

    @property
    def negotiated(self) -> bool: ...
    @property
    def oob_enabled(self) -> bool: ...
    def negotiate(self, enable: list[str]) -> None: ...


async def dispatch(daemon: Daemon, value: Json, session: Negotiation) -> dict[str, Json]:
    """Carry out the request that ``value`` is, a JSON value or JsonError; return the reply's object.

    An exception that is not meant for the client is logged as a bug, and answered like an error.
    """
    reply: dict[str, Json] = {}
    if isinstance(value, dict) and "id" in value:
        reply["id"] = value["id"]

    async def answer() -> None:
        try:
            if isinstance(value, JsonError):
                raise value
            request = check_request(value, allow_oob=session.oob_enabled)
            reply["return"] = await _carry_out(daemon, request, session, reply.get("id"))
        except QmpError as exc:
            if _trace_error.on:
                _trace_error(dump_json(reply["id"]) if "id" in reply else "")
            reply["error"] = {"class": exc.qmp_class, "desc": str(exc)}

    crash = await run_isolated("QMP command", answer)
    if crash is not None:
        desc = f"Internal error: {type(crash).__name__}: {crash}"
        reply["error"] = {"class": QmpError.qmp_class, "desc": desc}
    return reply


async def _carry_out(daemon: Daemon, request: Request, session: Negotiation, id_: Json) -> Json:
    name = request.command
    entry = commands.get(name)
    if not session.negotiated and name != "qmp_capabilities":
        raise CommandNotFound("Expecting capabilities negotiation with 'qmp_capabilities'")
    if entry is None:
        raise unknown_command(name)
    if request.oob:
        if _trace_oob.on:
            _trace_oob("" if id_ is None else dump_json(id_))
        raise QmpError(f"The command {name} does not support OOB")
    if _trace_in_band.on:
        _trace_in_band("" if id_ is None else dump_json(id_))
    if entry.with_session:
        return await run_command(daemon, name, request.arguments, session)
    return await run_command(daemon, name, request.arguments)


def unknown_command(name: str) -> QmpError:
    """Return the error for a command without handler: unknown, or not built yet."""
    from qsd_trio.qapi.introspect import command_names

    if name in command_names():
        return QmpError(f"Command '{name}' is not supported by this version of qsd-trio yet")
    return CommandNotFound(f"The command {name} has not been found")


async def run_command(
    daemon: Daemon,
    name: str,
    arguments: Mapping[str, Json],
    session: Negotiation | None = None,
) -> Json:
    """Convert ``arguments``, run command ``name`` when no other command runs, return its JSON result.

    Raises QmpError. ``session`` is for commands that are about the monitor itself.
    """
    from qsd_trio.qapi.converter import args_from_qmp, to_qmp

    if name not in commands:
        raise unknown_command(name)
    typed = args_from_qmp(name, arguments)
    if not trace.qmp_on:
        return to_qmp(await run_typed(daemon, name, typed, session))
    trace.qmp_enter(name, dump_json(dict(arguments)))
    try:
        result = to_qmp(await run_typed(daemon, name, typed, session))
    except QmpError as exc:
        trace.qmp_exit(name, str(exc), False)
        raise
    trace.qmp_exit(name, dump_json(result), True)
    return result


async def run_typed(
    daemon: Daemon, name: str, typed: Options, session: Negotiation | None = None
) -> Options:
    """Run command ``name`` on its typed arguments (None if it takes none); return its typed result.

    No result is ``{}``. An OSError that a handler lets through becomes a QmpError.
    """
    entry = commands[name]
    keywords = {"session": session} if entry.with_session else {}
    args = () if typed is None else (typed,)
    lock = daemon.command_lock
    # Under load a turn of the loop is milliseconds: take none for a lock that is free.
    if lock.locked():
        await lock.acquire()
    else:
        lock.acquire_nowait()
    try:
        if daemon.quit_requested:
            raise QmpError("The daemon is shutting down")
        result = await entry.function(daemon, *args, **keywords)
    except OSError as exc:
        text = str(exc) if exc.errno is None else os.strerror(exc.errno)
        raise QmpError(text) from exc
    finally:
        lock.release()
    return {} if result is None else result
