"""crypto/luks.py: each field at its limits, any bytes, there and back."""

from __future__ import annotations

import functools
import struct

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.crypto import luks
from qsd_trio.crypto.algorithms import HASHES, spec
from qsd_trio.crypto.luks import HEADER_SIZE, Header
from qsd_trio.errors import QmpError
from tests.crypto.kit import volume
from tests.texts import refused

SLOT = 208


@functools.cache
def good() -> bytes:
    return volume(spec("aes-256", "xts", "plain64", None))[2][:HEADER_SIZE]


def changed(at: int, value: int | bytes) -> bytes:
    data = bytearray(good())
    new = value if isinstance(value, bytes) else struct.pack(">I", value)
    data[at : at + len(new)] = new
    return bytes(data)


@pytest.mark.parametrize(
    ("at", "value", "text"),
    [
        (0, b"X", "Volume is not in LUKS format"),
        (6, b"\0\2", "LUKS version 2 is not supported"),
        (8, b"a" * 32, "LUKS header cipher name is not NUL terminated"),
        (8, b"des\0", "Algorithm 'des' with key size 32 bytes not supported"),
        (40, b"a" * 32, "LUKS header cipher mode is not NUL terminated"),
        (40, b"xts\0", "Unexpected cipher mode string format 'xts'"),
        (40, b"cbc-essiv:foo\0", "Hash algorithm 'foo' not supported"),
        (40, b"cbc-plain64\0", "Algorithm 'aes' with key size 64 bytes not supported"),
        (40, b"foo-plain\0", "Cipher mode 'foo' not supported"),
        (40, b"xts-benbi\0", "IV generator 'benbi' not supported"),
        (40, b"xts-essiv\0", "Missing IV generator hash specification"),
        (72, b"a" * 32, "LUKS header hash spec is not NUL terminated"),
        (72, b"whirlpool\0", "Hash algorithm 'whirlpool' not supported"),
        (104, 0, "LUKS payload is overlapping with the header"),
        (104, 7, "LUKS payload is overlapping with the header"),
        (104, 8, "Keyslot 0 is overlapping with the encrypted payload"),
        (104, 4039, "Keyslot 7 is overlapping with the encrypted payload"),
        (108, 0, "Algorithm 'aes' with key size 0 bytes not supported"),
        (108, 33, "XTS cipher key length should be a multiple of 2"),
        (108, 65, "Keyslots 0 and 1 are overlapping in the header"),
        (108, 2**32 - 1, "Keyslot 0 is overlapping with the encrypted payload"),
        (164, 0, "LUKS key iteration count is zero"),
        (164, luks.MAX_ITERATIONS + 1,
         "LUKS header asks for 268435457 iterations, more than 268435456"),
        (SLOT, 0, "Keyslot 0 state (active/disable) is corrupted"),
        (SLOT + 4, 0, "Keyslot 0 iteration count is zero"),
        (SLOT + 4, 2**32 - 1, "LUKS header asks for 4294967295 iterations, more than 268435456"),
        (SLOT + 40, 7, "Keyslot 0 is overlapping with the LUKS header"),
        (SLOT + 40, 512, "Keyslots 0 and 1 are overlapping in the header"),
        (SLOT + 40, 2**32 - 1, "Keyslot 0 is overlapping with the encrypted payload"),
        (SLOT + 44, 3999, "Keyslot 0 is corrupted (stripes 3999 != 4000)"),
        (SLOT + 44, 2**32 - 1, "Keyslot 0 is corrupted (stripes -1 != 4000)"),
        (SLOT + 48, 0x00AC71F3, "Keyslot 1 iteration count is zero"),
        (SLOT + 48 + 40, 8, "Keyslots 0 and 1 are overlapping in the header"),
        (SLOT + 7 * 48, 5, "Keyslot 7 state (active/disable) is corrupted"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(at: int, value: int | bytes, text: str) -> None:
    with refused(text):
        luks.parse(changed(at, value))


@pytest.mark.parametrize(
    ("at", "value"),
    [(104, 4040), (104, 2**32 - 1), (164, luks.MAX_ITERATIONS), (SLOT + 4, 1), (SLOT + 40, 8),
     (40, b"xts-plain64:sha256\0")],
)  # fmt: skip
def test_limits_that_still_pass(at: int, value: int | bytes) -> None:
    luks.parse(changed(at, value))


def test_a_detached_header_says_nothing_of_the_payload() -> None:
    header, _, data = volume(detached=True)
    assert header.payload_offset == 0
    assert luks.parse(data, detached=True) == header
    with refused("LUKS payload is overlapping with the header"):
        luks.parse(data)


@pytest.mark.parametrize("length", [0, 5, 6, 591])
def test_missing_bytes_are_zeroes(length: int) -> None:
    with pytest.raises(QmpError):
        luks.parse(good()[:length])


@given(st.binary(max_size=HEADER_SIZE))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(QmpError):
        luks.parse(data)


@given(st.lists(st.tuples(st.integers(0, HEADER_SIZE - 1), st.binary(min_size=1, max_size=8))))
def test_any_mutation_is_refused_or_read_as_it_stands(changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(good())
    for at, new in changes:
        data[at : at + len(new)] = new[: HEADER_SIZE - at]
    try:
        header = luks.parse(bytes(data))
    except QmpError:
        return
    assert luks.parse(header.to_bytes()) == header
    assert max(slot.iterations for slot in header.slots if slot.active) <= luks.MAX_ITERATIONS
    assert header.material_length <= luks.MAX_KEY_LENGTH * luks.STRIPES


@st.composite
def headers(draw: st.DrawFn) -> Header:
    kinds = [("aes-256", "xts"), ("aes-128", "cbc"), ("aes-192", "ctr"), ("cast5-128", "ecb")]
    algorithm, mode = draw(st.sampled_from(kinds))
    chosen = spec(algorithm, mode, draw(st.sampled_from(["plain", "plain64"])), None)
    slots, payload = luks.layout(chosen.key_length, detached=False)
    number = st.integers(1, luks.MAX_ITERATIONS)
    return Header(
        spec=chosen,
        hash=draw(st.sampled_from(HASHES)),
        payload_offset=payload,
        digest=draw(st.binary(min_size=20, max_size=20)),
        digest_salt=draw(st.binary(min_size=32, max_size=32)),
        digest_iterations=draw(number),
        uuid=luks.new_uuid(),
        slots=tuple(
            attrs.evolve(
                slot,
                active=draw(st.booleans()),
                iterations=draw(number),
                salt=draw(st.binary(min_size=32, max_size=32)),
            )
            for slot in slots
        ),
    )


@given(headers())
def test_there_and_back(header: Header) -> None:
    assert luks.parse(header.to_bytes()) == header


def test_layout_is_the_usual_one() -> None:
    slots, payload = luks.layout(64, detached=False)
    assert [slot.offset for slot in slots] == [8 + 504 * index for index in range(8)]
    assert payload == 4040
