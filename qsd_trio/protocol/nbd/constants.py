"""The numbers of the NBD protocol.

Plain integers in name spaces, not enums: they are compared millions of times a second.
"""

from __future__ import annotations

from typing import Final, final

NBDMAGIC: Final = 0x4E42444D41474943
IHAVEOPT: Final = 0x49484156454F5054
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
EXTENDED_REQUEST_MAGIC: Final = 0x21E41C71
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
EXTENDED_REPLY_MAGIC: Final = 0x6E8A278C

MAX_STRING: Final = 4096  # "Conventions": no string may be longer
MAX_REQUEST: Final = 32 * 1024 * 1024  # "Size constraints": what every peer may expect


@final
class HandshakeFlag:
    """Handshake flags (server) and client flags: the same bits."""

    FIXED_NEWSTYLE: Final = 1
    NO_ZEROES: Final = 2


@final
class TransmissionFlag:
    """What an export can do (``NBD_FLAG_x``)."""

    HAS_FLAGS: Final = 1 << 0
    READ_ONLY: Final = 1 << 1
    SEND_FLUSH: Final = 1 << 2
    SEND_FUA: Final = 1 << 3
    ROTATIONAL: Final = 1 << 4
    SEND_TRIM: Final = 1 << 5
    SEND_WRITE_ZEROES: Final = 1 << 6
    SEND_DF: Final = 1 << 7
    CAN_MULTI_CONN: Final = 1 << 8
    SEND_RESIZE: Final = 1 << 9
    SEND_CACHE: Final = 1 << 10
    SEND_FAST_ZERO: Final = 1 << 11
    BLOCK_STATUS_PAYLOAD: Final = 1 << 12


@final
class Opt:
    """Options of the negotiation."""

    EXPORT_NAME: Final = 1
    ABORT: Final = 2
    LIST: Final = 3
    PEEK_EXPORT: Final = 4
    STARTTLS: Final = 5
    INFO: Final = 6
    GO: Final = 7
    STRUCTURED_REPLY: Final = 8
    LIST_META_CONTEXT: Final = 9
    SET_META_CONTEXT: Final = 10
    EXTENDED_HEADERS: Final = 11


#: How error texts call the options.
OPTION_NAMES: Final = {
    Opt.EXPORT_NAME: "export name",
    Opt.ABORT: "abort",
    Opt.LIST: "list",
    Opt.STARTTLS: "starttls",
    Opt.INFO: "info",
    Opt.GO: "go",
    Opt.STRUCTURED_REPLY: "structured reply",
    Opt.LIST_META_CONTEXT: "list meta context",
    Opt.SET_META_CONTEXT: "set meta context",
    Opt.EXTENDED_HEADERS: "extended headers",
}


@final
class Rep:
    """Types of option replies."""

    ACK: Final = 1
    SERVER: Final = 2
    INFO: Final = 3
    META_CONTEXT: Final = 4
    ERR_UNSUP: Final = 2**31 + 1
    ERR_POLICY: Final = 2**31 + 2
    ERR_INVALID: Final = 2**31 + 3
    ERR_PLATFORM: Final = 2**31 + 4
    ERR_TLS_REQD: Final = 2**31 + 5
    ERR_UNKNOWN: Final = 2**31 + 6
    ERR_SHUTDOWN: Final = 2**31 + 7
    ERR_BLOCK_SIZE_REQD: Final = 2**31 + 8
    ERR_TOO_BIG: Final = 2**31 + 9
    ERR_EXT_HEADER_REQD: Final = 2**31 + 10


@final
class Info:
    """Types of information in ``Rep.INFO``."""

    EXPORT: Final = 0
    NAME: Final = 1
    DESCRIPTION: Final = 2
    BLOCK_SIZE: Final = 3


@final
class Cmd:
    """Commands of the transmission phase."""

    READ: Final = 0
    WRITE: Final = 1
    DISC: Final = 2
    FLUSH: Final = 3
    TRIM: Final = 4
    CACHE: Final = 5
    WRITE_ZEROES: Final = 6
    BLOCK_STATUS: Final = 7
    RESIZE: Final = 8


#: How error texts call the commands.
COMMAND_NAMES: Final = {
    Cmd.READ: "read",
    Cmd.WRITE: "write",
    Cmd.DISC: "disconnect",
    Cmd.FLUSH: "flush",
    Cmd.TRIM: "trim",
    Cmd.CACHE: "cache",
    Cmd.WRITE_ZEROES: "write zeroes",
    Cmd.BLOCK_STATUS: "block status",
}


@final
class CmdFlag:
    """Command flags."""

    FUA: Final = 1 << 0
    NO_HOLE: Final = 1 << 1
    DF: Final = 1 << 2
    REQ_ONE: Final = 1 << 3
    FAST_ZERO: Final = 1 << 4
    PAYLOAD_LEN: Final = 1 << 5


REPLY_FLAG_DONE: Final = 1


@final
class ReplyType:
    """Types of structured and extended reply chunks."""

    NONE: Final = 0
    OFFSET_DATA: Final = 1
    OFFSET_HOLE: Final = 2
    BLOCK_STATUS: Final = 5
    BLOCK_STATUS_EXT: Final = 6
    ERROR: Final = 2**15 + 1
    ERROR_OFFSET: Final = 2**15 + 2


@final
class Error:
    """Error values on the wire."""

    EPERM: Final = 1
    EIO: Final = 5
    ENOMEM: Final = 12
    EINVAL: Final = 22
    ENOSPC: Final = 28
    EOVERFLOW: Final = 75
    ENOTSUP: Final = 95
    ESHUTDOWN: Final = 108


@final
class State:
    """Status flags of the metadata contexts."""

    # base:allocation
    HOLE: Final = 1
    ZERO: Final = 2
    # qemu:dirty-bitmap:NAME
    DIRTY: Final = 1


@final
class Mode:
    """How replies look, by what the client negotiated; each includes the ones before."""

    SIMPLE: Final = 0
    STRUCTURED: Final = 1
    EXTENDED: Final = 2
