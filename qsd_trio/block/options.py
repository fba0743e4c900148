"""The generic options of block nodes: what is set, what is inherited, what is in force. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import attrs

from qsd_trio.block.abc import ChildRole
from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from qsd_trio.untyped import Json, Options


@final
@attrs.frozen(kw_only=True)
class NodeFlags:
    """The generic options in force on a node."""

    read_only: bool = False
    auto_read_only: bool = False
    force_share: bool = False
    cache_direct: bool = False
    cache_no_flush: bool = False
    discard_unmap: bool = False
    detect_zeroes: str = "off"


def explicit_generic(options: Options) -> dict[str, Json]:
    """Return the generic options that the user has set, under their flat names."""
    found: dict[str, Json] = {
        "read-only": options.read_only,
        "auto-read-only": options.auto_read_only,
        "force-share": options.force_share,
        "discard": options.discard.value if options.discard is not None else None,
        "detect-zeroes": options.detect_zeroes.value if options.detect_zeroes is not None else None,
    }
    if options.cache is not None:
        found["cache.direct"] = options.cache.direct
        found["cache.no-flush"] = options.cache.no_flush
    return {name: value for name, value in found.items() if value is not None}


def inherit_generic(
    own: dict[str, Json], parent: dict[str, Json], role: ChildRole
) -> dict[str, Json]:
    """Return ``own`` completed by what a child of ``role`` takes over from its parent's options."""
    merged = dict(own)
    for name in ("cache.direct", "cache.no-flush", "force-share"):
        if name in parent:
            merged.setdefault(name, parent[name])
    if role & ChildRole.COW:
        merged.setdefault("read-only", True)
        merged.setdefault("auto-read-only", False)
    else:
        for name in ("read-only", "auto-read-only"):
            if name in parent:
                merged.setdefault(name, parent[name])
    # What the parent discards is to reach the storage: whether to is decided at the top.
    merged.setdefault("discard", "unmap")
    return merged


def node_flags(generic: dict[str, Json]) -> NodeFlags:
    """Return the flags that flat generic options mean; QmpError if they contradict each other."""
    flags = NodeFlags(
        read_only=generic.get("read-only", False),
        auto_read_only=generic.get("auto-read-only", False),
        force_share=generic.get("force-share", False),
        cache_direct=generic.get("cache.direct", False),
        cache_no_flush=generic.get("cache.no-flush", False),
        discard_unmap=generic.get("discard", "ignore") == "unmap",
        detect_zeroes=generic.get("detect-zeroes", "off"),
    )
    if flags.force_share and not flags.read_only:
        raise QmpError("force-share=on can only be used with read-only images")
    if flags.detect_zeroes == "unmap" and not flags.discard_unmap:
        raise QmpError(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap"
        )
    return flags
