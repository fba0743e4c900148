"""The server's side of the negotiation: samples in every cut, hostile bytes, options in every order."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd_trio.errors import LocalProtocolError, RemoteProtocolError
from qsd_trio.protocol.nbd import negotiation
from qsd_trio.protocol.nbd.client import pack_go, pack_meta_context, pack_name, pack_option
from qsd_trio.protocol.nbd.constants import (
    IHAVEOPT,
    OPTION_REPLY_MAGIC,
    Info,
    Mode,
    Opt,
    Rep,
    TransmissionFlag,
)
from qsd_trio.protocol.nbd.negotiation import (
    FLUSH,
    Aborted,
    ExportChosen,
    ExportInfo,
    ServerNegotiation,
    StartTls,
)

GREETING = b"NBDMAGICIHAVEOPT\x00\x03"
CLIENT = struct.pack(">I", 3)
CONTEXTS = ("base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0")
DISK = ExportInfo("disk0", 1 << 20, 0x56D, "a disk", (512, 4096, 1 << 25), CONTEXTS)
PLAIN = ExportInfo("plain", 4096, 0x3, None)


class Directory:
    """Two exports."""

    def list(self) -> list[tuple[str, str | None]]:
        return [(DISK.name, DISK.description), (PLAIN.name, None)]

    def find(self, name: str) -> ExportInfo | None:
        return {DISK.name: DISK, PLAIN.name: PLAIN}.get(name)


def drive(server: ServerNegotiation) -> tuple[bytes, object]:
    """Run until data is needed or it is over; return (bytes sent, the last event)."""
    sent = b""
    while True:
        event = server.next_event()
        sent += server.data_to_send()
        if event is None or isinstance(event, ExportChosen | Aborted | StartTls):
            return sent, event


def negotiate(data: bytes, **options: bool) -> tuple[bytes, object]:
    server = ServerNegotiation(Directory(), **options)
    server.receive_data(data)
    return drive(server)


def replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """Cut what the server sent, after the greeting, into (option, type, payload)."""
    assert data.startswith(GREETING)
    data = data[len(GREETING) :]
    found = []
    while data:
        magic, option, kind, length = struct.unpack_from(">QIII", data)
        assert magic == OPTION_REPLY_MAGIC
        assert len(data) >= 20 + length
        found.append((option, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return found


def kinds(data: bytes) -> list[int]:
    return [kind for _, kind, _ in replies(negotiate(CLIENT + data)[0])]


STRUCTURED = pack_option(Opt.STRUCTURED_REPLY)
EXTENDED = pack_option(Opt.EXTENDED_HEADERS)
SAMPLES = {
    "go": CLIENT + pack_go(Opt.GO, "disk0", [Info.BLOCK_SIZE, Info.NAME]),
    "info, go": CLIENT + pack_go(Opt.INFO, "disk0", [3]) + pack_go(Opt.GO, "disk0", [3]),
    "list, go": CLIENT + pack_option(Opt.LIST) + pack_go(Opt.GO, "plain"),
    "structured, contexts, go": CLIENT
    + STRUCTURED
    + pack_meta_context(Opt.LIST_META_CONTEXT, "disk0", [])
    + pack_meta_context(Opt.SET_META_CONTEXT, "disk0", CONTEXTS[1:])
    + pack_go(Opt.GO, "disk0"),
    "extended, go": CLIENT + EXTENDED + pack_go(Opt.GO, "disk0"),
    "errors, go": CLIENT
    + pack_option(99, b"abc")
    + pack_option(Opt.LIST, b"x")
    + pack_go(Opt.GO, "nobody")
    + pack_option(Opt.STARTTLS)
    + pack_option(Opt.GO, b"\xff" * 7)
    + pack_go(Opt.GO, "plain"),
    "export name": CLIENT + pack_option(Opt.EXPORT_NAME, b"disk0"),
    "export name with zeroes": struct.pack(">I", 1) + pack_option(Opt.EXPORT_NAME, b"disk0"),
    "abort": CLIENT + pack_option(Opt.ABORT),
}


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())
def test_byte_by_byte_is_the_same_as_whole(sample: bytes) -> None:
    whole = negotiate(sample)
    server = ServerNegotiation(Directory())
    sent, event = b"", None
    for at in range(len(sample)):
        assert event is None
        server.receive_data(sample[at : at + 1])
        more, event = drive(server)
        sent += more
    assert (sent, event) == whole
    assert isinstance(event, ExportChosen | Aborted)


@given(
    st.sampled_from(sorted(SAMPLES)),
    st.lists(st.integers(1, 200), max_size=6),
    st.binary(max_size=40),
)
@settings(max_examples=60)
def test_any_cut_and_what_follows(name: str, cuts: list[int], trailing: bytes) -> None:
    sample = SAMPLES[name]
    server = ServerNegotiation(Directory())
    sent, event, at = b"", None, 0
    for cut in [*sorted(set(cuts)), len(sample)]:
        if at < cut <= len(sample):
            server.receive_data(sample[at:cut] + (trailing if cut == len(sample) else b""))
            more, event = drive(server)
            sent += more
            at = cut
    assert (sent, event) == negotiate(sample)
    assert server.trailing_data == trailing


@given(st.binary(max_size=300), st.booleans(), st.booleans())
@settings(max_examples=150)
def test_any_bytes_are_accepted_or_refused(data: bytes, polite: bool, tls: bool) -> None:
    server = ServerNegotiation(Directory(), tls_available=tls, tls_required=tls)
    server.receive_data((CLIENT if polite else b"") + data)
    try:
        sent, event = drive(server)
    except RemoteProtocolError:
        return
    assert sent.startswith(GREETING)
    assert event is None or isinstance(event, Aborted | ExportChosen | StartTls)


options = st.tuples(
    st.integers(0, 12), st.one_of(st.binary(max_size=40), st.just(pack_name("disk0") + b"\0\0"))
)


@given(st.lists(options, max_size=12))
@settings(max_examples=150)
def test_any_options_get_well_formed_replies(sequence: list[tuple[int, bytes]]) -> None:
    data = b"".join(pack_option(option, payload) for option, payload in sequence)
    try:
        sent, event = negotiate(CLIENT + data)
    except RemoteProtocolError:
        return
    if not (isinstance(event, ExportChosen) and sent.endswith(struct.pack(">QH", 1 << 20, 0))):
        names = [option for option, _ in sequence]
        if Opt.EXPORT_NAME not in names:
            for _, kind, payload in replies(sent):
                assert len(payload) <= 4096 + 12
                assert kind in {Rep.ACK, Rep.SERVER, Rep.INFO, Rep.META_CONTEXT} or kind >= 2**31


def test_go_tells_everything() -> None:
    sent, event = negotiate(SAMPLES["go"])
    assert event == ExportChosen(DISK, Mode.SIMPLE, DISK.flags, {}, True)
    assert replies(sent) == [
        (Opt.GO, Rep.INFO, struct.pack(">H", Info.NAME) + b"disk0"),
        (Opt.GO, Rep.INFO, struct.pack(">H", Info.DESCRIPTION) + b"a disk"),
        (Opt.GO, Rep.INFO, struct.pack(">HIII", Info.BLOCK_SIZE, 512, 4096, 1 << 25)),
        (Opt.GO, Rep.INFO, struct.pack(">HQH", Info.EXPORT, 1 << 20, DISK.flags)),
        (Opt.GO, Rep.ACK, b""),
    ]


def test_a_client_that_does_not_ask_for_block_sizes_may_send_anything() -> None:
    sent, _ = negotiate(CLIENT + pack_go(Opt.GO, "disk0"))
    assert (Opt.GO, Rep.INFO, struct.pack(">HIII", 3, 1, 4096, 1 << 25)) in replies(sent)
    assert kinds(pack_go(Opt.INFO, "disk0"))[-1] == Rep.ERR_BLOCK_SIZE_REQD


def test_contexts_are_kept_for_their_export_only() -> None:
    start = CLIENT + STRUCTURED + pack_meta_context(Opt.SET_META_CONTEXT, "disk0", CONTEXTS)
    _, event = negotiate(start + pack_go(Opt.GO, "disk0"))
    assert isinstance(event, ExportChosen)
    assert event.contexts == dict(enumerate(CONTEXTS))
    assert event.flags == DISK.flags | TransmissionFlag.SEND_DF
    _, event = negotiate(start + pack_go(Opt.GO, "plain"))
    assert isinstance(event, ExportChosen)
    assert event.contexts == {}


def test_block_status_payload_is_offered_with_extended_headers_and_contexts() -> None:
    start = CLIENT + EXTENDED
    _, event = negotiate(start + pack_go(Opt.GO, "disk0"))
    assert isinstance(event, ExportChosen)
    assert not event.flags & TransmissionFlag.BLOCK_STATUS_PAYLOAD
    start += pack_meta_context(Opt.SET_META_CONTEXT, "disk0", CONTEXTS)
    _, event = negotiate(start + pack_go(Opt.GO, "disk0"))
    assert isinstance(event, ExportChosen)
    assert event.flags & TransmissionFlag.BLOCK_STATUS_PAYLOAD
    assert event.mode == Mode.EXTENDED


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", []),
        ("base:", ["base:allocation"]),
        ("qemu:", list(CONTEXTS[1:])),
        ("qemu:dirty-bitmap:", [CONTEXTS[2]]),
        ("qemu:dirty-bitmap:b0", [CONTEXTS[2]]),
        ("qemu:dirty-bitmap:b1", []),
        ("base", []),
        ("x" * 5000, []),
    ],
)
def test_queries_of_a_listing(query: str, found: list[str]) -> None:
    data = pack_meta_context(Opt.LIST_META_CONTEXT, "disk0", [query])
    sent, _ = negotiate(CLIENT + data)
    assert [p[4:].decode() for _, kind, p in replies(sent) if kind == Rep.META_CONTEXT] == found


def test_modes_are_negotiated_once() -> None:
    assert kinds(STRUCTURED + STRUCTURED) == [Rep.ACK, Rep.ERR_INVALID]
    assert kinds(STRUCTURED + EXTENDED) == [Rep.ACK, Rep.ACK]
    assert kinds(EXTENDED + EXTENDED) == [Rep.ACK, Rep.ERR_INVALID]
    assert kinds(EXTENDED + STRUCTURED) == [Rep.ACK, Rep.ERR_EXT_HEADER_REQD]
    with pytest.raises(RemoteProtocolError, match="extended headers"):
        negotiate(CLIENT + EXTENDED + pack_option(Opt.EXPORT_NAME, b"disk0"))
    assert kinds(pack_meta_context(Opt.SET_META_CONTEXT, "disk0", [])) == [Rep.ERR_INVALID]


# -- hostile input: CVE-2017-15118, 2017-15119, 2020-10761, nbdkit's of 2019 and 2021 ------------------


@pytest.mark.parametrize("length", [255, 256, 257, 4096, 4097])
def test_long_names_in_every_option(length: int) -> None:
    name = "x" * length
    for option in (Opt.INFO, Opt.GO):
        [(_, kind, text)] = replies(negotiate(CLIENT + pack_go(option, name))[0])
        assert kind == (Rep.ERR_UNKNOWN if length <= 4096 else Rep.ERR_INVALID)
        assert len(text) <= 4096
    for option in (Opt.LIST_META_CONTEXT, Opt.SET_META_CONTEXT):
        data = CLIENT + STRUCTURED + pack_meta_context(option, name, ["base:allocation"])
        *_, (_, kind, text) = replies(negotiate(data)[0])
        assert kind == (Rep.ERR_UNKNOWN if length <= 4096 else Rep.ERR_INVALID)
        assert len(text) <= 4096
    with pytest.raises(RemoteProtocolError):
        negotiate(CLIENT + pack_option(Opt.EXPORT_NAME, name.encode()))


@pytest.mark.parametrize("option", range(13))
def test_lengths_of_options(option: int) -> None:
    for length in (2**25 + 1, 2**31, 2**32 - 1):
        with pytest.raises(RemoteProtocolError):
            negotiate(CLIENT + struct.pack(">QII", IHAVEOPT, option, length))
    if option != Opt.EXPORT_NAME:
        # The longest is skipped without being stored.
        server = ServerNegotiation(Directory())
        server.receive_data(CLIENT + struct.pack(">QII", IHAVEOPT, option, 2**25))
        for _ in range(32):
            server.receive_data(bytes(2**20))
            assert drive(server)[1] is None
            assert not server.trailing_data
        server.receive_data(pack_option(Opt.ABORT))
        assert isinstance(drive(server)[1], Aborted)


def test_lengths_inside_of_options() -> None:
    for length in (6, 2**31, 2**32 - 1):
        for option in (Opt.INFO, Opt.GO, Opt.LIST_META_CONTEXT):
            data = pack_option(option, struct.pack(">I", length) + b"disk0")
            assert kinds(data) == [Rep.ERR_INVALID]
    queries = pack_name("disk0") + struct.pack(">I", 2**32 - 1)
    assert kinds(STRUCTURED + pack_option(Opt.SET_META_CONTEXT, queries))[-1] == Rep.ERR_INVALID
    go = pack_option(Opt.GO, pack_name("disk0") + struct.pack(">HH", 65535, 0))
    assert kinds(go) == [Rep.ERR_INVALID]


def test_answers_to_a_flood_do_not_pile_up() -> None:
    server = ServerNegotiation(Directory())
    server.receive_data(CLIENT + pack_option(Opt.LIST) * 4000)
    flushes = 0
    while (event := server.next_event()) is not None:
        assert event is FLUSH
        assert len(server.data_to_send()) <= negotiation.MAX_PENDING_REPLIES + 200
        flushes += 1
    assert flushes >= 4


def test_nothing_from_before_tls_is_kept() -> None:
    server = ServerNegotiation(Directory(), tls_available=True)
    contexts = pack_meta_context(Opt.SET_META_CONTEXT, "disk0", CONTEXTS)
    server.receive_data(CLIENT + STRUCTURED + contexts + pack_option(Opt.STARTTLS))
    assert isinstance(drive(server)[1], StartTls)
    server.tls_started()
    server.receive_data(pack_go(Opt.GO, "disk0"))
    _, event = drive(server)
    assert isinstance(event, ExportChosen)
    assert (event.mode, event.contexts) == (Mode.SIMPLE, {})
    with pytest.raises(RemoteProtocolError, match="plain text"):
        negotiate(CLIENT + pack_option(Opt.STARTTLS) + STRUCTURED, tls_available=True)


def test_nothing_but_tls_is_served_where_it_is_required() -> None:
    for data in (pack_option(Opt.LIST), pack_go(Opt.GO, "disk0"), STRUCTURED):
        sent, event = negotiate(CLIENT + data, tls_available=True, tls_required=True)
        assert event is None
        assert [kind for _, kind, _ in replies(sent)] == [Rep.ERR_TLS_REQD]
    with pytest.raises(RemoteProtocolError):
        negotiate(
            CLIENT + pack_option(Opt.EXPORT_NAME, b"disk0"), tls_available=True, tls_required=True
        )
    assert kinds(pack_option(Opt.STARTTLS)) == [Rep.ERR_POLICY]


@pytest.mark.parametrize(
    "data", [b"\0\0\0\4", b"\xff" * 4, CLIENT + b"x" * 16, b"\0\0\0\0" + b"x" * 16]
)
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        negotiate(data)


def test_after_the_end() -> None:
    server = ServerNegotiation(Directory())
    server.receive_data(CLIENT + pack_option(Opt.ABORT))
    drive(server)
    with pytest.raises(LocalProtocolError):
        server.next_event()
