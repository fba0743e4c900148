"""LUKS headers for tests, quick to open: few iterations, a fixed master key."""

from __future__ import annotations

import attrs

from qsd_trio.crypto import keyslots, luks
from qsd_trio.crypto.algorithms import CipherSpec, spec
from qsd_trio.crypto.luks import Header

PASSWORD = b"open sesame"
SMALL = spec("aes-128", "xts", "plain64", None)


def volume(
    cipher: CipherSpec = SMALL, hash_: str = "sha256", *, detached: bool = False
) -> tuple[Header, bytes, bytes]:
    """Return (header, master key, the bytes up to the payload), with PASSWORD in slot 0."""
    header, key = keyslots.new_header(cipher, hash_, 0, detached=detached)
    slot, material = keyslots.lock(header, 0, key, PASSWORD, 0)
    header = header.with_slot(0, slot)
    end = header.slots[-1].offset * luks.SECTOR + header.material_length
    data = bytearray(-(-end // 4096) * 4096)
    data[: luks.HEADER_SIZE] = header.to_bytes()
    start = slot.offset * luks.SECTOR
    data[start : start + len(material)] = material
    return header, key, bytes(data)


def material_of(data: bytes, header: Header, index: int) -> bytes:
    """Return a slot's key material out of a volume's bytes."""
    start = header.slots[index].offset * luks.SECTOR
    return data[start : start + header.material_length]


def same_but_random(header: Header) -> Header:
    """Return the header without what chance decides."""
    return attrs.evolve(header, digest=b"", digest_salt=b"", uuid="")
