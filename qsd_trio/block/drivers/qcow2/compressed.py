"""Compressed clusters: how L2 entries name them, packing and unpacking, and reading them.

Source: qcow2 specification, "Compressed Clusters Descriptor" and header field compression_type.
"""

from __future__ import annotations

import errno
import zlib
from typing import TYPE_CHECKING, Final, final

import attrs
import trio

from qsd_trio.block.drivers.qcow2.imagefile import read_file
from qsd_trio.block.drivers.qcow2.layout import COMPRESSED
from qsd_trio.errors import os_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsd_trio.block.drivers.qcow2.metadata import Metadata

# Values of the header's compression_type.
ZLIB: Final = 0
ZSTD: Final = 1
COMPRESSION_TYPES: Final = ("zlib", "zstd")  # QAPI names

_SECTOR: Final = 512
#: Bytes of unpacked clusters kept per image, since clients read clusters piece by piece.
CACHE_BYTES: Final = 4 << 20
#: Clusters up to this size are unpacked on the loop: a hop to a worker thread would take longer.
INLINE: Final = 64 << 10
#: Clusters of one request that are unpacked (or packed) at a time.
PARALLEL: Final = 4
#: What QEMU writes with, so that it can read: it refuses longer distances.
_DEFLATE_WINDOW: Final = -12
_DEFLATE_MEMORY: Final = 9
#: Readers take what any writer of raw deflate streams may have used.
_INFLATE_WINDOW: Final = -15
#: Memory that a zstd frame may ask for; a window larger than the largest cluster is of no use.
MAX_ZSTD_WINDOW: Final = 8 << 20


# -- L2 entries ----------------------------------------------------------------------------------------


def offset_bits(cluster_bits: int) -> int:
    """Return how many bits of an entry are the host offset; the rest counts sectors."""
    return 62 - (cluster_bits - 8)


def parse_entry(entry: int, cluster_bits: int) -> tuple[int, int]:
    """Return (host offset, length) of a compressed cluster's data, up to the end of its last sector."""
    shift = offset_bits(cluster_bits)
    offset = entry & ((1 << shift) - 1)
    sectors = (entry >> shift & ((1 << (cluster_bits - 8)) - 1)) + 1
    return offset, sectors * _SECTOR - offset % _SECTOR


def make_entry(offset: int, length: int, cluster_bits: int) -> int:
    """Return the L2 entry of ``length`` bytes at host ``offset``."""
    more = (offset + length - 1) // _SECTOR - offset // _SECTOR
    return COMPRESSED | more << offset_bits(cluster_bits) | offset


# -- packing -------------------------------------------------------------------------------------------


def pack(kind: int, data: bytes | memoryview) -> bytes | None:
    """Compress a cluster; None if it would not get smaller. Takes its time: call it in a worker."""
    if kind == ZSTD:
        import zstandard

        packed = zstandard.ZstdCompressor().compress(data)
    else:
        deflate = zlib.compressobj(
            zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, _DEFLATE_WINDOW, _DEFLATE_MEMORY
        )
        packed = deflate.compress(data) + deflate.flush()
    return packed if len(packed) < len(data) else None


def unpack(kind: int, raw: bytes | bytearray, length: int) -> bytes:
    """Return the ``length`` bytes of a compressed cluster; EIO if ``raw`` does not give just them.

    What follows the stream is of others: an entry counts whole sectors.
    """
    data = _decompress(raw, length) if kind == ZSTD else _inflate(raw, length)
    if len(data) != length:
        raise os_error(errno.EIO)
    return data


def _inflate(raw: bytes | bytearray, length: int) -> bytes:
    try:
        return zlib.decompressobj(_INFLATE_WINDOW).decompress(raw, length)
    except zlib.error as exc:
        raise os_error(errno.EIO) from exc


def _decompress(raw: bytes | bytearray, length: int) -> bytes:
    import zstandard

    try:
        frame = zstandard.get_frame_parameters(raw)
        # The length that a frame declares is what its decompressor allocates.
        if frame.content_size not in (length, zstandard.CONTENTSIZE_UNKNOWN):
            raise os_error(errno.EIO)
        if frame.window_size > MAX_ZSTD_WINDOW:
            raise os_error(errno.EIO)
        return zstandard.ZstdDecompressor().decompress(raw, max_output_size=length)
    except zstandard.ZstdError as exc:
        raise os_error(errno.EIO) from exc


# -- reading -------------------------------------------------------------------------------------------


@final
@attrs.define(eq=False)
class CompressedClusters:
    """The compressed clusters of an image, and the content of those read lately."""

    metadata: Metadata
    kind: int
    #: L2 entry -> content; the oldest come first.
    _cache: dict[int, bytes] = attrs.field(init=False, factory=dict)
    _loading: dict[int, trio.Event] = attrs.field(init=False, factory=dict)
    _cache_limit: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._cache_limit = max(CACHE_BYTES >> self.metadata.cluster_bits, 1)

    def extent(self, entry: int) -> tuple[int, int]:
        """Return (host offset, length) of a cluster's data, up to the end of its last sector."""
        return parse_entry(entry, self.metadata.cluster_bits)

    def renew(self, entry: int) -> None:
        """Forget what an entry was before: a cluster with that entry has been written."""
        self._cache.pop(entry, None)

    async def read(self, entries: Sequence[int]) -> list[bytes]:
        """Return the content of clusters that L2 entries name now; EIO if one is not sound.

        They are unpacked at the same time, so give PARALLEL of them at most.
        """
        token = self.metadata.begin_io()
        try:
            if len(entries) == 1:
                return [await self._read(entries[0])]
            contents: list[bytes | OSError] = [b""] * len(entries)

            async def read_one(at: int) -> None:
                try:
                    contents[at] = await self._read(entries[at])
                except OSError as exc:
                    contents[at] = exc

            async with trio.open_nursery() as nursery:
                for at in range(len(entries)):
                    nursery.start_soon(read_one, at)
        finally:
            self.metadata.end_io(token)
        return [_raised(content) for content in contents]

    async def _read(self, entry: int) -> bytes:
        """Return a cluster's content. The caller keeps the entry from being used for another."""
        while True:
            data = self._cache.get(entry)
            if data is not None:
                return data
            loading = self._loading.get(entry)
            if loading is None:
                break
            await loading.wait()
        self._loading[entry] = loading = trio.Event()
        try:
            self._cache[entry] = data = await self._load(entry)
        finally:
            del self._loading[entry]
            loading.set()
        if len(self._cache) > self._cache_limit:
            del self._cache[next(iter(self._cache))]
        return data

    async def _load(self, entry: int) -> bytes:
        offset, length = self.extent(entry)
        raw = await read_file(self.metadata.file, offset, length)
        size = self.metadata.cluster_size
        if size <= INLINE:
            return unpack(self.kind, raw, size)
        from qsd_trio.host.workers import worker_pool

        return await worker_pool().run(unpack, self.kind, raw, size, slow=True)


def _raised(content: bytes | OSError) -> bytes:
    if isinstance(content, OSError):
        raise content
    return content
