"""The virtio block device (virtio 1.2, 5.2): configuration space and request format. Pure."""

from __future__ import annotations

import enum
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, final

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsd_trio.protocol.virtio.queue import Element

SECTOR: Final = 512

#: Sectors of a read or write: QEMU's BDRV_REQUEST_MAX_SECTORS.
MAX_SECTORS: Final = (2**31 - 512) // SECTOR

#: Sectors that one DISCARD or WRITE_ZEROES may name.
MAX_DISCARD_SECTORS: Final = 32768

#: Bytes of the answer to GET_ID.
ID_SIZE: Final = 20

HEADER: Final = Struct("<IIQ")  # type, reserved, sector
SEGMENT: Final = Struct("<QII")  # sector, num_sectors, flags
UNMAP: Final = 1  # of a segment's flags

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
#: An old drivers' bit of the type, without a meaning of its own any more.
BARRIER: Final = 1 << 31

OK, IOERR, UNSUPP = 0, 1, 2


class Feature(enum.IntFlag):
    """Feature bits of the device and the ring (virtio 1.2, 5.2.3 and 6)."""

    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14
    NOTIFY_ON_EMPTY = 1 << 24
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33


#: What every block export offers.
COMMON_FEATURES: Final = (
    Feature.SEG_MAX
    | Feature.BLK_SIZE
    | Feature.FLUSH
    | Feature.TOPOLOGY
    | Feature.DISCARD
    | Feature.WRITE_ZEROES
    | Feature.NOTIFY_ON_EMPTY
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.VERSION_1
)

_CONFIG: Final = Struct("<QIIHBBIBBHIBBHIIIIIB3x")
CONFIG_SIZE: Final = _CONFIG.size
WCE_OFFSET: Final = 32
assert CONFIG_SIZE == 60


@final
@attrs.frozen(kw_only=True)
class Config:
    """The configuration space."""

    capacity: int  # sectors
    seg_max: int
    block_size: int
    wce: int
    num_queues: int

    def pack(self) -> bytes:
        """Return its 60 bytes."""
        return _CONFIG.pack(
            self.capacity,
            0,  # size_max: not offered, so of no meaning
            self.seg_max,
            *(0, 0, 0),  # geometry
            self.block_size,
            *(0, 0, 1, 1),  # topology: physical exponent, alignment, minimum and optimum
            self.wce,
            0,
            self.num_queues,
            MAX_DISCARD_SECTORS,
            1,
            self.block_size // SECTOR or 1,
            MAX_DISCARD_SECTORS,
            1,
            0,  # write zeroes: may not unmap
        )


@final
class BlkRequest(NamedTuple):
    """A request taken apart.

    The used ring gets the length of all that may be written, ``into`` and ``status``, whatever comes of it.
    """

    head: int
    kind: int
    sector: int
    out: list[memoryview]
    into: list[memoryview]
    status: memoryview  # one byte


def parse(element: Element) -> BlkRequest | str:
    """Take a request apart, wherever its pieces are cut; a text says what it lacks.

    The status byte is the last one of the writable part, however long the last descriptor is.
    """
    out, into = element.readable, element.writable
    if not out or not into:
        return "virtio-blk request missing headers"
    first = out[0]
    if len(first) == 16:
        kind, _, sector = HEADER.unpack_from(first)
        del out[0]
    else:
        found, header = take(out, HEADER.size)
        if len(header) < HEADER.size:
            return "virtio-blk request outhdr too short"
        kind, _, sector = HEADER.unpack(header)
        out = found
    status = into.pop()
    if len(status) > 1:
        into.append(status[:-1])
        status = status[-1:]
    return BlkRequest(element.head, kind, sector, out, into, status)


def take(pieces: Sequence[memoryview], length: int) -> tuple[list[memoryview], bytes]:
    """Return (what follows, a copy of the first ``length`` bytes, or of all there is)."""
    copied = b""
    rest: list[memoryview] = []
    for piece in pieces:
        want = length - len(copied)
        if want:
            copied += bytes(piece[:want])
            piece = piece[want:]
        if len(piece):
            rest.append(piece)
    return rest, copied


@final
@attrs.frozen
class Range:
    """What a DISCARD or WRITE_ZEROES is about (bytes)."""

    offset: int
    length: int
    unmap: bool


def is_in_range(sector: int, size: int, *, length: int, block_size: int) -> bool:
    """Return whether ``size`` bytes from ``sector`` may be asked for on a device of ``length`` bytes.

    Only the start has to be a multiple of the logical block.
    """
    offset = sector * SECTOR
    return not (
        size % SECTOR
        or size > MAX_SECTORS * SECTOR
        or offset % block_size
        or offset + size > length
    )


def parse_segment(request: BlkRequest, *, length: int, block_size: int) -> Range | int:
    """Return the range of a DISCARD or WRITE_ZEROES, or the status that refuses it.

    A range that is wrong is reported before flags that are.
    """
    rest, data = take(request.out, SEGMENT.size)
    if rest:
        return UNSUPP  # more than the one segment that the configuration allows
    if len(data) < SEGMENT.size:
        return IOERR
    sector, num_sectors, flags = SEGMENT.unpack(data)
    size = num_sectors * SECTOR
    if num_sectors > MAX_DISCARD_SECTORS or not is_in_range(
        sector, size, length=length, block_size=block_size
    ):
        return IOERR
    discard = request.kind & ~BARRIER == DISCARD
    if flags & ~UNMAP or (discard and flags):
        return UNSUPP
    if request.kind & BARRIER:
        return IOERR  # as the real daemon has it
    return Range(sector * SECTOR, size, bool(flags & UNMAP))
