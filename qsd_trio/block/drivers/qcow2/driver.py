"""The qcow2 driver: opening, options, and what the graph asks of it."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, ClassVar, final

import attrs
import trio

from qsd_trio.block.abc import (
    SECTOR,
    BlockStatus,
    ChildRole,
    FormatDriver,
    Limits,
    ReqFlag,
    StatusFlag,
    block_driver,
)
from qsd_trio.block.drivers.qcow2 import (
    bitmap_directory,
    bitmaps,
    compressing,
    encryption,
    overlap,
    resize,
    writing,
    zeroing,
)
from qsd_trio.block.drivers.qcow2 import header as hdr
from qsd_trio.block.drivers.qcow2 import layout as lay
from qsd_trio.block.drivers.qcow2 import options as opts
from qsd_trio.block.drivers.qcow2.compressed import COMPRESSION_TYPES
from qsd_trio.block.drivers.qcow2.image import Image, Kind
from qsd_trio.block.drivers.qcow2.imagefile import read_file
from qsd_trio.block.drivers.qcow2.layout import CorruptImageError
from qsd_trio.block.drivers.qcow2.mapping import FastPath
from qsd_trio.block.drivers.qcow2.metadata import Metadata
from qsd_trio.errors import QmpError, os_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import Self

    from qsd_trio.block.abc import Child, Extents, Iov, Objects, Opener
    from qsd_trio.block.drivers.qcow2.header import Header
    from qsd_trio.block.drivers.qcow2.snapshots import Snapshots
    from qsd_trio.untyped import Json, Options

log = logging.getLogger(__name__)


@block_driver("qcow2")
@final
@attrs.define(eq=False, slots=False)
class Qcow2(FormatDriver):
    """An open qcow2 image."""

    supports_backing: ClassVar[bool] = True
    supports_amend: ClassVar[bool] = True
    can_compress: ClassVar[bool] = True
    mutable_options: ClassVar[frozenset[str]] = frozenset(
        {
            "lazy-refcounts",
            "pass-discard-request",
            "pass-discard-snapshot",
            "pass-discard-other",
            "overlap-check",
            "cache-size",
            "l2-cache-size",
            "l2-cache-entry-size",
            "refcount-cache-size",
            "cache-clean-interval",
            "discard-no-unref",
            "encrypt",
        }
    )

    file: Child
    image: Image
    opener: Opener
    writable: bool
    bitmap_store: bitmaps.BitmapStore | None = None
    #: Ends the cleaning of the caches.
    _stop_cleaning: Callable[[], None] | None = attrs.field(init=False, default=None)
    #: Whether it is known where the image has its metadata. That is found out before the first change: an
    #: image that is only read, or only opened, need not pay for it.
    _located: bool = attrs.field(init=False, default=False)
    _locating: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    #: Whether a corruption that was not fatal has been reported.
    reported: bool = False
    #: Whether much of what is allocated is a hole in the file (preallocation); None: not looked yet.
    has_holes: bool | None = None

    def __attrs_post_init__(self) -> None:
        # The fast path: one call less per request.
        self.image.report = self._report
        self.mapping = mapping = FastPath(self.image)
        self.map_read = mapping.map_read  # type: ignore[method-assign]
        # map_write follows with the first change.

    @classmethod
    async def open(cls, opener: Opener, options: Options) -> Self:
        """Open an image on the node or options in ``options.file``."""
        file = await opener.child("file", options.file, ChildRole.IMAGE)
        header = await read_header(file, read_only=opener.read_only)
        runtime = opts.check(options, header, discard_unmap=opener.discard_unmap)
        metadata = await Metadata.load(file, header)
        if header.nb_snapshots:
            from qsd_trio.block.drivers.qcow2 import snapshots

            await snapshots.load(metadata)
        await metadata.set_slice_size(runtime.l2_slice_size)
        _apply(runtime, metadata)
        if not opener.read_only:
            await _repair(metadata)
            metadata.lazy = _lazy(options, header)
        metadata.locations.reset(runtime.overlap_check)
        crypt = await encryption.open_cipher(file, header, opener, options)
        data = await _open_data_file(opener, options, header)
        metadata.data = data or file
        image = Image(
            file=file,
            data=metadata.data,
            metadata=metadata,
            size=header.disk_size,
            version=header.version,
            crypt=crypt,
        )
        image.backing = await opener.backing(
            options.backing, header.backing_file, header.backing_format
        )
        driver = cls(
            file=file,
            image=image,
            opener=opener,
            writable=not opener.read_only,
        )
        if driver.writable:
            bitmap_directory.check_extension(header)
            await driver._clear_unknown_autoclear()
            if header.has_extension(hdr.EXT_BITMAPS):
                await driver._before_change()
        # Last, as bitmaps in use are lost unless the driver is closed in order.
        driver.bitmap_store = await bitmaps.BitmapStore.load(
            metadata, opener.bitmaps, header.disk_size, writable=driver.writable
        )
        driver._clean_caches_every(runtime.cache_clean_interval)
        return driver

    @property
    def header(self) -> Header:
        """The header as it is on disk."""
        return self.image.metadata.header

    @property
    def snapshots(self) -> Snapshots:  # type: ignore[override]  # made when it is asked for
        """The snapshots in the image."""
        from qsd_trio.block.drivers.qcow2.snapshots import Snapshots

        return Snapshots(image=self.image, report=self._corrupt, before_change=self._before_change)

    @property
    def backing(self) -> Child | None:
        """The backing child."""
        return self.image.backing

    @backing.setter
    def backing(self, child: Child | None) -> None:
        self.image.backing = child

    async def _clear_unknown_autoclear(self) -> None:
        """Clear the marks of what would no longer be true after we have written."""
        if _marked_right(self.header) != self.header:
            try:
                await self.image.metadata.update_header(_marked_right)
            except OSError as exc:
                raise QmpError(f"Could not update qcow2 header: {exc.strerror}") from exc

    async def _before_change(self) -> None:
        """Know where the metadata are that no write may hit."""
        if self._located:
            return
        async with self._locating:
            if not self._located:
                metadata = self.image.metadata
                await _locate(metadata, metadata.locations.protected)
                self._located = True
                self.map_write = self.mapping.map_write  # type: ignore[method-assign]

    def _clean_caches_every(self, seconds: int) -> None:
        if self._stop_cleaning is not None:
            self._stop_cleaning()
            self._stop_cleaning = None
        if seconds:
            self._stop_cleaning = self.opener.every(seconds, self.image.metadata.clean_caches)

    async def _repair_late(self) -> None:
        """Repair an image that was read-only until now; if that fails, nobody must write to it."""
        try:
            await _repair(self.image.metadata)
        except QmpError as exc:
            log.error("qcow2: %s: %s", self.opener.node_name, exc)
            self.image.broken = True

    async def aclose(self) -> None:
        """Store the dirty bitmaps, write back what is cached."""
        self._clean_caches_every(0)
        if self.image.broken:
            return
        try:
            if self.bitmap_store is not None:
                if any(bitmap.persistent for bitmap in self.opener.bitmaps):
                    await self._before_change()
                await self.bitmap_store.store()
        except QmpError as exc:
            log.error(
                "Lost persistent bitmaps during inactivation of node '%s': %s",
                self.opener.node_name,
                exc,
            )
        if self.writable:
            await self.image.metadata.make_clean()

    def getlength(self) -> int:
        """Return the virtual size."""
        return self.image.size

    def limits(self) -> Limits:
        """Zeroes go by (sub)clusters, discards by clusters."""
        zero_flags = ReqFlag.MAY_UNMAP | ReqFlag.WRITE_UNCHANGED
        if self.image.version >= 3:
            zero_flags |= ReqFlag.NO_FALLBACK
        limits = Limits(
            pwrite_zeroes_alignment=1 << self.image.subcluster_bits,
            pdiscard_alignment=self.image.cluster_size,
            write_flags=ReqFlag.WRITE_COMPRESSED | ReqFlag.WRITE_UNCHANGED,
            zero_flags=zero_flags,
            can_write_zeroes=True,
            can_zero_parts=self.image.version >= 3,
            can_discard=True,
        )
        if self.image.crypt is None:
            return limits
        return attrs.evolve(
            limits,
            request_alignment=encryption.SECTOR,
            max_transfer=encryption.MAX_TRANSFER,
        )

    def has_zero_init(self) -> bool:
        """Say whether a new image reads as zeroes: where it is preallocated, that is up to the data."""
        image = self.image
        if not (image.metadata.l1 and image.metadata.l1[0]):
            return True
        return image.zero_init

    # -- requests --------------------------------------------------------------------------------------

    def map_read(self, offset: int, length: int) -> Extents | None:
        """Say where the bytes are, or None (an instance has the mapping's own method here)."""
        return self.mapping.map_read(offset, length)

    def map_write(self, offset: int, length: int) -> Extents | None:
        """Leave the first change to the slow path (then an instance has the mapping's own method here)."""
        return None

    def allocated_now(self, offset: int, length: int) -> bool:
        """Say whether no byte of the range comes from the backing file, as far as the caches tell."""
        return self.image.allocated_now(offset, offset + length)

    async def _corrupt(self, error: CorruptImageError) -> None:
        """Report a corruption; a fatal one in an image that is written to ends its use.

        What is not fatal is reported once.
        """
        self._report(error)
        if error.fatal and self.writable and not self.image.broken:
            await self.image.mark_corrupt()

    def _report(self, error: CorruptImageError) -> None:
        fatal = error.fatal and self.writable
        where = error.where or (None, None)
        if self.image.broken or (self.reported and not fatal):
            return
        self.reported = True
        log.error(
            "qcow2: Marking image as corrupt: %s; further corruption events will be suppressed"
            if fatal
            else "qcow2: Image is corrupt: %s; further non-fatal corruption events will be suppressed",
            error.message,
        )
        self.opener.emit(
            "BLOCK_IMAGE_CORRUPTED",
            device="",
            node_name=self.opener.node_name,
            msg=error.message,
            offset=where[0],
            size=where[1],
            fatal=fatal,
        )

    async def preadv(self, offset: int, iov: Iov) -> None:
        """Fill ``iov``."""
        try:
            await self.image.preadv(offset, iov)
        except CorruptImageError as exc:
            await self._corrupt(exc)
            raise

    async def pwritev(self, offset: int, iov: Iov, flags: ReqFlag) -> None:
        """Write ``iov``."""
        fill = bool(flags & ReqFlag.WRITE_UNCHANGED)
        write = compressing.pwritev if flags & ReqFlag.WRITE_COMPRESSED else writing.pwritev
        try:
            await self._before_change()
            await write(self.image, offset, iov, fill=fill)
        except CorruptImageError as exc:
            await self._corrupt(exc)
            raise

    async def pwrite_zeroes(self, offset: int, length: int, flags: ReqFlag) -> None:
        """Make whole clusters read as zeroes."""
        try:
            await self._before_change()
            await zeroing.pwrite_zeroes(self.image, offset, length, flags)
        except CorruptImageError as exc:
            await self._corrupt(exc)
            raise

    async def pdiscard(self, offset: int, length: int) -> None:
        """Deallocate whole clusters."""
        try:
            await self._before_change()
            await zeroing.pdiscard(self.image, offset, length)
        except CorruptImageError as exc:
            await self._corrupt(exc)
            raise

    async def flush(self) -> None:
        """Write the tables back, then flush the file."""
        if self.image.broken:
            raise os_error(errno.ENOMEDIUM)
        try:
            await self.image.metadata.write_back()
        except CorruptImageError as exc:
            await self._corrupt(exc)
            raise
        if self.image.external:
            await self.image.data.flush()
        await self.file.flush()

    async def block_status(self, offset: int, length: int, *, want_zero: bool) -> BlockStatus:
        """Say what the first clusters of the range are."""
        image = self.image
        if image.broken:
            raise os_error(errno.ENOMEDIUM)
        number = offset >> image.slice_shift
        stop = min(offset + length, (number + 1) << image.slice_shift)
        try:
            table = await image.metadata.slice(number)
            if table is None:
                return BlockStatus(StatusFlag.NONE, stop - offset)
            kind, host, run = image.classify(table, offset, stop)
        except CorruptImageError as exc:
            await self._corrupt(exc)
            raise
        flags = _STATUS[kind]
        if image.crypt is not None:
            flags &= ~StatusFlag.OFFSET_VALID
        elif kind is Kind.DATA and want_zero:
            if self.has_holes is None:
                self.has_holes = await self._find_holes()
            if self.has_holes:
                flags |= StatusFlag.RECURSE
        if flags & StatusFlag.OFFSET_VALID:
            return BlockStatus(flags, run, image.data.node, host)
        return BlockStatus(flags, run)

    async def _find_holes(self) -> bool:
        """Say whether clearly more clusters are in use than the file takes space for.

        Then it is worth asking the file where its holes are. The limits are QEMU's.
        """
        space = self.file.node.driver.allocated_size()
        if space is None:
            return False
        there = space >> self.image.cluster_bits
        limit = there + max(there // 10, 2)
        if (self.file.getlength() + self.image.mask) >> self.image.cluster_bits < limit:
            return False
        return await self.image.metadata.refcounts.count_used(limit) >= limit

    async def truncate(self, size: int, *, exact: bool, prealloc: str, flags: ReqFlag) -> None:
        """Make the image ``size`` bytes long."""
        if self.image.broken:
            raise os_error(errno.ENOMEDIUM)
        try:
            self.has_holes = None
            if self.bitmap_store is not None and not size % SECTOR:
                self.bitmap_store.check_resize()
            await self._before_change()
            await resize.truncate(self.image, size, prealloc, flags, exact=exact)
            if self.bitmap_store is not None:
                self.bitmap_store.size = size
        except CorruptImageError as exc:
            await self._corrupt(exc)
            raise

    # -- the control plane -----------------------------------------------------------------------------

    async def reopen(self, opener: Opener, options: Options) -> Callable[[], Awaitable[None]]:
        """Take other cache sizes and discard rules; become writable or read-only."""
        runtime = opts.check(options, self.header, discard_unmap=opener.discard_unmap)
        writable = not opener.read_only
        corrupt = self.header.incompatible & lay.INCOMPAT_CORRUPT
        if writable and not self.writable and corrupt:
            raise QmpError("qcow2: Image is corrupt; cannot be opened read/write")
        if self.bitmap_store is not None and self.writable and not writable:
            await self._before_change()
            await self.bitmap_store.become_readonly()
        metadata = self.image.metadata
        lazy = writable and _lazy(options, self.header)
        if self.writable and not lazy:
            await metadata.make_clean()

        await self.image.metadata.set_slice_size(runtime.l2_slice_size)
        self.image.set_slices()
        self.mapping.set_slices()

        async def commit() -> None:
            _apply(runtime, self.image.metadata)
            self.opener = opener
            metadata.lazy = lazy
            self._clean_caches_every(runtime.cache_clean_interval)
            if writable and not self.writable:
                await self._repair_late()
            metadata.locations.reset(runtime.overlap_check)
            self._located = False
            await self._before_change()
            self.writable = writable
            if writable:
                await self._clear_unknown_autoclear()
                await self._resume_bitmaps()

        return commit

    async def abort_reopen(self) -> None:
        """Let the bitmaps record again that were stored for becoming read-only."""
        if self.writable:
            await self._resume_bitmaps()

    async def _resume_bitmaps(self) -> None:
        """Make bitmaps writable again; if that fails, no write may reach the image."""
        if self.bitmap_store is None or self.bitmap_store.writable or self.image.broken:
            return
        try:
            await self.bitmap_store.become_writable()
        except OSError as exc:
            name = self.opener.node_name
            log.error("%s: Failed to make dirty bitmaps writable: %s", name, exc.strerror)

    async def image_info(self) -> Mapping[str, Json]:
        """Return what query-named-block-nodes shows of the format."""
        header = self.header
        data: dict[str, Json] = {
            "compat": "1.1" if header.version >= 3 else "0.10",
            "compression-type": COMPRESSION_TYPES[header.compression_type],
            "refcount-bits": 1 << header.refcount_order,
        }
        if self.image.crypt is not None:
            data["encrypt"] = self.image.crypt.info()
        if header.version >= 3:
            data["lazy-refcounts"] = bool(header.compatible & lay.COMPAT_LAZY_REFCOUNTS)
            if self.image.external:
                if header.data_file is not None:
                    data["data-file"] = header.data_file
                data["data-file-raw"] = self.image.raw_external
            data["corrupt"] = self.image.broken or bool(header.incompatible & lay.INCOMPAT_CORRUPT)
            data["extended-l2"] = self.image.extended
            stored = self.bitmap_store.info() if self.bitmap_store is not None else ()
            if stored:
                data["bitmaps"] = stored
        return {
            "cluster-size": header.cluster_size,
            "dirty-flag": self.image.metadata.would_be_dirty,
            "format-specific": {"type": "qcow2", "data": data},
        }

    @property
    def encrypted(self) -> bool:
        """Whether guest data are encrypted."""
        return self.image.crypt is not None

    def full_options(self) -> Mapping[str, Json]:
        """Return the id of the secret, not the secret."""
        crypt = self.image.crypt
        return {"encrypt.key-secret": crypt.key_secret} if crypt is not None else {}

    async def amend(self, objects: Objects, options: Options, *, force: bool) -> None:
        """Change key slots (BlockdevAmendOptionsQcow2)."""
        await encryption.amend(self.image.crypt, objects, options, force=force)

    def backing_file(self) -> tuple[str, str | None] | None:
        """Return what the header records of the backing file."""
        if self.header.backing_file is None:
            return None
        return self.header.backing_file, self.header.backing_format


_STATUS = {
    Kind.UNALLOCATED: StatusFlag.NONE,
    Kind.PREALLOCATED: StatusFlag.OFFSET_VALID,
    Kind.ZERO: StatusFlag.ZERO | StatusFlag.ALLOCATED,
    Kind.ZERO_ALLOCATED: StatusFlag.ZERO | StatusFlag.ALLOCATED | StatusFlag.OFFSET_VALID,
    Kind.DATA: StatusFlag.DATA | StatusFlag.ALLOCATED | StatusFlag.OFFSET_VALID,
    Kind.COMPRESSED: StatusFlag.DATA | StatusFlag.ALLOCATED | StatusFlag.COMPRESSED,
}


def _marked_right(header: Header) -> Header:
    """Return a header with only those autoclear bits that we know, and what belongs to them."""
    header = bitmap_directory.without_stale_extension(header)
    return attrs.evolve(header, autoclear=header.autoclear & lay.AUTOCLEAR_KNOWN)


async def read_header(file: Child, *, read_only: bool) -> Header:
    """Read and check the header of an image file."""
    length = file.getlength()
    try:
        start = await read_file(file, 0, min(length, 4096))
        cluster_bits = hdr.cluster_bits_of(bytes(start))
        cluster = await read_file(file, 0, min(length, 1 << cluster_bits))
    except OSError as exc:
        raise QmpError(f"Could not read qcow2 header: {exc.strerror}") from exc
    return hdr.parse(bytes(cluster), read_only=read_only)


async def _repair(metadata: Metadata) -> None:
    """Put the refcounts of an image right that was not closed; QmpError if that fails."""
    if metadata.header.incompatible & lay.INCOMPAT_DIRTY:
        from qsd_trio.block.drivers.qcow2.repair import repair_dirty

        await repair_dirty(metadata)


async def _locate(metadata: Metadata, protected: frozenset[str]) -> None:
    """Note where the image has its metadata, of the kinds to be protected."""
    await overlap.locate(metadata, protected)
    if metadata.snapshots:
        from qsd_trio.block.drivers.qcow2 import snapshots

        await snapshots.locate(metadata)


async def _open_data_file(opener: Opener, options: Options, header: Header) -> Child | None:
    """Attach the external data file of an image that has one."""
    if header.incompatible & lay.INCOMPAT_DATA_FILE:
        data = await opener.data_file(options.data_file, header.data_file)
        if data is None:
            raise QmpError("'data-file' is required for this image")
        return data
    if options.data_file is not None:
        await opener.data_file(options.data_file, None)
        raise QmpError("'data-file' can only be set for images with an external data file")
    if header.autoclear & lay.AUTOCLEAR_DATA_FILE_RAW:
        raise QmpError("data-file-raw requires a data file")
    return None


def _lazy(options: Options, header: Header) -> bool:
    if options.lazy_refcounts is not None:
        return bool(options.lazy_refcounts)
    return bool(header.compatible & lay.COMPAT_LAZY_REFCOUNTS)


def _apply(runtime: opts.RuntimeOptions, metadata: Metadata) -> None:
    metadata.l2_limit = runtime.l2_slices
    metadata.refcounts.limit = runtime.refcount_blocks
    metadata.pass_discard = runtime.pass_discard
    metadata.discard_no_unref = runtime.discard_no_unref
