"""Sectors encrypted and decrypted, each with an initialisation vector of its own number."""

from __future__ import annotations

import functools
import os
import struct
from typing import TYPE_CHECKING, Final, final

from qsd_trio.crypto.algorithms import CIPHERS, digest, essiv_cipher, library_cipher
from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from cryptography.hazmat.primitives.ciphers import BlockCipherAlgorithm, CipherContext
    from cryptography.hazmat.primitives.ciphers.modes import CBC, CTR, ECB, XTS

    from qsd_trio.crypto.algorithms import CipherSpec

    Buffer: TypeAlias = bytes | bytearray | memoryview
    Mode: TypeAlias = CBC | CTR | ECB | XTS
    #: Makes the vectors of ``count`` sectors from sector ``first`` on.
    IvGenerator: TypeAlias = Callable[[int, int], list[bytes]]

#: Bytes that are encrypted with one initialisation vector. A volume is whole sectors.
SECTOR: Final = 512
_SECTORS: Final = struct.Struct(f"{SECTOR}s")


@final
class SectorCipher:
    """A cipher with its key, for the sectors of one volume. Any thread may use it, several at once."""

    def __init__(self, spec: CipherSpec, key: bytes) -> None:
        """Take a key of ``spec.key_length`` bytes; QmpError if the library refuses it."""
        self.spec = spec
        self._cipher = library_cipher(spec.algorithm, key)
        self._ivs = iv_generator(spec, key)
        self._renewable = _is_renewable(spec.mode, spec.algorithm)
        #: Those that no thread is using, by whether they decrypt.
        self._idle: tuple[list[_Worker], list[_Worker]] = ([], [])
        try:
            self._context(bytes(spec.iv_length), decrypt=False)
        except ValueError as exc:
            # XTS: the same key twice, which makes it useless.
            raise QmpError(f"Unable to set cipher key: {exc}") from exc

    def encrypt(self, data: Buffer, sector: int) -> bytes:
        """Return ``data``, whole sectors from ``sector`` on, encrypted."""
        return self._run(data, sector, decrypt=False)

    def decrypt(self, data: Buffer, sector: int) -> bytes:
        """Return ``data``, whole sectors from ``sector`` on, decrypted."""
        return self._run(data, sector, decrypt=True)

    def _run(self, data: Buffer, sector: int, *, decrypt: bool) -> bytes:
        count, rest = divmod(len(data), SECTOR)
        if rest:
            raise ValueError("not a whole number of sectors")
        if not count:
            return b""
        if not self._renewable:
            return self._run_without_renewal(data, sector, count, decrypt=decrypt)
        idle = self._idle[decrypt]
        try:
            worker = idle.pop()
        except IndexError:
            context = self._context(bytes(self.spec.iv_length), decrypt=decrypt)
            worker = _Worker(context)
        ivs = self._ivs(sector, count)
        view = memoryview(data)
        done = [
            worker.run(view[at : at + _Worker.SIZE], ivs[at // SECTOR :])
            for at in range(0, len(view), _Worker.SIZE)
        ]
        idle.append(worker)
        return done[0] if len(done) == 1 else b"".join(done)

    def _run_without_renewal(
        self, data: Buffer, sector: int, count: int, *, decrypt: bool
    ) -> bytes:
        if self.spec.mode == "ecb":
            return self._context(b"", decrypt=decrypt).update(data)
        return b"".join(
            self._context(iv, decrypt=decrypt).update(piece)
            for iv, (piece,) in zip(
                self._ivs(sector, count), _SECTORS.iter_unpack(data), strict=True
            )
        )

    def _context(self, iv: bytes, *, decrypt: bool) -> CipherContext:
        return _context(
            self._cipher, self.spec.mode, iv, decrypt=decrypt, renewable=self._renewable
        )


@final
class _Worker:
    """A context that takes new vectors, with buffers cut into sectors once for all."""

    SIZE: Final = 64 << 10

    def __init__(self, context: CipherContext) -> None:
        self._context = context
        # The library wants room for a block more, whether it needs it or not.
        spare = 15
        self._source = memoryview(bytearray(self.SIZE))
        self._target = memoryview(bytearray(self.SIZE + spare))
        starts = range(0, self.SIZE, SECTOR)
        self._pieces = [self._source[at : at + SECTOR] for at in starts]
        self._places = [self._target[at : at + SECTOR + spare] for at in starts]

    def run(self, data: memoryview, ivs: Sequence[bytes]) -> bytes:
        """Return ``data``, at most SIZE bytes, after its way through the cipher."""
        length = len(data)
        self._source[:length] = data
        update_into, reset = self._context.update_into, self._context.reset_nonce
        pieces = self._pieces[: length // SECTOR]
        for iv, piece, place in zip(ivs, pieces, self._places, strict=False):
            reset(iv)
            update_into(piece, place)
        return bytes(self._target[:length])


def _context(
    cipher: BlockCipherAlgorithm, mode_name: str, iv: bytes, *, decrypt: bool, renewable: bool
) -> CipherContext:
    from cryptography.hazmat.primitives.ciphers import Cipher

    mode = _mode(mode_name, iv)
    wrapped = Cipher(cipher, mode)
    context = wrapped.decryptor() if decrypt else wrapped.encryptor()
    if renewable:
        _make_renewable(mode)
    return context


def _make_renewable(mode: Mode) -> None:
    """Let the context of ``mode`` take a new initialisation vector for each sector (reset_nonce).

    The library allows that where a context's mode is a ModeWithNonce, which is CTR alone; the cipher
    beneath can do it in each mode. Otherwise a sector costs a context, that is, the key's schedule: ten times
    the time. ``_is_renewable`` makes sure that it works. The class itself and not a subclass: the
    library asks for each sector, and knows an exact match at once.
    """
    from cryptography.hazmat.primitives.ciphers.modes import ModeWithNonce

    mode.__class__ = ModeWithNonce  # type: ignore[assignment]  # a claim, not a conversion


def _mode(name: str, iv: bytes) -> Mode:
    from cryptography.hazmat.primitives.ciphers import modes

    match name:
        case "xts":
            return modes.XTS(iv)
        case "cbc":
            return modes.CBC(iv)
        case "ctr":
            return modes.CTR(iv)
    return modes.ECB()


@functools.cache
def _is_renewable(mode: str, algorithm: str) -> bool:
    """Try whether contexts take new vectors and then do what new contexts do."""
    from cryptography.exceptions import UnsupportedAlgorithm

    info = CIPHERS[algorithm]
    if mode == "ecb":
        return False
    key = os.urandom(info.key_length * (2 if mode == "xts" else 1))
    cipher = library_cipher(algorithm, key)
    ivs = [os.urandom(info.block_length) for _ in range(3)]
    data = os.urandom(SECTOR)
    for decrypt in (False, True):
        try:
            one = _context(cipher, mode, ivs[0], decrypt=decrypt, renewable=True)
            for iv in ivs:
                one.reset_nonce(iv)
                other = _context(cipher, mode, iv, decrypt=decrypt, renewable=False)
                if one.update(data) != other.update(data):
                    return False
        except (AttributeError, TypeError, UnsupportedAlgorithm):
            return False
    return True


def iv_generator(spec: CipherSpec, key: bytes) -> IvGenerator:
    """Return what makes the initialisation vectors of sectors."""
    length = spec.iv_length

    def plain(first: int, count: int) -> list[bytes]:
        return [
            (number & 0xFFFFFFFF).to_bytes(length, "little")
            for number in range(first, first + count)
        ]

    def plain64(first: int, count: int) -> list[bytes]:
        return [number.to_bytes(length, "little") for number in range(first, first + count)]

    if spec.ivgen == "plain":
        return plain
    if spec.ivgen == "plain64":
        return plain64
    assert spec.ivgen_hash is not None
    salt = digest(spec.ivgen_hash, key)
    cipher = library_cipher(essiv_cipher(spec.algorithm, spec.ivgen_hash), salt)

    def essiv(first: int, count: int) -> list[bytes]:
        numbers = b"".join(plain64(first, count))
        vectors = _context(cipher, "ecb", b"", decrypt=False, renewable=False).update(numbers)
        return [vectors[at : at + length] for at in range(0, len(vectors), length)]

    return essiv
