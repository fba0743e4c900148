"""crypto/algorithms.py."""

from __future__ import annotations

import pytest

from qsd_trio.crypto import algorithms as alg
from tests.texts import refused


@pytest.mark.parametrize(
    ("algorithm", "mode", "ivgen", "ivgen_hash", "text"),
    [
        ("cast5-128", "xts", "plain64", None, "Unsupported cipher mode xts"),
        ("serpent-256", "xts", "plain64", None,
         "Unsupported cipher algorithm serpent-256 with xts mode"),
        ("twofish-128", "cbc", "plain", None,
         "Unsupported cipher algorithm twofish-128 with cbc mode"),
        ("aes-256", "cbc", "essiv", None, "Missing IV generator hash specification"),
        ("aes-256", "cbc", "essiv", "sha512", "No AES cipher with key size 64 available"),
        ("cast5-128", "cbc", "essiv", "sha256", "Cipher cast5-128 not supported with essiv"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    algorithm: str, mode: str, ivgen: str, ivgen_hash: str | None, text: str
) -> None:
    with refused(text):
        alg.spec(algorithm, mode, ivgen, ivgen_hash)


@pytest.mark.parametrize(
    ("algorithm", "mode", "key_length", "iv_length"),
    [
        ("aes-128", "xts", 32, 16),
        ("aes-256", "xts", 64, 16),
        ("aes-192", "cbc", 24, 16),
        ("aes-256", "ecb", 32, 0),
        ("cast5-128", "cbc", 16, 8),
    ],
)
def test_lengths(algorithm: str, mode: str, key_length: int, iv_length: int) -> None:
    spec = alg.spec(algorithm, mode, "plain64", None)
    assert (spec.key_length, spec.iv_length) == (key_length, iv_length)


def test_sector_numbers_are_encrypted_with_a_digest_as_key() -> None:
    assert alg.essiv_cipher("aes-128", "sha256") == "aes-256"
    assert alg.essiv_cipher("aes-256", "md5") == "aes-128"


def test_hashes() -> None:
    lengths = {name: alg.digest_length(name) for name in alg.HASHES}
    assert lengths == {
        "md5": 16, "sha1": 20, "sha224": 28, "sha256": 32, "sha384": 48, "sha512": 64,
        "ripemd160": 20,
    }  # fmt: skip
    assert alg.digest("ripemd160", b"abc").hex() == "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"
