"""The server's side of the negotiation ("option haggling"), sans-IO.

The client is not trusted: an option's length has a limit, what is skipped is never stored, and a
client that floods options is answered one option at a time (``FLUSH``), so that the answers waiting to
be sent stay small.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, final

from qsd_trio.errors import LocalProtocolError, RemoteProtocolError
from qsd_trio.protocol.nbd.constants import (
    IHAVEOPT,
    MAX_STRING,
    NBDMAGIC,
    OPTION_NAMES,
    OPTION_REPLY_MAGIC,
    HandshakeFlag,
    Info,
    Mode,
    Opt,
    Rep,
    TransmissionFlag,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

MAX_OPTION_LENGTH: Final = 32 * 1024 * 1024  # longer: the client is dropped at once
MAX_OPTION_STORED: Final = 140 * 1024  # fits every INFO and GO; longer ones are skipped and refused
MAX_PENDING_REPLIES: Final = 64 * 1024  # bytes of answers after which FLUSH is asked for
NAME_SHOWN: Final = 80  # characters of a client's name in an error text

GREETING = struct.Struct(">QQH")
CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">QII")
OPTION_REPLY = struct.Struct(">QIII")
U32 = struct.Struct(">I")
U16 = struct.Struct(">H")
EXPORT_NAME_REPLY = struct.Struct(">QH")
INFO_EXPORT = struct.Struct(">HQH")
INFO_BLOCK_SIZE = struct.Struct(">HIII")

_WITHOUT_DATA = frozenset((Opt.LIST, Opt.STARTTLS, Opt.STRUCTURED_REPLY, Opt.EXTENDED_HEADERS))

BASE_ALLOCATION: Final = "base:allocation"
ALLOCATION_DEPTH: Final = "qemu:allocation-depth"
DIRTY_BITMAP: Final = "qemu:dirty-bitmap:"


class ExportInfo(NamedTuple):
    """What the negotiation tells of an export.

    ``flags`` are transmission flags without those that depend on the client. ``contexts`` are the metadata contexts
    it has; a context's place there is its id.
    """

    name: str
    size: int
    flags: int
    description: str | None = None
    block_sizes: tuple[int, int, int] = (1, 4096, 32 * 1024 * 1024)
    contexts: Sequence[str] = (BASE_ALLOCATION,)


class ExportDirectory(Protocol):
    """Where the negotiation looks exports up."""

    def list(self) -> Iterable[tuple[str, str | None]]:
        """Return (name, description) of all exports."""
        ...

    def find(self, name: str) -> ExportInfo | None:
        """Return the export ``name`` or None."""
        ...


class ExportChosen(NamedTuple):
    """The client enters the transmission phase.

    ``contexts`` maps context ids to names. ``sizes_known``: it has asked for the block sizes.
    """

    info: ExportInfo
    mode: int
    flags: int
    contexts: Mapping[int, str]
    sizes_known: bool


class Aborted(NamedTuple):
    """The client has taken its leave; close after the replies are sent."""


class StartTls(NamedTuple):
    """Send the replies, do the TLS handshake, then call ``tls_started()``."""


class Flush(NamedTuple):
    """Send the replies before asking for the next event."""


FLUSH: Final = Flush()
NegotiationEvent = ExportChosen | Aborted | StartTls | Flush


@final
class _Reader:
    """Bytes received and not yet used."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def read_exactly(self, length: int) -> Generator[None, None, bytes]:
        while len(self.buffer) < length:
            yield
        data = bytes(self.buffer[:length])
        del self.buffer[:length]
        return data

    def skip(self, length: int) -> Generator[None]:
        while length:
            if not self.buffer:
                yield
            step = min(length, len(self.buffer))
            del self.buffer[:step]
            length -= step


class _Refused(Exception):
    """An option is answered by an error; haggling goes on."""

    def __init__(self, reply: int, text: str) -> None:
        super().__init__(text)
        self.reply = reply


@final
class _Payload:
    """An option's data, taken from the front."""

    def __init__(self, option: int, data: bytes) -> None:
        self._option = option
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, length: int) -> bytes:
        if length > self.left:
            raise _Refused(
                Rep.ERR_INVALID,
                f"Inconsistent lengths in option {OPTION_NAMES.get(self._option, 'unknown')}",
            )
        self._at += length
        return self._data[self._at - length : self._at]

    def u32(self) -> int:
        (value,) = U32.unpack(self.take(4))
        return int(value)

    def u16(self) -> int:
        (value,) = U16.unpack(self.take(2))
        return int(value)

    def name(self) -> str:
        length = self.u32()
        if length > MAX_STRING:
            raise _Refused(Rep.ERR_INVALID, f"Invalid name length: {length}")
        data = self.take(length)
        if 0 in data:
            raise _Refused(
                Rep.ERR_INVALID, f"Unexpected embedded NUL in option {OPTION_NAMES[self._option]}"
            )
        return decode_name(data)


def decode_name(data: bytes) -> str:
    """Decode a name: bytes that are not UTF-8 make a name that no export has."""
    return data.decode("utf-8", "surrogateescape")


def shown(name: str) -> str:
    """Return ``name`` as error texts show it: what a client sent may be 4096 bytes long."""
    return name if len(name) < NAME_SHOWN else f"{name[:NAME_SHOWN]}..."


@final
class ServerNegotiation:
    """One client's negotiation.

    Feed it with ``receive_data``; ``next_event`` advances it (None: it needs more data); send what
    ``data_to_send`` returns. After ``ExportChosen``, ``trailing_data`` holds the client's first requests.

    Args:
        exports: Where names are looked up.
        tls_available: STARTTLS may be asked for.
        tls_required: Nothing else may, before it.
    """

    def __init__(
        self,
        exports: ExportDirectory,
        *,
        tls_available: bool = False,
        tls_required: bool = False,
    ) -> None:
        self._exports = exports
        self._tls_available = tls_available
        self._tls_required = tls_required
        self._secure = False
        self._reader = _Reader()
        self._out = bytearray(
            GREETING.pack(
                NBDMAGIC, IHAVEOPT, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
            )
        )
        self._event: NegotiationEvent | None = None
        self._over = False
        self._fixed = False
        self._no_zeroes = False
        self._reset()
        self._haggling = self._haggle()
        #: Whether the client has sent anything at all: a port probe is not worth a log line.
        self.heard = False

    def _reset(self) -> None:
        self._mode: int = Mode.SIMPLE
        self._meta_export: str | None = None
        self._contexts: dict[int, str] = {}

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the client."""
        self.heard = self.heard or bool(data)
        self._reader.buffer += data

    def data_to_send(self) -> bytes:
        """Return the bytes to send, once."""
        data = bytes(self._out)
        self._out.clear()
        return data

    @property
    def trailing_data(self) -> bytes:
        """Return what the client sent beyond the negotiation."""
        return bytes(self._reader.buffer)

    def next_event(self) -> NegotiationEvent | None:
        """Advance. Return None when more data is needed; raise RemoteProtocolError to be dropped."""
        if self._over:
            raise LocalProtocolError("the negotiation is over")
        self._event = None
        next(self._haggling)
        event = self._event
        self._over = isinstance(event, ExportChosen | Aborted)
        return event

    def tls_started(self) -> None:
        """Go on under TLS, with nothing kept of what came before it."""
        self._secure = True
        self._reset()

    # -- the state machine -------------------------------------------------------------------------

    def _haggle(self) -> Generator[None]:
        (flags,) = CLIENT_FLAGS.unpack((yield from self._reader.read_exactly(4)))
        known = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
        if flags & ~known:
            raise RemoteProtocolError(f"unknown client flags {flags & ~known:#x}")
        self._fixed = bool(flags & HandshakeFlag.FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        while True:
            header = yield from self._reader.read_exactly(OPTION.size)
            magic, option, length = OPTION.unpack(header)
            if magic != IHAVEOPT:
                raise RemoteProtocolError(f"bad option magic {magic:#x}")
            if length > MAX_OPTION_LENGTH:
                raise RemoteProtocolError(f"option {option} of {length} bytes is too long")
            if option == Opt.EXPORT_NAME and length > MAX_STRING:
                raise RemoteProtocolError(f"export name of {length} bytes is too long")
            if not self._fixed and option != Opt.EXPORT_NAME:
                raise RemoteProtocolError(f"option {option} without fixed newstyle")
            if length > MAX_OPTION_STORED:
                yield from self._reader.skip(length)
                if option in _WITHOUT_DATA:
                    self._refuse(option, Rep.ERR_INVALID, _unexpected_length(option))
                elif option in OPTION_NAMES:
                    self._refuse(option, Rep.ERR_TOO_BIG, "Option too long")
                else:
                    self._refuse(option, Rep.ERR_UNSUP, _unsupported(option))
            else:
                data = yield from self._reader.read_exactly(length)
                try:
                    self._on_option(option, data)
                except _Refused as refusal:
                    self._refuse(option, refusal.reply, str(refusal))
            if self._event is None and len(self._out) > MAX_PENDING_REPLIES:
                self._event = FLUSH
            while self._event is not None:
                yield

    def _on_option(self, option: int, data: bytes) -> None:
        if self._tls_required and not self._secure and option not in (Opt.STARTTLS, Opt.ABORT):
            text = f"Option 0x{option:x} not permitted before TLS"
            if option == Opt.EXPORT_NAME:
                raise RemoteProtocolError(text)
            raise _Refused(Rep.ERR_TLS_REQD, text)
        match option:
            case Opt.EXPORT_NAME:
                self._on_export_name(data)
            case Opt.ABORT:
                self._reply(option, Rep.ACK)
                self._event = Aborted()
            case Opt.LIST:
                self._expect_empty(option, data)
                for name, description in self._exports.list():
                    encoded = name.encode("utf-8", "surrogateescape")
                    self._reply(
                        option,
                        Rep.SERVER,
                        U32.pack(len(encoded)) + encoded + (description or "").encode(),
                    )
                self._reply(option, Rep.ACK)
            case Opt.STARTTLS:
                self._on_starttls(data)
            case Opt.INFO | Opt.GO:
                self._on_go(option, _Payload(option, data))
            case Opt.STRUCTURED_REPLY:
                self._expect_empty(option, data)
                if self._mode == Mode.EXTENDED:
                    raise _Refused(Rep.ERR_EXT_HEADER_REQD, "extended headers already negotiated")
                if self._mode == Mode.STRUCTURED:
                    raise _Refused(Rep.ERR_INVALID, "structured reply already negotiated")
                self._mode = Mode.STRUCTURED
                self._reply(option, Rep.ACK)
            case Opt.EXTENDED_HEADERS:
                self._expect_empty(option, data)
                if self._mode == Mode.EXTENDED:
                    raise _Refused(Rep.ERR_INVALID, "extended headers already negotiated")
                self._mode = Mode.EXTENDED
                self._reply(option, Rep.ACK)
            case Opt.LIST_META_CONTEXT | Opt.SET_META_CONTEXT:
                self._on_meta_context(option, _Payload(option, data))
            case _:
                raise _Refused(Rep.ERR_UNSUP, _unsupported(option))

    def _expect_empty(self, option: int, data: bytes) -> None:
        if data:
            raise _Refused(Rep.ERR_INVALID, _unexpected_length(option))

    def _on_export_name(self, data: bytes) -> None:
        if self._mode == Mode.EXTENDED:
            raise RemoteProtocolError("export name after extended headers")
        info = self._exports.find(decode_name(data))
        if info is None:
            raise RemoteProtocolError("export not found")  # this option has no error reply
        chosen = self._choose(info, sizes_known=False)
        self._out += EXPORT_NAME_REPLY.pack(info.size, chosen.flags)
        if not self._no_zeroes:
            self._out += bytes(124)
        self._event = chosen

    def _on_starttls(self, data: bytes) -> None:
        self._expect_empty(Opt.STARTTLS, data)
        if self._secure:
            raise _Refused(Rep.ERR_INVALID, "TLS already enabled")
        if not self._tls_available:
            raise _Refused(Rep.ERR_POLICY, "TLS not configured")
        if self._reader.buffer:
            raise RemoteProtocolError("plain text after STARTTLS")  # CVE-2021-3716 is about these
        self._reply(Opt.STARTTLS, Rep.ACK)
        self._event = StartTls()

    def _on_go(self, option: int, payload: _Payload) -> None:
        name = payload.name()
        wanted = {payload.u16() for _ in range(payload.u16())}
        if payload.left:
            raise _Refused(Rep.ERR_INVALID, _unexpected_length(option))
        info = self._find(name)
        chosen = self._choose(info, sizes_known=Info.BLOCK_SIZE in wanted)
        if Info.NAME in wanted:
            self._reply_info(option, Info.NAME, name)
        if info.description is not None:
            self._reply_info(option, Info.DESCRIPTION, info.description)
        minimum, preferred, maximum = info.block_sizes
        if option == Opt.GO and Info.BLOCK_SIZE not in wanted:
            minimum = 1  # such a client may send anything, and is served
        self._reply(
            option, Rep.INFO, INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, minimum, preferred, maximum)
        )
        self._reply(option, Rep.INFO, INFO_EXPORT.pack(Info.EXPORT, info.size, chosen.flags))
        if option == Opt.INFO and Info.BLOCK_SIZE not in wanted and minimum > 1:
            raise _Refused(
                Rep.ERR_BLOCK_SIZE_REQD, "request NBD_INFO_BLOCK_SIZE to use this export"
            )
        self._reply(option, Rep.ACK)
        if option == Opt.GO:
            self._event = chosen

    def _choose(self, info: ExportInfo, *, sizes_known: bool) -> ExportChosen:
        # Contexts were selected for one export; they say nothing about another.
        contexts = self._contexts if self._meta_export == info.name else {}
        flags = info.flags
        if self._mode >= Mode.STRUCTURED:
            flags |= TransmissionFlag.SEND_DF
        if self._mode >= Mode.EXTENDED and contexts:
            flags |= TransmissionFlag.BLOCK_STATUS_PAYLOAD
        return ExportChosen(info, self._mode, flags, dict(contexts), sizes_known)

    def _find(self, name: str) -> ExportInfo:
        info = self._exports.find(name)
        if info is None:
            raise _Refused(Rep.ERR_UNKNOWN, f"export '{shown(name)}' not present")
        return info

    def _on_meta_context(self, option: int, payload: _Payload) -> None:
        listing = option == Opt.LIST_META_CONTEXT
        if not listing:
            if self._mode < Mode.STRUCTURED:
                name = OPTION_NAMES[option]
                raise _Refused(
                    Rep.ERR_INVALID,
                    f"request option '{name}' when structured reply is not negotiated",
                )
            self._meta_export, self._contexts = None, {}
        info = self._find(payload.name())
        count = payload.u32()
        selected: set[int] = set()
        if listing and not count:
            selected.update(range(len(info.contexts)))
        for _ in range(count):
            query = payload.take(payload.u32())
            if len(query) <= MAX_STRING:
                selected.update(_matching(decode_name(query), info.contexts, listing=listing))
        if payload.left:
            raise _Refused(Rep.ERR_INVALID, _unexpected_length(option))
        for id_ in sorted(selected):
            data = U32.pack(0 if listing else id_) + info.contexts[id_].encode()
            self._reply(option, Rep.META_CONTEXT, data)
        if not listing:
            self._meta_export = info.name
            self._contexts = {id_: info.contexts[id_] for id_ in sorted(selected)}
        self._reply(option, Rep.ACK)

    # -- replies -----------------------------------------------------------------------------------

    def _reply(self, option: int, reply: int, payload: bytes = b"") -> None:
        self._out += OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(payload)) + payload

    def _refuse(self, option: int, reply: int, text: str) -> None:
        # A string is at most 4096 bytes long, also when a client's name is in it.
        self._reply(option, reply, text.encode("utf-8", "surrogateescape")[:MAX_STRING])

    def _reply_info(self, option: int, kind: int, text: str) -> None:
        data = U16.pack(kind) + text.encode("utf-8", "surrogateescape")
        self._reply(option, Rep.INFO, data)


def _unexpected_length(option: int) -> str:
    return f"option '{OPTION_NAMES[option]}' has unexpected length"


def _unsupported(option: int) -> str:
    return f"Unsupported option {option} ({OPTION_NAMES.get(option, '<unknown>')})"


def _matching(query: str, contexts: Sequence[str], *, listing: bool) -> Iterable[int]:
    """Return the ids that a query means; a listing may name a name space or the bitmaps alone."""
    if listing and query in ("base:", "qemu:", DIRTY_BITMAP):
        return [id_ for id_, name in enumerate(contexts) if name.startswith(query)]
    return [id_ for id_, name in enumerate(contexts) if name == query]
