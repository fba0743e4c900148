"""Name resolution for inet addresses."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, TypeAlias, cast

import trio

from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from qsd_trio.net.address import InetAddress

#: (host, port) for IPv4, (host, port, flow info, scope) for IPv6.
SocketName: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


def family_of(address: InetAddress) -> int:
    """Return the address family that ``ipv4`` and ``ipv6`` leave; QmpError if it is none."""
    if address.ipv4 is False and address.ipv6 is False:
        raise QmpError("Cannot disable IPv4 and IPv6 at same time")
    if address.ipv4 and address.ipv6:
        return socket.AF_UNSPEC
    if address.ipv6 or address.ipv4 is False:
        return socket.AF_INET6
    if address.ipv4 or address.ipv6 is False:
        return socket.AF_INET
    return socket.AF_UNSPEC


async def resolve(
    address: InetAddress, *, passive: bool, kind: int = socket.SOCK_STREAM
) -> list[tuple[int, SocketName]]:
    """Return the addresses of a host, in the order to try them; QmpError if there is none."""
    family = family_of(address)
    flags = socket.AI_PASSIVE if passive else 0
    if address.numeric:
        flags |= socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:
        found = await trio.socket.getaddrinfo(
            # glibc takes no empty service name for the port 0.
            address.host or None,
            address.port or "0",
            family,
            kind,
            0,
            flags,
        )
    except socket.gaierror as exc:
        raise QmpError(f"address resolution failed for {address}: {exc.strerror}") from None
    except UnicodeError:
        raise QmpError(
            f"address resolution failed for {address}: Name or service not known"
        ) from None
    return [(family, cast("SocketName", name)) for family, _, _, _, name in found]
