"""Messages of the FUSE kernel protocol, 7.x, as read from and written to /dev/fuse. Sans-IO.

Source: include/uapi/linux/fuse.h, whose comments carry the history of the protocol. Numbers are in the host's byte
order. The peer is the kernel, yet every length is checked: a bug here must end the mount, not read someone else's bytes.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import attrs

from qsd_trio.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    Buffer = bytes | bytearray | memoryview

MAJOR: Final = 7
#: The newest minor version whose messages this module knows.
MINOR: Final = 41

ROOT_ID: Final = 1

#: The longest data of a READ or WRITE: 256 pages is what the kernel takes without its sysctl being raised.
MAX_IO: Final = 1 << 20
PAGE: Final = 4096
MAX_PAGES: Final = MAX_IO // PAGE

IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
#: len, error, unique
OUT_HEADER: Final = struct.Struct("=IiQ")

_INIT_IN: Final = struct.Struct("=IIII")
_INIT_OUT: Final = struct.Struct("=IIIIHHIIHHIIH22x")
_INIT_OUT_22: Final = 24  # its length before minor version 23
_OPEN_IN: Final = struct.Struct("=II")
_OPEN_OUT: Final = struct.Struct("=QIi")
#: fh, offset, size, read_flags/write_flags, lock_owner, flags, padding
RW_IN: Final = struct.Struct("=QQIIQII")
_WRITE_OUT: Final = struct.Struct("=II")
_ATTR_OUT: Final = struct.Struct("=QII" + "QQQQQQIIIIIIIIII")
_SETATTR_IN: Final = struct.Struct("=IIQQQQQQIIIIIIII")
_FALLOCATE_IN: Final = struct.Struct("=QQQII")
_LSEEK_IN: Final = struct.Struct("=QQII")
_LSEEK_OUT: Final = struct.Struct("=Q")
_STATFS_OUT: Final = struct.Struct("=QQQQQIIII24x")

#: The header of a READ or WRITE in front of the data.
RW_HEADER: Final = IN_HEADER.size + RW_IN.size


class Opcode(enum.IntEnum):
    """The requests that mean something for a single file."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    LSEEK = 46


#: Nobody waits for an answer to these.
UNANSWERED: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})


class InitFlag(enum.IntFlag):
    """What INIT negotiates, as far as it is wanted here."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    MAX_PAGES = 1 << 22


#: ATOMIC_O_TRUNC: else the kernel truncates to 0 by itself where a shell says ``> file``; as it is
#: the flag arrives with OPEN, and is not obeyed: an image is not emptied by accident.
#: AUTO_INVAL_DATA: a changed time drops cached pages, which may be stale as others write the node.
WANTED: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.AUTO_INVAL_DATA
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.HANDLE_KILLPRIV
    | InitFlag.MAX_PAGES
)


class SetAttr(enum.IntFlag):
    """Which fields of a SETATTR are meant (FATTR_*)."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    LOCKOWNER = 1 << 9
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


#: Attributes of the file. The rest only says how the request came about.
ATTRIBUTES: Final = (
    SetAttr.MODE
    | SetAttr.UID
    | SetAttr.GID
    | SetAttr.SIZE
    | SetAttr.ATIME
    | SetAttr.MTIME
    | SetAttr.ATIME_NOW
    | SetAttr.MTIME_NOW
    | SetAttr.CTIME
)


class Request(NamedTuple):
    """A request's header; ``body`` is what follows it, and is only valid until the next read."""

    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    pid: int
    body: memoryview


class ReadWrite(NamedTuple):
    """The arguments of READ and WRITE; ``data`` is empty for a READ."""

    offset: int
    size: int
    data: memoryview


class SetAttrRequest(NamedTuple):
    """The arguments of SETATTR that ``valid`` (SetAttr) says are meant."""

    valid: int
    size: int
    mode: int
    uid: int
    gid: int


class Init(NamedTuple):
    """What the kernel offers."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class Fallocate(NamedTuple):
    """The arguments of FALLOCATE."""

    offset: int
    length: int
    mode: int


class Seek(NamedTuple):
    """The arguments of LSEEK."""

    offset: int
    whence: int


@attrs.frozen(kw_only=True)
class Attributes:
    """What GETATTR tells. ``now`` is all three times, in seconds."""

    size: int
    blocks: int
    block_size: int
    mode: int
    uid: int
    gid: int
    now: int


# -- requests ----------------------------------------------------------------------------------------


def parse(message: memoryview) -> Request:
    """Take a whole message apart; RemoteProtocolError if its length is not what it says."""
    if len(message) < IN_HEADER.size:
        raise RemoteProtocolError(f"FUSE request of {len(message)} bytes")
    length, opcode, unique, node, uid, gid, pid, _, _ = IN_HEADER.unpack_from(message)
    if length != len(message):
        raise RemoteProtocolError(f"FUSE request says {length} bytes, has {len(message)}")
    return Request(opcode, unique, node, uid, gid, pid, message[IN_HEADER.size :])


def _unpack(form: struct.Struct, request: Request) -> tuple[int, ...]:
    if len(request.body) < form.size:
        raise RemoteProtocolError(
            f"FUSE request {request.opcode} has {len(request.body)} bytes of arguments"
        )
    return form.unpack_from(request.body)


def parse_init(request: Request) -> Init:
    """Return the arguments of INIT."""
    return Init(*_unpack(_INIT_IN, request))


def parse_open(request: Request) -> int:
    """Return the flags (os.O_*) of OPEN."""
    return _unpack(_OPEN_IN, request)[0]


def parse_read(request: Request) -> ReadWrite:
    """Return the arguments of READ. More than was negotiated is refused."""
    _, offset, size, *_ = _unpack(RW_IN, request)
    if size > MAX_IO:
        raise RemoteProtocolError(f"FUSE READ of {size} bytes")
    return ReadWrite(offset, size, request.body[:0])


def parse_write(request: Request) -> ReadWrite:
    """Return the arguments of WRITE, whose data must be there."""
    _, offset, size, *_ = _unpack(RW_IN, request)
    data = request.body[RW_IN.size :]
    if size != len(data) or size > MAX_IO:
        raise RemoteProtocolError(f"FUSE WRITE of {size} bytes brings {len(data)}")
    return ReadWrite(offset, size, data)


def parse_setattr(request: Request) -> SetAttrRequest:
    """Return the arguments of SETATTR."""
    valid, _, _, size, _, _, _, _, _, _, _, mode, _, uid, gid, _ = _unpack(_SETATTR_IN, request)
    return SetAttrRequest(valid, size, mode, uid, gid)


def parse_fallocate(request: Request) -> Fallocate:
    """Return the arguments of FALLOCATE."""
    _, offset, length, mode, _ = _unpack(_FALLOCATE_IN, request)
    return Fallocate(offset, length, mode)


def parse_lseek(request: Request) -> Seek:
    """Return the arguments of LSEEK."""
    _, offset, whence, _ = _unpack(_LSEEK_IN, request)
    return Seek(offset, whence)


# -- replies -----------------------------------------------------------------------------------------


def reply(unique: int, *payload: Buffer) -> Sequence[Buffer]:
    """Return the pieces of a reply that went well."""
    length = OUT_HEADER.size + sum(map(len, payload))
    return OUT_HEADER.pack(length, 0, unique), *payload


def error_reply(unique: int, number: int) -> Sequence[Buffer]:
    """Return a reply without payload: errno ``number``, 0 for success."""
    return (OUT_HEADER.pack(OUT_HEADER.size, -number, unique),)


def init_out(init: Init, *, max_background: int) -> bytes:
    """Answer INIT: what is wanted of what the kernel offers.

    A kernel of a later major version gets ours and asks again. RemoteProtocolError: it is too old.
    """
    if init.major < MAJOR:
        raise RemoteProtocolError(f"FUSE protocol version {init.major}.{init.minor}")
    out = _INIT_OUT.pack(
        MAJOR,
        MINOR,
        init.max_readahead,
        init.flags & WANTED if init.major == MAJOR else 0,
        max_background,
        max_background * 3 // 4,
        MAX_IO,
        1,  # granularity of times, in nanoseconds
        MAX_PAGES,
        0,
        0,
        0,
        0,
    )
    old = init.major == MAJOR and init.minor < 23
    return out[:_INIT_OUT_22] if old else out


def attr_out(attributes: Attributes, valid_for: int) -> bytes:
    """Answer GETATTR and SETATTR; the kernel keeps it for ``valid_for`` seconds."""
    now = attributes.now
    return _ATTR_OUT.pack(
        valid_for,
        0,
        0,
        ROOT_ID,
        attributes.size,
        attributes.blocks,
        now,
        now,
        now,
        0,
        0,
        0,
        attributes.mode,
        1,
        attributes.uid,
        attributes.gid,
        0,
        attributes.block_size,
        0,
    )


def open_out(flags: int = 0) -> bytes:
    """Answer OPEN: all handles are the same."""
    return _OPEN_OUT.pack(0, flags, 0)


def write_out(size: int) -> bytes:
    """Answer WRITE: ``size`` bytes were written."""
    return _WRITE_OUT.pack(size, 0)


def lseek_out(offset: int) -> bytes:
    """Answer LSEEK."""
    return _LSEEK_OUT.pack(offset)


def statfs_out(*, block_size: int, name_max: int) -> bytes:
    """Answer STATFS: a file system that counts nothing."""
    return _STATFS_OUT.pack(0, 0, 0, 0, 0, block_size, name_max, 0, 0)
