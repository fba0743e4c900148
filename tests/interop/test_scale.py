"""Many exports, many clients, and clients that do nothing: one daemon holds them all."""

from __future__ import annotations

import resource
import socket
from pathlib import Path

import pytest
import trio

from qsd_trio.testing.nbd_client import connect_nbd
from tests.oracle import OURS, Daemon

NODES = 100
EXPORTS = 1000
CLIENTS = 200
SIZE = 1 << 20


def _content(node: int) -> bytes:
    return b"%08d" % node * 64


def test_a_thousand_exports_of_a_hundred_nodes(sock_dir: Path) -> None:
    for node in range(NODES):
        (sock_dir / f"{node}.img").write_bytes(_content(node).ljust(SIZE, b"\0"))
    with Daemon(OURS, ["--nbd-server", "addr.type=unix,addr.path=nbd.sock"], sock_dir) as daemon:
        qmp = daemon.qmp
        for node in range(NODES):
            qmp.command(
                "blockdev-add",
                **{"driver": "file", "node-name": f"n{node}", "filename": f"{node}.img"},
            )
        for export in range(EXPORTS):
            qmp.command(
                "block-export-add",
                type="nbd",
                id=f"e{export}",
                name=f"disk{export}",
                **{"node-name": f"n{export % NODES}"},
            )
        assert len(qmp.command("query-block-exports")) == EXPORTS

        async def read_all() -> None:
            async with trio.open_nursery() as nursery:
                for worker in range(10):
                    nursery.start_soon(read_some, range(worker, EXPORTS, 37))

        async def read_some(exports: range) -> None:
            for export in exports:
                async with connect_nbd(sock_dir / "nbd.sock", f"disk{export}") as client:
                    assert await client.pread(0, 512) == _content(export % NODES)
                    assert await client.pread(SIZE - 512, 512) == bytes(512)

        trio.run(read_all)
        for export in range(EXPORTS):
            qmp.command("block-export-del", id=f"e{export}")
        for _ in range(EXPORTS):
            qmp.wait_event("BLOCK_EXPORT_DELETED")
        for node in range(NODES):
            qmp.command("blockdev-del", **{"node-name": f"n{node}"})
        assert qmp.command("query-named-block-nodes") == []


ONE_EXPORT = [
    *("--blockdev", "file,node-name=disk,filename=disk.img"),
    *("--nbd-server", "addr.type=unix,addr.path=nbd.sock,max-connections=0"),
    *("--export", "nbd,id=e,node-name=disk,writable=on"),
]


def test_two_hundred_clients_at_once(sock_dir: Path) -> None:
    (sock_dir / "disk.img").write_bytes(bytes(SIZE))
    with Daemon(OURS, ONE_EXPORT, sock_dir):

        async def main() -> None:
            together = trio.Event()
            connected = 0

            async def client(number: int) -> None:
                nonlocal connected
                async with connect_nbd(sock_dir / "nbd.sock", "disk") as nbd:
                    connected += 1
                    if connected == CLIENTS:
                        together.set()
                    await together.wait()
                    await nbd.pwrite(number * 4096, bytes([number]) * 4096)
                    assert await nbd.pread(number * 4096, 4096) == bytes([number]) * 4096

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for number in range(CLIENTS):
                        nursery.start_soon(client, number)

        trio.run(main)
    data = (sock_dir / "disk.img").read_bytes()
    assert data[: CLIENTS * 4096] == b"".join(bytes([n]) * 4096 for n in range(CLIENTS))


def test_stalled_handshakes_keep_nobody_out(sock_dir: Path) -> None:
    (sock_dir / "disk.img").write_bytes(bytes(SIZE))
    argv = [word.replace(",max-connections=0", "") for word in ONE_EXPORT]
    with Daemon(OURS, argv, sock_dir) as daemon:
        stalled = []
        try:
            for _ in range(120):
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(str(sock_dir / "nbd.sock"))
                stalled.append(sock)

            async def good() -> None:
                with trio.fail_after(5):
                    async with connect_nbd(sock_dir / "nbd.sock", "disk") as nbd:
                        assert await nbd.pread(0, 4096) == bytes(4096)

            trio.run(good)
        finally:
            for sock in stalled:
                sock.close()
        assert daemon.qmp.command("query-block-exports")[0]["id"] == "e"


def test_out_of_descriptors_is_a_warning_and_passes(sock_dir: Path) -> None:
    (sock_dir / "disk.img").write_bytes(bytes(SIZE))
    with Daemon(OURS, ONE_EXPORT, sock_dir) as daemon:
        # What it has, and eight more.
        limit = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())) + 8
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (limit, limit))
        crowd = []
        for _ in range(20):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(sock_dir / "nbd.sock"))
            crowd.append(sock)
        crowd[0].settimeout(5)
        assert crowd[0].recv(8) == b"NBDMAGIC"
        crowd[-1].settimeout(0.5)
        with pytest.raises(TimeoutError):
            crowd[-1].recv(8)
        assert daemon.qmp.command("query-block-exports")[0]["id"] == "e"
        for sock in crowd[:-1]:
            sock.close()
        crowd[-1].settimeout(5)
        assert crowd[-1].recv(8) == b"NBDMAGIC"
        crowd[-1].close()
    assert daemon.stderr.count("Too many open files") == 1
