"""object-add, object-del and the tree they change (tests/interop/test_objects.py has the texts)."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from qsd_trio.commands.object import object_add, object_del
from qsd_trio.commands.qom import qom_get, qom_list, qom_list_get, qom_set
from qsd_trio.daemon import Daemon, open_daemon_tables
from qsd_trio.errors import DeviceNotFound, QmpError
from qsd_trio.qapi.converter import args_from_qmp


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    async with open_daemon_tables() as opened:
        yield opened


async def add(daemon: Daemon, type_: str, id_: str, **properties: Any) -> None:
    arguments = {name.replace("_", "-"): value for name, value in properties.items()}
    arguments |= {"qom-type": type_, "id": id_}
    await object_add(daemon, args_from_qmp("object-add", arguments))


async def delete(daemon: Daemon, id_: str) -> None:
    await object_del(daemon, args_from_qmp("object-del", {"id": id_}))


async def children(daemon: Daemon, path: str) -> dict[str, str]:
    entries = await qom_list(daemon, args_from_qmp("qom-list", {"path": path}))
    return {entry["name"]: entry["type"] for entry in entries}


async def test_an_object_lives_until_it_is_deleted(daemon: Daemon) -> None:
    assert await children(daemon, "/") == {"type": "string"}
    await add(daemon, "iothread", "io")
    assert await children(daemon, "/objects") == {"type": "string", "io": "child<iothread>"}
    await delete(daemon, "io")
    assert await children(daemon, "/objects") == {"type": "string"}
    with pytest.raises(DeviceNotFound):
        await children(daemon, "io")


async def test_one_in_use_stays(daemon: Daemon) -> None:
    await add(daemon, "throttle-group", "g")
    group = daemon.objects.get("g")
    assert group is not None
    group.users += 1
    with pytest.raises(QmpError, match="object 'g' is in use, can not be deleted"):
        await delete(daemon, "g")
    group.users -= 1
    await delete(daemon, "g")


async def test_a_refused_object_leaves_nothing(daemon: Daemon) -> None:
    before = threading.active_count()
    await add(daemon, "iothread", "t")
    with pytest.raises(QmpError, match="duplicate"):
        await add(daemon, "thread-context", "t")
    with pytest.raises(QmpError, match="Setting CPU affinity failed"):
        await add(daemon, "thread-context", "u", cpu_affinity=[5000])
    assert threading.active_count() == before
    await add(daemon, "thread-context", "v")
    assert threading.active_count() == before + 1
    await delete(daemon, "v")
    assert threading.active_count() == before


async def test_types_that_are_not_built_are_refused(daemon: Daemon) -> None:
    text = "object type 'tls-creds-anon' is not supported by this version of qsd-trio yet"
    with pytest.raises(QmpError, match=text):
        await add(daemon, "tls-creds-anon", "t")


async def test_an_identifier_error_has_a_hint(daemon: Daemon) -> None:
    with pytest.raises(QmpError) as caught:
        await add(daemon, "iothread", "1")
    assert str(caught.value) == "Parameter 'id' expects an identifier"
    assert caught.value.__notes__ == [
        "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
    ]


async def test_qom_list_get_is_newer_than_the_oracle(daemon: Daemon) -> None:
    await add(daemon, "thread-context", "t", cpu_affinity=[0])
    arg = args_from_qmp("qom-list-get", {"paths": ["/objects", "t"]})
    objects, context = await qom_list_get(daemon, arg)
    assert objects == {
        "properties": [
            {"name": "type", "type": "string", "value": "container"},
            {"name": "t", "type": "child<thread-context>", "value": "/objects/t"},
        ]
    }
    values = {entry["name"]: entry.get("value", "absent") for entry in context["properties"]}
    assert values["cpu-affinity"] == [0]
    assert values["node-affinity"] == "absent"  # it cannot be read
    with pytest.raises(DeviceNotFound):
        await qom_list_get(daemon, args_from_qmp("qom-list-get", {"paths": ["/", "/nope"]}))


async def test_a_refused_value_changes_nothing(daemon: Daemon) -> None:
    await add(daemon, "authz-list", "a", rules=[{"match": "x", "policy": "allow"}])
    rules = args_from_qmp("qom-get", {"path": "a", "property": "rules"})
    before = await qom_get(daemon, rules)
    bad = {"path": "a", "property": "rules", "value": [{"match": "y"}]}
    with pytest.raises(QmpError, match=r"Parameter 'rules\[0\].policy' is missing"):
        await qom_set(daemon, args_from_qmp("qom-set", bad))
    assert await qom_get(daemon, rules) == before
