"""QMP commands of jobs, and blockdev-create."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs

from qsd_trio import trace
from qsd_trio.commands.abc import command
from qsd_trio.errors import QmpError
from qsd_trio.registry import create_drivers

if TYPE_CHECKING:
    from qsd_trio.daemon import Daemon
    from qsd_trio.jobs.abc import Job
    from qsd_trio.qapi import (
        BlockdevCreateArg,
        JobCancelArg,
        JobCompleteArg,
        JobDismissArg,
        JobFinalizeArg,
        JobPauseArg,
        JobResumeArg,
    )
    from qsd_trio.untyped import Json

#: QEMU's rule for ids.
WELLFORMED = re.compile(r"[A-Za-z][A-Za-z0-9\-._]*")


def lookup(daemon: Daemon, id_: str) -> Job:
    """Return the job ``id_``; QmpError if there is none."""
    job = daemon.jobs.get(id_)
    if job is None:
        raise QmpError("Job not found")
    return job


def check_new_id(daemon: Daemon, id_: str) -> None:
    """Raise QmpError if no job can be made with this id."""
    if not WELLFORMED.fullmatch(id_):
        raise QmpError(f"Invalid job ID '{id_}'")
    if id_ in daemon.jobs:
        raise QmpError(f"Job ID '{id_}' already in use")


@command("blockdev-create")
async def blockdev_create(daemon: Daemon, arg: BlockdevCreateArg) -> None:
    """Start a job that makes an image."""
    from qsd_trio.jobs.create import CreateJob

    driver = arg.options.driver.value
    create = create_drivers.get(driver)
    if create is None:
        if len(attrs.fields(type(arg.options))) == 1:  # nothing to say but the driver's name
            raise QmpError("Driver does not support blockdev-create")
        raise QmpError(
            f"Creating '{driver}' images is not supported by this version of qsd-trio yet"
        )
    check_new_id(daemon, arg.job_id)
    opener = daemon.graph.create_opener()
    await daemon.jobs.start(CreateJob(arg.job_id, daemon.events, create, opener, arg.options))


@command("query-jobs")
async def query_jobs(daemon: Daemon) -> Json:
    """List the jobs, the newest first."""
    return [
        {
            "id": job.id,
            "type": job.type_name,
            "status": job.status,
            "current-progress": job.progress_current,
            "total-progress": job.progress_total,
            **({"error": job.error} if job.error is not None else {}),
        }
        for job in reversed(tuple(daemon.jobs))
    ]


@command("query-block-jobs")
async def query_block_jobs(daemon: Daemon) -> Json:
    """List the jobs on block nodes: none, as creating an image is not one and others are not built."""
    return []


@command("job-pause")
async def job_pause(daemon: Daemon, arg: JobPauseArg) -> None:
    """Pause a job at its next pause point."""
    job = lookup(daemon, arg.id)
    trace.point("qmp_job_pause")(hex(id(job)))
    job.user_pause()


@command("job-resume")
async def job_resume(daemon: Daemon, arg: JobResumeArg) -> None:
    """Let a paused job go on."""
    job = lookup(daemon, arg.id)
    trace.point("qmp_job_resume")(hex(id(job)))
    job.user_resume()


@command("job-cancel")
async def job_cancel(daemon: Daemon, arg: JobCancelArg) -> None:
    """Ask a job to end without result."""
    job = lookup(daemon, arg.id)
    trace.point("qmp_job_cancel")(hex(id(job)))
    job.user_cancel()


@command("job-complete")
async def job_complete(daemon: Daemon, arg: JobCompleteArg) -> None:
    """Ask a job that is ready to complete."""
    job = lookup(daemon, arg.id)
    trace.point("qmp_job_complete")(hex(id(job)))
    job.user_complete()


@command("job-finalize")
async def job_finalize(daemon: Daemon, arg: JobFinalizeArg) -> None:
    """Let a job that is pending make its result effective."""
    job = lookup(daemon, arg.id)
    trace.point("qmp_job_finalize")(hex(id(job)))
    job.user_finalize()


@command("job-dismiss")
async def job_dismiss(daemon: Daemon, arg: JobDismissArg) -> None:
    """Forget a job that has concluded; its id is free on return."""
    job = lookup(daemon, arg.id)
    trace.point("qmp_job_dismiss")(hex(id(job)))
    job.user_dismiss()
    await daemon.jobs.wait_gone(job.id)
