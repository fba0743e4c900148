"""QMP commands about the monitor and the daemon itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from qsd_trio._version import PACKAGE, QEMU_VERSION
from qsd_trio.commands.abc import command
from qsd_trio.errors import CommandNotFound
from qsd_trio.registry import commands

if TYPE_CHECKING:
    from typing import Protocol

    from qsd_trio.daemon import Daemon
    from qsd_trio.qapi import QmpCapabilitiesArg
    from qsd_trio.untyped import Json

    class Session(Protocol):
        """The monitor session that a command came from (monitor/ stands above this room)."""

        @property
        def negotiated(self) -> bool: ...
        def negotiate(self, enable: list[str]) -> None: ...


@command("qmp_capabilities", with_session=True)
async def qmp_capabilities(
    daemon: Daemon, arg: QmpCapabilitiesArg, *, session: Session | None
) -> None:
    """Leave negotiation mode."""
    if session is None or session.negotiated:
        raise CommandNotFound("Capabilities negotiation is already complete, command ignored")
    session.negotiate([capability.value for capability in arg.enable or ()])


@command("quit")
async def quit_(daemon: Daemon) -> None:
    """Ask the daemon to end; the reply comes before the end."""
    if not daemon.quit_requested:  # the second request would cut the deadlines
        daemon.request_quit()


@command("query-version")
async def query_version(daemon: Daemon) -> Json:
    """Return the version of the storage daemon whose behaviour we follow, and ours as the package."""
    major, minor, micro = QEMU_VERSION
    return {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": PACKAGE}


@command("query-commands")
async def query_commands(daemon: Daemon) -> Json:
    """List the commands that can be carried out; the schema knows more (see ``unknown_command``)."""
    from qsd_trio.qapi.introspect import command_names

    return [{"name": name} for name in command_names() if name in commands]


@command("query-qmp-schema")
async def query_qmp_schema(daemon: Daemon) -> Json:
    """Describe the whole protocol."""
    from qsd_trio.qapi.introspect import query_qmp_schema

    schema = query_qmp_schema()
    # Making it takes tens of milliseconds, writing it too: others may run in between.
    await trio.lowlevel.checkpoint()
    return schema
