"""The daemon inside a trio program."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

import qsd_trio
from qsd_trio.errors import QmpError
from qsd_trio.testing.nbd_client import connect_nbd

SIZE = 1 << 16


def address(path: Path) -> dict[str, Any]:
    return {"addr": {"type": "unix", "data": {"path": str(path)}}}


async def export(daemon: Any, directory: Path, name: str) -> Path:
    """Export a new image full of ``name`` over NBD; return the socket."""
    image, sock = directory / f"{name}.img", directory / f"{name}.sock"
    await trio.Path(image).write_bytes(name.encode() * (SIZE // len(name)))
    await daemon.qmp(
        "blockdev-add", {"driver": "file", "node-name": "disk", "filename": str(image)}
    )
    await daemon.qmp("nbd-server-start", address(sock))
    await daemon.qmp(
        "block-export-add", {"type": "nbd", "id": "e", "node-name": "disk", "writable": True}
    )
    return sock


def left(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


async def test_several_daemons_in_one_process_know_nothing_of_each_other(sock_dir: Path) -> None:
    async with qsd_trio.open_daemon() as one, qsd_trio.open_daemon() as two:
        first, second = await export(one, sock_dir, "aa"), await export(two, sock_dir, "bb")
        async with connect_nbd(first, "disk") as a, connect_nbd(second, "disk") as b:
            assert await a.pread(0, 4) == b"aaaa"
            assert await b.pread(0, 4) == b"bbbb"
        await two.qmp("block-export-del", {"id": "e"})
        assert len(await one.qmp("query-block-exports")) == 1
    assert left(sock_dir) == ["aa.img", "bb.img"]


async def test_events_come_as_an_iterator_that_ends_with_the_daemon(sock_dir: Path) -> None:
    names: list[str] = []

    async def collect(events: Any) -> None:
        async for event in events:
            names.append(event.name)

    async with trio.open_nursery() as nursery:
        async with qsd_trio.open_daemon() as daemon:
            nursery.start_soon(collect, daemon.events())
            await export(daemon, sock_dir, "x")
            await daemon.qmp(
                "block-set-write-threshold", {"node-name": "disk", "write-threshold": 1}
            )
            async with connect_nbd(sock_dir / "x.sock", "disk") as client:
                await client.pwrite(0, b"y" * 512)
    assert names == ["BLOCK_WRITE_THRESHOLD", "BLOCK_EXPORT_DELETED"]


async def test_cancelling_leaves_no_socket_lock_or_thread(sock_dir: Path) -> None:
    with trio.CancelScope() as scope:
        async with qsd_trio.open_daemon() as daemon:
            sock = await export(daemon, sock_dir, "x")
            async with connect_nbd(sock, "disk") as client:
                await client.pwrite(0, b"written!")
                scope.cancel()
                await trio.sleep_forever()
    assert scope.cancelled_caught
    assert left(sock_dir) == ["x.img"]
    image = sock_dir / "x.img"
    assert (await trio.Path(image).read_bytes()).startswith(b"written!")
    async with qsd_trio.open_daemon() as again:  # the lock is free
        await again.qmp(
            "blockdev-add",
            {"driver": "raw", "node-name": "r", "file": {"driver": "file", "filename": str(image)}},
        )
    assert not [
        thread
        for thread in threading.enumerate()
        if "qsd-trio" in thread.name and not thread.daemon
    ]


async def test_an_error_leaves_the_block_as_it_is(sock_dir: Path) -> None:
    with pytest.raises(QmpError, match="node-name='nope'"):
        async with qsd_trio.open_daemon() as daemon:
            await export(daemon, sock_dir, "x")
            await daemon.qmp("blockdev-del", {"node-name": "nope"})
    assert left(sock_dir) == ["x.img"]


async def test_errors_of_one_daemon_do_not_touch_the_other() -> None:
    async with qsd_trio.open_daemon() as daemon, qsd_trio.open_daemon() as other:
        with pytest.raises(QmpError, match="Failed to find node with node-name='nope'"):
            await daemon.qmp("blockdev-del", {"node-name": "nope"})
        with pytest.raises(QmpError, match="The command nope has not been found"):
            await daemon.qmp("nope")
        assert await other.qmp("query-block-exports") == []
