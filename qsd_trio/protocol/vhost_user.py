"""The vhost-user protocol: the codecs of its messages. Sans-IO.

Source: "Vhost-user Protocol", docs/interop/vhost-user.rst of the QEMU project. Numbers are in the host's byte order.
Whatever comes from the front-end is untrusted: wrong sizes are RemoteProtocolError, which ends the connection.
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import TYPE_CHECKING, Final, final

import attrs

from qsd_trio.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADER: Final = Struct("=III")  # request, flags, size
U64: Final = Struct("=Q")
STATE: Final = Struct("=II")  # index, number
ADDRESSES: Final = Struct("=IIQQQQ")  # index, flags, desc, used, avail, log
REGION: Final = Struct("=QQQQ")  # guest address, size, user address, mmap offset
TABLE: Final = Struct("=II")  # number of regions, padding
SINGLE_REGION: Final = Struct("=8xQQQQ")
CONFIG: Final = Struct("=III")  # offset, size, flags
INFLIGHT: Final = Struct("=QQHH4x")  # mmap size, mmap offset, queues, queue size

VERSION: Final = 1
REPLY: Final = 4
NEED_REPLY: Final = 8

#: Bytes of the largest payload: a configuration space of 256 bytes, with what is around it.
MAX_PAYLOAD: Final = 272

#: Regions of a memory table, and so descriptors that come with one message.
MAX_FDS: Final = 8

#: Regions that can be added one by one.
MAX_REGIONS: Final = 32

QUEUE_INDEX: Final = 0xFF
NO_FD: Final = 1 << 8


class Message(enum.IntEnum):
    """What a front-end asks for."""

    NONE = 0
    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


#: How many descriptors come with a message: the exact numbers that are right. None of the others brings any.
FDS: Final[dict[int, tuple[int, ...]]] = {
    Message.SET_MEM_TABLE: tuple(range(MAX_FDS + 1)),  # as many as there are regions
    Message.SET_VRING_KICK: (0, 1),  # 0 with NO_FD
    Message.SET_VRING_CALL: (0, 1),
    Message.SET_VRING_ERR: (0, 1),
    Message.SET_BACKEND_REQ_FD: (1,),
    Message.SET_INFLIGHT_FD: (1,),
    Message.ADD_MEM_REG: (1,),
    Message.REM_MEM_REG: (0, 1),
}

#: Messages that have an answer of their own.
ANSWERED: Final = frozenset(
    {
        Message.GET_FEATURES,
        Message.GET_VRING_BASE,
        Message.GET_PROTOCOL_FEATURES,
        Message.GET_QUEUE_NUM,
        Message.GET_CONFIG,
        Message.GET_INFLIGHT_FD,
        Message.GET_MAX_MEM_SLOTS,
        Message.GET_STATUS,
    }
)


class BackendMessage(enum.IntEnum):
    """What a back-end says on the channel that the front-end gave it."""

    CONFIG_CHANGE = 2


#: A feature bit of the device: there are protocol features.
PROTOCOL_FEATURES: Final = 1 << 30


class ProtocolFeature(enum.IntFlag):
    """Extensions of the protocol."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16


#: What we offer. Not LOG_SHMFD, PAGEFAULT and BACKEND_SEND_FD (migration), nor HOST_NOTIFIER.
OFFERED: Final = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)


def parse_header(data: bytes) -> tuple[int, int, int]:
    """Return (request, flags, size of the payload) of a message's 12 bytes."""
    request, flags, size = HEADER.unpack(data)
    if size > MAX_PAYLOAD:
        raise RemoteProtocolError(
            f"Error: too big message request: {request}, size: vmsg->size: {size}, "
            f"while sizeof(vmsg->payload) = {MAX_PAYLOAD}"
        )
    return request, flags, size


def check_fds(request: int, count: int) -> None:
    """Raise RemoteProtocolError if ``request`` does not come with ``count`` descriptors."""
    if count not in FDS.get(request, (0,)):
        raise RemoteProtocolError(f"Invalid fds in request: {request}")


def message(request: int, payload: bytes = b"", *, flags: int = 0) -> bytes:
    """Return a message of our own."""
    return HEADER.pack(request, VERSION | flags, len(payload)) + payload


def reply(request: int, payload: bytes) -> bytes:
    """Return the answer to a message."""
    return message(request, payload, flags=REPLY)


def _unpack(what: Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) != what.size:
        raise RemoteProtocolError(f"Invalid message: {len(payload)} bytes, not {what.size}")
    return what.unpack(payload)


def parse_u64(payload: bytes) -> int:
    """Parse the payload of SET_FEATURES and the like."""
    return _unpack(U64, payload)[0]


def parse_state(payload: bytes) -> tuple[int, int]:
    """Parse a vring state description: (index, number)."""
    index, number = _unpack(STATE, payload)
    return index, number


@final
@attrs.frozen(kw_only=True)
class RingAddresses:
    """Where the front-end has the three parts of a ring."""

    desc: int
    avail: int
    used: int


def parse_addresses(payload: bytes) -> tuple[int, RingAddresses]:
    """Parse SET_VRING_ADDR: (index, addresses). Flags and log belong to migration."""
    index, _, desc, used, avail, _ = _unpack(ADDRESSES, payload)
    return index, RingAddresses(desc=desc, avail=avail, used=used)


def parse_vring_fd(payload: bytes) -> tuple[int, int]:
    """Parse SET_VRING_KICK and the like: (index, how many descriptors should have come with it)."""
    value = parse_u64(payload)
    return value & QUEUE_INDEX, 0 if value & NO_FD else 1


@final
@attrs.frozen(kw_only=True)
class RegionDescription:
    """A memory region: its bytes are at ``mmap_offset`` of the descriptor that comes with it."""

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int

    def is_same(self, other: RegionDescription) -> bool:
        """Return whether REM_MEM_REG with ``other`` means this one."""
        return (self.guest_address, self.size, self.user_address) == (
            other.guest_address,
            other.size,
            other.user_address,
        )


def _region(fields: Sequence[int]) -> RegionDescription:
    guest_address, size, user_address, mmap_offset = fields
    if not size:
        raise RemoteProtocolError("Invalid memory region: empty")
    if max(guest_address + size, user_address + size, mmap_offset + size) >= 1 << 63:
        raise RemoteProtocolError("Invalid memory region: beyond all addresses")
    return RegionDescription(
        guest_address=guest_address,
        size=size,
        user_address=user_address,
        mmap_offset=mmap_offset,
    )


def parse_table(payload: bytes, count: int) -> list[RegionDescription]:
    """Parse SET_MEM_TABLE, which came with ``count`` descriptors."""
    if len(payload) < TABLE.size:
        raise RemoteProtocolError(f"Invalid message: {len(payload)} bytes")
    number, _ = TABLE.unpack_from(payload)
    # The real daemon believes any number, and reads and closes what is behind the array.
    if number > MAX_FDS or number != count:
        raise RemoteProtocolError(f"Invalid memory table: {number} regions, {count} descriptors")
    if len(payload) < TABLE.size + number * REGION.size:
        raise RemoteProtocolError(f"Invalid message: {len(payload)} bytes")
    return [
        _region(REGION.unpack_from(payload, TABLE.size + index * REGION.size))
        for index in range(number)
    ]


def parse_single_region(payload: bytes) -> RegionDescription:
    """Parse ADD_MEM_REG and REM_MEM_REG."""
    return _region(_unpack(SINGLE_REGION, payload))


def parse_config(payload: bytes) -> tuple[int, int, int, bytes]:
    """Parse GET_CONFIG and SET_CONFIG: (offset, size, flags, data)."""
    if len(payload) < CONFIG.size:
        raise RemoteProtocolError(f"Invalid message: {len(payload)} bytes")
    offset, size, flags = CONFIG.unpack_from(payload)
    return offset, size, flags, payload[CONFIG.size :]


@final
@attrs.frozen(kw_only=True)
class InflightDescription:
    """The memory of the in-flight logs of all queues."""

    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int

    def pack(self) -> bytes:
        """Return the payload."""
        return INFLIGHT.pack(self.mmap_size, self.mmap_offset, self.num_queues, self.queue_size)


def parse_inflight(request: int, payload: bytes) -> InflightDescription:
    """Parse GET_INFLIGHT_FD and SET_INFLIGHT_FD."""
    if len(payload) != INFLIGHT.size:
        name = "get" if request == Message.GET_INFLIGHT_FD else "set"
        raise RemoteProtocolError(f"Invalid {name}_inflight_fd message:{len(payload)}")
    mmap_size, mmap_offset, num_queues, queue_size = INFLIGHT.unpack(payload)
    return InflightDescription(
        mmap_size=mmap_size,
        mmap_offset=mmap_offset,
        num_queues=num_queues,
        queue_size=queue_size,
    )
