"""Making qcow2 images (blockdev-create)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from qsd_trio.block.abc import ReqFlag, create_driver
from qsd_trio.block.drivers.qcow2 import encryption, overlap, resize
from qsd_trio.block.drivers.qcow2 import layout as lay
from qsd_trio.block.drivers.qcow2.compressed import COMPRESSION_TYPES
from qsd_trio.block.drivers.qcow2.header import EXT_DATA_FILE, OUR_V3_SIZE, V2_SIZE, Header
from qsd_trio.block.drivers.qcow2.image import Image
from qsd_trio.block.drivers.qcow2.metadata import Metadata
from qsd_trio.block.drivers.qcow2.refblock import parse_refblock
from qsd_trio.errors import QmpError, with_errno

if TYPE_CHECKING:
    from qsd_trio.block.abc import Child, CreateOpener
    from qsd_trio.untyped import Options


#: The longest image of QEMU: a multiple of its largest alignment that 63 bits can hold.
MAX_LENGTH: Final = (1 << 63) - (1 << 30)


@create_driver("qcow2")
async def create(opener: CreateOpener, options: Options) -> None:
    """Make an image on the node ``options.file``; what it holds is lost. Raises QmpError."""
    header, prealloc = plan(options)
    file = await opener.node(options.file)
    data = None
    if options.data_file is not None:
        data = await opener.node(options.data_file)
        name = data.node.driver.filename().encode("utf-8", "surrogateescape")
        if name:
            header = attrs.evolve(header, extensions=[(EXT_DATA_FILE, name)])
    try:
        crypt = await encryption.plan(opener, options.encrypt) if options.encrypt else None
        await write_image(file, header, options.size, prealloc, data, crypt)
    except OSError as exc:
        raise with_errno("Could not create the qcow2 image", exc) from exc


def plan(options: Options) -> tuple[Header, str]:
    """Check the options in QEMU's order; return the header of the empty image and the preallocation."""

    def value(name: str, default: str) -> str:
        member = getattr(options, name, None)
        return default if member is None else str(member.value)

    if options.size % 512:
        raise QmpError("Image size must be a multiple of 512 bytes")
    version = 2 if value("version", "v3") == "v2" else 3
    cluster_size = (
        lay.DEFAULT_CLUSTER_SIZE if options.cluster_size is None else options.cluster_size
    )
    cluster_bits = cluster_size.bit_length() - 1
    if (
        not lay.MIN_CLUSTER_BITS <= cluster_bits <= lay.MAX_CLUSTER_BITS
        or cluster_size != 1 << cluster_bits
    ):
        raise QmpError("Cluster size must be a power of two between 512 and 2048k")
    extended = bool(options.extended_l2)
    if extended:
        if cluster_size < 16384:
            raise QmpError(
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes"
            )
        if version < 3:
            raise QmpError(
                "Extended L2 entries are only supported with compatibility level 1.1 and above"
                " (use version=v3 or greater)"
            )
    prealloc = value("preallocation", "off")
    if prealloc != "off" and options.backing_file is not None and not extended:
        raise QmpError(
            "Backing file and preallocation can only be used at the same time if extended_l2 is on"
        )
    if options.backing_fmt is not None and options.backing_file is None:
        raise QmpError("Backing format cannot be used without backing file")
    lazy = bool(options.lazy_refcounts)
    if lazy and version < 3:
        raise QmpError(
            "Lazy refcounts only supported with compatibility level 1.1 and above"
            " (use version=v3 or greater)"
        )
    refcount_bits = 16 if options.refcount_bits is None else options.refcount_bits
    if not 1 <= refcount_bits <= 64 or refcount_bits & (refcount_bits - 1):
        raise QmpError("Refcount width must be a power of two and may not exceed 64 bits")
    if version < 3 and refcount_bits != 16:
        raise QmpError(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above"
            " (use version=v3 or greater)"
        )
    raw = bool(options.data_file_raw)
    if raw and options.data_file is None:
        raise QmpError("data-file-raw requires data-file")
    if raw and options.backing_file is not None:
        raise QmpError("Backing file and data-file-raw cannot be used at the same time")
    if options.data_file is not None and version < 3:
        raise QmpError(
            "External data files are only supported with compatibility level 1.1 and above"
            " (use version=v3 or greater)"
        )
    if raw and prealloc == "off":
        # Who reads the data file alone must see what we see: all is allocated.
        prealloc = "metadata"
    compression = value("compression_type", "zlib")
    if compression != "zlib" and version < 3:
        raise QmpError(
            "Non-zlib compression type is only supported with compatibility level 1.1 and above"
            " (use version=v3 or greater)"
        )
    backing_format = options.backing_fmt.value if options.backing_fmt is not None else None
    header = Header(
        version=version,
        cluster_bits=cluster_bits,
        refcount_table_offset=cluster_size,
        refcount_table_clusters=1,
        incompatible=(lay.INCOMPAT_EXTENDED_L2 if extended else 0)
        | (lay.INCOMPAT_DATA_FILE if options.data_file is not None else 0)
        | (lay.INCOMPAT_COMPRESSION if compression != "zlib" else 0),
        compatible=lay.COMPAT_LAZY_REFCOUNTS if lazy else 0,
        autoclear=lay.AUTOCLEAR_DATA_FILE_RAW if raw else 0,
        refcount_order=refcount_bits.bit_length() - 1,
        header_length=OUR_V3_SIZE if version >= 3 else V2_SIZE,
        compression_type=COMPRESSION_TYPES.index(compression),
        backing_file=options.backing_file or None,
        backing_format=backing_format if options.backing_file else None,
    )
    return header, prealloc


async def write_image(
    file: Child,
    header: Header,
    size: int,
    prealloc: str,
    data_file: Child | None = None,
    crypt: encryption.NewEncryption | None = None,
) -> None:
    """Write an empty image of ``size`` bytes: header, refcount table, refcount block, L1 table."""
    try:
        header, start = header.packed()
    except OSError as exc:
        name = f"'{header.backing_file}' with format '{header.backing_format or '(null)'}'"
        raise with_errno(f"Could not assign backing file {name}", exc) from exc
    # What the node holds already stays, unused: a device could not be emptied either.
    cluster_size = header.cluster_size
    await file.pwritev(0, [memoryview(start + bytes(cluster_size - len(start)))])
    entry = (2 * cluster_size).to_bytes(8, "big")
    await file.pwritev(cluster_size, [memoryview(entry + bytes(cluster_size - 8))])
    block = parse_refblock(bytes(cluster_size), header.refcount_order)
    block.put_run(0, 3, 1)
    _, data = block.to_bytes(0, cluster_size * 8 // (1 << header.refcount_order) - 1)
    await file.pwritev(2 * cluster_size, [memoryview(data)])
    metadata = await Metadata.load(file, header)
    await overlap.locate(metadata)
    metadata.data = data_file or file
    image = Image(file=file, data=metadata.data, metadata=metadata, size=0, version=header.version)
    try:
        if size >= 1 << 63:
            raise QmpError("Image size cannot be negative")
        if size > MAX_LENGTH:
            raise QmpError(f"offset({size}) exceeds maximum({MAX_LENGTH})")
        await resize.truncate(image, size, prealloc, ReqFlag.NONE)
    except QmpError as exc:
        raise QmpError(f"Could not resize image: {exc}") from exc
    await metadata.write_back()
    if crypt is not None:
        await crypt.install(metadata)
    if data_file is not None:
        await data_file.flush()
    await file.flush()
