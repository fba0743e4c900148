"""crypto/sectors.py: vectors of IEEE 1619, and the same result as the library gives sector by sector."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.decrepit.ciphers.algorithms import CAST5
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from qsd_trio.crypto import sectors
from qsd_trio.crypto.algorithms import digest, spec
from qsd_trio.crypto.sectors import SECTOR, SectorCipher
from tests.texts import refused

# IEEE 1619-2007, annex B: (algorithm, key, sector number, start of the ciphertext of 0 to 255, twice).
VECTORS = [
    (
        "aes-128",
        "2718281828459045235360287471352631415926535897932384626433832795",
        0,
        "27a7479befa1d476489f308cd4cfa6e2",
    ),
    (
        "aes-256",
        "27182818284590452353602874713526624977572470936999595749669676273141592653589793"
        "238462643383279502884197169399375105820974944592",
        0xFF,
        "1c3b3a102f770386e4836c99e370cf9b",
    ),
]


@pytest.mark.parametrize(("algorithm", "key", "number", "start"), VECTORS)
def test_vectors(algorithm: str, key: str, number: int, start: str) -> None:
    cipher = SectorCipher(spec(algorithm, "xts", "plain64", None), bytes.fromhex(key))
    plain = bytes(range(256)) * 2
    found = cipher.encrypt(plain, number)
    assert found.hex().startswith(start)
    assert cipher.decrypt(found, number) == plain


def by_sector(
    algorithm: str, mode: str, ivgen: str, hash_: str | None, key: bytes, data: bytes, first: int
) -> bytes:
    """Encrypt with a context of the library's for each sector."""
    make = CAST5 if algorithm == "cast5-128" else AES
    length = 8 if algorithm == "cast5-128" else 16
    out = b""
    for at in range(0, len(data), SECTOR):
        number = first + at // SECTOR
        iv = (number % (1 << 32) if ivgen == "plain" else number).to_bytes(length, "little")
        if ivgen == "essiv":
            assert hash_ is not None
            salted = Cipher(make(digest(hash_, key)), modes.ECB()).encryptor()
            iv = salted.update(iv)
        kinds = {"xts": modes.XTS, "cbc": modes.CBC, "ctr": modes.CTR}
        chosen = kinds[mode](iv) if mode in kinds else modes.ECB()
        out += Cipher(make(key), chosen).encryptor().update(data[at : at + SECTOR])
    return out


KINDS = [
    *(("aes-256", mode, ivgen, None)
      for mode in ("xts", "cbc", "ctr", "ecb") for ivgen in ("plain", "plain64")),
    ("aes-128", "xts", "plain64", None),
    ("aes-192", "cbc", "plain64", None),
    ("aes-256", "xts", "essiv", "sha256"),
    ("aes-128", "cbc", "essiv", "sha256"),
    ("aes-256", "ctr", "essiv", "md5"),
    ("cast5-128", "cbc", "plain64", None),
    ("cast5-128", "cbc", "essiv", "md5"),
    ("cast5-128", "ecb", "plain", None),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
@pytest.mark.parametrize("renewable", [True, False])
def test_each_sector_has_its_vector(
    kind: tuple[str, str, str, str | None], renewable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not renewable:
        monkeypatch.setattr(sectors, "_is_renewable", lambda mode, algorithm: False)
    chosen = spec(*kind)
    rng = random.Random(str(kind))
    key = rng.randbytes(chosen.key_length)
    cipher = SectorCipher(chosen, key)
    for first, count in [(0, 1), (5, 4), ((1 << 32) - 2, 4)]:
        data = rng.randbytes(count * SECTOR)
        found = cipher.encrypt(memoryview(data), first)
        assert found == by_sector(*kind, key, data, first)
        assert cipher.decrypt(bytearray(found), first) == data


@pytest.mark.parametrize("mode", ["xts", "cbc", "ctr"])
def test_the_library_lets_contexts_take_new_vectors(mode: str) -> None:
    """Without it all is right, but slow: a release of the library that ends it should be noticed."""
    assert sectors._is_renewable(mode, "aes-256")


def test_only_whole_sectors() -> None:
    cipher = SectorCipher(spec("aes-128", "xts", "plain64", None), bytes(range(32)))
    with pytest.raises(ValueError, match="whole number"):
        cipher.encrypt(bytes(511), 0)
    assert cipher.decrypt(b"", 0) == b""


def test_the_same_key_twice_is_refused() -> None:
    with refused("Unable to set cipher key: In XTS mode duplicated keys are not allowed"):
        SectorCipher(spec("aes-128", "xts", "plain64", None), bytes(32))
