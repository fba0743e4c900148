"""The QMP commands. This file is the room's index: which module holds which command."""

from qsd_trio.registry import commands

commands.index(
    {
        name: f"{__name__}.{module}"
        for module, names in {
            "amend": ("x-blockdev-amend",),
            "block": (
                "block-set-write-threshold",
                "block_resize",
                "blockdev-add",
                "blockdev-del",
                "blockdev-reopen",
                "query-block",
                "query-blockstats",
                "query-named-block-nodes",
                "x-debug-query-block-graph",
            ),
            "block_export": (
                "block-export-add",
                "block-export-del",
                "nbd-server-add",
                "nbd-server-remove",
                "nbd-server-start",
                "nbd-server-stop",
                "query-block-exports",
            ),
            "chardev": (
                "chardev-add",
                "chardev-change",
                "chardev-remove",
                "chardev-send-break",
                "query-chardev",
                "query-chardev-backends",
                "ringbuf-read",
                "ringbuf-write",
            ),
            "control": (
                "qmp_capabilities",
                "query-commands",
                "query-qmp-schema",
                "query-version",
                "quit",
            ),
            "dirty_bitmap": (
                "block-dirty-bitmap-add",
                "block-dirty-bitmap-clear",
                "block-dirty-bitmap-disable",
                "block-dirty-bitmap-enable",
                "block-dirty-bitmap-merge",
                "block-dirty-bitmap-remove",
                "x-debug-block-dirty-bitmap-sha256",
            ),
            "internal_snapshot": (
                "blockdev-snapshot-delete-internal-sync",
                "blockdev-snapshot-internal-sync",
            ),
            "job": (
                "blockdev-create",
                "job-cancel",
                "job-complete",
                "job-dismiss",
                "job-finalize",
                "job-pause",
                "job-resume",
                "query-block-jobs",
                "query-jobs",
            ),
            "object": ("object-add", "object-del"),
            "qom": (
                "qom-get",
                "qom-list",
                "qom-list-get",
                "qom-list-properties",
                "qom-list-types",
                "qom-set",
            ),
        }.items()
        for name in names
    }
)
