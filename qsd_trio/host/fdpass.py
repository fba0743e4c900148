"""Unix sockets that pass descriptors, and what is usually passed: memory and event descriptors."""

from __future__ import annotations

import array
import errno
import mmap
import os
import socket
from typing import TYPE_CHECKING

from qsd_trio.errors import os_error

if TYPE_CHECKING:
    from collections.abc import Sequence

_INT_SIZE = array.array("i").itemsize


def receive_now(sock: socket.socket, size: int, max_fds: int) -> tuple[bytes, list[int]]:
    """Receive at most ``size`` bytes and the descriptors that come with them, which are the caller's then.

    BlockingIOError: nothing is there. OSError(EMSGSIZE): there were more descriptors; none is left open.
    """
    # Room for one more: surplus ones are noticed, also where the kernel would cut them off quietly.
    data, ancillary, flags, _ = sock.recvmsg(
        size, socket.CMSG_SPACE((max_fds + 1) * _INT_SIZE), socket.MSG_CMSG_CLOEXEC
    )
    fds: list[int] = []
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received = array.array("i")
            received.frombytes(content[: len(content) - len(content) % _INT_SIZE])
            fds += received
    if flags & socket.MSG_CTRUNC or len(fds) > max_fds:
        close_all(fds)
        raise os_error(errno.EMSGSIZE)
    return data, fds


def send_now(sock: socket.socket, data: bytes | memoryview, fds: Sequence[int] = ()) -> int:
    """Send what fits of ``data``, with ``fds``; return how much that was. BlockingIOError: nothing."""
    if not fds:
        return sock.send(data)
    return socket.send_fds(sock, [data], list(fds))


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def map_shared(fd: int, length: int) -> memoryview:
    """Map the first ``length`` bytes of ``fd``, to read and write; ``fd`` stays the caller's.

    The mapping goes when the last view of it does. Raises OSError, also if the file is shorter.
    """
    try:
        mapped = mmap.mmap(fd, length)
    except (ValueError, OverflowError) as exc:  # longer than the file, or than any address
        raise os_error(errno.EINVAL, str(exc)) from None
    return memoryview(mapped)


def signal_event(fd: int) -> None:
    """Add 1 to an event descriptor that does not block. OSError: it is none."""
    try:
        os.write(fd, b"\1\0\0\0\0\0\0\0" if _LITTLE else b"\0\0\0\0\0\0\0\1")
    except BlockingIOError:
        pass  # it has been signalled often enough


_LITTLE = memoryview(b"\1\0").cast("H")[0] == 1
