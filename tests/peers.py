"""Say which real programs a test needs, and make their absence loud where it must be.

`@requires("qemu-img", "module:pyfuse3", "/dev/fuse")` skips on a machine that lacks one of them. The
variable QSD_REQUIRE turns the skip into a failure: a list of such names separated by commas, or `all`;
`all,-/dev/vduse/control` excepts one. `tests/run` sets it to `all`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from functools import cache

import pytest


def requires(*peers: str) -> pytest.MarkDecorator:
    """Mark a test as needing programs, `module:NAME` Python modules or `/paths`."""
    return pytest.mark.requires(*peers)


@cache
def is_present(peer: str) -> bool:
    """Tell whether this machine has the peer."""
    if peer.startswith("/"):
        return os.access(peer, os.R_OK | os.W_OK)
    if peer.startswith("module:"):
        return importlib.util.find_spec(peer.removeprefix("module:")) is not None
    return shutil.which(peer) is not None


def is_demanded(peer: str, setting: str | None = None) -> bool:
    """Tell whether QSD_REQUIRE (or `setting`) forbids skipping for want of the peer."""
    text = os.environ.get("QSD_REQUIRE", "") if setting is None else setting
    names = {name.strip() for name in text.split(",")}
    return f"-{peer}" not in names and ("all" in names or peer in names)


def check(*peers: str) -> None:
    """Skip or fail the running test if one of the peers is missing."""
    for peer in peers:
        if is_present(peer):
            continue
        if is_demanded(peer):
            pytest.fail(f"{peer} is missing and QSD_REQUIRE demands it", pytrace=False)
        pytest.skip(f"{peer} is missing")
