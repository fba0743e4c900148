"""The way of data through a cipher, between a driver of encrypted images and its child.

Short requests are ciphered where they are: a hop to a worker thread would take longer. So they can be answered on
the fast path as well, by a ``CipheredFile``, which stands for the child in an extent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from qsd_trio.block.extentfile import BufferedFile
from qsd_trio.crypto.sectors import SECTOR, SectorCipher
from qsd_trio.host.malloc import keep_freed_memory
from qsd_trio.host.workers import worker_pool
from qsd_trio.iov import iov_fill, iov_gather, iov_size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qsd_trio.block.abc import Child, Extents, Iov
    from qsd_trio.block.extentfile import ExtentFile
    from qsd_trio.crypto.sectors import Buffer

    Reader = Callable[[int, Iov], Awaitable[None]]

#: Bytes that are ciphered on the loop: a hop to a worker would take longer.
INLINE: Final = 64 << 10
#: Bytes that a worker ciphers in one go. The interpreter lock is its own meanwhile, or nearly.
BATCH: Final = 256 << 10


async def read_decrypted(
    cipher: SectorCipher, read: Reader, offset: int, sector: int, iov: Iov
) -> None:
    """Fill ``iov`` with what ``read`` gets at ``offset``, decrypted as from ``sector`` on."""
    keep_freed_memory()  # there is more copying here than anywhere else
    data = memoryview(bytearray(iov_size(iov)))
    await read(offset, [data])
    plain = await _batches(cipher.decrypt, data, sector)
    iov_fill(iov, memoryview(plain))


async def encrypted(cipher: SectorCipher, iov: Iov, sector: int) -> memoryview:
    """Return what ``iov`` holds, encrypted for ``sector`` and those that follow."""
    keep_freed_memory()
    data: memoryview
    if len(iov) == 1:
        data = iov[0]
    else:
        data = memoryview(bytearray(iov_size(iov)))
        iov_gather(data, iov)
    return memoryview(await _batches(cipher.encrypt, data, sector))


async def _batches(run: Callable[[Buffer, int], bytes], data: memoryview, sector: int) -> bytes:
    if len(data) <= INLINE:
        await worker_pool().take_turn()
        return run(data, sector)
    done = []
    for at in range(0, len(data), BATCH):
        part = data[at : at + BATCH]
        done.append(await worker_pool().run(run, part, sector + at // SECTOR))
    return done[0] if len(done) == 1 else b"".join(done)


@final
class CipheredFile(BufferedFile):
    """What is decrypted from ``child``, beginning at ``start``, in the extents of the fast path.

    Sectors are numbered from there. ``map_read`` and ``map_write`` answer for whole sectors.
    """

    def __init__(self, cipher: SectorCipher, child: Child, start: int) -> None:
        """Decrypt from ``start`` in ``child`` on."""
        keep_freed_memory()
        self._cipher = cipher
        self._child = child
        self._start = start
        self._room = memoryview(bytearray(INLINE))

    def map_read(self, offset: int, length: int) -> Extents | None:
        """Return the range as extents, None if it is not for the fast path."""
        if (offset | length) % SECTOR or length > INLINE:
            return None
        return ((self, offset, length),)

    def map_write(self, offset: int, length: int) -> Extents | None:
        """Return the range as extents, None if it cannot be written at once."""
        if (offset | length) % SECTOR or length > INLINE:
            return None
        if self._target(offset, length) is None:
            return None
        return ((self, offset, length),)

    def _target(self, offset: int, length: int) -> tuple[ExtentFile, int] | None:
        """Return where a range is to be written at once, if that is possible."""
        found = self._child.map_write(self._start + offset, length)
        if found is None or len(found) > 1:
            return None
        file, host, _ = found[0]
        return (file, host) if file is not None and file.can_write_now else None

    def read_now(self, iov: Iov, offset: int) -> int:
        """Fill ``iov`` with what is in the page cache; return the bytes read, or -1: it would block."""
        length = iov_size(iov)
        found = self._child.map_read(self._start + offset, length)
        if found is None:
            return -1
        room = self._room[:length]
        at = 0
        for file, host, size in found:
            piece = room[at : at + size]
            count = 0 if file is None else file.read_now([piece], host)
            if count < 0:
                return -1
            piece[count:] = bytes(size - count)
            at += size
        iov_fill(iov, memoryview(self._cipher.decrypt(room, offset // SECTOR)))
        return length

    def write_now(self, iov: Iov, offset: int) -> bool:
        """Write ``iov`` into the page cache; False: not now, and nothing was written."""
        length = iov_size(iov)
        target = self._target(offset, length)
        if target is None:
            return False
        data = iov[0]
        if len(iov) > 1:
            data = self._room[:length]
            iov_gather(data, iov)
        ciphertext = self._cipher.encrypt(data, offset // SECTOR)
        file, host = target
        return file.write_now([memoryview(ciphertext)], host)
