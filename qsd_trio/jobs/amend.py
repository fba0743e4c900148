"""The job behind x-blockdev-amend: change the options of an open image's format."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

import trio

from qsd_trio.jobs.abc import Job
from qsd_trio.registry import job_types

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qsd_trio.block.backend import BlockBackend
    from qsd_trio.events import EventBus


@job_types.register("amend")
@final
class AmendJob(Job):
    """Runs a driver's ``amend``. Concludes, and stays until it is dismissed."""

    type_name: ClassVar[str] = "amend"

    def __init__(
        self,
        id_: str,
        events: EventBus,
        amend: Callable[[], Awaitable[None]],
        backend: BlockBackend,
        release: Callable[[], Awaitable[None]],
    ) -> None:
        """Keep ``backend``'s node open while ``amend`` runs; then call ``release``."""
        super().__init__(id_, events, auto_dismiss=False)
        self._amend = amend
        self._backend = backend
        self._release = release
        self.progress_total = 1

    async def run(self) -> None:
        """Change the image. Cancelled: it is as before or as after, or in between and sound."""
        try:
            await self._amend()
        finally:
            self.progress_current = 1
            with trio.CancelScope(shield=True):
                await self._release()
                await self._backend.aclose()
