"""The header of LUKS version 1, parsed and written; every field is checked before it is used.

Source: LUKS On-Disk Format Specification 1.1, chapter 3. Error texts, and their order, as QEMU's.
"""

from __future__ import annotations

import struct
import uuid
from typing import TYPE_CHECKING, Final, final

import attrs

from qsd_trio.crypto import algorithms as alg
from qsd_trio.crypto.sectors import SECTOR
from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsd_trio.crypto.algorithms import CipherSpec

MAGIC: Final = b"LUKS\xba\xbe"
VERSION: Final = 1
SLOTS: Final = 8
STRIPES: Final = 4000
DIGEST_LENGTH: Final = 20
SALT_LENGTH: Final = 32
KEY_MATERIAL_ALIGNMENT: Final = 8  # sectors
#: Sectors of the header: the first key material and the payload come no earlier.
HEADER_SECTORS: Final = 8
#: Longer passwords would take 2^32 iterations at most (hours); whoever means that is not our user.
#: This one takes minutes, and a worker thread cannot be stopped in the midst of it.
MAX_ITERATIONS: Final = 1 << 28
#: Bytes of the longest key (XTS with two of 32); with STRIPES it bounds a slot's key material.
MAX_KEY_LENGTH: Final = 64

_FIXED: Final = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT: Final = struct.Struct(">II32sII")
_ENABLED: Final = 0x00AC71F3
_DISABLED: Final = 0x0000DEAD
SLOTS_AT: Final = _FIXED.size
SLOT_SIZE: Final = _SLOT.size
HEADER_SIZE: Final = SLOTS_AT + SLOTS * SLOT_SIZE


@final
@attrs.frozen(kw_only=True)
class KeySlot:
    """Where a password's copy of the master key is, and how to get at it."""

    offset: int  # of the key material, in sectors
    active: bool = False
    iterations: int = 0
    salt: bytes = bytes(SALT_LENGTH)
    stripes: int = STRIPES

    def to_bytes(self) -> bytes:
        """Return the slot's part of the header."""
        state = _ENABLED if self.active else _DISABLED
        return _SLOT.pack(state, self.iterations, self.salt, self.offset, self.stripes)


@final
@attrs.frozen(kw_only=True)
class Header:
    """What the header says."""

    spec: CipherSpec
    hash: str
    payload_offset: int  # sectors
    digest: bytes
    digest_salt: bytes
    digest_iterations: int
    uuid: str
    slots: Sequence[KeySlot]

    @property
    def key_length(self) -> int:
        """Bytes of the master key."""
        return self.spec.key_length

    @property
    def material_length(self) -> int:
        """Bytes of a slot's key material, a whole number of sectors."""
        return -(-self.key_length * STRIPES // SECTOR) * SECTOR

    def slot_at(self, index: int) -> int:
        """Return where a slot's part of the header is (bytes)."""
        return SLOTS_AT + index * SLOT_SIZE

    def with_slot(self, index: int, slot: KeySlot) -> Header:
        """Return the header with another slot ``index``."""
        slots = (*self.slots[:index], slot, *self.slots[index + 1 :])
        return attrs.evolve(self, slots=slots)

    def to_bytes(self) -> bytes:
        """Return the header as it is on disk."""
        spec = self.spec
        mode = f"{spec.mode}-{spec.ivgen}"
        if spec.ivgen_hash is not None:
            mode += f":{spec.ivgen_hash}"
        fixed = _FIXED.pack(
            MAGIC,
            VERSION,
            spec.info.luks_name.encode(),
            mode.encode(),
            self.hash.encode(),
            self.payload_offset,
            self.key_length,
            self.digest,
            self.digest_salt,
            self.digest_iterations,
            self.uuid.encode("latin-1", "replace"),
        )
        return fixed + b"".join(slot.to_bytes() for slot in self.slots)


def layout(key_length: int, *, detached: bool) -> tuple[list[KeySlot], int]:
    """Return empty key slots and the payload's offset (sectors) for a new header."""
    step = _slot_sectors(key_length)
    slots = [KeySlot(offset=HEADER_SECTORS + index * step) for index in range(SLOTS)]
    return slots, 0 if detached else HEADER_SECTORS + SLOTS * step


def _slot_sectors(key_length: int) -> int:
    """Return how many sectors a slot's key material and its padding take."""
    material = -(-key_length * STRIPES // SECTOR)
    return -(-material // KEY_MATERIAL_ALIGNMENT) * KEY_MATERIAL_ALIGNMENT


def new_uuid() -> str:
    """Return a random UUID."""
    return str(uuid.uuid4())


def parse(data: bytes, *, detached: bool = False) -> Header:
    """Parse the first bytes of a volume; what is missing of them counts as zeroes.

    ``detached``: the payload is elsewhere. Raises QmpError for what cannot be right.
    """
    data = data[:HEADER_SIZE].ljust(HEADER_SIZE, b"\0")
    (
        magic,
        version,
        cipher_name,
        mode_spec,
        hash_spec,
        payload_offset,
        key_length,
        digest,
        digest_salt,
        digest_iterations,
        uuid_text,
    ) = _FIXED.unpack_from(data)
    if magic != MAGIC:
        raise QmpError("Volume is not in LUKS format")
    if version != VERSION:
        raise QmpError(f"LUKS version {version} is not supported")
    names = []
    for what, raw in (
        ("cipher name", cipher_name),
        ("cipher mode", mode_spec),
        ("hash spec", hash_spec),
    ):
        if b"\0" not in raw:
            raise QmpError(f"LUKS header {what} is not NUL terminated")
        names.append(raw.split(b"\0", 1)[0].decode("utf-8", "replace"))
    if not detached and payload_offset < HEADER_SECTORS:
        raise QmpError("LUKS payload is overlapping with the header")
    if digest_iterations == 0:
        raise QmpError("LUKS key iteration count is zero")
    slots = [_SLOT.unpack_from(data, SLOTS_AT + index * SLOT_SIZE) for index in range(SLOTS)]
    limit = None if detached else payload_offset
    parsed = _parse_slots(slots, key_length, limit)
    spec = _parse_spec(names[0], names[1], key_length)
    if names[2] not in alg.HASHES:
        raise QmpError(f"Hash algorithm '{names[2]}' not supported")
    if spec.ivgen not in alg.IV_GENERATORS:
        raise QmpError(f"IV generator '{spec.ivgen}' not supported")
    _check_iterations(digest_iterations, parsed)
    return Header(
        spec=alg.spec(spec.algorithm, spec.mode, spec.ivgen, spec.ivgen_hash),
        hash=names[2],
        payload_offset=payload_offset,
        digest=digest,
        digest_salt=digest_salt,
        digest_iterations=digest_iterations,
        uuid=uuid_text.split(b"\0", 1)[0].decode("latin-1"),
        slots=tuple(parsed),
    )


def _parse_slots(
    raw: Sequence[tuple[int, int, bytes, int, int]], key_length: int, limit: int | None
) -> list[KeySlot]:
    """Check the slots; ``limit`` is where the payload begins (sectors), if it does there."""
    length = _slot_sectors(key_length)
    slots = []
    for index, (state, iterations, salt, offset, stripes) in enumerate(raw):
        if stripes != STRIPES:
            signed = stripes - (stripes >> 31 << 32)
            raise QmpError(f"Keyslot {index} is corrupted (stripes {signed} != {STRIPES})")
        if offset < HEADER_SECTORS:
            raise QmpError(f"Keyslot {index} is overlapping with the LUKS header")
        if state not in (_ENABLED, _DISABLED):
            raise QmpError(f"Keyslot {index} state (active/disable) is corrupted")
        if state == _ENABLED and iterations == 0:
            raise QmpError(f"Keyslot {index} iteration count is zero")
        if limit is not None and offset + length > limit:
            raise QmpError(f"Keyslot {index} is overlapping with the encrypted payload")
        for other in range(index + 1, SLOTS):
            other_offset = raw[other][3]
            if offset < other_offset + length and other_offset < offset + length:
                raise QmpError(f"Keyslots {index} and {other} are overlapping in the header")
        slots.append(
            KeySlot(
                active=state == _ENABLED,
                iterations=iterations,
                salt=salt,
                offset=offset,
                stripes=stripes,
            )
        )
    return slots


def _parse_spec(cipher_name: str, mode_spec: str, key_length: int) -> CipherSpec:
    """Take names apart. Not checked yet: the initialisation vectors."""
    mode, dash, ivgen = mode_spec.partition("-")
    if not dash:
        raise QmpError(f"Unexpected cipher mode string format '{mode_spec}'")
    ivgen, colon, ivgen_hash = ivgen.partition(":")
    if colon and ivgen_hash not in alg.HASHES:
        raise QmpError(f"Hash algorithm '{ivgen_hash}' not supported")
    if mode not in alg.MODES:
        raise QmpError(f"Cipher mode '{mode}' not supported")
    half = key_length // 2 if mode == "xts" else key_length
    algorithm = alg.cipher_of(cipher_name, half)
    if mode == "xts" and key_length % 2:
        raise QmpError("XTS cipher key length should be a multiple of 2")
    return alg.CipherSpec(
        algorithm=algorithm, mode=mode, ivgen=ivgen, ivgen_hash=ivgen_hash if colon else None
    )


def _check_iterations(digest_iterations: int, slots: Sequence[KeySlot]) -> None:
    active = [slot.iterations for slot in slots if slot.active]
    most = max((digest_iterations, *active))
    if most > MAX_ITERATIONS:
        raise QmpError(f"LUKS header asks for {most} iterations, more than {MAX_ITERATIONS}")
