"""Commands and the command line option about character devices."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, final

import attrs

import qsd_trio.chardevs  # noqa: F401  # fills the registry
from qsd_trio.commands.abc import command
from qsd_trio.errors import QmpError
from qsd_trio.registry import chardev_backends

if TYPE_CHECKING:
    from qsd_trio.chardevs.abc import Chardev
    from qsd_trio.chardevs.ringbuf import RingbufChardev
    from qsd_trio.daemon import Daemon
    from qsd_trio.qapi import (
        ChardevAddArg,
        ChardevBackend,
        ChardevBackendInfo,
        ChardevChangeArg,
        ChardevInfo,
        ChardevRemoveArg,
        ChardevReturn,
        ChardevSendBreakArg,
        RingbufReadArg,
        RingbufWriteArg,
    )
    from qsd_trio.untyped import Json, Options


async def add_chardev(daemon: Daemon, id_: str, backend: ChardevBackend) -> Chardev:
    """Open a chardev and file it; QmpError if that fails.

    Cancelled, it leaves nothing behind.
    """
    kind = backend.type.value
    implementation: Options = chardev_backends.get(kind)
    if implementation is None:
        raise QmpError(f"'{kind}' is not a valid char driver name")
    if id_ in daemon.chardevs:
        raise QmpError(f"attempt to add duplicate property '{id_}' to object (type 'container')")
    members: Options = backend
    chardev: Chardev = implementation.create(id_, members.data, daemon)
    await daemon.chardevs.start(chardev)
    return chardev


async def _remove(daemon: Daemon, id_: str) -> None:
    daemon.chardevs.request_stop(id_)
    await daemon.chardevs.wait_gone(id_)


def _lookup(daemon: Daemon, id_: str, text: str) -> Chardev:
    chardev = daemon.chardevs.get(id_)
    if chardev is None:
        raise QmpError(text.format(id_))
    return chardev


async def _add_for_monitor(daemon: Daemon, id_: str, backend: ChardevBackend) -> ChardevReturn:
    try:
        return _returned(await add_chardev(daemon, id_, backend))
    except QmpError as exc:
        error = QmpError(f"Failed to add chardev '{id_}': {exc}")
        for note in getattr(exc, "__notes__", ()):
            error.add_note(note)
        raise error from None


def _returned(chardev: Chardev) -> ChardevReturn:
    from qsd_trio.qapi import ChardevReturn

    return ChardevReturn(pty=chardev.pty)


@command("chardev-add")
async def chardev_add(daemon: Daemon, arg: ChardevAddArg) -> ChardevReturn:
    """Add a chardev."""
    if arg.id in daemon.chardevs:
        raise QmpError(f"Chardev with id '{arg.id}' already exists")
    return await _add_for_monitor(daemon, arg.id, arg.backend)


@command("chardev-change")
async def chardev_change(daemon: Daemon, arg: ChardevChangeArg) -> ChardevReturn:
    """Put another backend behind an id.

    No front-end of a storage daemon survives that, so only a chardev without one can be changed; it is
    removed first and stays so if the new one cannot be opened, as in the real daemon.
    """
    chardev = _lookup(daemon, arg.id, "Chardev '{}' does not exist")
    if chardev.backend_name == "mux":
        raise QmpError("Mux device hotswap not supported yet")
    if chardev.busy:
        raise QmpError("Chardev user does not support chardev hotswap")
    await _remove(daemon, arg.id)
    return await _add_for_monitor(daemon, arg.id, arg.backend)


@command("chardev-remove")
async def chardev_remove(daemon: Daemon, arg: ChardevRemoveArg) -> None:
    """Remove a chardev that nobody uses."""
    chardev = _lookup(daemon, arg.id, "Chardev '{}' not found")
    if chardev.busy:
        raise QmpError(f"Chardev '{arg.id}' is busy")
    await _remove(daemon, arg.id)


@command("chardev-send-break")
async def chardev_send_break(daemon: Daemon, arg: ChardevSendBreakArg) -> None:
    """Send a break where the chardev has one; otherwise nothing happens."""
    await _lookup(daemon, arg.id, "Chardev '{}' not found").send_break()


@command("query-chardev")
async def query_chardev(daemon: Daemon) -> list[ChardevInfo]:
    """List the chardevs."""
    from qsd_trio.qapi import ChardevInfo

    return [
        ChardevInfo(
            label=chardev.id, filename=chardev.filename, frontend_open=chardev.frontend_open
        )
        for chardev in daemon.chardevs
    ]


@command("query-chardev-backends")
async def query_chardev_backends(daemon: Daemon) -> list[ChardevBackendInfo]:
    """List the backends."""
    from qsd_trio.qapi import ChardevBackendInfo

    return [ChardevBackendInfo(name=name) for name in chardev_backends]


def _ringbuf(daemon: Daemon, device: str) -> RingbufChardev:
    from qsd_trio.chardevs.ringbuf import RingbufChardev

    chardev = _lookup(daemon, device, "Device '{}' not found")
    if not isinstance(chardev, RingbufChardev):
        raise QmpError(f"{device} is not a ringbuf device")
    return chardev


@command("ringbuf-write")
async def ringbuf_write(daemon: Daemon, arg: RingbufWriteArg) -> None:
    """Write into a ring buffer, over the oldest data if it is full."""
    chardev = _ringbuf(daemon, arg.device)
    if arg.format is not None and arg.format.value == "base64":
        from qsd_trio.objects.base64 import decode

        data = decode(arg.data)
    else:
        data = arg.data.encode("utf-8", "surrogatepass")
    chardev.buffer.write(data)


@command("ringbuf-read")
async def ringbuf_read(daemon: Daemon, arg: RingbufReadArg) -> Json:
    """Take data out of a ring buffer; as text it ends at a NUL, and is lost if it is no UTF-8."""
    chardev = _ringbuf(daemon, arg.device)
    if arg.size <= 0:
        raise QmpError("size must be greater than zero")
    data = chardev.buffer.read(arg.size)
    if arg.format is not None and arg.format.value == "base64":
        return base64.b64encode(data).decode()
    return _modified_utf8(data.partition(b"\0")[0])


def _modified_utf8(data: bytes) -> str:
    return data.decode("utf-8", "replace")


@final
@attrs.frozen(kw_only=True)
class OptionOutcome:
    """What ``--chardev`` leaves for the command line to do."""

    stdout: str = ""
    #: None: go on; otherwise it was only about help, and this is the exit status.
    exit_status: int | None = None


async def chardev_option(daemon: Daemon, text: str) -> OptionOutcome:
    """Carry out ``--chardev text``; QmpError if that fails."""
    from qsd_trio.chardevs.options import HelpWanted, parse_chardev

    try:
        backends = parse_chardev(text)
    except HelpWanted as exc:
        return OptionOutcome(stdout=exc.listing, exit_status=exc.exit_status)
    for id_, backend in backends:
        chardev = await add_chardev(daemon, id_, backend)
    if chardev.pty is None:
        return OptionOutcome()
    return OptionOutcome(stdout=f"char device redirected to {chardev.pty} (label {chardev.id})\n")
