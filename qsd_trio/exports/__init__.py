"""Block exports. The table below is the room's index."""

from __future__ import annotations

from qsd_trio.registry import export_types

export_types.index(
    {
        "fuse": "qsd_trio.exports.fuse",
        "nbd": "qsd_trio.exports.nbd",
        "vhost-user-blk": "qsd_trio.exports.vhost_user_blk",
    }
)
