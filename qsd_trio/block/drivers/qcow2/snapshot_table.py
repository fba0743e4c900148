"""The snapshot table: parsed and written, every field checked before it is used. Pure.

Source: qcow2 specification, section "Snapshots". Error texts as QEMU's.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final, final

import attrs

from qsd_trio.block.drivers.qcow2 import layout as lay
from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

FIXED: Final = struct.Struct(">QIHHIIQII")
EXTRA: Final = struct.Struct(">QQQ")  # vm state size, disk size, icount

#: Of what follows an entry's fixed part; QEMU's limits, which bound the memory of opening an image.
MAX_EXTRA_BYTES: Final = 1024
MAX_TABLE_BYTES: Final = 64 << 20
#: What QEMU shows of an id and a name, in bytes.
SHOWN_ID: Final = 127
SHOWN_NAME: Final = 255

NO_ICOUNT: Final = (1 << 64) - 1
_NUMBER: Final = re.compile(rb"[0-9]+")


@final
@attrs.frozen(kw_only=True)
class Entry:
    """An entry of the snapshot table. Offsets and sizes in bytes, times as on disk."""

    l1_table_offset: int
    l1_size: int  # entries
    id_str: bytes
    name: bytes
    date_sec: int
    date_nsec: int
    vm_clock_nsec: int
    vm_state_size: int = 0
    disk_size: int
    icount: int = NO_ICOUNT
    #: Extra data after the fields we know.
    unknown_extra: bytes = b""

    @property
    def shown_id(self) -> bytes:
        """The id as QEMU truncates and compares it."""
        return self.id_str[:SHOWN_ID]

    @property
    def shown_name(self) -> bytes:
        """The name as QEMU truncates and compares it."""
        return self.name[:SHOWN_NAME]

    def to_bytes(self) -> bytes:
        """Return the entry, padded to a multiple of 8 bytes."""
        extra = EXTRA.pack(self.vm_state_size, self.disk_size, self.icount) + self.unknown_extra
        entry = FIXED.pack(
            self.l1_table_offset,
            self.l1_size,
            len(self.id_str),
            len(self.name),
            self.date_sec,
            self.date_nsec,
            self.vm_clock_nsec,
            min(self.vm_state_size, 2**32 - 1),
            len(extra),
        )
        entry += extra + self.id_str + self.name
        return entry + bytes(-len(entry) % 8)


def parse(count: int, image_size: int) -> Generator[int, bytes, list[Entry]]:
    """Parse ``count`` entries: yields how many bytes it wants next, returns the snapshots.

    ``image_size`` is the size of snapshots that do not record theirs. Raises QmpError.
    """
    snapshots: list[Entry] = []
    done = 0
    for number in range(count):
        (
            l1_table_offset,
            l1_size,
            id_length,
            name_length,
            date_sec,
            date_nsec,
            vm_clock_nsec,
            vm_state_size,
            extra_length,
        ) = FIXED.unpack((yield FIXED.size))
        if extra_length > MAX_EXTRA_BYTES:
            raise QmpError(f"Too much extra metadata in snapshot table entry {number}")
        disk_size, icount = image_size, NO_ICOUNT
        extra = yield extra_length
        if extra_length >= 8:
            vm_state_size = int.from_bytes(extra[:8], "big")
        if extra_length >= 16:
            disk_size = int.from_bytes(extra[8:16], "big")
        if extra_length >= 24:
            icount = int.from_bytes(extra[16:24], "big")
        id_str, name = (yield id_length), (yield name_length)
        length = FIXED.size + extra_length + id_length + name_length
        yield -length % 8
        done += length + -length % 8
        if done > MAX_TABLE_BYTES:
            raise QmpError("Snapshot table is too big")
        snapshots.append(
            Entry(
                l1_table_offset=l1_table_offset,
                l1_size=l1_size,
                id_str=_c_string(id_str),
                name=_c_string(name),
                date_sec=date_sec,
                date_nsec=date_nsec,
                vm_clock_nsec=vm_clock_nsec,
                vm_state_size=vm_state_size,
                disk_size=disk_size,
                icount=icount,
                unknown_extra=extra[EXTRA.size :],
            )
        )
    return snapshots


def _c_string(data: bytes) -> bytes:
    """Return what a C program takes a string for: it stops at the first NUL."""
    return data.split(b"\0", 1)[0]


def to_bytes(snapshots: Iterable[Entry]) -> bytes:
    """Return the table."""
    return b"".join([snapshot.to_bytes() for snapshot in snapshots])


def check_l1(snapshot: Entry, cluster_size: int) -> None:
    """Raise QmpError unless the snapshot's L1 table can be one."""
    size = snapshot.l1_size * 8
    if size > lay.MAX_L1_BYTES:
        raise QmpError("Snapshot L1 table too large")
    offset = snapshot.l1_table_offset
    if offset & (cluster_size - 1) or offset > 2**63 - 1 - size:
        raise QmpError("Snapshot L1 table offset invalid")


def next_id(snapshots: Iterable[Entry]) -> bytes:
    """Return the id of a new snapshot: one more than the largest number that ids begin with."""
    largest = 0
    for snapshot in snapshots:
        number = _NUMBER.match(snapshot.id_str)
        if number is not None:
            largest = max(largest, int(number[0]))
    return b"%d" % (largest + 1)
