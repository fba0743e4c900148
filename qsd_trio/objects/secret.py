"""Secrets: passwords and keys, given in the clear, from a file or the kernel's keyring, or encrypted.

An encrypted secret names another one by ``keyid``: 32 bytes, the key of AES-256-CBC over its bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio

from qsd_trio.errors import QmpError
from qsd_trio.objects import base64
from qsd_trio.objects.abc import UserCreatable, as_enum, as_int, as_str, user_creatable_object

if TYPE_CHECKING:
    from typing import Self

    from qsd_trio.objects.abc import ObjectTable
    from qsd_trio.untyped import Json, Options

#: Bytes of a key that encrypts other secrets, AES-256.
KEY_LENGTH = 32
#: Bytes of an AES block and so of an initialisation vector.
BLOCK_LENGTH = 16
#: A secret file that is larger is not one; whoever names a disk image by mistake is told so.
MAX_FILE_LENGTH = 16 * 1024 * 1024
FORMATS = ("raw", "base64")


class SecretCommon(UserCreatable):
    """What both secret types have in common: format, decryption, properties."""

    def __init__(self, options: Options) -> None:
        self.id = options.id
        if options.loaded is not None:
            raise QmpError(f"Property '{self.qom_name}.loaded' is not writable")
        self._format = options.format.value if options.format is not None else "raw"
        self._keyid: str | None = options.keyid
        self._iv: str | None = options.iv
        #: The plain bytes.
        self.value = b""

    def _load(self, table: ObjectTable, data: bytes) -> None:
        """Decrypt and decode ``data``."""
        if self._keyid is not None:
            self.value = self._decrypt(table, data)
        elif self._format == "base64":
            self.value = self._decode(data)
        else:
            self.value = data

    @staticmethod
    def _decode(data: bytes) -> bytes:
        return base64.decode(data.decode("latin-1"))

    def _decrypt(self, table: ObjectTable, data: bytes) -> bytes:
        assert self._keyid is not None
        key = lookup_secret(table, self._keyid)
        if len(key) != KEY_LENGTH:
            raise QmpError(f"Key should be {KEY_LENGTH} bytes in length")
        if self._iv is None:
            raise QmpError("IV is required to decrypt secret")
        iv = base64.decode(self._iv)
        if len(iv) != BLOCK_LENGTH:
            raise QmpError(f"IV should be {BLOCK_LENGTH} bytes in length not {len(iv)}")
        encrypted = self._decode(data) if self._format == "base64" else data
        if len(encrypted) % BLOCK_LENGTH:
            raise QmpError(
                f"Length {len(encrypted)} must be a multiple of block size {BLOCK_LENGTH}"
            )
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
        plain = decryptor.update(encrypted) + decryptor.finalize()
        # The last byte says how many bytes of padding to drop (PKCS 7).
        padding = plain[-1] if plain else 0
        if padding > min(BLOCK_LENGTH, len(plain)):
            raise QmpError(f"Incorrect number of padding bytes ({padding}) found on decrypted data")
        return plain[: len(plain) - padding]

    def as_text(self) -> str:
        """Return the secret as text; QmpError if it is not UTF-8."""
        try:
            return self.value.decode()
        except UnicodeDecodeError:
            raise QmpError(f"Data from secret {self.id} is not valid UTF-8") from None

    def get_property(self, name: str) -> Json:
        """Return a property's value; what was not given reads as ''."""
        match name:
            case "loaded":
                return True
            case "format":
                return self._format
            case "keyid":
                return self._keyid or ""
            case "iv":
                return self._iv or ""
        raise KeyError(name)

    async def set_property(self, name: str, value: Json) -> None:
        """Set a property; the secret was decoded when it was made and stays what it is."""
        match name:
            case "format":
                self._format = as_enum(name, value, FORMATS)
            case "keyid":
                self._keyid = as_str(name, value)
            case "iv":
                self._iv = as_str(name, value)
            case _:
                raise KeyError(name)


@user_creatable_object("secret")
@final
class Secret(SecretCommon):
    """A secret from the command itself or from a file."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._data: str | None = options.data
        self._file: str | None = options.file

    @classmethod
    def create(cls, options: Options) -> Self:
        """Make the object."""
        return cls(options)

    async def complete(self, table: ObjectTable) -> None:
        """Read, decrypt and decode the secret."""
        if self._file is not None and self._data is not None:
            raise QmpError("'file' and 'data' are mutually exclusive")
        if self._file is not None:
            data = await _read_file(self._file)
        elif self._data is not None:
            data = self._data.encode("utf-8", "surrogateescape")
        else:
            raise QmpError("Either 'file' or 'data' must be provided")
        self._load(table, data)

    def get_property(self, name: str) -> Json:
        """Return a property's value; ``data`` is shown as it was given."""
        match name:
            case "data":
                return self._data or ""
            case "file":
                return self._file or ""
        return super().get_property(name)

    async def set_property(self, name: str, value: Json) -> None:
        """Set a property."""
        match name:
            case "data":
                self._data = as_str(name, value)
            case "file":
                self._file = as_str(name, value)
            case _:
                await super().set_property(name, value)


@user_creatable_object("secret_keyring")
@final
class SecretKeyring(SecretCommon):
    """A secret from the kernel's keyring, by serial number."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._serial: int = options.serial

    @classmethod
    def create(cls, options: Options) -> Self:
        """Make the object."""
        return cls(options)

    async def complete(self, table: ObjectTable) -> None:
        """Read, decrypt and decode the key."""
        if self._serial == 0:
            raise QmpError("'serial' should not be equal to 0")
        from qsd_trio.host.keyring import read_key

        try:
            data = read_key(self._serial)
        except OSError as exc:
            serial = self._serial & 0xFFFFFFFF
            raise QmpError(f"Unable to read serial key {serial:08x}: {exc.strerror}") from None
        self._load(table, data)

    def get_property(self, name: str) -> Json:
        """Return a property's value."""
        return self._serial if name == "serial" else super().get_property(name)

    async def set_property(self, name: str, value: Json) -> None:
        """Set a property."""
        if name == "serial":
            self._serial = as_int(name, value)
        else:
            await super().set_property(name, value)


def lookup_secret(table: ObjectTable, id_: str) -> bytes:
    """Return the bytes of secret ``id_``; QmpError if there is none."""
    found = table.get(id_)
    if found is None:
        raise QmpError(f"No secret with id '{id_}'")
    if not isinstance(found, SecretCommon):
        raise QmpError(f"Object with id '{id_}' is not a secret")
    return found.value


async def _read_file(path: str) -> bytes:
    # Quotes as the library prints them that the real daemon reads files with.
    try:
        file = await trio.open_file(path, "rb")
    except OSError as exc:
        problem = "Error reading" if exc.errno == 21 else "Failed to open"
        raise QmpError(f"Unable to read {path}: {problem} file “{path}”: {exc.strerror}") from None
    async with file:
        try:
            data = await file.read(MAX_FILE_LENGTH + 1)
        except OSError as exc:
            raise QmpError(
                f"Unable to read {path}: Error reading file “{path}”: {exc.strerror}"
            ) from None
    if len(data) > MAX_FILE_LENGTH:
        raise QmpError(f"Unable to read {path}: a secret has at most {MAX_FILE_LENGTH} bytes")
    return data
