"""Objects and the QOM tree against the real daemon: one script each, many commands."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, TypeAlias

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.oracle import Pair, requires

pytestmark = requires("qemu-storage-daemon")

Json: TypeAlias = Any

NEWER_THAN_7_2 = {"chardev-hub", "poll-weight"}
KEY, IV = bytes(range(32)), bytes(16)
IV64 = base64.b64encode(IV).decode()


def add(type_: str, id_: str, **properties: Json) -> Json:
    arguments = {"qom-type": type_, "id": id_}
    arguments |= {name.replace("_", "-"): value for name, value in properties.items()}
    return {"execute": "object-add", "arguments": arguments}


def limits(id_: str, **values: int) -> Json:
    given = {name.replace("_", "-"): value for name, value in values.items()}
    return add("throttle-group", id_, limits=given)


def delete(id_: str) -> Json:
    return {"execute": "object-del", "arguments": {"id": id_}}


def listing(path: str) -> Json:
    return {"execute": "qom-list", "arguments": {"path": path}}


def get(path: str, name: str) -> Json:
    return {"execute": "qom-get", "arguments": {"path": path, "property": name}}


def put(path: str, name: str, value: Json) -> Json:
    return {"execute": "qom-set", "arguments": {"path": path, "property": name, "value": value}}


def types(**arguments: Json) -> Json:
    return {"execute": "qom-list-types", "arguments": arguments}


def properties(name: str) -> Json:
    return {"execute": "qom-list-properties", "arguments": {"typename": name}}


def encrypted(data: bytes, padding: int | None = None) -> str:
    size = 16 - len(data) % 16
    plain = data + bytes([size if padding is None else padding]) * size
    encryptor = Cipher(algorithms.AES(KEY), modes.CBC(IV)).encryptor()
    return base64.b64encode(encryptor.update(plain) + encryptor.finalize()).decode()


def plain(reply: Json) -> Json:
    """Sort what the real daemon lists in the order of a hash table."""
    value = reply.get("return")
    if isinstance(value, list) and value and isinstance(value[0], dict) and "name" in value[0]:
        kept = [item for item in value if item["name"] not in NEWER_THAN_7_2]
        return {**reply, "return": sorted(kept, key=lambda item: item["name"])}
    return reply


def check(commands: list[Json], *argv: str, setup: Any = None) -> None:
    with Pair([*argv], setup=setup) as pair:
        wrong = []
        for command in commands:
            real = plain(pair.real.qmp.execute(command))
            ours = plain(pair.ours.qmp.execute(command))
            if real != ours:
                wrong.append((command, real, ours))
        assert wrong == []


def test_the_tree() -> None:
    check(
        [
            *map(listing, ("/", "", "//", "/objects", "objects", "/chardevs", "/nope", "nope")),
            *map(listing, ("n", "/n", "chardevs/n", "/chardevs/n", "/chardevs//n/", "/type")),
            listing("/chardevs/s"),
            get("/chardevs/s", "connected"),
            get("s", "addr"),
            get("/chardevs", "n"),
            get("/", "type"),
            get("/", "chardevs"),
            get("/chardevs", "nope"),
            put("/", "type", "x"),
            put("/", "chardevs", "x"),
            put("s", "connected", False),
            put("s", "addr", {}),
            put("nope", "x", 1),
            delete("nope"),
            listing("/objects"),
            add("secret", "n", data="x"),
            *map(listing, ("n", "objects/n", "/objects")),
            get("n", "type"),
            get("objects/n", "type"),
            get("/objects", "n"),
            put("n", "data", "y"),
            delete("n"),
            delete("n"),
            listing("/objects"),
            delete(""),
            delete("objects"),
            delete("s"),
            {"execute": "object-add", "arguments": {}},
            {"execute": "object-add", "arguments": {"id": "x"}},
            {"execute": "object-add", "arguments": {"qom-type": "secret"}},
            {"execute": "object-add", "arguments": {"qom-type": "secret", "id": 5}},
            {"execute": "object-add", "arguments": {"qom-type": 5, "id": "x"}},
            {"execute": "object-add", "arguments": {"qom-type": "nope", "id": "x"}},
            {"execute": "object-add"},
            {"execute": "object-del"},
            {"execute": "qom-list"},
            {"execute": "qom-get", "arguments": {"path": "/"}},
            {"execute": "qom-set", "arguments": {"path": "/", "property": "type"}},
            *(add("iothread", id_) for id_ in ("1x", "", "a b", "-a", "a/b", "é")),
        ],
        *("--chardev", "null,id=n", "--chardev", "socket,id=s,path=s.sock,server=on,wait=off"),
    )


def test_types() -> None:
    check(
        [
            types(),
            types(abstract=True),
            types(abstract=False),
            types(implements=5),
            types(abstract=5),
            *(
                types(implements=name, abstract=abstract)
                for name in ("user-creatable", "nope", "object", "chardev", "interface", "authz")
                for abstract in (False, True)
            ),
            *map(
                properties,
                [
                    "authz",
                    "authz-list",
                    "authz-list-file",
                    "authz-simple",
                    "chardev",
                    "chardev-fd",
                    "chardev-socket",
                    "container",
                    "event-loop-base",
                    "iothread",
                    "main-loop",
                    "nope",
                    "object",
                    "pr-manager-helper",
                    "qio-channel",
                    "secret",
                    "secret_common",
                    "secret_keyring",
                    "thread-context",
                    "throttle-group",
                    "tls-cipher-suites",
                    "tls-creds",
                    "tls-creds-anon",
                    "tls-creds-psk",
                    "tls-creds-x509",
                    "user-creatable",
                ],
            ),
        ]
    )


def test_event_loops() -> None:
    names = ["type", "poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch", "thread-pool-min"]
    check(
        [
            add("iothread", "io"),
            add("iothread", "io"),
            listing("io"),
            *(get("io", name) for name in [*names, "thread-pool-max", "thread-id", "nope"]),
            *(
                put("io", name, value)
                for name in names
                for value in (5, -1, "5", 1.5, None, {}, True, 1 << 62, 1 << 63)
            ),
            # Not thread-pool-min: the real daemon keeps the value that it has just refused.
            *(get("io", name) for name in names[:-1]),
            put("io", "thread-pool-max", 0),
            put("io", "nope", 1),
            add("iothread", "a", poll_max_ns=-1),
            add("iothread", "a", poll_shrink=-2),
            add("iothread", "a", poll_max_ns="1"),
            add("iothread", "a", thread_pool_min=-1),
            add("iothread", "a", thread_pool_min=65),
            add("iothread", "a", thread_pool_max=0),
            add("iothread", "io", thread_pool_max=0),
            add("iothread", "io", aio_max_batch=-1),
            add("iothread", "a", foo=1),
            add("iothread", "b", poll_max_ns=0, thread_pool_min=3, thread_pool_max=3),
            get("b", "thread-pool-min"),
            delete("b"),
            add("main-loop", "m", aio_max_batch=7),
            listing("m"),
            get("m", "aio-max-batch"),
            add("main-loop", "m"),
            add("main-loop", "m2"),
            delete("m"),
        ]
    )


def test_thread_contexts() -> None:
    check(
        [
            add("thread-context", "t"),
            listing("t"),
            get("t", "node-affinity"),
            get("t", "cpu-affinity"),
            put("t", "cpu-affinity", [0]),
            get("t", "cpu-affinity"),
            put("t", "cpu-affinity", []),
            put("t", "cpu-affinity", 5),
            put("t", "cpu-affinity", [5000]),
            put("t", "cpu-affinity", ["a"]),
            put("t", "cpu-affinity", [0, -1]),
            put("t", "cpu-affinity", [1 << 16]),
            put("t", "thread-id", 1),
            add("thread-context", "u", cpu_affinity=[0], node_affinity=[0]),
            add("thread-context", "u", cpu_affinity=[0]),
            get("u", "cpu-affinity"),
            add("thread-context", "v", cpu_affinity=[500]),
            add("thread-context", "v", cpu_affinity=["0"]),
            delete("u"),
        ]
    )


def files(directory: Path) -> None:
    (directory / "binary").write_bytes(b"hello\xff")
    (directory / "base64").write_text("aGVsbG8=\n")
    (directory / "raw").write_bytes(base64.b64decode(encrypted(b"hello")))


def test_secrets() -> None:
    good = encrypted(b"hello world")
    names = ["data", "file", "format", "loaded", "keyid", "iv"]
    check(
        [
            add("secret", "s", data="x"),
            listing("s"),
            *(get("s", name) for name in names),
            *(put("s", name, value) for name in names for value in ("y", 5, True, "base64")),
            *(get("s", name) for name in names),
            add("secret", "a"),
            add("secret", "a", data="x", file="y"),
            add("secret", "a", data="x", format="nope"),
            add("secret", "a", data="x", loaded=True),
            add("secret", "a", data=5),
            add("secret", "a", file="/nope"),
            add("secret", "a", file=""),
            add("secret", "a", file="/"),
            add("secret", "f1", file="binary"),
            add("secret", "f2", file="base64", format="base64"),
            get("f2", "data"),
            get("f2", "file"),
            *(
                add("secret", f"b{number}", data=text, format="base64")
                for number, text in enumerate(
                    ["", "$", "a$", "aGVs bG8=", "aGVsbG8", "aGVs\nbG8=", "=", "a", "aG=lbG8=", "é"]
                )
            ),
            add("secret", "key", data=base64.b64encode(KEY).decode(), format="base64"),
            add("secret", "short", data="abc"),
            add("iothread", "io"),
            *(
                add("secret", f"c{number}", **given)
                for number, given in enumerate(
                    [
                        {"data": good, "format": "base64", "keyid": "nope"},
                        {"data": good, "format": "base64", "keyid": ""},
                        {"data": good, "format": "base64", "keyid": "io"},
                        {"data": good, "format": "base64", "keyid": "short", "iv": IV64},
                        {"data": good, "format": "base64", "keyid": "key"},
                        {"data": good, "format": "base64", "keyid": "key", "iv": "AAAA"},
                        {"data": good, "format": "base64", "keyid": "key", "iv": IV64[:-2]},
                        {"data": good, "format": "base64", "keyid": "key", "iv": "$$"},
                        {"data": good, "format": "base64", "keyid": "key", "iv": IV64},
                        {"data": good, "format": "base64", "iv": "no one looks"},
                        {"data": good, "keyid": "key", "iv": IV64},
                        {"data": good[:-4], "format": "base64", "keyid": "key", "iv": IV64},
                        {"data": "$", "format": "base64", "keyid": "key", "iv": IV64},
                        {"data": "", "keyid": "key", "iv": IV64},
                        {"file": "raw", "keyid": "key", "iv": IV64},
                        *(
                            {
                                "data": encrypted(bytes(31), padding),
                                "format": "base64",
                                "keyid": "key",
                                "iv": IV64,
                            }
                            for padding in (0, 1, 15, 16, 17, 32, 33, 255)
                        ),
                    ]
                )
            ),
            add("secret", "s", data="x", keyid="nope"),
            add("secret_keyring", "k"),
            add("secret_keyring", "k", serial=0),
            add("secret_keyring", "k", serial="x"),
            add("secret_keyring", "k", serial=1 << 31),
            add("secret_keyring", "k", serial=2147483647),
            add("secret_keyring", "k", serial=-2147483648),
            delete("key"),
        ],
        setup=files,
    )


def test_throttle_groups() -> None:
    big = 10**15
    check(
        [
            add("throttle-group", "g"),
            listing("g"),
            get("g", "limits"),
            get("g", "x-iops-total"),
            get("g", "x-bps-read-max-length"),
            get("g", "x-iops-size"),
            *(
                put("g", "limits", value)
                for value in (
                    {},
                    {"foo": 0},
                    5,
                    {"iops-total": "1"},
                    {"iops-total": -1},
                    {"iops-total": 10, "iops-read": 5},
                    {"iops-total-max-length": 0},
                    {"iops-total-max-length": 1 << 32},
                    {"iops-total-max-length": -1},
                    {"bps-read": 100, "bps-read-max": 1000, "bps-read-max-length": 5},
                    {"bps-read-max": 2000},
                    {"bps-read-max": 20},
                )
            ),
            get("g", "limits"),
            put("g", "x-iops-total", 1),
            *(
                limits(f"l{number}", **given)
                for number, given in enumerate(
                    [
                        {"iops_total": 10},
                        {"iops_total": 10, "iops_read": 5},
                        {"bps_total": 10, "bps_write": 5},
                        {"bps_total_max": 1},
                        {"iops_total_max": 10, "iops_read_max": 5},
                        {"iops_total": -1},
                        {"iops_total": -1, "iops_read": 1},
                        {"bps_total": big},
                        {"bps_total": big + 1},
                        {"bps_total": 10, "bps_total_max": 5},
                        {"bps_total": 10, "bps_total_max": -5},
                        {"bps_total": 10, "bps_total_max": big + 1},
                        {"bps_total": 10, "bps_total_max": 20, "bps_total_max_length": 0},
                        {"bps_total": 10, "bps_total_max_length": 10},
                        {"bps_total": 10, "bps_total_max": 100, "bps_total_max_length": 10},
                        {"bps_total": 1, "bps_total_max": 10**14, "bps_total_max_length": 10**6},
                        {"bps_total": 1, "bps_total_max": 10**9, "bps_total_max_length": 10**6},
                        {"bps_total": 10, "bps_total_max": 100, "bps_total_max_length": -1},
                        {"bps_total": 10, "bps_total_max": 100, "bps_total_max_length": 1 << 33},
                        {"iops_size": 4096},
                        {"iops_size": 4096, "iops_total": 1},
                        {"iops_size": -1, "iops_write": 1},
                        {"bps_total_max_length": 0, "iops_size": 1},
                        {"bps_read": 1, "bps_write": 2, "iops_total": 3},
                    ]
                )
            ),
            *(
                add("throttle-group", f"x{number}", **given)
                for number, given in enumerate(
                    [
                        {"x_iops_total": 10},
                        {"x_iops_total": -1},
                        {"x_iops_total": big + 1},
                        {"x_iops_total": "5"},
                        {"x_iops_total": 1, "x_iops_total_max_length": 0},
                        {"x_iops_total": 1, "x_iops_total_max_length": 1 << 33},
                        {"x_iops_size": -3},
                        {"x_iops_total": 10, "x_iops_read": 4},
                        {"limits": {"iops-total": 1}, "x_iops_total": 5},
                        {"limits": {"foo": 1}},
                        {"limits": 1},
                    ]
                )
            ),
            get("x0", "limits"),
            get("x8", "limits"),
            add("throttle-group", "g", limits={"bps-total-max-length": 0}),
            delete("g"),
        ]
    )


def test_authorization() -> None:
    rules = [
        {"match": "fred", "policy": "allow", "format": "exact"},
        {"match": "f*", "policy": "deny", "format": "glob"},
        {"match": "g", "policy": "deny"},
    ]
    check(
        [
            add("authz-simple", "s"),
            add("authz-simple", "s", identity="fred"),
            listing("s"),
            get("s", "identity"),
            put("s", "identity", "bob"),
            put("s", "identity", 5),
            get("s", "identity"),
            add("authz-list", "l"),
            listing("l"),
            get("l", "policy"),
            get("l", "rules"),
            add("authz-list", "m", policy="allow", rules=rules),
            get("m", "policy"),
            get("m", "rules"),
            put("m", "policy", "deny"),
            put("m", "policy", "nope"),
            put("m", "policy", 5),
            put("m", "rules", []),
            put("m", "rules", rules),
            get("m", "rules"),
            # From here on not: the real daemon loses its rules when it refuses new ones.
            put("m", "rules", 5),
            put("m", "rules", [5]),
            put("m", "rules", [{}]),
            put("m", "rules", [{"match": "x"}]),
            put("m", "rules", [{"match": 5, "policy": "allow"}]),
            put("m", "rules", [{"match": "x", "policy": "nope"}]),
            put("m", "rules", [{"match": "x", "policy": "allow", "format": "nope"}]),
            put("m", "rules", [{"match": "x", "policy": "allow", "foo": 1}]),
            add("authz-list", "n", rules=5),
            add("authz-list", "n", rules=[{"match": "x"}]),
            add("authz-list", "n", rules=[{"match": "x", "policy": "nope"}]),
            add("authz-list", "n", policy="nope"),
            delete("m"),
        ]
    )
