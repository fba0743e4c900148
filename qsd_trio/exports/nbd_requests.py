"""What the NBD export decides from a request's header alone, and its error codes. Pure."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from qsd_trio import trace
from qsd_trio.protocol.nbd.constants import (
    COMMAND_NAMES,
    MAX_REQUEST,
    Cmd,
    CmdFlag,
    Error,
    Mode,
)

if TYPE_CHECKING:
    from qsd_trio.block.abc import Extents
    from qsd_trio.protocol.nbd.transmission import Request

# errno -> wire code, once, at the edge. What is not listed goes as EINVAL.
NBD_ERRORS: Final = {
    errno.EPERM: Error.EPERM,
    errno.EROFS: Error.EPERM,
    errno.EIO: Error.EIO,
    errno.ENOMEM: Error.ENOMEM,
    errno.EFBIG: Error.ENOSPC,
    errno.EDQUOT: Error.ENOSPC,
    errno.ENOSPC: Error.ENOSPC,
    errno.EOVERFLOW: Error.EOVERFLOW,
    errno.ENOTSUP: Error.ENOTSUP,
    errno.ESHUTDOWN: Error.ESHUTDOWN,
}

_FAILED: Final = {
    Cmd.READ: "reading from file failed",
    Cmd.WRITE: "writing to file failed",
    Cmd.WRITE_ZEROES: "writing to file failed",
    Cmd.FLUSH: "flush failed",
    Cmd.TRIM: "discard failed",
    Cmd.CACHE: "caching data failed",
    Cmd.BLOCK_STATUS: "unable to get block status",
}


class Refusal(NamedTuple):
    """The error that answers a request: a wire code, and a text for humans."""

    error: int
    text: str


_trace_request = trace.point("nbd_receive_request")
_trace_decode = trace.point("nbd_co_receive_request_decode_type")


def tracing() -> bool:
    """Return whether ``trace_request`` has anything to do."""
    return _trace_request.on or _trace_decode.on


def trace_request(magic: int, flags: int, kind: int, cookie: int, offset: int, length: int) -> None:
    """Trace a request that has arrived."""
    _trace_request(magic, flags, kind, offset, length)
    _trace_decode(cookie, kind, COMMAND_NAMES.get(kind, "unknown"))


def failure(kind: int, error: OSError) -> Refusal:
    """Return the answer to a request of type ``kind`` that the node failed."""
    text = f"{_FAILED[kind]}: {os.strerror(error.errno or 0)}"
    return Refusal(NBD_ERRORS.get(error.errno or 0, Error.EINVAL), text)


def too_long(length: int) -> Refusal:
    """Return the answer to a request that wants too much in one piece."""
    text = f"len ({length} ) is larger than max len ({MAX_REQUEST})"
    return Refusal(Error.EINVAL, text)


class Rules(NamedTuple):
    """What a client may ask, by negotiation and export."""

    mode: int
    size: int
    read_only: bool
    has_contexts: bool

    def refusal(self, request: Request) -> Refusal | None:
        """Return what is wrong with a request, as far as its header tells.

        The specification would like EPERM for a read-only export and ENOSPC beyond the end; like the
        real daemon, and for those who compare, this says EINVAL and explains itself in the text.
        """
        flags, kind, _, offset, length = request
        if kind in (Cmd.READ, Cmd.WRITE, Cmd.CACHE) and length > MAX_REQUEST:
            return too_long(length)
        if self.read_only and kind in (Cmd.WRITE, Cmd.WRITE_ZEROES, Cmd.TRIM):
            return Refusal(Error.EINVAL, "Export is read-only")
        if offset + length > self.size:
            text = f"operation past EOF; From: {offset}, Len: {length}, Size: {self.size}"
            return Refusal(Error.EINVAL, text)
        if flags & ~self._valid_flags(kind):
            name = COMMAND_NAMES.get(kind, "<unknown>")
            text = f"unsupported flags for command {name} (got 0x{flags:x})"
            return Refusal(Error.EINVAL, text)
        if kind == Cmd.BLOCK_STATUS:
            if not self.has_contexts:
                return Refusal(Error.EINVAL, "CMD_BLOCK_STATUS not negotiated")
            if not length:
                return Refusal(Error.EINVAL, "need non-zero length")
        if kind not in COMMAND_NAMES:
            return Refusal(Error.EINVAL, f"invalid request type ({kind}) received")
        return None

    def _valid_flags(self, kind: int) -> int:
        valid: int = CmdFlag.FUA
        if kind == Cmd.READ and self.mode >= Mode.STRUCTURED:
            valid |= CmdFlag.DF
        elif kind == Cmd.WRITE and self.mode == Mode.EXTENDED:
            valid |= CmdFlag.PAYLOAD_LEN
        elif kind == Cmd.WRITE_ZEROES:
            valid |= CmdFlag.NO_HOLE | CmdFlag.FAST_ZERO
        elif kind == Cmd.BLOCK_STATUS:
            valid |= CmdFlag.REQ_ONE
            if self.mode == Mode.EXTENDED:
                valid |= CmdFlag.PAYLOAD_LEN
        return valid


def segments(extents: Extents) -> list[tuple[bool, int]]:
    """Return (is data, length) of extents with equal neighbours merged."""
    merged: list[tuple[bool, int]] = []
    for file, _, length in extents:
        is_data = file is not None
        if merged and merged[-1][0] == is_data:
            merged[-1] = (is_data, merged[-1][1] + length)
        else:
            merged.append((is_data, length))
    return merged
