"""Socket addresses: QAPI's SocketAddress and SocketAddressLegacy in one form of our own."""

from __future__ import annotations

import os
import re
import socket
import stat
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, TypeAlias, final

import attrs

from qsd_trio.errors import QmpError

if TYPE_CHECKING:
    from qsd_trio.untyped import Options

#: Whether the current task carries out a monitor's command. A QMP client does not know the daemon's
#: descriptors, so it may not name them by number; the command line and embedding programs may.
in_monitor: ContextVar[bool] = ContextVar("in_monitor", default=False)

#: sun_path of struct sockaddr_un, unix(7).
SUN_PATH_SIZE: Final = 108


@final
@attrs.frozen(kw_only=True)
class InetAddress:
    """TCP (or UDP): a host name or literal and a port number or service name.

    ``host`` may be empty: any address when listening, the loopback address when connecting.
    """

    host: str
    port: str
    numeric: bool | None = None
    to: int | None = None
    ipv4: bool | None = None
    ipv6: bool | None = None
    keep_alive: bool | None = None
    keep_alive_count: int | None = None
    keep_alive_idle: int | None = None
    keep_alive_interval: int | None = None
    mptcp: bool | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@final
@attrs.frozen(kw_only=True)
class UnixAddress:
    """A Unix socket by path, or in Linux' abstract name space.

    An abstract name is as long as its text if ``tight``, else padded with NULs to the full size.
    """

    path: str
    abstract: bool = False
    tight: bool = True

    def __str__(self) -> str:
        return self.path

    def to_socket(self) -> bytes:
        """Return what bind(2) and connect(2) take; QmpError if the path is too long."""
        name = os.fsencode(self.path)
        limit = SUN_PATH_SIZE - 1 if self.abstract else SUN_PATH_SIZE
        if len(name) > limit:
            error = QmpError(f"UNIX socket path '{self.path}' is too long")
            error.add_note(f"Path must be less than {limit} bytes")
            raise error
        if not self.abstract:
            return name
        return b"\0" + (name if self.tight else name.ljust(limit, b"\0"))


@final
@attrs.frozen(kw_only=True)
class VsockAddress:
    """A socket between virtual machines and their host, vsock(7)."""

    cid: str
    port: str

    def __str__(self) -> str:
        return f"{self.cid}:{self.port}"

    def to_socket(self) -> tuple[int, int]:
        """Return (cid, port); QmpError if they are no numbers of 32 bits."""
        return _uint32(self.cid, "cid"), _uint32(self.port, "port")


@final
@attrs.frozen(kw_only=True)
class FdAddress:
    """A socket that whoever started the daemon has opened, by its number."""

    name: str

    def __str__(self) -> str:
        return self.name

    def take(self) -> socket.socket:
        """Take the socket over; QmpError if it may not be named, or is none."""
        if in_monitor.get():
            raise QmpError("only QEMU supports file descriptor passing")
        if (
            not re.fullmatch(r"\s*[+-]?[0-9]+", self.name, re.ASCII)
            or abs(int(self.name)) >= 1 << 31
        ):
            raise QmpError(f"Unable to parse FD number {self.name}")
        number = int(self.name)
        try:
            is_socket = number >= 0 and stat.S_ISSOCK(os.fstat(number).st_mode)
        except OSError:
            is_socket = False
        if not is_socket:
            raise QmpError(f"File descriptor '{self.name}' is not a socket")
        os.set_inheritable(number, False)
        return socket.socket(fileno=number)


Address: TypeAlias = InetAddress | UnixAddress | VsockAddress | FdAddress


def _uint32(text: str, what: str) -> int:
    # strtoul(3) with base 0: decimal, 0x or a leading 0 for octal.
    value = -1
    digits = text.strip()
    try:
        if re.fullmatch(r"0[0-7]+", digits):
            value = int(digits, 8)
        elif re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]+", digits):
            value = int(digits, 0)
    except ValueError:
        pass
    if not 0 <= value < 1 << 32:
        raise QmpError(f"Failed to parse {what} '{text}'")
    return value


def from_qapi(address: Options) -> Address:
    """Convert a generated SocketAddress or SocketAddressLegacy."""
    members: Options = getattr(address, "data", address)
    match address.type.value:
        case "inet":
            return InetAddress(
                host=members.host,
                port=members.port,
                numeric=members.numeric,
                to=members.to,
                ipv4=members.ipv4,
                ipv6=members.ipv6,
                keep_alive=members.keep_alive,
                keep_alive_count=members.keep_alive_count,
                keep_alive_idle=members.keep_alive_idle,
                keep_alive_interval=members.keep_alive_interval,
                mptcp=members.mptcp,
            )
        case "unix":
            return UnixAddress(
                path=members.path,
                abstract=bool(members.abstract),
                tight=members.tight is not False,
            )
        case "vsock":
            return VsockAddress(cid=members.cid, port=members.port)
        case "fd":
            return FdAddress(name=members.str)
        case other:
            raise AssertionError(other)


def of_socket(sock: socket.socket, *, peer: bool = False) -> Address | None:
    """Return where ``sock`` is bound (or, ``peer``, connected to), None where that says nothing."""
    try:
        name = sock.getpeername() if peer else sock.getsockname()
    except OSError:
        return None
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return InetAddress(host=name[0].partition("%")[0], port=str(name[1]))
    if sock.family == socket.AF_UNIX:
        if isinstance(name, bytes):
            # Linux gives abstract names with their length: tight, or padded to the full size.
            text = name[1:].rstrip(b"\0")
            return UnixAddress(path=os.fsdecode(text), abstract=True, tight=text == name[1:])
        return UnixAddress(path=name)
    if sock.family == socket.AF_VSOCK:
        return VsockAddress(cid=str(name[0]), port=str(name[1]))
    return None


def keep_alive_options(address: InetAddress) -> list[tuple[int, int, int]]:
    """Return the setsockopt() arguments that ``address`` asks for."""
    if not address.keep_alive:
        return []
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for option, value in (
        (socket.TCP_KEEPCNT, address.keep_alive_count),
        (socket.TCP_KEEPIDLE, address.keep_alive_idle),
        (socket.TCP_KEEPINTVL, address.keep_alive_interval),
    ):
        if value:
            options.append((socket.IPPROTO_TCP, option, value))
    return options
