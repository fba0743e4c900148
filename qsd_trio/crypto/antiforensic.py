"""Keys spread over many stripes: without any one of them nothing of the key is left.

Source: LUKS On-Disk Format Specification 1.1, 2.4 "Anti-forensic information splitter".
"""

from __future__ import annotations

import os

from qsd_trio.crypto.algorithms import digest, digest_length


def split(key: bytes, stripes: int, hash_: str) -> bytes:
    """Return ``stripes`` times ``len(key)`` bytes that hold the key."""
    length = len(key)
    material = os.urandom(length * (stripes - 1))
    return material + _xor(_fold(material, length, hash_), key)


def merge(material: bytes, stripes: int, hash_: str) -> bytes:
    """Return the key that ``material`` holds."""
    length = len(material) // stripes
    last = length * (stripes - 1)
    return _xor(_fold(material[:last], length, hash_), material[last:])


def _fold(material: bytes, length: int, hash_: str) -> bytes:
    block = bytes(length)
    step = digest_length(hash_)
    for at in range(0, len(material), length):
        block = _diffuse(_xor(block, material[at : at + length]), step, hash_)
    return block


def _diffuse(block: bytes, step: int, hash_: str) -> bytes:
    """Replace each piece of the length of a digest by its digest."""
    pieces = [
        digest(hash_, (at // step).to_bytes(4, "big") + block[at : at + step])
        for at in range(0, len(block), step)
    ]
    return b"".join(pieces)[: len(block)]


def _xor(a: bytes, b: bytes) -> bytes:
    mixed = int.from_bytes(a, "little") ^ int.from_bytes(b, "little")
    return mixed.to_bytes(len(a), "little")
