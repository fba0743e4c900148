"""Taking an internal snapshot as an action: what it holds, what an abort undoes (tests/interop has texts)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from qsd_trio.block.abc import Perm
from qsd_trio.block.snapshots import Snapshot, snapshot_store
from qsd_trio.commands.actions import perform
from qsd_trio.commands.internal_snapshot import SnapshotInternal
from qsd_trio.daemon import Daemon, open_daemon_tables
from qsd_trio.errors import QmpError
from qsd_trio.qapi import BlockdevSnapshotInternal
from qsd_trio.qapi.converter import args_from_qmp
from tests.block.drivers.qcow2.checker import check
from tests.block.drivers.qcow2.kit import make


@pytest.fixture
async def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(await make(1 << 20))
    return path


@pytest.fixture
async def daemon(image: Path) -> AsyncIterator[Daemon]:
    async with open_daemon_tables() as opened:
        file = {"driver": "file", "filename": str(image)}
        options = {"driver": "qcow2", "node-name": "n", "file": file}
        await opened.graph.add_node(args_from_qmp("blockdev-add", options))
        yield opened


def action(daemon: Daemon, name: str) -> SnapshotInternal:
    return SnapshotInternal(daemon.graph, BlockdevSnapshotInternal(device="n", name=name))


def names(daemon: Daemon) -> list[bytes]:
    store = snapshot_store(daemon.graph.nodes["n"])
    assert store is not None
    return [snapshot.name for snapshot in store.all()]


async def test_requests_wait_until_it_is_clean(daemon: Daemon) -> None:
    backend = await daemon.graph.open_backend("n", Perm.WRITE, Perm.ALL)
    taking = action(daemon, "s")
    await taking.prepare()
    written = trio.Event()

    async def write() -> None:
        await backend.pwritev(0, [memoryview(b"late" * 128)])
        written.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        assert not written.is_set()
        await taking.commit()
        await taking.clean()
    assert written.is_set()
    assert names(daemon) == [b"s"]
    await backend.aclose()


async def test_an_abort_deletes_what_was_taken(daemon: Daemon, image: Path) -> None:
    await perform(action(daemon, "kept"))
    taking = action(daemon, "s")
    await taking.prepare()
    assert names(daemon) == [b"kept", b"s"]
    await taking.abort()
    await taking.clean()
    assert names(daemon) == [b"kept"]
    await daemon.graph.del_node("n")
    report = check(await trio.Path(image).read_bytes())
    assert (report.errors, report.leaks) == ([], [])


async def test_an_abort_of_what_was_refused_deletes_nothing(daemon: Daemon) -> None:
    await perform(action(daemon, "s"))
    with pytest.raises(QmpError, match="Snapshot with name 's' already exists on device 'n'"):
        await perform(action(daemon, "s"))
    assert names(daemon) == [b"s"]


def test_what_is_shown() -> None:
    snapshot = Snapshot(
        id=b"1",
        name=b"\xc3\xa9\xc3",
        date_sec=5,
        date_nsec=6,
        vm_clock_nsec=7_000_000_008,
        icount=9,
    )
    assert snapshot.to_qmp() == {
        "id": "1",
        "name": "é\ufffd",
        "vm-state-size": 0,
        "date-sec": 5,
        "date-nsec": 6,
        "vm-clock-sec": 7,
        "vm-clock-nsec": 8,
        "icount": 9,
    }
