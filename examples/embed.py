"""Embed the daemon in a trio program: no process, no socket for QMP, several per process if need be."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import trio

import qsd_trio


async def export_image(directory: Path) -> None:
    image = directory / "disk.img"
    image.write_bytes(bytes(1 << 20))
    async with qsd_trio.open_daemon() as daemon:
        await daemon.qmp(
            "blockdev-add", {"driver": "file", "node-name": "disk", "filename": str(image)}
        )
        address = {"type": "unix", "data": {"path": str(directory / "nbd.sock")}}
        await daemon.qmp("nbd-server-start", {"addr": address})
        await daemon.qmp(
            "block-export-add",
            {"type": "nbd", "id": "export", "node-name": "disk", "writable": True},
        )
        print(await daemon.qmp("query-block-exports"))
        async with await trio.open_unix_socket(directory / "nbd.sock") as client:
            greeting = await client.receive_some(8)
            print(f"the server says {greeting!r}")
    print("left: the export, the server and the node are closed")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="qsd-") as directory:
        trio.run(export_image, Path(directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
