"""What ciphers, modes, initialisation vectors and hashes are called, and which of them can be done.

Names are QAPI's; ``luks_name`` is what a LUKS header calls a cipher. Error texts as QEMU's.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, final

import attrs

from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import BlockCipherAlgorithm

HASHES: Final = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160")
MODES: Final = ("ecb", "cbc", "xts", "ctr")
IV_GENERATORS: Final = ("plain", "plain64", "essiv")


@final
@attrs.frozen
class CipherInfo:
    """A block cipher with a key length, both lengths in bytes."""

    luks_name: str
    key_length: int
    block_length: int


CIPHERS: Final = {
    "aes-128": CipherInfo("aes", 16, 16),
    "aes-192": CipherInfo("aes", 24, 16),
    "aes-256": CipherInfo("aes", 32, 16),
    "cast5-128": CipherInfo("cast5", 16, 8),
    "serpent-128": CipherInfo("serpent", 16, 16),
    "serpent-192": CipherInfo("serpent", 24, 16),
    "serpent-256": CipherInfo("serpent", 32, 16),
    "twofish-128": CipherInfo("twofish", 16, 16),
    "twofish-192": CipherInfo("twofish", 24, 16),
    "twofish-256": CipherInfo("twofish", 32, 16),
}
#: Ciphers and the modes in which the library does them.
_AVAILABLE: Final = {"aes": ("ecb", "cbc", "xts", "ctr"), "cast5": ("ecb", "cbc")}


@final
@attrs.frozen(kw_only=True)
class CipherSpec:
    """How the sectors of a disk are encrypted; made by ``spec`` only, which checks it."""

    algorithm: str
    mode: str
    ivgen: str = "plain64"
    ivgen_hash: str | None = None

    @property
    def info(self) -> CipherInfo:
        """The cipher."""
        return CIPHERS[self.algorithm]

    @property
    def key_length(self) -> int:
        """Bytes of key: XTS takes two."""
        return self.info.key_length * (2 if self.mode == "xts" else 1)

    @property
    def iv_length(self) -> int:
        """Bytes of initialisation vector."""
        return 0 if self.mode == "ecb" else self.info.block_length


def spec(algorithm: str, mode: str, ivgen: str, ivgen_hash: str | None) -> CipherSpec:
    """Put a cipher together; QmpError if the parts do not fit or cannot be done."""
    info = CIPHERS[algorithm]
    if mode == "xts" and info.block_length != 16:
        raise QmpError(f"Unsupported cipher mode {mode}")
    if mode not in _AVAILABLE.get(info.luks_name, ()):
        raise QmpError(f"Unsupported cipher algorithm {algorithm} with {mode} mode")
    if ivgen == "essiv":
        if ivgen_hash is None:
            raise QmpError("Missing IV generator hash specification")
        essiv_cipher(algorithm, ivgen_hash)
    return CipherSpec(algorithm=algorithm, mode=mode, ivgen=ivgen, ivgen_hash=ivgen_hash)


def essiv_cipher(algorithm: str, hash_: str) -> str:
    """Return the cipher that encrypts sector numbers: its key is a digest of ``hash_``."""
    name = CIPHERS[algorithm].luks_name
    length = digest_length(hash_)
    for other, info in CIPHERS.items():
        if info.luks_name == name and info.key_length == length:
            return other
    if len([info for info in CIPHERS.values() if info.luks_name == name]) == 1:
        raise QmpError(f"Cipher {algorithm} not supported with essiv")
    raise QmpError(f"No {name.upper()} cipher with key size {length} available")


def cipher_of(luks_name: str, key_length: int) -> str:
    """Return the cipher of a LUKS header; QmpError if there is none with that key length."""
    for name, info in CIPHERS.items():
        if info.luks_name == luks_name and info.key_length == key_length:
            return name
    raise QmpError(f"Algorithm '{luks_name}' with key size {key_length} bytes not supported")


def library_cipher(algorithm: str, key: bytes) -> BlockCipherAlgorithm:
    """Return the library's object for a cipher with its key (two of them for XTS)."""
    # Imported where used: a daemon without encrypted images should not load it.
    if CIPHERS[algorithm].luks_name == "cast5":
        from cryptography.hazmat.decrepit.ciphers.algorithms import CAST5

        return CAST5(key)
    from cryptography.hazmat.primitives.ciphers.algorithms import AES

    return AES(key)


def digest(hash_: str, data: bytes) -> bytes:
    """Return the digest of ``data``."""
    return hashlib.new(hash_, data, usedforsecurity=False).digest()


def digest_length(hash_: str) -> int:
    """Return the bytes of a digest."""
    return hashlib.new(hash_, usedforsecurity=False).digest_size
