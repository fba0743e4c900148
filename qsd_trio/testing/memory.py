"""A block node in memory, and what else a driver needs to be opened without a graph."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar, final

import trio

from qsd_trio.block.abc import (
    SECTOR,
    BlockStatus,
    ChildRole,
    Limits,
    Perm,
    ProtocolDriver,
    ReqFlag,
    StatusFlag,
)
from qsd_trio.block.dirty_bitmaps import DirtyBitmaps
from qsd_trio.block.io import Edge, Node
from qsd_trio.block.options import NodeFlags
from qsd_trio.errors import QmpError, os_error
from qsd_trio.events import EventBus

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
    from typing import Self

    from qsd_trio.block.abc import BlockDriver, BlockNode, Child, Iov, Opener
    from qsd_trio.untyped import Json, Options

T = TypeVar("T")


@final
class MemoryDriver(ProtocolDriver):
    """An image in a bytearray. What it is asked is counted; it can be told to fail or to be slow.

    ``fail`` maps a request's name ("preadv", "flush" ...) to the errno it raises. While ``hold`` is
    set to an event, requests wait for it first. ``durable`` is what a crash would leave: the content at
    the last flush. Unwritten sectors are holes, for block_status. What lies between the end and a write beyond
    it reads as ``grow_by``: with another byte than zero the image is as one that is encrypted below.
    """

    format_name = "memory"

    def __init__(self, content: bytes | int = b"", *, alignment: int = 1) -> None:
        """Hold ``content``, or as many zeroes."""
        self.data = bytearray(content)
        self.durable = bytes(self.data)
        self.alignment = alignment
        self.fail: dict[str, int] = {}
        self.hold: trio.Event | None = None
        self.grow_by = b"\0"
        self.requests: list[tuple[str, int, int]] = []
        self._allocated = {
            at for at in range(0, len(self.data), SECTOR) if any(self.data[at : at + SECTOR])
        }

    @classmethod
    async def open(cls, opener: Opener, options: Options) -> Self:
        """Not by options: make one and attach it."""
        raise QmpError("a memory image has no options")

    async def aclose(self) -> None:
        """Hold nothing, release nothing."""

    def getlength(self) -> int:
        """Return the length."""
        return len(self.data)

    def limits(self) -> Limits:
        """Take all there is."""
        return Limits(
            request_alignment=self.alignment,
            can_write_zeroes=True,
            can_discard=True,
            zero_flags=ReqFlag.MAY_UNMAP | ReqFlag.NO_FALLBACK,
            write_flags=ReqFlag.FUA,
        )

    def has_zero_init(self) -> bool:
        """Read as zeroes where nothing was written, unless told otherwise."""
        return self.grow_by == b"\0"

    async def _enter(self, name: str, offset: int, length: int) -> None:
        assert offset % self.alignment == 0, f"{name} at {offset} is not aligned"
        assert length % self.alignment == 0, f"{name} of {length} bytes is not aligned"
        await trio.lowlevel.checkpoint()
        if self.hold is not None:
            await self.hold.wait()
        self.requests.append((name, offset, length))
        if name in self.fail:
            raise os_error(self.fail[name])

    def _grow(self, end: int) -> None:
        if end > len(self.data):
            self.data += self.grow_by * (end - len(self.data))

    def _sectors(self, offset: int, length: int) -> range:
        return range(offset // SECTOR * SECTOR, offset + length, SECTOR)

    async def preadv(self, offset: int, iov: Iov) -> None:
        """Read."""
        await self._enter("preadv", offset, sum(map(len, iov)))
        for piece in iov:
            part = self.data[offset : offset + len(piece)]
            piece[:] = part + bytes(len(piece) - len(part))
            offset += len(piece)

    async def pwritev(self, offset: int, iov: Iov, flags: ReqFlag) -> None:
        """Write; beyond the end the image grows."""
        length = sum(map(len, iov))
        await self._enter("pwritev", offset, length)
        self._allocated.update(self._sectors(offset, length))
        self._grow(offset + length)
        for piece in iov:
            self.data[offset : offset + len(piece)] = piece
            offset += len(piece)
        if flags & ReqFlag.FUA:
            self.durable = bytes(self.data)

    async def pwrite_zeroes(self, offset: int, length: int, flags: ReqFlag) -> None:
        """Zero; with MAY_UNMAP whole sectors become holes."""
        await self._enter("pwrite_zeroes", offset, length)
        self._grow(offset + length)
        self.data[offset : offset + length] = bytes(length)
        if flags & ReqFlag.MAY_UNMAP:
            self._drop(offset, length)
        else:
            self._allocated.update(self._sectors(offset, length))

    async def pdiscard(self, offset: int, length: int) -> None:
        """Make whole sectors holes."""
        await self._enter("pdiscard", offset, length)
        length = min(length, len(self.data) - offset)
        self.data[offset : offset + length] = bytes(length)
        self._drop(offset, length)

    def _drop(self, offset: int, length: int) -> None:
        for at in self._sectors(offset, length):
            if at >= offset and at + SECTOR <= offset + length:
                self._allocated.discard(at)

    async def flush(self) -> None:
        """Note what is durable now."""
        await self._enter("flush", 0, 0)
        self.durable = bytes(self.data)

    async def block_status(self, offset: int, length: int, *, want_zero: bool) -> BlockStatus:
        """Tell data from holes, by sectors."""
        await self._enter("block_status", 0, 0)
        data = offset // SECTOR * SECTOR in self._allocated
        end = (offset // SECTOR + 1) * SECTOR
        while end < offset + length and (end in self._allocated) == data:
            end += SECTOR
        flags = StatusFlag.DATA if data else StatusFlag.ZERO
        flags |= StatusFlag.OFFSET_VALID | StatusFlag.ALLOCATED
        return BlockStatus(flags, min(end, offset + length) - offset, None, offset)

    async def truncate(self, size: int, *, exact: bool, prealloc: str, flags: ReqFlag) -> None:
        """Cut or grow."""
        await self._enter("truncate", 0, 0)
        del self.data[size:]
        self._grow(size)
        self._allocated = {at for at in self._allocated if at < size}


def memory_node(
    content: bytes | int = b"",
    *,
    alignment: int = 1,
    node_name: str = "memory",
    read_only: bool = False,
) -> Node:
    """Return an open node over a ``MemoryDriver``, behind the real gate."""
    return node_over(
        MemoryDriver(content, alignment=alignment), node_name=node_name, read_only=read_only
    )


def node_over(
    driver: BlockDriver,
    *,
    node_name: str = "node",
    read_only: bool = False,
    bitmaps: DirtyBitmaps | None = None,
) -> Node:
    """Put the real gate before an open ``driver``, with all permissions and ``discard=unmap``.

    ``bitmaps`` are those of the opener, if the driver may have added some.
    """
    node = Node(
        node_name,
        driver.format_name,
        NodeFlags(read_only=read_only, discard_unmap=True),
        EventBus(),
        bitmaps,
    )
    node.cumulative = (Perm.ALL, Perm.ALL)
    node.attach_driver(driver)
    return node


def child_of(node: Node, name: str = "file", role: ChildRole = ChildRole.IMAGE) -> Child:
    """Return an edge to ``node``, as an opener would give it."""
    return Edge(name, role, node, None, lambda: "a test", Perm.ALL, Perm.ALL)


@final
class FakeOpener:
    """An Opener without a graph: children are nodes that the test made.

    ``children`` maps child names to nodes; a driver asks for them by name, whatever its options say.
    """

    def __init__(
        self,
        children: Mapping[str, Node] | None = None,
        *,
        node_name: str = "node",
        read_only: bool = False,
        auto_read_only: bool = False,
        cache_direct: bool = False,
        objects: Mapping[str, object] | None = None,
    ) -> None:
        self.children = dict(children or {})
        self.node_name = node_name
        self.read_only = read_only
        self.auto_read_only = auto_read_only
        self.force_share = False
        self.cache_direct = cache_direct
        self.cache_no_flush = False
        self.discard_unmap = True
        self.objects = dict(objects or {})
        self.bitmaps = DirtyBitmaps()
        self.events: list[tuple[str, dict[str, Json]]] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.backing_asked: tuple[str | None, str | None] | None = None

    def make_read_only(self, message: str) -> None:
        """Become read-only if that is allowed."""
        if not self.read_only:
            if not self.auto_read_only:
                raise QmpError(message)
            self.read_only = True

    async def child(self, name: str, reference: Options, role: ChildRole) -> Child:
        """Return an edge to the child the test gave."""
        await trio.lowlevel.checkpoint()
        if name not in self.children:
            raise QmpError(f"the test gave no child '{name}'")
        return child_of(self.children[name], name, role)

    async def backing(
        self, reference: Options, filename: str | None, format_: str | None
    ) -> Child | None:
        """Return an edge to child ``backing``, if the test gave one; note what was asked for."""
        self.backing_asked = (filename, format_)
        if "backing" not in self.children:
            await trio.lowlevel.checkpoint()
            return None
        return await self.child("backing", reference, ChildRole.COW)

    async def data_file(self, reference: Options, filename: str | None) -> Child | None:
        """Return an edge to child ``data-file``, if the test gave one."""
        if "data-file" not in self.children:
            await trio.lowlevel.checkpoint()
            return None
        return await self.child("data-file", reference, ChildRole.DATA)

    def object(self, id_: str, type_: type[T]) -> T:
        """Return the object the test gave."""
        found = self.objects.get(id_)
        if not isinstance(found, type_):
            raise QmpError(f"the test gave no object '{id_}'")
        return found

    def freeze_chain(self, top: BlockNode, bottom: str) -> tuple[BlockNode, Callable[[], None]]:
        """Return the node of that name below ``top``: nobody changes links here."""
        node: BlockNode | None = top
        while node is not None and node.node_name != bottom:
            node = node.below()
        if node is None:
            raise QmpError(f"Bottom node '{bottom}' not found")
        return node, lambda: None

    def every(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        """Keep the function in ``timers``, as long as it is to be called."""
        timer = (seconds, function)
        self.timers.append(timer)
        return lambda: self.timers.remove(timer)

    def emit(self, event: str, **data: Json) -> None:
        """Keep the event."""
        self.events.append((event, data))


@asynccontextmanager
async def opened(
    driver: type[BlockDriver],
    options: Options,
    children: Mapping[str, Node] | None = None,
    *,
    read_only: bool = False,
    auto_read_only: bool = False,
    cache_direct: bool = False,
    objects: Mapping[str, object] | None = None,
) -> AsyncGenerator[Node]:
    """Open a driver over ``children``; leave: flush and close it."""
    opener = FakeOpener(
        children,
        read_only=read_only,
        auto_read_only=auto_read_only,
        cache_direct=cache_direct,
        objects=objects,
    )
    open_driver = await driver.open(opener, options)
    node = node_over(open_driver, read_only=opener.read_only, bitmaps=opener.bitmaps)
    try:
        yield node
    finally:
        with trio.CancelScope(shield=True):
            try:
                await node.flush()
            finally:
                await open_driver.aclose()


def pattern(length: int, seed: int = 1) -> bytes:
    """Return bytes that differ from place to place and seed to seed."""
    return bytes(_pattern_bytes(length, seed))


def _pattern_bytes(length: int, seed: int) -> Iterator[int]:
    value = seed * 2654435761 % 2**32 or 1
    for _ in range(length):
        value = (value * 1664525 + 1013904223) % 2**32
        yield value >> 24 | 1  # never zero: a hole cannot be mistaken for it
