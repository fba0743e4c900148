"""The socket of an NBD client in the transmission phase: whole replies out, time slices kept."""

from __future__ import annotations

import socket
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Final, final

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

    Buffer = bytes | bytearray | memoryview

#: Seconds of serving without giving way to the other tasks of the loop (monitors must answer).
TIME_SLICE: Final = 0.0005


class ClientGone(ConnectionError):
    """The connection broke while a reply was sent, or must be broken in the middle of one."""


@final
class Wire:
    """A non-blocking socket, owned by the caller, on which tasks take turns to send.

    ``lock`` is held by whoever must wait in the middle of a reply, so that replies never interleave.
    ``slice_end`` is when (``perf_counter``) the task that serves has to let others run.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lock = trio.Lock()
        self.stopping = False
        self.slice_end = 0.0
        # On loopback TCP sendfile is slower than a copy; on unix sockets the pages move by reference.
        self.by_sendfile = sock.family == socket.AF_UNIX

    def stop(self) -> None:
        """Receive no more; wakes whoever waits for that."""
        self._shutdown(socket.SHUT_RD)

    def abort(self) -> None:
        """Send no more either."""
        self._shutdown(socket.SHUT_RDWR)

    def _shutdown(self, how: int) -> None:
        self.stopping = True
        try:
            self.sock.shutdown(how)
        except OSError:
            pass  # the client was quicker

    # -- time ----------------------------------------------------------------------------------------

    def begin_slice(self) -> None:
        """Note that others have just had their turn."""
        self.slice_end = perf_counter() + TIME_SLICE

    async def give_way(self) -> None:
        """Let others run if the time slice is over."""
        if perf_counter() > self.slice_end:
            await trio.lowlevel.checkpoint()
            self.begin_slice()

    # -- receiving -----------------------------------------------------------------------------------

    async def wait_readable(self) -> None:
        """Wait for data, the client's end, or ``stop()``."""
        await trio.lowlevel.wait_readable(self.sock)
        self.begin_slice()

    async def receive_into(self, view: memoryview) -> int:
        """Receive at least a byte; 0: there will be none."""
        while not self.stopping:
            try:
                return self.sock.recv_into(view)
            except BlockingIOError:
                await self.wait_readable()
        return 0

    # -- sending -------------------------------------------------------------------------------------

    async def acquire(self) -> None:
        """Take the lock, without a checkpoint if it is free."""
        if self.lock.locked():
            await self.lock.acquire()
        else:
            self.lock.acquire_nowait()

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Send the buffers as one reply; they may be used again on return. Raises ClientGone.

        No checkpoint if the socket takes it all. Cancelled: the connection is of no more use.
        """
        await self.acquire()
        try:
            await self.send_locked(buffers)
        finally:
            self.lock.release()

    async def send_locked(self, buffers: Sequence[Buffer]) -> None:
        """Send a part of a reply; the caller holds the lock."""
        left: deque[memoryview] | None = None
        while True:
            try:
                sent = self.sock.sendmsg(left or buffers)
            except BlockingIOError:
                sent = 0
            except ConnectionError as exc:
                raise ClientGone from exc
            if left is None:
                if sent == sum(map(len, buffers)):
                    return
                left = deque([memoryview(buffer) for buffer in buffers])
            while left and sent >= len(left[0]):
                sent -= len(left.popleft())
            if not left:
                return
            left[0] = left[0][sent:]
            await self.wait_writable()

    async def wait_writable(self) -> None:
        """Wait until the socket takes more, or is broken."""
        await trio.lowlevel.wait_writable(self.sock)
        self.begin_slice()
