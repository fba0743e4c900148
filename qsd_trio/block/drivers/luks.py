"""``luks``: an image encrypted as LUKS version 1."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, final

import attrs

from qsd_trio.block.abc import (
    ChildRole,
    FormatDriver,
    Limits,
    Perm,
    ReqFlag,
    block_driver,
    create_driver,
)
from qsd_trio.block.ciphering import CipheredFile, encrypted, read_decrypted
from qsd_trio.block.encryption import HeaderArea, LuksVolume, NewLuks, plan_luks
from qsd_trio.crypto.sectors import SECTOR
from qsd_trio.errors import QmpError, os_error, with_errno

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from qsd_trio.block.abc import Child, CreateOpener, Extents, Iov, Objects, Opener
    from qsd_trio.untyped import Json, Options

#: Bytes of a request: what is ciphered at a time is copied, and should not take much memory.
MAX_TRANSFER = 1 << 20


@block_driver("luks")
@final
@attrs.define(eq=False, slots=False)
class Luks(FormatDriver):
    """An open LUKS image; ``header_child`` holds its header, unless ``file`` does."""

    supports_amend: ClassVar[bool] = True

    file: Child
    volume: LuksVolume
    header_child: Child | None = None
    #: Whether key slots are being changed.
    amending: bool = False
    _ciphered: CipheredFile = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._ciphered = CipheredFile(self.volume.cipher, self.file, self._payload)

    @classmethod
    async def open(cls, opener: Opener, options: Options) -> Self:
        """Open the image on ``options.file`` with the password of ``options.key_secret``."""
        # Not IMAGE, which would mean until we are open that we might write metadata.
        file = await opener.child("file", options.file, ChildRole.DATA | ChildRole.PRIMARY)
        header_child = None
        if options.header is not None:
            header_child = await opener.child("header", options.header, ChildRole.NONE)
        volume = await LuksVolume.open(
            HeaderArea(header_child or file),
            opener,
            options.key_secret,
            detached=header_child is not None,
        )
        if file.getlength() < volume.header.payload_offset * SECTOR:
            raise with_errno("Could not refresh total sector count", os_error(errno.EIO))
        return cls(file=file, volume=volume, header_child=header_child)

    @property
    def _payload(self) -> int:
        return self.volume.header.payload_offset * SECTOR

    async def aclose(self) -> None:
        """Hold nothing, release nothing."""

    def getlength(self) -> int:
        """Return the length of the payload."""
        return max(0, self.file.node.driver.getlength() - self._payload)

    def limits(self) -> Limits:
        """Whole sectors are ciphered."""
        return Limits(request_alignment=SECTOR, max_transfer=MAX_TRANSFER)

    def full_options(self) -> Mapping[str, Json]:
        """Return the id of the secret, not the secret."""
        return {"key-secret": self.volume.key_secret}

    def child_permissions(
        self, role: ChildRole, needed: Perm, shared: Perm, *, read_only: bool
    ) -> tuple[Perm, Perm]:
        """Need what the parents need; metadata are written only while key slots change.

        Reading the header is always needed, so that two programs cannot change its slots at the same time.
        """
        if not role & ChildRole.DATA:
            needed, shared = Perm.NONE, Perm.ALL
        needed |= Perm.CONSISTENT_READ
        if self.amending:
            needed |= Perm.WRITE
            shared &= ~Perm.CONSISTENT_READ
        return needed, shared

    # -- requests ------------------------------------------------------------------------------------

    def map_read(self, offset: int, length: int) -> Extents | None:
        """Offer whole sectors, to be decrypted as they are read."""
        return self._ciphered.map_read(offset, length)

    def map_write(self, offset: int, length: int) -> Extents | None:
        """Take whole sectors, to be encrypted as they are written; growth takes the slow path."""
        if offset + length > self.getlength():
            return None
        return self._ciphered.map_write(offset, length)

    async def preadv(self, offset: int, iov: Iov) -> None:
        """Read and decrypt."""
        await read_decrypted(
            self.volume.cipher, self.file.preadv, offset + self._payload, offset // SECTOR, iov
        )

    async def pwritev(self, offset: int, iov: Iov, flags: ReqFlag) -> None:
        """Encrypt and write."""
        data = await encrypted(self.volume.cipher, iov, offset // SECTOR)
        await self.file.pwritev(offset + self._payload, [data])

    async def flush(self) -> None:
        """Flush the file."""
        await self.file.flush()

    async def truncate(self, size: int, *, exact: bool, prealloc: str, flags: ReqFlag) -> None:
        """Resize the file, keeping the header before the payload."""
        await self.file.truncate(size + self._payload, exact=exact, prealloc=prealloc)

    # -- the control plane -----------------------------------------------------------------------------

    @property
    def encrypted(self) -> bool:
        """All of it is."""
        return True

    async def image_info(self) -> Mapping[str, Json]:
        """Tell what the header says."""
        return {
            "dirty-flag": False,
            "format-specific": {"type": "luks", "data": self._info()},
        }

    def _info(self) -> dict[str, Json]:
        # Members that 7.2 did not know are shown only where they say something.
        detached = {"detached-header": True} if self.header_child is not None else {}
        return self.volume.info() | detached

    def set_amending(self, amending: bool) -> None:
        """Take or give up the permission to write the header."""
        self.amending = amending

    async def amend(self, objects: Objects, options: Options, *, force: bool) -> None:
        """Change key slots (BlockdevAmendOptionsLUKS)."""
        await self.volume.amend(objects, options, force=force)


@create_driver("luks")
async def create(opener: CreateOpener, options: Options) -> None:
    """Make a volume (BlockdevCreateOptionsLUKS); what the nodes hold is lost. Raises QmpError.

    With ``header`` the header goes to a node of its own, and ``file`` is all payload.
    """
    prealloc = options.preallocation.value if options.preallocation is not None else "off"
    if prealloc == "metadata":
        prealloc = "off"  # there is nothing that grows
    if options.file is None and options.header is None:
        raise QmpError("Either the parameter 'header' or 'file' must be specified")
    if prealloc != "off" and options.file is None:
        raise QmpError(
            "Parameter 'preallocation' requires 'file' to be specified for formatting LUKS disk"
        )
    file = await opener.node(options.file) if options.file is not None else None
    detached = options.header is not None
    target = await opener.node(options.header) if detached else file
    assert target is not None
    plan = await plan_luks(opener, options, detached=detached)
    if detached:
        await _resize(target, plan.header_length, "off")
        if file is not None:
            await _resize(file, options.size, prealloc)
    else:
        await _resize(target, _with_header(options.size, plan), prealloc)
    await plan.write(HeaderArea(target))


def _with_header(size: int, plan: NewLuks) -> int:
    return size + plan.header.payload_offset * SECTOR


async def _resize(child: Child, size: int, prealloc: str) -> None:
    try:
        if size >= 1 << 63:
            raise os_error(errno.EFBIG)
        await child.truncate(size, exact=False, prealloc=prealloc)
    except QmpError as exc:
        cause = exc.__cause__
        too_large = isinstance(cause, OSError) and cause.errno == errno.EFBIG
        if too_large or "exceeds maximum" in str(exc):
            raise QmpError("The requested file size is too large") from exc
        raise
    except OSError as exc:
        if exc.errno == errno.EFBIG:
            raise QmpError("The requested file size is too large") from exc
        raise with_errno("Could not resize file", exc) from exc
