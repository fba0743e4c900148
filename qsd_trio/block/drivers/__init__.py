"""The block drivers. This file is the room's index: which module holds which driver."""

from qsd_trio.registry import block_drivers, create_drivers

block_drivers.index(
    {
        "compress": f"{__name__}.compress",
        "copy-on-read": f"{__name__}.copy_on_read",
        "file": f"{__name__}.file",
        "host_cdrom": f"{__name__}.host_device",
        "host_device": f"{__name__}.host_device",
        "luks": f"{__name__}.luks",
        "null-aio": f"{__name__}.null",
        "null-co": f"{__name__}.null",
        "preallocate": f"{__name__}.preallocate",
        "qcow2": f"{__name__}.qcow2",
        "raw": f"{__name__}.raw",
        "snapshot-access": f"{__name__}.snapshot_access",
    }
)
create_drivers.index(
    {
        "file": f"{__name__}.file",
        "luks": f"{__name__}.luks",
        "qcow2": f"{__name__}.qcow2",
    }
)
