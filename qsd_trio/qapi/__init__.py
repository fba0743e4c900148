"""The QAPI types, made on first use: `from qsd_trio.qapi import BlockdevOptionsFile`.

``__init__.pyi`` beside this file is their typed face, generated from schemas/:

- a struct is a frozen, keyword-only attrs class; an absent optional member is None, a null that is a value is NULL;
- a flat union is a class with the common members, and a final class for each value of its discriminator that has the
  members of the branch's struct too: BlockdevOptions_qcow2 is a BlockdevOptions and a BlockdevOptionsQcow2;
- an alternate is the union of its branches;
- implicit arguments are ``<Command>Arg``, implicit event data ``<Event>Event``.
"""

from __future__ import annotations

from contextlib import suppress

from qsd_trio.qapi._base import NULL as NULL
from qsd_trio.qapi._base import QapiNull as QapiNull
from qsd_trio.qapi._base import QapiObject as QapiObject


def __getattr__(name: str) -> object:
    if name[:1].isupper():
        # Not above: the generator imports this package before the tables are there.
        from qsd_trio.qapi._build import make

        with suppress(KeyError):
            made = globals()[name] = make(name)
            return made
    raise AttributeError(f"module 'qsd_trio.qapi' has no attribute '{name}'")
