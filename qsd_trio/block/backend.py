"""How exports and jobs hold a node."""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, final

import trio

from qsd_trio import trace
from qsd_trio.block.abc import BlockStatus, ReqFlag, StatusFlag
from qsd_trio.errors import os_error
from qsd_trio.iov import iov_size

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from qsd_trio.block.abc import Extents, Iov, Limits, Perm
    from qsd_trio.block.graph import BlockGraph
    from qsd_trio.block.io import Edge, Node

ALLOCATED, DATA, ZERO, EOF = (
    StatusFlag.ALLOCATED,
    StatusFlag.DATA,
    StatusFlag.ZERO,
    StatusFlag.EOF,
)


# Of the slow path: what an export does on extents is its own to trace.
_trace_read = trace.point("blk_co_preadv")
_trace_write = trace.point("blk_co_pwritev")
_trace_zeroes = trace.point("blk_co_pwrite_zeroes")
_trace_discard = trace.point("blk_co_pdiscard")
_trace_flush = trace.point("blk_co_flush")


@final
class BlockBackend:
    """The root of a node's users: an export, a job or a command.

    Counts what is in flight, and holds requests back while a node below is drained. Requests raise
    OSError; one beyond the end raises EIO and does nothing.
    """

    def __init__(self, graph: BlockGraph, edge: Edge, name: str) -> None:
        self.name = name
        self.in_flight = 0
        #: Whether block_resize may change the length under this user, although it does not share that
        #: permission: an NBD export, whose new clients see the new length. (The real daemon refuses.)
        self.follows_resize = False
        #: Called, without arguments, after the node's length has changed.
        self.on_resize: list[Callable[[], None]] = []
        self._graph = graph
        self._edge = edge
        self._drains = 0
        self._closed = False
        self._wake: trio.Event | None = None  # set when drained, or when idle while draining
        edge.node.on_resize.append(self._resized)

    @property
    def node(self) -> Node:
        """The node at the root."""
        return self._edge.node

    @property
    def edge(self) -> Edge:
        """The edge that carries the permissions."""
        return self._edge

    @property
    def read_only(self) -> bool:
        """Whether writes are refused by the node."""
        return self.node.read_only

    def getlength(self) -> int:
        """Return the length in bytes, a multiple of 512."""
        return self.node.getlength()

    def limits(self) -> Limits:
        """Return the node's limits."""
        return self.node.limits()

    def _resized(self) -> None:
        for callback in tuple(self.on_resize):
            callback()

    # -- the fast path -------------------------------------------------------------------------------

    def map_read(self, offset: int, length: int) -> Extents | None:
        """Say where the bytes are on the host, or None: use ``preadv``. Not valid after an await."""
        if self._drains:
            return None
        return self._edge.node.map_read(offset, length)

    def map_write(self, offset: int, length: int) -> Extents | None:
        """Say where to write the whole range at once, or None: use ``pwritev``."""
        if self._drains:
            return None
        return self._edge.node.map_write(offset, length)

    # -- the slow path -------------------------------------------------------------------------------

    @asynccontextmanager
    async def _request(self, offset: int, length: int) -> AsyncGenerator[Node]:
        while self._drains:
            assert self._wake is not None
            await self._wake.wait()
        if offset < 0 or length < 0 or offset + length > self.node.getlength():
            raise os_error(errno.EIO)
        self.in_flight += 1
        try:
            yield self.node
        finally:
            self.in_flight -= 1
            if self._drains and not self.in_flight:
                self._graph.backend_idle()

    async def preadv(self, offset: int, iov: Iov) -> None:
        """Fill ``iov`` from ``offset``."""
        async with self._request(offset, iov_size(iov)) as node:
            if _trace_read.on:
                _trace_read(self.name, node.node_name, offset, iov_size(iov), 0)
            await node.preadv(offset, iov)

    async def pwritev(self, offset: int, iov: Iov, flags: ReqFlag = ReqFlag.NONE) -> None:
        """Write ``iov`` at ``offset``."""
        async with self._request(offset, iov_size(iov)) as node:
            if _trace_write.on:
                _trace_write(self.name, node.node_name, offset, iov_size(iov), flags)
            await node.pwritev(offset, iov, flags)

    async def pwrite_zeroes(self, offset: int, length: int, flags: ReqFlag = ReqFlag.NONE) -> None:
        """Make the range read as zeroes."""
        async with self._request(offset, length) as node:
            if _trace_zeroes.on:
                _trace_zeroes(self.name, node.node_name, offset, length, flags)
            await node.pwrite_zeroes(offset, length, flags)

    async def pdiscard(self, offset: int, length: int) -> None:
        """Deallocate the range."""
        async with self._request(offset, length) as node:
            if _trace_discard.on:
                _trace_discard(self.name, node.node_name, offset, length)
            await node.pdiscard(offset, length)

    async def flush(self) -> None:
        """Put on stable storage what has been written."""
        async with self._request(0, 0) as node:
            if _trace_flush.on:
                _trace_flush(self.name, node.node_name)
            await node.flush()

    async def prefetch(self, offset: int, length: int) -> None:
        """Bring the range into the page cache."""
        async with self._request(offset, length) as node:
            await node.prefetch(offset, length)

    async def block_status(
        self, offset: int, length: int, *, want_zero: bool = True
    ) -> BlockStatus:
        """Describe the first bytes of the range as the top layer sees it."""
        async with self._request(offset, length) as node:
            return await node.block_status(offset, length, want_zero=want_zero)

    async def block_status_above(self, offset: int, length: int) -> BlockStatus:
        """Describe the first bytes of the range as a reader sees it, through the backing chain."""
        async with self._request(offset, length) as node:
            return await _status_above(node, offset, length)

    async def allocation_depth(self, offset: int, length: int) -> tuple[int, int]:
        """Return (depth, length): the layer that holds the first bytes; 1: the top, 0: none."""
        async with self._request(offset, length) as top:
            node: Node | None = top
            depth = 0
            while node is not None:
                status = await node.block_status(offset, length, want_zero=False)
                depth += 1
                if (
                    not status.length
                ):  # a shorter backing file: below its end the zeroes are its own
                    return depth, length
                length = status.length
                if status.flags & ALLOCATED:
                    return depth, length
                node = node.below()
            return 0, length

    async def truncate(self, size: int, *, exact: bool = False, prealloc: str = "off") -> None:
        """Change the node's length (needs the resize permission)."""
        async with self._request(0, 0) as node:
            await node.truncate(size, exact=exact, prealloc=prealloc)

    # -- draining and the end ------------------------------------------------------------------------

    def begin_drain(self) -> None:
        """Hold new requests back; the graph waits for those in flight."""
        if not self._drains:
            self._wake = trio.Event()
        self._drains += 1

    def end_drain(self) -> None:
        """Let requests through again."""
        self._drains -= 1
        if not self._drains and self._wake is not None:
            self._wake.set()
            self._wake = None

    async def set_shared(self, shared: Perm) -> None:
        """Change what other users may do; QmpError if one does it already."""
        await self._graph.set_backend_shared(self, shared)

    async def add_permissions(self, perm: Perm) -> None:
        """Take more permissions; QmpError if another user does not share them."""
        await self._graph.add_backend_permissions(self, perm)

    def detached(self) -> None:
        """Note that the graph has taken the backend off its node."""
        self._closed = True
        self.node.on_resize.remove(self._resized)

    async def aclose(self) -> None:
        """Give the node and the permissions back. Idempotent; runs to its end when cancelled."""
        if not self._closed:
            self._closed = True
            await self._graph.close_backend(self)


async def _status_above(top: Node, offset: int, length: int) -> BlockStatus:
    status = await top.block_status(offset, length)
    eof_at = offset + status.length if status.flags & EOF else None
    node = top
    while status.length and not status.flags & ALLOCATED:
        below = node.below()
        if below is None:
            break
        length = status.length
        node = below
        status = await node.block_status(offset, length)
        if not status.length:  # the top layer is longer than this one
            status = BlockStatus(ZERO | ALLOCATED, length)
    if status.flags & EOF and offset + status.length != eof_at:
        status = BlockStatus(status.flags & ~EOF, status.length, status.file, status.offset)
    return status
