"""Encrypted images: LUKS, whose sectors are numbered by host offset, and the old AES, by guest offset.

Source: qcow2 specification, "crypt_method" and "Full disk encryption header pointer".
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final, final

import attrs

from qsd_trio.block.drivers.qcow2.header import EXT_CRYPTO
from qsd_trio.errors import QmpError, os_error, with_errno
from qsd_trio.iov import iov_fill, iov_size, iov_slice

if TYPE_CHECKING:
    from qsd_trio.block.abc import Child, Iov, Objects
    from qsd_trio.block.ciphering import CipheredFile
    from qsd_trio.block.drivers.qcow2.header import Header
    from qsd_trio.block.drivers.qcow2.metadata import Metadata
    from qsd_trio.block.encryption import HeaderArea, LuksVolume, NewLuks
    from qsd_trio.crypto.sectors import SectorCipher
    from qsd_trio.untyped import Json, Options

NONE: Final = 0
AES: Final = 1
LUKS: Final = 2
METHODS: Final = {AES: "aes", LUKS: "luks"}

_POINTER: Final = struct.Struct(">QQ")  # offset, length
#: Bytes that are encrypted by one initialisation vector.
SECTOR: Final = 512
#: Bytes that a request ciphers at a time: they are copied.
MAX_TRANSFER: Final = 1 << 20
#: Bytes of a LUKS header with its key material, at most (key slots may lie far apart).
MAX_HEADER_LENGTH: Final = 1 << 42
_PREFIX: Final = "encrypt."
#: What the old format takes of a password, padded with zeroes.
_AES_KEY_LENGTH: Final = 16


@final
@attrs.frozen
class ImageCipher:
    """The way of an image's data through the cipher."""

    cipher: SectorCipher
    key_secret: str
    #: The LUKS header inside the image; None: the old AES, which has none.
    volume: LuksVolume | None = None

    def _sector(self, guest: int, host: int) -> int:
        return (guest if self.volume is None else host) // SECTOR

    def ciphered(self, data: Child) -> CipheredFile | None:
        """Return ``data``, the child with the guest's data, as the fast path may use it; or None."""
        if self.volume is None:
            return None
        from qsd_trio.block.ciphering import CipheredFile

        return CipheredFile(self.cipher, data, 0)

    async def read(self, data: Child, guest: int, host: int, iov: Iov) -> None:
        """Fill ``iov`` with what is at ``host`` in ``data``, which the guest sees at ``guest``."""
        from qsd_trio.block.ciphering import read_decrypted

        length = iov_size(iov)
        target = iov
        if length % SECTOR:  # the end of an image whose size is not a multiple
            target = [memoryview(bytearray(-(-length // SECTOR) * SECTOR))]
        await read_decrypted(self.cipher, data.preadv, host, self._sector(guest, host), target)
        if target is not iov:
            iov_fill(iov, target[0][:length])

    async def write(self, data: Child, guest: int, host: int, iov: Iov) -> None:
        """Write ``iov``, whole sectors."""
        from qsd_trio.block.ciphering import encrypted

        length = iov_size(iov)
        for at in range(0, length, MAX_TRANSFER):
            part = iov_slice(iov, at, min(MAX_TRANSFER, length - at))
            done = await encrypted(self.cipher, part, self._sector(guest + at, host + at))
            await data.pwritev(host + at, [done])

    def info(self) -> dict[str, Json]:
        """Return ImageInfoSpecificQCow2Encryption."""
        if self.volume is None:
            return {"format": "aes"}
        return {"format": "luks", **self.volume.info()}


def check_options(options: Options, header: Header) -> None:
    """Check that ``encrypt`` names the format that the header does; QmpError if not."""
    if options.encrypt is None:
        return
    given = options.encrypt.format.value
    found = METHODS.get(header.crypt_method)
    if found is None:
        raise QmpError(f"No encryption in image header, but options specified format '{given}'")
    if found != given:
        raise QmpError(f"Header reported '{found}' encryption format but options specify '{given}'")


async def open_cipher(
    file: Child, header: Header, objects: Objects, options: Options
) -> ImageCipher | None:
    """Return the cipher of an image's data, None if they are plain. Raises QmpError."""
    pointer = _find_pointer(header)
    if not header.crypt_method:
        return None
    from qsd_trio.block.encryption import LuksVolume, password
    from qsd_trio.crypto import algorithms
    from qsd_trio.crypto.sectors import SectorCipher

    key_secret = options.encrypt.key_secret if options.encrypt is not None else None
    if pointer is not None:
        area = _area(file, *pointer)
        volume = await LuksVolume.open(area, objects, key_secret, prefix=_PREFIX)
        return ImageCipher(volume.cipher, volume.key_secret, volume)
    secret = password(objects, key_secret, prefix=_PREFIX)
    assert key_secret is not None
    key = secret[:_AES_KEY_LENGTH].ljust(_AES_KEY_LENGTH, b"\0")
    spec = algorithms.spec("aes-128", "cbc", "plain64", None)
    return ImageCipher(SectorCipher(spec, key), key_secret)


def _find_pointer(header: Header) -> tuple[int, int] | None:
    """Return where the encryption header is, None if there should be none. Raises QmpError."""
    for kind, data in header.extensions:
        if kind != EXT_CRYPTO:
            continue
        if header.crypt_method != LUKS:
            raise QmpError("CRYPTO header extension only expected with LUKS encryption method")
        if len(data) != _POINTER.size:
            raise QmpError(
                f"CRYPTO header extension size {len(data)}, but expected size {_POINTER.size}"
            )
        offset, length = _POINTER.unpack(data)
        if offset % header.cluster_size:
            raise QmpError(
                f"Encryption header offset '{offset}' is not a multiple of cluster size"
                f" '{header.cluster_size}'"
            )
        if offset + MAX_HEADER_LENGTH >= 1 << 63:
            raise with_errno("Could not read encryption header", os_error(errno.EIO))
        return offset, length
    if header.crypt_method == LUKS:
        raise QmpError(f"Missing CRYPTO header for crypt method {header.crypt_method}")
    return None


async def amend(
    cipher: ImageCipher | None, objects: Objects, options: Options, *, force: bool
) -> None:
    """Change key slots as BlockdevAmendOptionsQcow2 say. Raises QmpError."""
    if options.encrypt is None:
        return
    if cipher is None:
        raise QmpError("image is not encrypted, can't amend")
    if options.encrypt.format.value != "luks":
        raise QmpError("Amend can't be used to change the qcow2 encryption format")
    if cipher.volume is None:
        raise QmpError("Only LUKS encryption options can be amended for qcow2 with blockdev-amend")
    await cipher.volume.amend(objects, options.encrypt, force=force)


@final
@attrs.frozen
class NewEncryption:
    """The encryption that a new image is to get; nothing is written yet."""

    #: None: the old AES, which has no header.
    luks: NewLuks | None

    async def install(self, metadata: Metadata) -> None:
        """Put the encryption header into an image that holds no data yet, then say so in its header."""
        extensions = tuple(metadata.header.extensions)
        if self.luks is not None:
            size = metadata.cluster_size
            length = self.luks.header_length
            clusters = -(-length // size)
            offset = await metadata.refcounts.allocate_run(clusters) * size
            # Unused key material, and what is free of the last cluster, shall not be what was there before.
            await metadata.file.pwrite_zeroes(offset, clusters * size)
            await self.luks.write(_area(metadata.file, offset, length))
            await metadata.write_back()
            extensions += ((EXT_CRYPTO, _POINTER.pack(offset, length)),)
        method = AES if self.luks is None else LUKS

        def change(header: Header) -> Header:
            return attrs.evolve(header, crypt_method=method, extensions=extensions)

        await metadata.update_header(change)


async def plan(objects: Objects, options: Options) -> NewEncryption:
    """Choose the keys of a new image, from QCryptoBlockCreateOptions. Raises QmpError."""
    from qsd_trio.block.encryption import password, plan_luks

    if options.format.value == "luks":
        return NewEncryption(await plan_luks(objects, options, prefix=_PREFIX))
    password(objects, options.key_secret, prefix=_PREFIX)
    return NewEncryption(None)


def _area(file: Child, offset: int, length: int) -> HeaderArea:
    from qsd_trio.block.encryption import HeaderArea

    # The real daemon says "read" of both.
    failure = "Could not read encryption header"
    return HeaderArea(file, offset, length, read_failure=failure, write_failure=failure)
