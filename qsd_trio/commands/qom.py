"""The qom-* commands: the object tree, read as a file system."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, final

from qsd_trio.commands.abc import command
from qsd_trio.errors import DeviceNotFound, QmpError
from qsd_trio.objects import qom

if TYPE_CHECKING:
    from qsd_trio.chardevs.abc import Chardev
    from qsd_trio.daemon import Daemon
    from qsd_trio.objects.abc import UserCreatable
    from qsd_trio.qapi import (
        QomGetArg,
        QomListArg,
        QomListGetArg,
        QomListPropertiesArg,
        QomListTypesArg,
        QomSetArg,
    )
    from qsd_trio.untyped import Json


@final
class _Node(NamedTuple):
    """A place in the tree: a container, or one of the daemon's objects."""

    path: str
    type: str
    children: dict[str, _Node]
    object: UserCreatable | None = None
    chardev: Chardev | None = None


def _tree(daemon: Daemon) -> _Node:
    chardevs = {
        each.id: _Node(f"/chardevs/{each.id}", f"chardev-{each.backend_name}", {}, chardev=each)
        for each in daemon.chardevs
    }
    objects = {
        each.id: _Node(f"/objects/{each.id}", each.qom_name, {}, object=each)
        for each in daemon.objects
    }
    containers = {}
    if chardevs:
        containers["chardevs"] = _Node("/chardevs", "container", chardevs)
    if daemon.objects.visible:
        containers["objects"] = _Node("/objects", "container", objects)
    return _Node("/", "container", containers)


def _descend(node: _Node, parts: list[str]) -> _Node | None:
    for part in parts:
        if part:
            below = node.children.get(part)
            if below is None:
                return None
            node = below
    return node


def _search(node: _Node, parts: list[str]) -> list[_Node]:
    """Return every place below ``node``, itself included, from which ``parts`` lead somewhere."""
    found = [target for target in [_descend(node, parts)] if target is not None]
    for child in node.children.values():
        found += _search(child, parts)
    return found


def _resolve(daemon: Daemon, path: str, *, tell_ambiguous: bool = False) -> _Node:
    root = _tree(daemon)
    if path.startswith("/"):
        found = [target for target in [_descend(root, path.split("/"))] if target is not None]
    else:
        # A path that does not begin at the root may begin anywhere, but only at one place.
        found = _search(root, path.split("/") if path else [])
    if len(found) == 1:
        return found[0]
    if found and tell_ambiguous:
        raise QmpError(f"Path '{path}' is ambiguous")
    raise DeviceNotFound(f"Device '{path}' not found")


def _property(node: _Node, name: str) -> qom.Property:
    """Return the property ``name`` of a place; QmpError if it has none."""
    found = qom.properties(node.type).get(name)
    if found is None and name in node.children:
        found = qom.Property(f"child<{node.children[name].type}>", settable=False)
    if found is None:
        raise QmpError(f"Property '{node.type}.{name}' not found")
    return found


def _get(node: _Node, name: str) -> Json:
    if not _property(node, name).readable:
        raise QmpError(f"Property '{node.type}.{name}' is not readable")
    if name in node.children:
        return node.children[name].path
    if name == "type":
        return node.type
    if node.object is not None:
        return node.object.get_property(name)
    assert node.chardev is not None
    return node.chardev.get_property(name)


@command("qom-list")
async def qom_list(daemon: Daemon, arg: QomListArg) -> Json:
    """List the properties of a place in the tree."""
    node = _resolve(daemon, arg.path, tell_ambiguous=True)
    found = [
        {"name": name, "type": property_.type}
        for name, property_ in qom.properties(node.type).items()
    ]
    return found + [
        {"name": name, "type": f"child<{child.type}>"} for name, child in node.children.items()
    ]


@command("qom-get")
async def qom_get(daemon: Daemon, arg: QomGetArg) -> Json:
    """Return a property's value."""
    return _get(_resolve(daemon, arg.path), arg.property)


@command("qom-set")
async def qom_set(daemon: Daemon, arg: QomSetArg) -> None:
    """Set a property."""
    node = _resolve(daemon, arg.path)
    if not _property(node, arg.property).settable:
        raise QmpError(f"Property '{node.type}.{arg.property}' is not writable")
    assert node.object is not None  # nothing else has settable properties
    await node.object.set_property(arg.property, arg.value)


@command("qom-list-get")
async def qom_list_get(daemon: Daemon, arg: QomListGetArg) -> Json:
    """Return all properties of several places, with their values where they are readable."""
    answers = []
    for path in arg.paths:
        node = _resolve(daemon, path)
        properties = []
        for name in [*qom.properties(node.type), *node.children]:
            property_ = _property(node, name)
            entry = {"name": name, "type": property_.type}
            if property_.readable:
                entry["value"] = _get(node, name)
            properties.append(entry)
        answers.append({"properties": properties})
    return answers


@command("qom-list-types")
async def qom_list_types(daemon: Daemon, arg: QomListTypesArg) -> Json:
    """List types, those that are or implement ``implements``."""
    answers = []
    for name, type_ in qom.TYPES.items():
        if arg.implements is not None and not qom.implements(name, arg.implements):
            continue
        if type_.abstract and not arg.abstract:
            continue
        entry: dict[str, Json] = {"name": name}
        if type_.abstract:
            entry["abstract"] = True
        if type_.parent is not None:
            entry["parent"] = type_.parent
        answers.append(entry)
    return answers


@command("qom-list-properties")
async def qom_list_properties(daemon: Daemon, arg: QomListPropertiesArg) -> Json:
    """List the properties that objects of a type have."""
    if arg.typename not in qom.TYPES:
        raise DeviceNotFound(f"Class '{arg.typename}' not found")
    if qom.is_interface(arg.typename):
        raise QmpError("Parameter 'typename' expects a QOM type")
    return [
        {"name": name, "type": property_.type}
        for name, property_ in qom.properties(arg.typename).items()
    ]
