"""Commands that a transaction may contain: prepared together, then all committed or all aborted."""

from __future__ import annotations

from abc import ABC, abstractmethod

import trio


class Action(ABC):
    """One command of a transaction, in the four steps that QEMU gives it.

    ``prepare`` does all that can fail. If every action of a transaction was prepared, each is committed,
    else those that had begun to prepare are aborted, the last first. ``clean`` ends both.
    """

    @abstractmethod
    async def prepare(self) -> None:
        """Check and do what ``abort`` can undo. Raises QmpError; ``abort`` is called then, too."""

    async def commit(self) -> None:
        """Make it final; cannot fail."""

    async def abort(self) -> None:
        """Undo what ``prepare`` has done, however far it came."""

    async def clean(self) -> None:
        """Let go of what was held since ``prepare``."""


async def perform(action: Action) -> None:
    """Run a command that is an action of its own. Cancelled while it prepares: aborted."""
    done = False
    try:
        await action.prepare()
        done = True
    finally:
        with trio.CancelScope(shield=True):
            await (action.commit() if done else action.abort())
            await action.clean()
