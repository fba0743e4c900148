"""The job behind blockdev-create: make an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol, final

import trio

from qsd_trio.jobs.abc import Job
from qsd_trio.registry import job_types

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qsd_trio.block.abc import CreateOpener
    from qsd_trio.events import EventBus
    from qsd_trio.untyped import Options

    class ClosingOpener(CreateOpener, Protocol):
        """What a driver opens its nodes with, and how the job lets go of them."""

        async def aclose(self) -> None: ...


@job_types.register("create")
@final
class CreateJob(Job):
    """Runs a driver's create function. Concludes, and stays until it is dismissed."""

    type_name: ClassVar[str] = "create"

    def __init__(
        self,
        id_: str,
        events: EventBus,
        create: Callable[[CreateOpener, Options], Awaitable[None]],
        opener: ClosingOpener,
        options: Options,
    ) -> None:
        super().__init__(id_, events, auto_dismiss=False)
        self._create = create
        self._opener = opener
        self._options = options
        self.progress_total = 1

    async def run(self) -> None:
        """Make the image. Cancelled: an unfinished one is left, as after a failure."""
        try:
            await self._create(self._opener, self._options)
        finally:
            self.progress_current = 1
            with trio.CancelScope(shield=True):
                await self._opener.aclose()
