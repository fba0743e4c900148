"""x-blockdev-amend: change the options of an open image's format."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from qsd_trio.block.abc import Perm
from qsd_trio.commands.abc import command
from qsd_trio.commands.job import check_new_id
from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from qsd_trio.block.io import Node
    from qsd_trio.daemon import Daemon
    from qsd_trio.qapi import XBlockdevAmendArg


@command("x-blockdev-amend")
async def x_blockdev_amend(daemon: Daemon, arg: XBlockdevAmendArg) -> None:
    """Start a job that amends a node's image."""
    from qsd_trio.jobs.amend import AmendJob

    graph = daemon.graph
    node = graph.nodes.get(arg.node_name)
    if node is None:
        raise QmpError(f"Cannot find device='' nor node-name='{arg.node_name}'")
    if arg.options.driver.value != node.driver_name:
        raise QmpError("x-blockdev-amend doesn't support changing the block driver")
    driver = node.driver
    if not driver.supports_amend:
        raise QmpError("Driver does not support x-blockdev-amend")
    check_new_id(daemon, arg.job_id)

    async def amend() -> None:
        await driver.amend(graph.create_opener(), arg.options, force=bool(arg.force))

    async def release() -> None:
        await _set_amending(daemon, node, False)

    try:
        await _set_amending(daemon, node, True)
    except QmpError:
        # As QEMU: the job is there for a moment.
        for status in ("created", "null"):
            daemon.events.emit("JOB_STATUS_CHANGE", id=arg.job_id, status=status)
        raise
    try:
        backend = await graph.open_backend(arg.node_name, Perm.NONE, Perm.ALL)
    except BaseException:
        with trio.CancelScope(shield=True):
            await release()
        raise
    await daemon.jobs.start(AmendJob(arg.job_id, daemon.events, amend, backend, release))


async def _set_amending(daemon: Daemon, node: Node, amending: bool) -> None:
    """Take or give up the permissions on the children that amending needs."""
    graph = daemon.graph
    async with graph.changing():
        node.driver.set_amending(amending)
        try:
            await graph.refresh_permissions([node])
        except BaseException:
            node.driver.set_amending(not amending)
            raise
