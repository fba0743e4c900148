"""Trace events: named points in the program that write a line when --trace enables them.

Names and formats are QEMU's where the event is the same, so that what users grep for stays. A point
that is off costs one attribute load; loops read ``on`` once, before they begin.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, TextIO, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: Every event but those of QMP commands, with the printf format of its arguments.
EVENTS: dict[str, str] = {
    "bdrv_open_common": 'bs %s filename "%s" flags 0x%x format_name "%s"',
    "bdrv_close": "bs %s",
    "blk_root_attach": "child %s blk %s bs %s",
    "blk_root_detach": "child %s blk %s bs %s",
    "blk_co_preadv": "blk %s bs %s offset %d bytes %d flags 0x%x",
    "blk_co_pwritev": "blk %s bs %s offset %d bytes %d flags 0x%x",
    "blk_co_pwrite_zeroes": "blk %s bs %s offset %d bytes %d flags 0x%x",
    "blk_co_pdiscard": "blk %s bs %s offset %d bytes %d",
    "blk_co_flush": "blk %s bs %s",
    "export_add": "export '%s' type %s node '%s'",
    "export_deleted": "export '%s'",
    "handle_qmp_command": "mon %s req: %s",
    "job_apply_verb": "job %s in state %s; applying verb %s (%s)",
    "job_completed": "job %s ret %d",
    "job_state_transition": "job %s (ret: %d) attempting %s transition (%s-->%s)",
    "monitor_protocol_event_emit": "event=%s data=%s",
    "monitor_protocol_event_queue": "event=%s data=%s rate=%d",
    "monitor_qmp_cmd_in_band": "%s",
    "monitor_qmp_cmd_out_of_band": "%s",
    "monitor_qmp_err_in_band": "%s",
    "monitor_qmp_respond": "mon %s resp: %s",
    "nbd_co_receive_request_decode_type": "Decoding type: handle = %d, type = %d (%s)",
    "nbd_handshake_timer_cb": "client took too long to negotiate",
    "nbd_negotiate_begin": "Beginning negotiation",
    "nbd_negotiate_success": "Negotiation succeeded",
    "nbd_receive_request": (
        "Got request: { magic = 0x%x, .flags = 0x%x, .type = 0x%x, from = %d, len = %d }"
    ),
    "qmp_block_job_cancel": "job %s",
    "qmp_job_cancel": "job %s",
    "qmp_job_complete": "job %s",
    "qmp_job_dismiss": "job %s",
    "qmp_job_finalize": "job %s",
    "qmp_job_pause": "job %s",
    "qmp_job_resume": "job %s",
}


@final
class TracePoint:
    """One event: call it with the arguments of its format, when ``on``."""

    __slots__ = ("_format", "name", "on")

    def __init__(self, name: str, format_: str) -> None:
        self.name = name
        self.on = False
        self._format = format_

    def __call__(self, *args: object) -> None:
        """Write the event's line; nothing if the event is off."""
        if self.on:
            _write(f"{self.name} {self._format % args}\n")


_points: dict[str, TracePoint] = {}
#: Names like ``qmp_enter_query_jobs`` that are enabled; their table is the table of commands.
_commands_on: set[str] = set()
#: Whether any event of a QMP command is enabled.
qmp_on = False
_output: TextIO | None = None


def _write(line: str) -> None:
    output = _output or sys.stderr
    output.write(line)
    output.flush()  # as a log: what was written before a crash is what one wants to read


def point(name: str) -> TracePoint:
    """Return the trace point of event ``name``; KeyError if EVENTS lacks it."""
    found = _points.get(name)
    if found is None:
        found = _points[name] = TracePoint(name, EVENTS[name])
    return found


def qmp_enter(command: str, arguments: str) -> None:
    """Trace that ``command`` begins with ``arguments`` (JSON text)."""
    name = "qmp_enter_" + command.replace("-", "_")
    if name in _commands_on:
        _write(f"{name} {arguments}\n")


def qmp_exit(command: str, result: str, succeeded: bool) -> None:
    """Trace that ``command`` ended with ``result`` (JSON text, or the error's)."""
    name = "qmp_exit_" + command.replace("-", "_")
    if name in _commands_on:
        _write(f"{name} {result} {int(succeeded)}\n")


def names(commands: Iterable[str]) -> Iterator[str]:
    """Yield the names of all events, given the names of all QMP commands."""
    yield from EVENTS
    for command in commands:
        command = command.replace("-", "_")
        yield f"qmp_enter_{command}"
        yield f"qmp_exit_{command}"


def _matcher(pattern: str) -> Callable[[str], bool]:
    if "*" not in pattern:
        return pattern.__eq__
    parts = ("." if c == "?" else ".*" if c == "*" else re.escape(c) for c in pattern)
    compiled = re.compile("".join(parts))
    return lambda name: compiled.fullmatch(name) is not None


def enable(pattern: str, commands: Callable[[], Iterable[str]]) -> str | None:
    """Enable the events that ``pattern`` matches; with a ``-`` in front, disable them.

    ``commands`` yields the names of all QMP commands. Returns the warning to print for a name that is no event's.
    """
    global qmp_on  # one switch per process: a trace follows the program, not a daemon
    on = not pattern.startswith("-")
    pattern = pattern.removeprefix("-")
    matches = _matcher(pattern)
    matching = [name for name in names(commands()) if matches(name)]
    for name in matching:
        if name in EVENTS:
            point(name).on = on
        elif on:
            _commands_on.add(name)
        else:
            _commands_on.discard(name)
    qmp_on = bool(_commands_on)
    if pattern and not matching and "*" not in pattern:
        return f"trace event '{pattern}' does not exist"
    return None


def log_to(path: str) -> None:
    """Write events to ``path``, emptied first, instead of stderr; OSError if it cannot be."""
    global _output  # as above
    new = open(path, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115  # for good
    if _output is not None:
        _output.close()
    _output = new


def reset() -> None:
    """Disable every event and write to stderr again."""
    global qmp_on, _output  # as above
    for each in _points.values():
        each.on = False
    _commands_on.clear()
    qmp_on = False
    if _output is not None:
        _output.close()
        _output = None
