"""object-add, object-del."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd_trio.commands.abc import command
from qsd_trio.errors import QmpError
from qsd_trio.identifiers import HINT, is_well_formed
from qsd_trio.registry import user_creatable

if TYPE_CHECKING:
    from qsd_trio.daemon import Daemon
    from qsd_trio.qapi import ObjectDelArg, ObjectOptions


@command("object-add")
async def object_add(daemon: Daemon, arg: ObjectOptions) -> None:
    """Make an object."""
    type_name = arg.qom_type.value
    if not is_well_formed(arg.id):
        error = QmpError("Parameter 'id' expects an identifier")
        error.add_note(HINT)
        raise error
    cls = user_creatable.get(type_name)
    if cls is None:
        raise QmpError(
            f"object type '{type_name}' is not supported by this version of qsd-trio yet"
        )
    daemon.objects.visible = True
    new = cls.create(arg)
    try:
        if arg.id in daemon.objects:
            raise QmpError(
                f"attempt to add duplicate property '{arg.id}' to object (type 'container')"
            )
        await new.complete(daemon.objects)
    except BaseException:
        await new.aclose()
        raise
    daemon.objects.add(new)


@command("object-del")
async def object_del(daemon: Daemon, arg: ObjectDelArg) -> None:
    """Remove an object that nothing uses."""
    daemon.objects.visible = True
    found = daemon.objects.get(arg.id)
    if found is None:
        raise QmpError(f"object '{arg.id}' not found")
    if not found.deletable:
        raise QmpError(f"object '{arg.id}' is in use, can not be deleted")
    await daemon.objects.remove(arg.id)
