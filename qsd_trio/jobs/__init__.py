"""The jobs. This file is the room's index: which module holds which type of job."""

from qsd_trio.registry import job_types

job_types.index(
    {
        "amend": f"{__name__}.amend",
        "create": f"{__name__}.create",
    }
)
