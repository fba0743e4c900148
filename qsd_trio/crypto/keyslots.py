"""Master keys put into key slots, and taken out with a password. All of it takes long: PBKDF2.

Source: LUKS On-Disk Format Specification 1.1, chapter 4.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING, Final

import attrs

from qsd_trio.crypto import antiforensic, luks, pbkdf
from qsd_trio.crypto.sectors import SECTOR, SectorCipher

if TYPE_CHECKING:
    from qsd_trio.crypto.algorithms import CipherSpec
    from qsd_trio.crypto.luks import Header, KeySlot

#: The fewest iterations that a new slot or digest gets.
MIN_ITERATIONS: Final = 1000
#: The digest of the master key takes this part of the time that a password takes.
DIGEST_SHARE: Final = 8


def unlock(header: Header, index: int, material: bytes, password: bytes) -> bytes | None:
    """Return the master key that slot ``index`` holds, None if the password is not its.

    ``material`` is the slot's key material as it is on disk.
    """
    slot = header.slots[index]
    key = pbkdf.derive(header.hash, password, slot.salt, slot.iterations, header.key_length)
    plain = SectorCipher(header.spec, key).decrypt(material, 0)
    master_key = antiforensic.merge(
        plain[: header.key_length * luks.STRIPES], luks.STRIPES, header.hash
    )
    if hmac.compare_digest(_digest(header, master_key), header.digest):
        return master_key
    return None


def lock(
    header: Header, index: int, master_key: bytes, password: bytes, milliseconds: int
) -> tuple[KeySlot, bytes]:
    """Return slot ``index`` and its key material, holding the master key under a password.

    Finding the password's key shall take ``milliseconds``; QmpError if that is out of range.
    """
    iterations = pbkdf.iterations_for(
        header.hash, header.key_length, milliseconds, share=1, least=MIN_ITERATIONS
    )
    slot = attrs.evolve(
        header.slots[index],
        active=True,
        iterations=iterations,
        salt=os.urandom(luks.SALT_LENGTH),
        stripes=luks.STRIPES,
    )
    key = pbkdf.derive(header.hash, password, slot.salt, iterations, header.key_length)
    plain = antiforensic.split(master_key, luks.STRIPES, header.hash)
    padded = plain + bytes(-len(plain) % SECTOR)
    return slot, SectorCipher(header.spec, key).encrypt(padded, 0)


def new_header(
    spec: CipherSpec, hash_: str, milliseconds: int, *, detached: bool
) -> tuple[Header, bytes]:
    """Return a header without passwords, and its new master key."""
    master_key = os.urandom(spec.key_length)
    slots, payload_offset = luks.layout(spec.key_length, detached=detached)
    header = luks.Header(
        spec=spec,
        hash=hash_,
        payload_offset=payload_offset,
        digest=b"",
        digest_salt=os.urandom(luks.SALT_LENGTH),
        digest_iterations=pbkdf.iterations_for(
            hash_, luks.DIGEST_LENGTH, milliseconds, share=DIGEST_SHARE, least=MIN_ITERATIONS
        ),
        uuid=luks.new_uuid(),
        slots=slots,
    )
    return attrs.evolve(header, digest=_digest(header, master_key)), master_key


def _digest(header: Header, master_key: bytes) -> bytes:
    return pbkdf.derive(
        header.hash,
        master_key,
        header.digest_salt,
        header.digest_iterations,
        luks.DIGEST_LENGTH,
    )
