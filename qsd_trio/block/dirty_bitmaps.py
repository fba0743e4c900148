"""Dirty bitmaps: which parts of a node were written since someone asked.

A ``DirtyBitmap`` is the bits and what may be done with them; ``DirtyBitmaps`` is a node's table of them, which
tells the gate (block/io.py) which ones to mark. Nothing here awaits: a change is complete when it returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from qsd_trio.block.bits import BitArray
from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from qsd_trio.untyped import Json

MIN_GRANULARITY: Final = 512
MAX_NAME: Final = 1023  # bytes, as QEMU's and qcow2's
#: Memory of one bitmap: QEMU's limit for those in an image. (Without one, a node of many exabytes would
#: take all the memory there is.)
MAX_BYTES: Final = 512 << 20

_DEFAULT_GRANULARITY: Final = 64 << 10
_SMALLEST_DEFAULT: Final = 4 << 10
_ZEROES: Final = bytes(1 << 16)


def default_granularity(cluster_size: int | None) -> int:
    """Return the bytes per bit on a node whose format has clusters of this size (None: it has none)."""
    if cluster_size is None:
        return _DEFAULT_GRANULARITY
    return min(max(cluster_size, _SMALLEST_DEFAULT), _DEFAULT_GRANULARITY)


def _nothing() -> None:
    """Tell nobody: the bitmap is in no table."""


@final
class DirtyBitmap:
    """A bit for every ``granularity`` bytes of a node of ``size`` bytes.

    Attributes:
        persistent: The image keeps it when the node closes.
        enabled: Writes are recorded.
        readonly: It came from an image that we may not write: it cannot change, and no write may reach the node.
        inconsistent: The image says that writes were missed. It has no bits and can only be removed.
        busy: An export or a job is using it: commands must leave it alone.
    """

    def __init__(
        self, name: str, granularity: int, size: int, *, inconsistent: bool = False
    ) -> None:
        self.name = name
        self.granularity = granularity
        self.size = size
        self.persistent = False
        self.busy = False
        self.changed: Callable[[], None] = _nothing
        self.inconsistent = inconsistent
        self._enabled = not inconsistent
        #: Set by ``DirtyBitmaps.set_readonly`` once the bitmap is in a table.
        self.readonly = False
        self._shift = granularity.bit_length() - 1
        self._bits = BitArray(0 if inconsistent else bits_for(size, granularity))

    def __repr__(self) -> str:
        return f"<DirtyBitmap {self.name}>"

    # -- what may be done ----------------------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        """Whether writes are recorded."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled = value
        self.changed()

    def check_free(self) -> None:
        """Raise QmpError while somebody uses the bitmap."""
        if self.busy:
            raise QmpError(
                f"Bitmap '{self.name}' is currently in use by another operation and cannot be used"
            )

    def check_removable(self) -> None:
        """Raise QmpError if the bitmap must stay."""
        self.check_free()
        if self.readonly:
            raise QmpError(f"Bitmap '{self.name}' is readonly and cannot be modified")

    def check_usable(self) -> None:
        """Raise QmpError if the bits cannot be read."""
        self.check_free()
        if self.inconsistent:
            error = QmpError(f"Bitmap '{self.name}' is inconsistent and cannot be used")
            error.add_note("Try block-dirty-bitmap-remove to delete this bitmap from disk")
            raise error

    def check_changeable(self) -> None:
        """Raise QmpError if the bits cannot be changed."""
        self.check_removable()
        self.check_usable()

    # -- the bits ------------------------------------------------------------------------------------

    def mark(self, offset: int, length: int) -> None:
        """Note that a range, at least a byte long and within the size, was written."""
        shift = self._shift
        first = offset >> shift
        last = (offset + length - 1) >> shift
        if first == last:
            self._bits.data[first >> 3] |= 1 << (first & 7)
        else:
            self._bits.set(first, last + 1)

    def unmark(self, offset: int, length: int) -> None:
        """Forget a range; ``offset`` and its end are multiples of the granularity, or the size."""
        self._bits.clear(offset >> self._shift, -(-(offset + length) >> self._shift))

    def next_dirty(self, offset: int, end: int) -> int:
        """Return where the first dirty part of a range begins, ``end`` if there is none."""
        stop = min(-(-end >> self._shift), self._bits.length)
        at = self._bits.next_set(offset >> self._shift, stop)
        if at == stop or offset >= self.size:
            return end
        return max(at << self._shift, offset)

    def next_clean(self, offset: int, end: int) -> int:
        """Return where the first clean part of a range begins; beyond the size all is clean."""
        stop = min(-(-end >> self._shift), self._bits.length)
        at = self._bits.next_clear(offset >> self._shift, stop)
        if at == stop:
            return min(max(self.size, offset), end)
        return max(at << self._shift, offset)

    def count(self) -> int:
        """Return how many bytes are dirty; the last piece counts whole."""
        return self._bits.count() << self._shift

    def take(self) -> BitArray:
        """Clear all; return what was set, for ``restore``."""
        taken, self._bits = self._bits, BitArray(self._bits.length)
        return taken

    def restore(self, bits: BitArray) -> None:
        """Take back what ``take`` or ``snapshot`` returned."""
        self._bits = bits

    def snapshot(self) -> BitArray:
        """Return a copy of the bits."""
        return self._bits.copy()

    def merge(self, other: DirtyBitmap) -> None:
        """Mark what is dirty in ``other``, a bitmap of the same size."""
        self._bits.merge(other._bits, other._shift - self._shift)

    def resize(self, size: int) -> None:
        """Follow the node's length: what is added is clean."""
        self.size = size
        if not self.inconsistent:
            self._bits.resize(-(-size // self.granularity))

    def sha256(self) -> str:
        """Return the checksum of the bits, filled up to words of 64 bits."""
        from hashlib import sha256  # a start-up need not pay for it

        digest = sha256(self._bits.data)
        length = max(-(-self.size // self.granularity // 64), 1) * 8
        for at in range(len(self._bits.data), length, len(_ZEROES)):
            digest.update(_ZEROES[: length - at])
        return digest.hexdigest()

    # -- in the image's form -------------------------------------------------------------------------

    @property
    def data(self) -> bytearray:
        """The bits as qcow2 stores them: bit n of byte m is piece 8 * m + n."""
        return self._bits.data

    def load(self, at: int, data: bytes | bytearray) -> None:
        """Replace the bytes of ``data`` from number ``at`` on; what is too much is ignored."""
        self._bits.load(at, data)

    def info(self) -> dict[str, Json]:
        """Return BlockDirtyInfo."""
        info: dict[str, Json] = {
            "name": self.name,
            "recording": self._enabled,
            "persistent": self.persistent,
            "busy": self.busy,
            "granularity": self.granularity,
            "count": self.count(),
        }
        if self.inconsistent:
            info["inconsistent"] = True
        return info


def bits_for(size: int, granularity: int) -> int:
    """Return how many bits a bitmap of a node of ``size`` bytes has; QmpError if they are too many."""
    bits = -(-size // granularity)
    if bits > 8 * MAX_BYTES:
        raise QmpError(
            f"A bitmap of granularity {granularity} would take more than {MAX_BYTES} bytes of memory;"
            " use larger granularity"
        )
    return bits


@final
class DirtyBitmaps:
    """The bitmaps of one node, by name."""

    def __init__(self) -> None:
        #: Called after a bitmap came, went, or changed its state.
        self.on_change: Callable[[], None] = _nothing
        self._table: dict[str, DirtyBitmap] = {}
        #: Those that writes must be marked in.
        self.recording: tuple[DirtyBitmap, ...] = ()
        #: Whether one keeps writes off the node.
        self.has_readonly = False

    def __iter__(self) -> Iterator[DirtyBitmap]:
        """Go through the bitmaps, the youngest first."""
        return iter(tuple(reversed(self._table.values())))

    def __len__(self) -> int:
        return len(self._table)

    def get(self, name: str) -> DirtyBitmap | None:
        """Return the bitmap ``name`` or None."""
        return self._table.get(name)

    def find(self, name: str) -> DirtyBitmap:
        """Return the bitmap ``name``."""
        bitmap = self._table.get(name)
        if bitmap is None:
            raise QmpError(f"Dirty bitmap '{name}' not found")
        return bitmap

    def create(self, name: str, granularity: int, size: int) -> DirtyBitmap:
        """Add a clean bitmap for a node of ``size`` bytes."""
        self._check_name(name)
        bitmap = DirtyBitmap(name, granularity, size)
        self._add(bitmap)
        self._refresh()
        return bitmap

    def add_all(self, bitmaps: Iterable[DirtyBitmap]) -> None:
        """Add bitmaps made by whoever found them in an image."""
        for bitmap in bitmaps:
            self._check_name(bitmap.name)
            self._add(bitmap)
        self._refresh()

    def _check_name(self, name: str) -> None:
        if name in self._table:
            raise QmpError(f"Bitmap already exists: {name}")
        if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME:
            raise QmpError(f"Bitmap name too long: {name}")

    def _add(self, bitmap: DirtyBitmap) -> None:
        bitmap.changed = self._refresh
        self._table[bitmap.name] = bitmap

    def set_readonly(self, names: Iterable[str], readonly: bool) -> None:
        """Let bitmaps change no more, or again."""
        for name in names:
            bitmap = self._table.get(name)
            if bitmap is not None:
                bitmap.readonly = readonly
        self._refresh()

    def remove(self, bitmap: DirtyBitmap) -> None:
        """Forget a bitmap. Who holds it may go on reading it."""
        bitmap.changed = _nothing
        del self._table[bitmap.name]
        self._refresh()

    def check_size(self, size: int) -> None:
        """Raise QmpError if a bitmap would become too large for a node of ``size`` bytes."""
        for bitmap in self._table.values():
            if not bitmap.inconsistent:
                bits_for(size, bitmap.granularity)

    def resize(self, size: int) -> None:
        """Follow the node's length."""
        for bitmap in self._table.values():
            bitmap.resize(size)

    def _refresh(self) -> None:
        bitmaps = self._table.values()
        self.recording = tuple(bitmap for bitmap in bitmaps if bitmap.enabled)
        self.has_readonly = any(bitmap.readonly for bitmap in bitmaps)
        self.on_change()
