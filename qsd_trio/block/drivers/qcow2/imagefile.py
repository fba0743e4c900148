"""Pieces of the image file: what lies past its end is zero, and a discard may be in vain."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from qsd_trio.iov import iov_slice, iov_zero

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsd_trio.block.abc import Child

log = logging.getLogger(__name__)


async def read_file(file: Child, offset: int, length: int) -> bytearray:
    """Read a piece of the image file; what lies past its end is zero."""
    data = bytearray(length)
    await read_into(file, offset, [memoryview(data)], length)
    return data


async def read_into(file: Child, offset: int, iov: Sequence[memoryview], length: int) -> None:
    """Fill ``iov``, ``length`` bytes long, from the image file; what lies past its end is zero."""
    there = file.getlength() - offset
    if there >= length:
        await file.preadv(offset, iov)
        return
    there = max(there, 0)
    if there:
        await file.preadv(offset, iov_slice(iov, 0, there))
    iov_zero(iov_slice(iov, there, length - there))


async def discard_file(file: Child, offset: int, length: int) -> None:
    """Discard a piece of the image file, as far as it goes; a file that cannot is no error."""
    length = min(length, file.getlength() - offset)
    if length <= 0:
        return
    try:
        await file.pdiscard(offset, length)
    except OSError as exc:
        log.debug("qcow2: discard of %#x+%#x: %s", offset, length, exc)
