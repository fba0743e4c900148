"""Jobs as clients see them, against the real daemon."""

from __future__ import annotations

from pathlib import Path

from tests.oracle import Json, Wait, compare, qmp, requires

pytestmark = requires("qemu-storage-daemon")

VERBS = ("pause", "resume", "cancel", "complete", "finalize", "dismiss")


def create(job_id: Json, **options: Json) -> Json:
    return {"execute": "blockdev-create", "arguments": {"job-id": job_id, "options": options}}


def image(directory: Path) -> None:
    (directory / "base.img").write_bytes(bytes(4096))


def test_a_jobs_life() -> None:
    real, _ = compare(
        ["--blockdev", "file,node-name=base,filename=base.img"],
        [
            create("ok", driver="file", filename="new.img", size=1 << 20),
            Wait("JOB_STATUS_CHANGE", skip=4),  # concluded
            qmp("query-jobs"),
            qmp("query-block-jobs"),
            create("ok", driver="file", filename="new.img", size=1 << 20),
            *(qmp(f"job-{verb}", id="ok") for verb in VERBS),
            *(qmp(f"job-{verb}", id="ok") for verb in VERBS),
            qmp("query-jobs"),
            create("q", driver="qcow2", file="base", size=1 << 20),
            Wait("JOB_STATUS_CHANGE", skip=10),
            qmp("query-jobs"),
            qmp("job-dismiss", id="q"),
            create("left", driver="file", filename="left.img", size=512),
            Wait("JOB_STATUS_CHANGE", skip=16),
            qmp("query-jobs"),
        ],
        setup=image,
        check_stderr=True,
    )
    assert len(real.events) == 5 + 1 + 5 + 5 + 2


def test_failing_jobs() -> None:
    compare(
        [],
        [
            create("a", driver="file", filename="nowhere/new.img", size=512),
            Wait("JOB_STATUS_CHANGE", skip=3),
            create("b", driver="qcow2", file="nope", size=512),
            Wait("JOB_STATUS_CHANGE", skip=7),
            qmp("query-jobs"),
            *(qmp(f"job-{verb}", id="a") for verb in VERBS),
            qmp("query-jobs"),
        ],
    )


def test_bad_arguments() -> None:
    ok = {"driver": "file", "filename": "new.img", "size": 512}
    compare(
        [],
        [
            *(create(bad, **ok) for bad in ("", "1a", "_a", "a b", "é", "a/b")),
            create(1, **ok),
            create("a", driver="file"),
            create("a", driver="file", filename="x"),
            create("a", driver="file", filename="x", size=-1),
            Wait("JOB_STATUS_CHANGE", skip=3),
            create("a", driver="file", filename="x", size="1"),
            create("a", driver="nope"),
            create("a", driver="null-co"),
            create("a", **ok, foo=1),
            {"execute": "blockdev-create", "arguments": {"options": ok}},
            {"execute": "blockdev-create", "arguments": {"job-id": "a"}},
            *(qmp(f"job-{verb}", id="nope") for verb in VERBS),
            *(qmp(f"job-{verb}") for verb in VERBS),
            qmp("query-jobs", id="x"),
            qmp("query-jobs"),
        ],
    )
