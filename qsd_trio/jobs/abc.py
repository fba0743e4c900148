"""What a job is: work in the background that clients follow, pause, cancel, finalize and dismiss."""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar, final

import trio

from qsd_trio import trace
from qsd_trio.errors import LocalProtocolError, QmpError
from qsd_trio.jobs import status as st
from qsd_trio.services import Service, run_isolated

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qsd_trio.events import EventBus

_trace_verb = trace.point("job_apply_verb")
_trace_state = trace.point("job_state_transition")
_trace_completed = trace.point("job_completed")


class Job(Service):
    """A job. Subclasses do the work in ``run()`` and call ``pause_point()`` while they do.

    Life: created, running (paused, ready, standby), then waiting, pending, ``commit()``, concluded; or, with an
    error or cancelled, aborting, ``abort()``, concluded; null when dismissed. Each step is an event.
    """

    type_name: ClassVar[str]

    def __init__(
        self,
        id_: str,
        events: EventBus,
        *,
        auto_finalize: bool = True,
        auto_dismiss: bool = True,
    ) -> None:
        self.id = id_
        self.status = st.UNDEFINED
        self.progress_current = 0
        self.progress_total = 0
        #: Why it failed; None while it has not.
        self.error: str | None = None
        self.cancelled = False
        self.user_paused = False
        self._events = events
        self._auto_finalize = auto_finalize
        self._auto_dismiss = auto_dismiss
        self._work = trio.CancelScope()
        self._changed = trio.lowlevel.ParkingLot()
        self._finalizing = auto_finalize
        self._dismissed = auto_dismiss

    # -- for subclasses ----------------------------------------------------------------------------

    @abstractmethod
    async def run(self) -> None:
        """Do the work. QmpError or OSError: the job fails with that text. Cancelled: undo nothing."""

    async def prepare(self) -> None:
        """Do what may still fail when the work is done (waiting -> pending)."""

    async def commit(self) -> None:
        """Make the result effective; must not fail."""

    async def abort(self) -> None:
        """Undo what was done; must not fail."""

    async def clean(self) -> None:
        """Release what the job holds, after commit or abort."""

    def complete(self) -> None:
        """React to job-complete in state ready."""
        raise QmpError(f"Job '{self.id}' cannot be completed manually")

    async def pause_point(self) -> None:
        """Stay here while the job is paused; subclasses call it where they hold no lock."""
        if not self.user_paused:
            await trio.lowlevel.checkpoint()
            return
        before = self.status
        self.enter(st.STANDBY if before == st.READY else st.PAUSED)
        try:
            while self.user_paused:
                await self._changed.park()
        finally:
            self.enter(before)  # also when cancelled: one aborts from there

    def enter(self, new: str) -> None:
        """Change the state and tell everyone; LocalProtocolError if ``new`` may not follow."""
        if new not in st.TRANSITIONS[self.status]:
            raise LocalProtocolError(f"job '{self.id}': {self.status} -> {new}")
        if _trace_state.on:
            ret = -1 if self.error is not None else 0
            _trace_state(hex(id(self)), ret, "allowed", self.status, new)
        if new != self.status:
            self.status = new
            self._events.emit("JOB_STATUS_CHANGE", id=self.id, status=new)

    # -- verbs -------------------------------------------------------------------------------------

    def check_verb(self, verb: str) -> None:
        """Raise QmpError if clients may not say ``verb`` now."""
        allowed = self.status in st.VERBS[verb]
        if _trace_verb.on:
            outcome = "allowed" if allowed else "prohibited"
            _trace_verb(hex(id(self)), self.status, verb, outcome)
        if not allowed:
            raise QmpError(
                f"Job '{self.id}' in state '{self.status}' cannot accept command verb '{verb}'"
            )

    def user_pause(self) -> None:
        """Carry out job-pause."""
        self.check_verb("pause")
        if self.user_paused:
            raise QmpError("Job is already paused")
        self.user_paused = True

    def user_resume(self) -> None:
        """Carry out job-resume."""
        if not self.user_paused:
            raise QmpError("Can't resume a job that was not paused")
        self.check_verb("resume")
        self.user_paused = False
        self._changed.unpark_all()

    def user_cancel(self) -> None:
        """Carry out job-cancel: the work ends where it is."""
        self.check_verb("cancel")
        self._cancel()

    def user_complete(self) -> None:
        """Carry out job-complete."""
        self.check_verb("complete")
        self.complete()

    def user_finalize(self) -> None:
        """Carry out job-finalize."""
        self.check_verb("finalize")
        self._finalizing = True
        self._changed.unpark_all()

    def user_dismiss(self) -> None:
        """Carry out job-dismiss; the id is free when this returns and ``gone()`` has run."""
        self.check_verb("dismiss")
        self._dismiss()

    def _dismiss(self) -> None:
        self._dismissed = True
        self._changed.unpark_all()

    def _cancel(self) -> None:
        self.cancelled = True
        self.user_paused = False
        self._work.cancel()
        self._changed.unpark_all()

    # -- the service -------------------------------------------------------------------------------

    @final
    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        """Announce the job; it runs when this returns."""
        self.enter(st.CREATED)
        self.enter(st.RUNNING)
        yield

    @final
    async def serve(self) -> None:
        """Run the job through its life, until it is dismissed."""
        crash = await run_isolated(f"job {self.id}", self._attempt)
        if crash is not None and self.error is None:
            self.error = f"Internal error: {type(crash).__name__}: {crash}"
        if self.cancelled and self.error is None:
            self.error = os.strerror(errno.ECANCELED)
        if _trace_completed.on:
            _trace_completed(hex(id(self)), -1 if self.error is not None else 0)
        if self.error is None:
            await self.commit()
        else:
            self.enter(st.ABORTING)
            await self.abort()
        await self.clean()
        self.enter(st.CONCLUDED)
        while not self._dismissed:
            await self._changed.park()

    async def _attempt(self) -> None:
        """Do everything that may fail, or be cancelled; leave the reason in ``error``."""
        with self._work:
            try:
                await self.run()
                self.enter(st.WAITING)
                await self.prepare()
                self.enter(st.PENDING)
                while not self._finalizing:
                    await self._changed.park()
            except QmpError as exc:
                self.error = str(exc)
            except OSError as exc:
                self.error = str(exc) if exc.errno is None else os.strerror(exc.errno)

    @final
    def request_stop(self) -> bool:
        """Cancel the work and need no dismissal: the daemon ends."""
        if self.status in st.VERBS["cancel"]:
            self._cancel()
        self._dismiss()
        return True

    @final
    def gone(self) -> None:
        """Tell that the id is free."""
        if self.status != st.CONCLUDED:  # cut short, or a crash in commit or abort
            self.status = st.CONCLUDED
        self.enter(st.NULL)
