"""What drivers of encrypted images share: secrets, LUKS volumes.

A ``LuksVolume`` is a LUKS header somewhere (in a file of its own, before the payload, inside a qcow2 image)
with the cipher it led to. What takes long runs in worker threads.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, final

import attrs

from qsd_trio.crypto import algorithms as alg
from qsd_trio.crypto import keyslots, luks
from qsd_trio.crypto.sectors import SECTOR, SectorCipher
from qsd_trio.errors import QmpError, with_errno
from qsd_trio.host.workers import worker_pool
from qsd_trio.objects.abc import UserCreatable
from qsd_trio.objects.secret import SecretCommon

if TYPE_CHECKING:
    from typing import Self

    from qsd_trio.block.abc import Child, Objects
    from qsd_trio.crypto.luks import Header
    from qsd_trio.untyped import Json, Options

DEFAULT_ITER_TIME: Final = 2000  # milliseconds


def password(objects: Objects, id_: str | None, *, prefix: str = "") -> bytes:
    """Return the password that secret ``id_`` holds; QmpError if there is none or it is not text.

    ``prefix`` is how texts begin the option's name.
    """
    if id_ is None:
        raise QmpError(f"Parameter '{prefix}key-secret' is required for cipher")
    try:
        found = objects.object(id_, UserCreatable)
    except QmpError:
        raise QmpError(f"No secret with id '{id_}'") from None
    if not isinstance(found, SecretCommon):
        raise QmpError(f"Object with id '{id_}' is not a secret")
    return found.as_text().encode()


# -- headers -------------------------------------------------------------------------------------------


@final
@attrs.frozen
class HeaderArea:
    """Where a LUKS header with its key material is: ``length`` bytes of a child (None: all of it)."""

    child: Child
    start: int = 0
    length: int | None = None
    read_failure: str = "Unable to read encryption header"
    write_failure: str = "Unable to write encryption header"

    def _check(self, offset: int, length: int) -> None:
        if self.length is not None and offset + length > self.length:
            raise QmpError("Request for data outside of extension header")

    async def read(self, offset: int, length: int) -> bytes:
        """Return bytes; what is behind the end of the child reads as zeroes."""
        self._check(offset, length)
        data = bytearray(length)
        try:
            await self.child.preadv(self.start + offset, [memoryview(data)])
        except OSError as exc:
            raise with_errno(self.read_failure, exc) from exc
        return bytes(data)

    async def write(self, offset: int, data: bytes) -> None:
        """Write bytes, and wait until they are on stable storage."""
        self._check(offset, len(data))
        try:
            await self.child.pwritev(self.start + offset, [memoryview(data)])
            await self.child.flush()
        except OSError as exc:
            raise with_errno(self.write_failure, exc) from exc


@final
@attrs.define(eq=False)
class LuksVolume:
    """A LUKS header that a password has opened."""

    area: HeaderArea
    header: Header
    cipher: SectorCipher
    #: The secret that amending takes the master key out with.
    key_secret: str

    @classmethod
    async def open(
        cls,
        area: HeaderArea,
        objects: Objects,
        key_secret: str | None,
        *,
        detached: bool = False,
        prefix: str = "",
    ) -> Self:
        """Find the key slot that the secret opens. Raises QmpError."""
        secret = password(objects, key_secret, prefix=prefix)
        assert key_secret is not None
        header = luks.parse(await area.read(0, luks.HEADER_SIZE), detached=detached)
        key = await find_master_key(area, header, secret)
        return cls(area, header, SectorCipher(header.spec, key), key_secret)

    def info(self) -> dict[str, Json]:
        """Return QCryptoBlockInfoLUKS."""
        header, spec = self.header, self.header.spec
        slots: list[Json] = []
        for slot in header.slots:
            shown: dict[str, Json] = {"active": slot.active}
            if slot.active:
                shown |= {"iters": slot.iterations, "stripes": slot.stripes}
            slots.append(shown | {"key-offset": slot.offset * SECTOR})
        essiv = {"ivgen-hash-alg": spec.ivgen_hash} if spec.ivgen == "essiv" else {}
        return {
            "cipher-alg": spec.algorithm,
            "cipher-mode": spec.mode,
            "ivgen-alg": spec.ivgen,
            **essiv,
            "hash-alg": header.hash,
            "payload-offset": header.payload_offset * SECTOR,
            "master-key-iters": header.digest_iterations,
            "uuid": header.uuid,
            "slots": slots,
        }

    # -- amending --------------------------------------------------------------------------------------

    async def amend(self, objects: Objects, options: Options, *, force: bool) -> None:
        """Change key slots as QCryptoBlockAmendOptionsLUKS say. Raises QmpError.

        Cancelled, or after a crash: a slot is as before, as after, or inactive.
        """
        if options.state.value == "active":
            await self._activate(objects, options, force=force)
        else:
            await self._deactivate(objects, options, force=force)

    async def _activate(self, objects: Objects, options: Options, *, force: bool) -> None:
        if options.new_secret is None:
            raise QmpError("'new-secret' is required to activate a keyslot")
        if options.old_secret is not None:
            raise QmpError("'old-secret' must not be given when activating keyslots")
        slots = self.header.slots
        if options.keyslot is not None:
            index = options.keyslot
            _check_index(index, index & 0xFFFFFFFF)
            if slots[index].active and not force:
                raise QmpError(
                    f"Refusing to overwrite active keyslot {index} - please erase it first"
                )
        else:
            free = [number for number, slot in enumerate(slots) if not slot.active]
            if not free:
                raise QmpError("Can't add a keyslot - all keyslots are in use")
            index = free[0]
        milliseconds = DEFAULT_ITER_TIME if options.iter_time is None else options.iter_time
        old = password(objects, options.secret or self.key_secret)
        key = await find_master_key(self.area, self.header, old)
        new = password(objects, options.new_secret)
        self.header = await fill_slot(self.area, self.header, index, key, new, milliseconds)

    async def _deactivate(self, objects: Objects, options: Options, *, force: bool) -> None:
        if options.new_secret is not None:
            raise QmpError("'new-secret' must not be given when erasing keyslots")
        if options.iter_time is not None:
            raise QmpError("'iter-time' must not be given when erasing keyslots")
        header = self.header
        active = [index for index, slot in enumerate(header.slots) if slot.active]
        old = password(objects, options.old_secret) if options.old_secret is not None else None
        if options.keyslot is not None:
            index = options.keyslot
            _check_index(index, index)
            if old is not None and not await self._opens(index, old):
                raise QmpError(
                    f"Given keyslot {index} doesn't contain the given old password"
                    " for erase operation"
                )
            if index not in active and not force:
                raise QmpError(f"Given keyslot {index} is already erased (inactive) ")
            if active == [index] and not force:
                raise QmpError(
                    f"Attempt to erase the only active keyslot {index} which will erase all the"
                    " data in the image irreversibly - refusing operation"
                )
            doomed = [index]
        elif old is not None:
            doomed = [index for index in active if await self._opens(index, old)]
            if not doomed:
                raise QmpError("No keyslots match given (old) password for erase operation")
            if doomed == active and not force:
                raise QmpError(
                    "All the active keyslots match the (old) password that was given and erasing"
                    " them will erase all the data in the image irreversibly - refusing operation"
                )
        else:
            raise QmpError(
                "To erase keyslot(s), either explicit keyslot index or the password currently"
                " contained in them must be given"
            )
        for index in doomed:
            self.header = await erase_slot(self.area, self.header, index)

    async def _opens(self, index: int, secret: bytes) -> bool:
        return await _try_slot(self.area, self.header, index, secret) is not None


def _check_index(index: int, shown: int) -> None:
    if not 0 <= index < luks.SLOTS:
        raise QmpError(f"Invalid keyslot {shown} specified, must be between 0 and {luks.SLOTS - 1}")


async def find_master_key(area: HeaderArea, header: Header, secret: bytes) -> bytes:
    """Return the master key from the first slot that the password opens."""
    for index in range(luks.SLOTS):
        key = await _try_slot(area, header, index, secret)
        if key is not None:
            return key
    raise QmpError("Invalid password, cannot unlock any keyslot")


async def _try_slot(area: HeaderArea, header: Header, index: int, secret: bytes) -> bytes | None:
    slot = header.slots[index]
    if not slot.active:
        return None
    material = await area.read(slot.offset * SECTOR, header.material_length)
    return await worker_pool().run(keyslots.unlock, header, index, material, secret, slow=True)


async def fill_slot(
    area: HeaderArea, header: Header, index: int, key: bytes, secret: bytes, milliseconds: int
) -> Header:
    """Put the master key into slot ``index`` under a password; return the header with it.

    The slot becomes active by a write of four bytes, when everything else is on the disk.
    """
    slot, material = await worker_pool().run(
        keyslots.lock, header, index, key, secret, milliseconds, slow=True
    )
    inactive = attrs.evolve(slot, active=False).to_bytes()
    await area.write(header.slot_at(index), inactive)
    await area.write(slot.offset * SECTOR, material)
    await area.write(header.slot_at(index), slot.to_bytes()[:4])
    return header.with_slot(index, slot)


async def erase_slot(area: HeaderArea, header: Header, index: int) -> Header:
    """Make slot ``index`` inactive and overwrite its key material; return the header with it."""
    slot = luks.KeySlot(offset=header.slots[index].offset)
    await area.write(header.slot_at(index), slot.to_bytes())
    await area.write(slot.offset * SECTOR, os.urandom(header.material_length))
    return header.with_slot(index, slot)


@final
@attrs.frozen(kw_only=True)
class NewLuks:
    """A LUKS volume that is to be made: nothing is written yet."""

    header: Header
    key: bytes
    secret: bytes
    milliseconds: int

    @property
    def header_length(self) -> int:
        """Bytes of the header with all key material."""
        last = self.header.slots[-1].offset * SECTOR + self.header.material_length
        align = luks.KEY_MATERIAL_ALIGNMENT * SECTOR
        return -(-last // align) * align

    async def write(self, area: HeaderArea) -> None:
        """Write the header, with the password in the first key slot."""
        await area.write(0, self.header.to_bytes())
        await fill_slot(area, self.header, 0, self.key, self.secret, self.milliseconds)


async def plan_luks(
    objects: Objects, options: Options, *, detached: bool = False, prefix: str = ""
) -> NewLuks:
    """Choose keys and header for a new volume, from QCryptoBlockCreateOptionsLUKS. Raises QmpError."""

    def value(name: str, default: str) -> str:
        member = getattr(options, name)
        return default if member is None else str(member.value)

    secret = password(objects, options.key_secret, prefix=prefix)
    algorithm = value("cipher_alg", "aes-256")
    mode = value("cipher_mode", "xts")
    ivgen = value("ivgen_alg", "plain64")
    given_hash = None if options.ivgen_hash_alg is None else str(options.ivgen_hash_alg.value)
    if ivgen == "essiv" and given_hash is None:
        given_hash = "sha256"
    if algorithm not in alg.CIPHERS:
        raise QmpError(f"Algorithm '{algorithm}' not supported")
    spec = alg.spec(algorithm, mode, ivgen, given_hash)
    milliseconds = DEFAULT_ITER_TIME if options.iter_time is None else options.iter_time
    header, key = await worker_pool().run(
        _new_header, spec, value("hash_alg", "sha256"), milliseconds, detached, slow=True
    )
    return NewLuks(header=header, key=key, secret=secret, milliseconds=milliseconds)


def _new_header(
    spec: alg.CipherSpec, hash_: str, milliseconds: int, detached: bool
) -> tuple[Header, bytes]:
    return keyslots.new_header(spec, hash_, milliseconds, detached=detached)
