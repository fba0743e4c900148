"""The FUSE export: a node as a regular file, mounted on one."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar, final

import trio

from qsd_trio.block.abc import Perm
from qsd_trio.errors import QmpError, with_errno
from qsd_trio.exports.abc import Export, export_type
from qsd_trio.exports.fuse_lane import Lane
from qsd_trio.exports.fuse_semantics import ExportedFile
from qsd_trio.host import mount
from qsd_trio.host.mount import AlreadyServedError, MountError
from qsd_trio.host.workers import worker_pool
from qsd_trio.protocol.fuse import MAX_IO

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from typing_extensions import TypeVarTuple, Unpack

    from qsd_trio.block.backend import BlockBackend
    from qsd_trio.exports.abc import ExportContext
    from qsd_trio.untyped import Options

    Ts = TypeVarTuple("Ts")

T = TypeVar("T")

log = logging.getLogger("qsd_trio.exports.fuse")


MOUNT_OPTIONS: Final = f"max_read={MAX_IO},default_permissions"


@export_type("fuse")
@final
class FuseExport(Export):
    """A mount, and the lane that answers for it.

    It is never in use: who has the file open gets ENOTCONN once the export is gone.
    """

    def __init__(self, context: ExportContext, backend: BlockBackend, options: Options) -> None:
        self.id = options.id
        self.backend = backend
        self.mountpoint: str = options.mountpoint
        self.events = context.events
        self._writable = bool(options.writable)
        self._growable = bool(options.growable)
        allow_other = options.allow_other
        self._allow_other: str = "auto" if allow_other is None else allow_other.value
        self._lane: Lane | None = None
        self._stop = trio.Event()

    @classmethod
    def create(cls, context: ExportContext, backend: BlockBackend, options: Options) -> FuseExport:
        """Make an export of BlockExportOptionsFuse; what can be wrong with them is found out by mounting."""
        return cls(context, backend, options)

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        """Mount, but answer nobody yet; unmount and give the node back."""
        try:
            if self._writable or self._growable:
                await self.backend.add_permissions(Perm.RESIZE)
            lane = self._lane = await self._mount()
            try:
                yield
            finally:
                # Without its server first, so that nothing waits for it: serve() was the time for that.
                lane.close()
                with trio.CancelScope(shield=True):
                    await _in_thread(mount.release, self.mountpoint)
        finally:
            with trio.CancelScope(shield=True):
                await self.backend.aclose()

    async def _mount(self) -> Lane:
        path = self.mountpoint
        try:
            regular = await _in_thread(mount.check_mountpoint, path)
        except AlreadyServedError:
            raise QmpError(f"There already is a FUSE export on '{path}'") from None
        except OSError as exc:
            raise with_errno(f"Failed to stat '{path}'", exc) from exc
        if not regular:
            raise QmpError(f"'{path}' is not a regular file")
        fd = -1
        if self._allow_other != "off":
            try:
                fd = await _in_thread(mount.mount, path, f"{MOUNT_OPTIONS},allow_other")
            except MountError as exc:
                if self._allow_other == "on":
                    raise _refused(exc) from exc
        allow_other = fd >= 0
        if fd < 0:
            try:
                fd = await _in_thread(mount.mount, path, MOUNT_OPTIONS)
            except MountError as exc:
                raise _refused(exc) from exc
        file = ExportedFile(
            self.backend,
            writable=self._writable,
            growable=self._growable,
            allow_other=allow_other,
        )
        return Lane(fd, file)

    async def serve(self) -> None:
        """Answer the kernel until the export is to stop; then unmount, and finish what is in flight.

        If somebody else unmounts it, the export stays, idle, until it is deleted.
        """
        assert self._lane is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._lane.run)
            await self._stop.wait()
            await _in_thread(mount.detach, self.mountpoint)
            self._lane.stop()

    def request_stop(self) -> bool:
        """Unmount, finish the requests in flight, and end."""
        self.shutting_down = True
        self._stop.set()
        return True

    @property
    def in_use(self) -> bool:
        """Never: as in the real daemon, open files do not keep an export."""
        return False


async def _in_thread(fn: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
    """Run what looks at the mountpoint: who serves that may be this thread's event loop."""
    return await worker_pool().run(fn, *args, slow=True)


def _refused(error: MountError) -> QmpError:
    # The reason goes where libfuse puts it: standard error.
    log.error("%s", error)
    return QmpError("Failed to mount FUSE session to export")
