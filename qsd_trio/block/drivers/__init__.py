"""The block drivers. This file is the room's index: which module holds which driver."""

from qsd_trio.registry import block_drivers, create_drivers

block_drivers.index(
    {
        "file": f"{__name__}.file",
        "host_cdrom": f"{__name__}.host_device",
        "host_device": f"{__name__}.host_device",
        "null-aio": f"{__name__}.null",
        "null-co": f"{__name__}.null",
        "qcow2": f"{__name__}.qcow2",
        "raw": f"{__name__}.raw",
    }
)
create_drivers.index(
    {
        "file": f"{__name__}.file",
        "qcow2": f"{__name__}.qcow2",
    }
)
