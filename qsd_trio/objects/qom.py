"""The QOM type tree as clients see it: names, parents, class properties. Pure data and lookups."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@final
class Property(NamedTuple):
    """A property's QOM type name, and whether clients may set and get it."""

    type: str
    settable: bool = True
    readable: bool = True


@final
class QomType(NamedTuple):
    """One type. ``properties`` are its own; those of its parents come before them."""

    parent: str | None = "object"
    abstract: bool = False
    interfaces: tuple[str, ...] = ()
    properties: Mapping[str, Property] = {}


_CREATABLE = ("user-creatable",)
_INT = Property("int")
_STRING = Property("string")
_BOOL = Property("bool")
_READ_ONLY_BOOL = Property("bool", settable=False)

#: In the order in which the real daemon lists them.
_THROTTLE_PROPERTIES = {
    "x-bps-write-max-length": _INT,
    "x-iops-total-max-length": _INT,
    "x-iops-size": _INT,
    "limits": Property("ThrottleLimits"),
    "x-bps-total": _INT,
    "x-iops-read-max-length": _INT,
    "x-bps-write": _INT,
    "x-iops-write-max-length": _INT,
    "x-bps-read-max": _INT,
    "x-iops-read-max": _INT,
    "x-bps-total-max": _INT,
    "x-bps-read-max-length": _INT,
    "x-iops-read": _INT,
    "x-bps-read": _INT,
    "x-bps-write-max": _INT,
    "x-iops-total-max": _INT,
    "x-iops-total": _INT,
    "x-iops-write": _INT,
    "x-bps-total-max-length": _INT,
    "x-iops-write-max": _INT,
}

TYPES: dict[str, QomType] = {
    "object": QomType(None, abstract=True, properties={"type": Property("string", settable=False)}),
    "interface": QomType(None, abstract=True),
    "user-creatable": QomType("interface", abstract=True),
    "fw_cfg-data-generator": QomType("interface", abstract=True),
    "container": QomType(),
    # -- user creatable ----------------------------------------------------------------------------
    "event-loop-base": QomType(
        abstract=True,
        interfaces=_CREATABLE,
        properties={"thread-pool-min": _INT, "aio-max-batch": _INT, "thread-pool-max": _INT},
    ),
    "iothread": QomType(
        "event-loop-base",
        properties={
            "poll-max-ns": _INT,
            "poll-grow": _INT,
            "poll-shrink": _INT,
            "poll-weight": _INT,  # newer than 7.2
        },
    ),
    "main-loop": QomType("event-loop-base"),
    "thread-context": QomType(
        interfaces=_CREATABLE,
        properties={
            "thread-id": Property("int", settable=False),
            "node-affinity": Property("int", readable=False),
            "cpu-affinity": _INT,
        },
    ),
    "throttle-group": QomType(interfaces=_CREATABLE, properties=_THROTTLE_PROPERTIES),
    "secret_common": QomType(
        abstract=True,
        interfaces=_CREATABLE,
        properties={
            "iv": _STRING,
            "keyid": _STRING,
            "loaded": _READ_ONLY_BOOL,
            "format": Property("QCryptoSecretFormat"),
        },
    ),
    "secret": QomType("secret_common", properties={"file": _STRING, "data": _STRING}),
    "secret_keyring": QomType("secret_common", properties={"serial": Property("int32_t")}),
    "authz": QomType(abstract=True),
    "authz-simple": QomType("authz", interfaces=_CREATABLE, properties={"identity": _STRING}),
    "authz-list": QomType(
        "authz",
        interfaces=_CREATABLE,
        properties={"policy": Property("QAuthZListPolicy"), "rules": Property("QAuthZListRule")},
    ),
    "authz-list-file": QomType(
        "authz", interfaces=_CREATABLE, properties={"filename": _STRING, "refresh": _BOOL}
    ),
    "tls-creds": QomType(
        abstract=True,
        properties={
            "endpoint": Property("QCryptoTLSCredsEndpoint"),
            "dir": _STRING,
            "verify-peer": _BOOL,
            "priority": _STRING,
        },
    ),
    "tls-creds-anon": QomType(
        "tls-creds", interfaces=_CREATABLE, properties={"loaded": _READ_ONLY_BOOL}
    ),
    "tls-creds-psk": QomType(
        "tls-creds",
        interfaces=_CREATABLE,
        properties={"username": _STRING, "loaded": _READ_ONLY_BOOL},
    ),
    "tls-creds-x509": QomType(
        "tls-creds",
        interfaces=_CREATABLE,
        properties={"sanity-check": _BOOL, "passwordid": _STRING, "loaded": _READ_ONLY_BOOL},
    ),
    "tls-cipher-suites": QomType(
        "tls-creds", interfaces=("user-creatable", "fw_cfg-data-generator")
    ),
    "pr-manager": QomType(abstract=True, interfaces=_CREATABLE),
    "pr-manager-helper": QomType("pr-manager", properties={"path": _STRING}),
    # -- channels ----------------------------------------------------------------------------------
    "qio-channel": QomType(abstract=True),
    "qio-channel-buffer": QomType("qio-channel"),
    "qio-channel-command": QomType("qio-channel"),
    "qio-channel-file": QomType("qio-channel"),
    "qio-channel-null": QomType("qio-channel"),
    "qio-channel-socket": QomType("qio-channel"),
    "qio-channel-tls": QomType("qio-channel"),
    "qio-channel-websock": QomType("qio-channel"),
    "qio-dns-resolver": QomType(),
    "qio-net-listener": QomType(),
    # -- character devices -------------------------------------------------------------------------
    "chardev": QomType(abstract=True),
    "chardev-fd": QomType("chardev", abstract=True),
    "chardev-file": QomType("chardev-fd"),
    "chardev-memory": QomType("chardev-ringbuf"),
    "chardev-mux": QomType("chardev"),
    "chardev-null": QomType("chardev"),
    "chardev-parallel": QomType("chardev"),
    "chardev-pipe": QomType("chardev-fd"),
    "chardev-pty": QomType("chardev"),
    "chardev-ringbuf": QomType("chardev"),
    "chardev-serial": QomType("chardev-fd"),
    "chardev-socket": QomType(
        "chardev",
        properties={
            "connected": _READ_ONLY_BOOL,
            "addr": Property("SocketAddress", settable=False),
        },
    ),
    "chardev-stdio": QomType("chardev-fd"),
    "chardev-udp": QomType("chardev"),
    # Newer than 7.2.
    "chardev-hub": QomType("chardev"),
}


def ancestry(name: str) -> Iterator[str]:
    """Yield the type itself, its parents up to the root, and every interface on the way."""
    at: str | None = name
    while at is not None:
        yield at
        for interface in TYPES[at].interfaces:
            yield from ancestry(interface)
        at = TYPES[at].parent


def implements(name: str, other: str) -> bool:
    """Return whether type ``name`` is or implements ``other``.

    An interface that is reached in two ways is not found, as in the real daemon.
    """
    return list(ancestry(name)).count(other) == 1


def is_interface(name: str) -> bool:
    """Return whether the type is an interface: it can have no instances and no properties."""
    return "interface" in ancestry(name) and "object" not in ancestry(name)


def properties(name: str) -> dict[str, Property]:
    """Return the class properties of type ``name``, inherited ones first."""
    parent = TYPES[name].parent
    found = properties(parent) if parent is not None else {}
    return {**found, **TYPES[name].properties}


def creatable() -> list[str]:
    """Return the names of the types that object-add makes, sorted."""
    return sorted(
        name
        for name, type_ in TYPES.items()
        if not type_.abstract and "user-creatable" in ancestry(name)
    )
