"""The graph: nothing is left behind, draining, who closes when, backends, resizing."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from qsd_trio.block.abc import ChildRole, Perm, StatusFlag
from qsd_trio.block.graph import BlockGraph, open_block_graph
from qsd_trio.block.reopen import reopen
from qsd_trio.errors import QmpError
from qsd_trio.events import EventBus
from qsd_trio.objects.abc import ObjectTable
from qsd_trio.qapi import BlockdevOptions
from qsd_trio.qapi.converter import from_qmp
from qsd_trio.testing.memory import MemoryDriver

SIZE = 1 << 16
READ, WRITE, RESIZE = Perm.CONSISTENT_READ, Perm.WRITE, Perm.RESIZE


@asynccontextmanager
async def graph_of(*nodes: dict[str, Any]) -> AsyncIterator[BlockGraph]:
    async with open_block_graph(EventBus(), ObjectTable()) as graph:
        for options in nodes:
            await add(graph, **options)
        yield graph


async def add(graph: BlockGraph, **options: Any) -> None:
    named = {key.replace("_", "-"): value for key, value in options.items()}
    await graph.add_node(from_qmp(BlockdevOptions, named))


def options(**members: Any) -> Any:
    named = {key.replace("_", "-"): value for key, value in members.items()}
    return from_qmp(BlockdevOptions, named)


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return str(path)


async def in_memory(graph: BlockGraph, name: str, driver: MemoryDriver) -> MemoryDriver:
    """Put a memory image behind a null node, which otherwise has all that a node has."""
    await add(graph, driver="null-co", node_name=name, size=len(driver.data))
    graph.find(name).attach_driver(driver)
    return driver


def content(image: str) -> bytes:
    return Path(image).read_bytes()


def open_files() -> set[str]:
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{fd.name}:{fd.readlink()}")
        except OSError:
            pass
    return {entry for entry in found if entry.endswith(".img")}


async def test_closing_closes_children_that_nobody_else_holds(image: str) -> None:
    async with graph_of(
        {"driver": "file", "node_name": "f", "filename": image},
        {"driver": "raw", "node_name": "r", "file": "f"},
        {"driver": "raw", "node_name": "own", "file": {"driver": "file", "filename": image}},
    ) as graph:
        await graph.del_node("own")
        assert list(graph.nodes) == ["f", "r"]
        await graph.del_node("r")
        assert list(graph.nodes) == ["f"]
    assert open_files() == set()
    assert not graph.nodes


async def test_a_failed_open_leaves_nothing(image: str) -> None:
    before = open_files()
    async with graph_of({"driver": "null-co", "node_name": "taken"}) as graph:
        for bad in (
            {"driver": "raw", "node_name": "taken", "file": {"driver": "file", "filename": image}},
            {
                "driver": "raw",
                "node_name": "r",
                "size": 1 << 40,
                "file": {"driver": "file", "filename": image},
            },
            {"driver": "qcow2", "node_name": "q", "file": {"driver": "file", "filename": image}},
        ):
            with pytest.raises(QmpError):
                await add(graph, **bad)
            assert list(graph.nodes) == ["taken"]
            assert open_files() == before


async def test_a_cancelled_open_leaves_nothing(image: str) -> None:
    async with graph_of() as graph:
        with trio.CancelScope() as scope:
            scope.cancel()
            await add(
                graph, driver="raw", node_name="r", file={"driver": "file", "filename": image}
            )
        assert scope.cancelled_caught
        assert not graph.nodes
        assert open_files() == set()
        await add(graph, driver="file", node_name="f", filename=image)


async def test_leaving_by_cancellation_flushes_and_closes(image: str) -> None:
    memory = MemoryDriver(bytes(4096))
    with trio.CancelScope() as scope:
        async with graph_of({"driver": "file", "node_name": "f", "filename": image}) as graph:
            await in_memory(graph, "m", memory)
            backend = await graph.open_backend("m", READ | WRITE, Perm.ALL)
            await backend.pwritev(0, [memoryview(b"x" * 512)])
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert memory.durable[:512] == b"x" * 512
    assert open_files() == set()


async def test_drain_waits_for_what_is_in_flight_and_holds_the_rest() -> None:
    async with graph_of() as graph:
        memory = await in_memory(graph, "m", MemoryDriver(bytes(4096)))
        await add(graph, driver="raw", node_name="r", file="m")
        backend = await graph.open_backend("r", READ | WRITE, Perm.ALL)
        other = await graph.open_backend("m", READ, Perm.ALL)
        memory.hold = trio.Event()
        order: list[str] = []

        async def write(name: str) -> None:
            await backend.pwritev(0, [memoryview(name.encode())])
            order.append(name)

        async def drain() -> None:
            async with graph.drained([graph.find("m")]):
                order.append("drained")
                assert backend.in_flight == 0
                assert backend.map_read(0, 512) is None
                assert other.map_write(0, 512) is None
                nursery.start_soon(write, "late")
                await trio.testing.wait_all_tasks_blocked()
            order.append("resumed")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, "early")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(drain)
            await trio.testing.wait_all_tasks_blocked()
            assert order == []
            memory.hold.set()
        assert order[:2] == ["early", "drained"]
        assert set(order[2:]) == {"resumed", "late"}
        assert bytes(memory.data[:4]) == b"late"
        for each in (backend, other):
            await each.aclose()


async def test_requests_outside_the_node_fail_and_do_nothing() -> None:
    async with graph_of() as graph:
        memory = await in_memory(graph, "m", MemoryDriver(bytes(4096)))
        backend = await graph.open_backend("m", READ | WRITE, Perm.ALL)
        for offset, length in ((4096, 1), (4000, 97), (-1, 1), (1 << 62, 512)):
            buffer = [memoryview(bytearray(length))]
            for request in (
                lambda at=offset, iov=buffer: backend.preadv(at, iov),
                lambda at=offset, iov=buffer: backend.pwritev(at, iov),
                lambda at=offset, n=length: backend.pwrite_zeroes(at, n),
                lambda at=offset, n=length: backend.pdiscard(at, n),
            ):
                with pytest.raises(OSError, match="Input/output") as excinfo:
                    await request()
                assert excinfo.value.errno == errno.EIO
        assert memory.requests == []
        await backend.aclose()


async def test_permissions_are_given_back_with_the_backend(image: str) -> None:
    async with graph_of({"driver": "file", "node_name": "f", "filename": image}) as graph:
        alone = await graph.open_backend("f", READ | WRITE, READ)
        with pytest.raises(QmpError, match="Permission conflict on node 'f'"):
            await graph.open_backend("f", WRITE, Perm.ALL)
        await alone.aclose()
        await alone.aclose()
        again = await graph.open_backend("f", WRITE, Perm.ALL)
        with pytest.raises(QmpError, match="Permission conflict"):
            await graph.open_backend("f", READ, READ)
        await again.aclose()
        assert graph.find("f").cumulative == (Perm.NONE, Perm.ALL)
        assert graph.backends == []


async def test_a_backend_may_stop_sharing_only_what_nobody_uses(image: str) -> None:
    async with graph_of({"driver": "file", "node_name": "f", "filename": image}) as graph:
        writer = await graph.open_backend("f", WRITE, Perm.ALL)
        reader = await graph.open_backend("f", READ, Perm.ALL)
        with pytest.raises(QmpError, match="Permission conflict"):
            await reader.set_shared(READ)
        assert reader.edge.shared == Perm.ALL
        await reader.set_shared(READ | WRITE)
        for each in (reader, writer):
            await each.aclose()


async def test_resize_reaches_users_that_follow_and_is_refused_by_others(image: str) -> None:
    async with graph_of(
        {"driver": "file", "node_name": "f", "filename": image},
        {"driver": "raw", "node_name": "r", "file": "f"},
    ) as graph:
        export = await graph.open_backend("r", READ | WRITE, Perm.ALL & ~RESIZE)
        with pytest.raises(QmpError, match="'resize' are both required"):
            await graph.resize(graph.find("r"), 2 * SIZE)
        export.follows_resize = True
        lengths: list[int] = []
        export.on_resize.append(lambda: lengths.append(export.getlength()))
        await graph.resize(graph.find("r"), 2 * SIZE)
        assert lengths == [2 * SIZE]
        assert export.edge.shared == Perm.ALL & ~RESIZE
        assert len(content(image)) == 2 * SIZE
        data = bytearray(512)
        await export.preadv(2 * SIZE - 512, [memoryview(data)])
        assert data == bytes(512)
        await export.aclose()


async def test_a_failed_reopen_changes_nothing(image: str) -> None:
    async with graph_of(
        {"driver": "file", "node_name": "f", "filename": image},
        {"driver": "raw", "node_name": "r", "file": "f"},
        {"driver": "null-co", "node_name": "n", "size": SIZE},
    ) as graph:
        user = await graph.open_backend("r", READ | WRITE, Perm.ALL)
        with pytest.raises(QmpError, match="read-only"):
            await reopen(
                graph,
                [
                    options(driver="raw", node_name="r", file="n"),
                    options(driver="null-co", node_name="n", size=SIZE, read_only=True),
                ],
            )
        (edge,) = graph.find("r").children
        assert edge.node is graph.find("f")
        assert not graph.find("n").read_only
        assert not graph.find("n").parents
        await user.pwritev(0, [memoryview(b"still here")])
        await user.aclose()
    assert content(image).startswith(b"still here")


async def test_reopen_exchanges_the_child_under_a_user(image: str) -> None:
    async with graph_of(
        {"driver": "file", "node_name": "f", "filename": image},
        {"driver": "raw", "node_name": "r", "file": "f"},
    ) as graph:
        memory = await in_memory(graph, "m", MemoryDriver(b"m" * SIZE))
        user = await graph.open_backend("r", READ | WRITE, Perm.ALL)
        await reopen(graph, [options(driver="raw", node_name="r", file="m")])
        data = bytearray(8)
        await user.preadv(0, [memoryview(data)])
        assert data == b"m" * 8
        await user.pwritev(0, [memoryview(b"changed")])
        assert memory.data.startswith(b"changed")
        assert graph.find("f").cumulative[0] == Perm.NONE
        await user.aclose()
        await graph.del_node("f")


async def test_status_and_depth_of_a_plain_node(image: str) -> None:
    async with graph_of(
        {"driver": "file", "node_name": "f", "filename": image},
        {"driver": "raw", "node_name": "r", "file": "f"},
    ) as graph:
        backend = await graph.open_backend("r", READ, Perm.ALL)
        status = await backend.block_status_above(0, SIZE)
        assert status.flags & StatusFlag.DATA
        assert not status.flags & StatusFlag.ZERO
        assert await backend.allocation_depth(0, SIZE) == (1, SIZE)
        assert graph.find("r").child(ChildRole.COW) is None
        await backend.aclose()


async def test_what_a_create_job_cannot_have_is_closed_again(image: str) -> None:
    async with graph_of({"driver": "null-co", "node_name": "n"}) as graph:
        opener = graph.create_opener()
        inline = options(driver="file", filename=image, read_only=True)
        with pytest.raises(QmpError, match="read-only"):
            await opener.node(inline)
        assert list(graph.nodes) == ["n"]
        child = await opener.node(options(driver="file", filename=image))
        await child.pwritev(0, [memoryview(b"made")])
        assert len(graph.nodes) == 2
        await opener.aclose()
        assert list(graph.nodes) == ["n"]
    assert content(image).startswith(b"made")
