"""Start a daemon with a QMP socket that already listens: no waiting, no polling.

The program of qemu-storage-daemon(1), with another daemon. The socket is made here and handed over by its
number, so the connection succeeds at once, whenever the daemon gets to it; if the daemon could not start,
nobody has the socket open any more and connecting fails.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    program = Path(sys.executable).parent / "qsd-trio"
    with tempfile.TemporaryDirectory(prefix="qsd-") as directory:
        sock_path = os.path.join(directory, "qmp.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listen_sock:
            listen_sock.bind(sock_path)
            listen_sock.listen()
            fd = listen_sock.fileno()
            daemon = subprocess.Popen(
                [
                    program,
                    "--chardev",
                    f"socket,fd={fd},server=on,id=char1",
                    "--monitor",
                    "chardev=char1",
                ],
                pass_fds=[fd],
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as qmp_sock:
            qmp_sock.connect(sock_path)
            with qmp_sock.makefile("rw") as qmp:
                print(qmp.readline(), end="")  # the greeting
                for command in ("qmp_capabilities", "query-version", "quit"):
                    qmp.write(json.dumps({"execute": command}) + "\n")
                    qmp.flush()
                    print(qmp.readline(), end="")
        return daemon.wait(30)


if __name__ == "__main__":
    sys.exit(main())
