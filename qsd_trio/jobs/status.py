"""The states of a job, as tables: what may follow what, and which verb is allowed when."""

from __future__ import annotations

from typing import Final

CREATED: Final = "created"
RUNNING: Final = "running"
PAUSED: Final = "paused"
READY: Final = "ready"
STANDBY: Final = "standby"
WAITING: Final = "waiting"
PENDING: Final = "pending"
ABORTING: Final = "aborting"
CONCLUDED: Final = "concluded"
NULL: Final = "null"
UNDEFINED: Final = "undefined"

#: State -> states that may follow.
TRANSITIONS: Final[dict[str, frozenset[str]]] = {
    UNDEFINED: frozenset((CREATED,)),
    CREATED: frozenset((RUNNING, PAUSED, ABORTING, NULL)),
    RUNNING: frozenset((PAUSED, READY, WAITING, ABORTING)),
    PAUSED: frozenset((RUNNING,)),
    READY: frozenset((STANDBY, WAITING, ABORTING)),
    STANDBY: frozenset((READY,)),
    WAITING: frozenset((PENDING, ABORTING)),
    PENDING: frozenset((ABORTING, CONCLUDED)),
    ABORTING: frozenset((ABORTING, CONCLUDED)),
    CONCLUDED: frozenset((NULL,)),
    NULL: frozenset(),
}

_ALIVE: Final = frozenset((CREATED, RUNNING, PAUSED, READY, STANDBY))

#: Verb -> states in which a client may say it.
VERBS: Final[dict[str, frozenset[str]]] = {
    "cancel": _ALIVE | {WAITING, PENDING},
    "pause": _ALIVE,
    "resume": _ALIVE,
    "set-speed": _ALIVE,
    "change": _ALIVE,
    "complete": frozenset((READY,)),
    "finalize": frozenset((PENDING,)),
    "dismiss": frozenset((CONCLUDED,)),
}
