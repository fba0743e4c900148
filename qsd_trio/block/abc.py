"""The contract of a block driver, and the words it is written in.

A driver sits below the gate (block/io.py): requests that reach it are in range, aligned to its
``limits()`` and permitted. It raises plain OSError and never swallows one. It reaches its children only
through the ``Child`` edges that its ``Opener`` gave it, and those go through the gate again.

Units: ``offset`` and ``length`` are bytes. An ``Iov`` is a sequence of memoryviews of format "B".
"""

from __future__ import annotations

import enum
import errno
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias, TypeVar, final

import attrs

from qsd_trio.errors import QmpError, os_error
from qsd_trio.registry import block_drivers, create_drivers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from typing import Self

    from qsd_trio.block.dirty_bitmaps import DirtyBitmaps
    from qsd_trio.block.extentfile import ExtentFile
    from qsd_trio.block.snapshots import SnapshotStore
    from qsd_trio.untyped import Json, Options

    Iov: TypeAlias = Sequence[memoryview]
    #: A piece of a mapped range: where its bytes are on the host. A file of None means zeroes.
    Extent: TypeAlias = tuple[ExtentFile | None, int, int]  # (file, host offset, length)
    Extents: TypeAlias = Sequence[Extent]


SECTOR = 512  # granularity of a node's length, as QEMU's BDRV_SECTOR_SIZE
MAX_REQUEST = 2**31 - 512  # QEMU's BDRV_REQUEST_MAX_BYTES: longer I/O is split above the gate


class ReqFlag(enum.IntFlag):
    """Modifiers of write requests."""

    NONE = 0
    FUA = 1  # on stable storage when the request returns
    MAY_UNMAP = 2  # pwrite_zeroes may deallocate
    NO_FALLBACK = 4  # pwrite_zeroes must be fast or fail with ENOTSUP
    WRITE_COMPRESSED = 8
    #: The visible content does not change (copy on read): a driver that honours it writes only where the
    #: content comes from its backing file, so that it may have been overwritten meanwhile.
    WRITE_UNCHANGED = 16
    ZERO_WRITE = 32  # truncate: the grown part must read as zeroes


class ChildRole(enum.IntFlag):
    """What a child is to its parent (QEMU's BdrvChildRole)."""

    NONE = 0
    DATA = 1
    METADATA = 2
    FILTERED = 4
    COW = 8
    PRIMARY = 16
    IMAGE = DATA | METADATA | PRIMARY


class Perm(enum.IntFlag):
    """Permissions on a node (QEMU's BLK_PERM_*)."""

    NONE = 0
    CONSISTENT_READ = 1
    WRITE = 2
    WRITE_UNCHANGED = 4
    RESIZE = 8
    ALL = 15


class StatusFlag(enum.IntFlag):
    """What is known of a range (QEMU's BDRV_BLOCK_*)."""

    NONE = 0
    DATA = 1  # reads come from this layer's data
    ZERO = 2  # reads as zeroes
    OFFSET_VALID = 4  # ``file`` and ``offset`` say where
    ALLOCATED = 8  # this layer decides the content (backing chains)
    EOF = 16  # the range ends at the end of the file
    RECURSE = 32  # ask ``file`` whether the data is in truth zero
    COMPRESSED = 64
    RAW = 128  # pure forwarding: ask ``file`` at ``offset`` instead


@final
@attrs.frozen
class BlockStatus:
    """The state of ``length`` bytes from where one asked; ``length`` is at least 1.

    ``file`` is the child node that holds the data, at ``offset`` there (with OFFSET_VALID).
    """

    flags: StatusFlag
    length: int
    file: BlockNode | None = None
    offset: int = 0


@final
@attrs.frozen(kw_only=True)
class Limits:
    """What a driver can take; the gate splits, pads and emulates accordingly (bytes)."""

    request_alignment: int = 1
    max_transfer: int = MAX_REQUEST
    max_pwrite_zeroes: int = MAX_REQUEST
    pwrite_zeroes_alignment: int = 1
    max_pdiscard: int = MAX_REQUEST
    pdiscard_alignment: int = 1
    opt_transfer: int = 0
    memory_alignment: int = 1  # of buffers (O_DIRECT)
    #: Flags that ``pwritev`` and ``pwrite_zeroes`` honour themselves: the gate emulates FUA by a flush
    #: and zeroes by writes where they are missing, and refuses WRITE_COMPRESSED.
    write_flags: ReqFlag = ReqFlag.NONE
    zero_flags: ReqFlag = ReqFlag.NONE
    can_write_zeroes: bool = False
    #: Whether ``pwrite_zeroes`` may be asked for less than its alignment: ENOTSUP if it matters.
    can_zero_parts: bool = False
    can_discard: bool = False


class Requests(Protocol):
    """The requests that a node takes, directly or through an edge."""

    def getlength(self) -> int:
        """Return the length in bytes, a multiple of SECTOR."""
        ...

    def map_read(self, offset: int, length: int) -> Extents | None: ...
    def map_write(self, offset: int, length: int) -> Extents | None: ...
    async def preadv(self, offset: int, iov: Iov) -> None: ...
    async def pwritev(self, offset: int, iov: Iov, flags: ReqFlag = ReqFlag.NONE) -> None: ...
    async def pwrite_zeroes(
        self, offset: int, length: int, flags: ReqFlag = ReqFlag.NONE
    ) -> None: ...
    async def pdiscard(self, offset: int, length: int) -> None: ...
    async def flush(self) -> None: ...
    async def block_status(
        self, offset: int, length: int, *, want_zero: bool = True
    ) -> BlockStatus: ...
    async def truncate(
        self,
        size: int,
        *,
        exact: bool = False,
        prealloc: str = "off",
        flags: ReqFlag = ReqFlag.NONE,
    ) -> None: ...


class BlockNode(Requests, Protocol):
    """A node as the others see it: its requests pass the gate (block/io.py: Node)."""

    @property
    def node_name(self) -> str: ...
    @property
    def driver(self) -> BlockDriver: ...
    @property
    def read_only(self) -> bool: ...
    def limits(self) -> Limits: ...
    def below(self) -> BlockNode | None:
        """Return the next layer of content: the backing or filtered child's node, if there is one."""
        ...

    async def prefetch(self, offset: int, length: int) -> None: ...


class Child(Requests, Protocol):
    """An edge from a node to its child: the child's requests, and the edge's name and role."""

    @property
    def name(self) -> str: ...
    @property
    def role(self) -> ChildRole: ...
    @property
    def node(self) -> BlockNode: ...


T = TypeVar("T")


class Objects(Protocol):
    """Where a driver finds user-creatable objects."""

    def object(self, id_: str, type_: type[T]) -> T:
        """Return the object ``id_`` of class ``type_``; QmpError if there is none."""
        ...


class Opener(Protocol):
    """What a driver may ask for while it opens. Children it took are closed if its opening fails."""

    @property
    def node_name(self) -> str: ...
    @property
    def read_only(self) -> bool:
        """Whether the node is opened read-only; a driver may turn it on by ``make_read_only``."""
        ...

    @property
    def auto_read_only(self) -> bool: ...
    @property
    def force_share(self) -> bool: ...
    @property
    def cache_direct(self) -> bool: ...
    @property
    def cache_no_flush(self) -> bool: ...
    @property
    def discard_unmap(self) -> bool:
        """Whether ``discard=unmap``: pdiscard requests reach the driver only then."""
        ...

    @property
    def bitmaps(self) -> DirtyBitmaps:
        """The node's dirty bitmaps: a format that stores some adds them here when it opens."""
        ...

    def make_read_only(self, message: str) -> None:
        """Fall back to read-only if ``auto-read-only`` allows it, else raise QmpError(message)."""
        ...

    async def child(self, name: str, reference: Options, role: ChildRole) -> Child:
        """Attach the child that a BlockdevRef (node name or options) names, opening it if inline."""
        ...

    async def backing(
        self, reference: Options, filename: str | None, format_: str | None
    ) -> Child | None:
        """Attach the backing child.

        ``reference`` is the option as given (None: absent, NULL: none wanted); ``filename`` and ``format_``
        are what the image's header says, opened only as a plain local name in the image's directory or an absolute path.
        """
        ...

    async def data_file(self, reference: Options, filename: str | None) -> Child | None:
        """Attach the child ``data-file`` (role DATA), after which ``file`` holds metadata only.

        ``reference`` is the option as given, ``filename`` what the image's header says, opened as a
        plain local file only. None if neither says anything.
        """
        ...

    def object(self, id_: str, type_: type[T]) -> T:
        """Return the user-creatable object ``id_`` of class ``type_``; QmpError if there is none."""
        ...

    def freeze_chain(self, top: BlockNode, bottom: str) -> tuple[BlockNode, Callable[[], None]]:
        """Keep the links from ``top`` down to node ``bottom`` from being changed.

        Returns the bottom node and what lets the links go; QmpError if there is no such node below, it
        is a filter, or one of the links is frozen.
        """
        ...

    def every(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        """Call ``function`` every ``seconds`` until what is returned is called."""
        ...

    def emit(self, event: str, **data: Json) -> None:
        """Emit a QMP event (BLOCK_IMAGE_CORRUPTED ...)."""
        ...


class BitmapStore(Protocol):
    """What a format offers that keeps dirty bitmaps in its image.

    It writes a node's persistent bitmaps by itself, when the image closes or becomes read-only.
    """

    def check_can_store(self, name: str, granularity: int) -> None:
        """Raise QmpError if a new bitmap could not be kept."""
        ...

    async def remove(self, name: str) -> None:
        """Remove a bitmap from the image, if it is there. Raises QmpError: it is still there."""
        ...


class BlockDriver(ABC):
    """One open image or filter. Subclass ``FormatDriver``, ``ProtocolDriver`` or ``FilterDriver``."""

    format_name: ClassVar[str]  # filled by @block_driver
    is_filter: ClassVar[bool] = False
    is_format: ClassVar[bool] = False
    supports_backing: ClassVar[bool] = False
    #: Whether there is an ``amend``.
    supports_amend: ClassVar[bool] = False
    #: Whether the format itself has compressed clusters, ``cluster-size`` bytes long when unpacked.
    can_compress: ClassVar[bool] = False
    #: Whether the node goes by the file name of its child, whatever that is.
    named_like_child: ClassVar[bool] = False
    #: Whether blockdev-reopen takes the node at all.
    supports_reopen: ClassVar[bool] = True
    #: Options that blockdev-reopen may change; others must keep their value.
    mutable_options: ClassVar[frozenset[str]] = frozenset()
    #: The backing child of a driver with ``supports_backing``; blockdev-reopen may exchange it.
    backing: Child | None = None
    #: The internal snapshots of an image that can have them.
    snapshots: SnapshotStore | None = None
    #: Where persistent dirty bitmaps are kept; None: the format cannot.
    bitmap_store: BitmapStore | None = None

    @classmethod
    @abstractmethod
    async def open(cls, opener: Opener, options: Options) -> Self:
        """Open the image that ``options`` (the generated BlockdevOptionsX) describe."""

    @abstractmethod
    async def aclose(self) -> None:
        """Flush what is cached and release everything but the children.

        Runs shielded by the caller. Errors are raised after everything is released.
        """

    @abstractmethod
    def getlength(self) -> int:
        """Return the length in bytes (need not be a multiple of SECTOR; the gate rounds up)."""

    def limits(self) -> Limits:
        """Return what the driver can take. May change only at open, reopen and truncate."""
        return Limits()

    def filename(self) -> str:
        """Return the name QEMU shows for the node: a path, a ``json:{...}`` name, or ''."""
        return ""

    def full_options(self) -> Mapping[str, Json]:
        """Return the options, besides ``driver`` and children, that define this node's content.

        They make up its ``json:`` name. Empty, and a driver over one child shows the child's name.
        """
        return {}

    def allocated_size(self) -> int | None:
        """Return how many bytes the image takes on the host, None: the sum of the children's."""
        return None

    def has_zero_init(self) -> bool:
        """Return whether a newly made image of this kind reads as zeroes."""
        return False

    # -- the fast path: no await, no I/O, no lock ------------------------------------------------

    def map_read(self, offset: int, length: int) -> Extents | None:
        """Say where the bytes are, or None: "ask the slow path". See DESIGN.md, Data plane."""
        return None

    def map_write(self, offset: int, length: int) -> Extents | None:
        """Say where bytes may be written at once, or None. Never a zero extent.

        Asking means that the whole range is written before anything else happens: a format driver may
        allocate here, from cached tables. The range may lie beyond the end for a parent with RESIZE: the
        write grows the file, and what it skips reads as zeroes. With a ``request_alignment`` above 1 the
        answer is for whole blocks only.
        """
        return None

    def allocated_now(self, offset: int, length: int) -> bool:
        """Say whether this layer, not its backing file, decides all content of the range.

        No await and no I/O: False may also mean that it takes a look at the image to know.
        """
        return not self.supports_backing

    # -- the slow path -----------------------------------------------------------------------------

    @abstractmethod
    async def preadv(self, offset: int, iov: Iov) -> None:
        """Fill ``iov`` from ``offset``. Cancelled: the buffers may hold anything."""

    async def pwritev(self, offset: int, iov: Iov, flags: ReqFlag) -> None:
        """Write ``iov`` at ``offset``. Cancelled: old, new or mixed data, metadata consistent."""
        raise os_error(errno.ENOTSUP)

    async def pwrite_zeroes(self, offset: int, length: int, flags: ReqFlag) -> None:
        """Make the range read as zeroes; ENOTSUP: the gate writes zeroes (unless NO_FALLBACK)."""
        raise os_error(errno.ENOTSUP)

    async def pdiscard(self, offset: int, length: int) -> None:
        """Deallocate the range, if possible."""
        raise os_error(errno.ENOTSUP)

    async def flush(self) -> None:
        """Put every write that has returned on stable storage (this layer and its children)."""

    async def block_status(self, offset: int, length: int, *, want_zero: bool) -> BlockStatus:
        """Describe the first bytes of the range; ``want_zero=False`` lets it skip costly look-ups."""
        return BlockStatus(StatusFlag.DATA | StatusFlag.ALLOCATED, length)

    async def truncate(self, size: int, *, exact: bool, prealloc: str, flags: ReqFlag) -> None:
        """Make the image ``size`` bytes long; ``prealloc`` is a PreallocMode value for the growth."""
        raise QmpError("Image format driver does not support resize")

    # -- the point in time that a copy-before-write filter keeps ---------------------------------------

    async def preadv_snapshot(self, offset: int, iov: Iov) -> None:
        """Fill ``iov`` with what was there at the point in time."""
        raise os_error(errno.ENOTSUP)

    async def snapshot_block_status(
        self, offset: int, length: int, *, want_zero: bool
    ) -> BlockStatus:
        """Describe the first bytes of the range at the point in time."""
        raise os_error(errno.ENOTSUP)

    async def pdiscard_snapshot(self, offset: int, length: int) -> None:
        """Note that nobody will ask again for the range at the point in time."""
        raise os_error(errno.ENOTSUP)

    # -- the control plane -------------------------------------------------------------------------

    def child_permissions(
        self, role: ChildRole, needed: Perm, shared: Perm, *, read_only: bool
    ) -> tuple[Perm, Perm]:
        """Return (needed, shared) on a child of ``role`` when the node's parents have these."""
        from qsd_trio.block.permissions import default_child_permissions

        return default_child_permissions(role, needed, shared, read_only=read_only)

    async def set_permissions(self, needed: Perm, shared: Perm) -> None:
        """Take notice that the parents now need and share these; take or drop image locks.

        Raises QmpError with nothing changed if a lock cannot be had.
        """

    async def reopen(self, opener: Opener, options: Options) -> Callable[[], Awaitable[None]]:
        """Prepare to change to ``options``; return the commit, which must not fail.

        Raising leaves the driver as it was. The default changes nothing and allows nothing to change.
        """

        async def commit() -> None:
            return

        return commit

    async def abort_reopen(self) -> None:
        """Go on as before a ``reopen`` that was prepared, but for another node's sake is not committed."""

    async def image_info(self) -> Mapping[str, Json]:
        """Return driver-specific members of ImageInfo, in QMP form (``format-specific``, ``cluster-size`` ...)."""
        return {}

    def driver_stats(self) -> Mapping[str, Json] | None:
        """Return ``driver-specific`` of query-blockstats, or None."""
        return None

    @property
    def encrypted(self) -> bool:
        """Whether the image's data are encrypted."""
        return False

    def set_amending(self, amending: bool) -> None:
        """Note whether ``amend`` may be called, for ``child_permissions``."""

    async def amend(self, objects: Objects, options: Options, *, force: bool) -> None:
        """Change the format's options (the generated BlockdevAmendOptionsX). Raises QmpError."""
        raise QmpError("Driver does not support x-blockdev-amend")

    def backing_file(self) -> tuple[str, str | None] | None:
        """Return (name, format) of the backing file that the image's header records, or None."""
        return None


class FormatDriver(BlockDriver):
    """A driver of an image format on top of a child named ``file``."""

    is_format = True


class ProtocolDriver(BlockDriver):
    """A driver that reaches the storage itself: no children."""


class FilterDriver(BlockDriver):
    """A driver that shows its child, filtered: what is not overridden is forwarded."""

    is_filter = True
    file: Child

    async def aclose(self) -> None:
        """Hold nothing, release nothing."""

    def getlength(self) -> int:
        """Return the child's length."""
        return self.file.getlength()

    def limits(self) -> Limits:
        """Return the child's limits."""
        return self.file.node.limits()

    def has_zero_init(self) -> bool:
        """Follow the child."""
        return self.file.node.driver.has_zero_init()

    async def image_info(self) -> Mapping[str, Json]:
        """Show what the child knows of itself, but for what belongs to its format."""
        info = await self.file.node.driver.image_info()
        return {name: info[name] for name in ("cluster-size", "dirty-flag") if name in info}

    def allocated_now(self, offset: int, length: int) -> bool:
        """Ask the child."""
        return self.file.node.driver.allocated_now(offset, length)

    async def preadv(self, offset: int, iov: Iov) -> None:
        """Forward."""
        await self.file.preadv(offset, iov)

    async def pwritev(self, offset: int, iov: Iov, flags: ReqFlag) -> None:
        """Forward."""
        await self.file.pwritev(offset, iov, flags)

    async def pwrite_zeroes(self, offset: int, length: int, flags: ReqFlag) -> None:
        """Forward."""
        await self.file.pwrite_zeroes(offset, length, flags)

    async def pdiscard(self, offset: int, length: int) -> None:
        """Forward."""
        await self.file.pdiscard(offset, length)

    async def flush(self) -> None:
        """Forward."""
        await self.file.flush()

    async def block_status(self, offset: int, length: int, *, want_zero: bool) -> BlockStatus:
        """Point at the same range of the child."""
        flags = StatusFlag.RAW | StatusFlag.OFFSET_VALID
        return BlockStatus(flags, length, self.file.node, offset)

    async def truncate(self, size: int, *, exact: bool, prealloc: str, flags: ReqFlag) -> None:
        """Forward."""
        await self.file.truncate(size, exact=exact, prealloc=prealloc, flags=flags)


DriverT = TypeVar("DriverT", bound=type[BlockDriver])


def block_driver(name: str) -> Callable[[DriverT], DriverT]:
    """Register a driver class under its QAPI name."""

    def decorate(cls: DriverT) -> DriverT:
        if "format_name" not in cls.__dict__:
            cls.format_name = name
        return block_drivers.register(name)(cls)

    return decorate


def create_driver(name: str) -> Callable[[T], T]:
    """Register ``async def create(opener: CreateOpener, options: BlockdevCreateOptionsX) -> None``."""
    return create_drivers.register(name)


class CreateOpener(Protocol):
    """What blockdev-create gives to a driver's create function."""

    async def node(self, reference: Options) -> Child:
        """Return an edge with write and resize permission to the node a BlockdevRef names.

        It is released when the job ends.
        """
        ...

    def object(self, id_: str, type_: type[T]) -> T:
        """Return the user-creatable object ``id_`` of class ``type_``."""
        ...
