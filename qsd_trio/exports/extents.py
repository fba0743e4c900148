"""Scattered reads and writes on mapped extents, at once or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qsd_trio.host.files import MAX_BUFFERS
from qsd_trio.iov import iov_size, iov_skip, iov_slice, iov_zero

if TYPE_CHECKING:
    from qsd_trio.block.abc import Extents, Iov

#: Extents of one request: more are not worth to be done one by one on the event loop.
MAX_EXTENTS: Final = 64


def read_now(extents: Extents, iov: Iov) -> bool:
    """Fill ``iov`` from the extents without waiting; False: not now (``iov`` may be partly filled).

    Errors are False too: the slow path meets them again and reports them.
    """
    if len(extents) > MAX_EXTENTS or len(iov) > MAX_BUFFERS:
        return False
    at = 0
    for file, offset, length in extents:
        pieces = iov if len(extents) == 1 else iov_slice(iov, at, length)
        at += length
        if file is None:
            iov_zero(pieces)
            continue
        try:
            done = file.read_now(pieces, offset)
        except OSError:
            return False
        if done < 0:
            return False
        if done < length:  # the end of the file: a node's length is rounded up
            iov_zero(iov_skip(pieces, done))
    return at == iov_size(iov)


def write_now(extents: Extents, iov: Iov) -> bool:
    """Write ``iov`` to the extents without waiting; False: not now, or not all of it.

    Errors are False too, as for ``read_now``.
    """
    if len(extents) == 1:
        file, offset, _ = extents[0]
        try:
            return file is not None and file.write_now(iov, offset)
        except OSError:
            return False
    if len(extents) > MAX_EXTENTS:
        return False
    at = 0
    for file, offset, length in extents:
        pieces = iov_slice(iov, at, length)
        at += length
        try:
            if file is None or not file.write_now(pieces, offset):
                return False
        except OSError:
            return False
    return at == iov_size(iov)
