"""``check_chardev``: the contract of a character device, as code.

A backend's test calls it with a factory of the chardev and one of a peer. It passes when bytes go both ways,
when one front-end is all it takes, when sessions follow each other, and when the end of the chardev ends everything.
"""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias, final

import trio

from qsd_trio.chardevs.abc import Chardev
from qsd_trio.errors import QmpError
from qsd_trio.services import open_service_table

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from qsd_trio.services import ServiceTable

#: Opens the other side of a running chardev.
PeerFactory: TypeAlias = "Callable[[Chardev], AbstractAsyncContextManager[trio.abc.Stream]]"

#: Seconds for what takes a few milliseconds: long enough for a busy machine.
PATIENCE = 10.0


@final
class FakeFrontend:
    """Holds a chardev."""


async def receive_exactly(stream: trio.abc.Stream, length: int) -> bytes:
    """Return ``length`` bytes of ``stream``; AssertionError if it ends before."""
    data = bytearray()
    while len(data) < length:
        more = await stream.receive_some(length - len(data))
        assert more, f"the stream ended after {bytes(data)!r}"
        data += more
    return bytes(data)


async def receive_to_end(stream: trio.abc.Stream) -> bytes:
    """Return what comes until the stream ends, in whatever way."""
    data = bytearray()
    try:
        while more := await stream.receive_some():
            data += more
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    return bytes(data)


@asynccontextmanager
async def running(chardev: Chardev) -> AsyncGenerator[ServiceTable[Chardev]]:
    """Run ``chardev`` in a table of its own; raises what its opening raises."""
    failure: QmpError | None = None
    async with open_service_table(Chardev, "chardev") as table:
        try:
            await table.start(chardev)
        except QmpError as exc:
            failure = exc  # a nursery would wrap it
        else:
            yield table
    if failure is not None:
        raise failure


async def check_chardev(
    make: Callable[[], Chardev],
    peer: PeerFactory,
    *,
    sessions: int = 2,
    peer_reads: bool = True,
    peer_writes: bool = True,
    sees_peer_leave: bool = True,
) -> None:
    """Check everything that the contract promises.

    ``sessions``: how many peers come one after the other. The flags say what a backend cannot do by its nature.
    """
    with trio.fail_after(PATIENCE):
        await _check_claims(make())
        await _check_sessions(make(), peer, sessions, peer_reads, peer_writes, sees_peer_leave)
        await _check_stop_in_session(make(), peer)
        await _check_stop_without_peer(make())
        await _check_detach_ends_session(make(), peer)


async def _check_claims(chardev: Chardev) -> None:
    async with running(chardev):
        first, second = FakeFrontend(), FakeFrontend()
        assert not chardev.frontend_open
        chardev.attach(first)
        assert chardev.frontend_open
        assert chardev.busy
        try:
            chardev.attach(second)
        except QmpError as exc:
            assert str(exc) == f"Device '{chardev.id}' is in use"  # noqa: PT017  # no pytest here
        else:
            raise AssertionError("two front-ends at once")
        chardev.detach(second)
        assert chardev.frontend_open, "someone else's detach() counted"
        chardev.detach(first)
        assert not chardev.frontend_open
        chardev.attach(second)
        chardev.detach(second)


async def _check_sessions(
    chardev: Chardev,
    peer: PeerFactory,
    count: int,
    peer_reads: bool,
    peer_writes: bool,
    sees_peer_leave: bool,
) -> None:
    async with running(chardev):
        assert chardev.filename
        frontend = FakeFrontend()
        chardev.attach(frontend)
        async with aclosing(chardev.sessions()) as streams:
            for turn in range(count):
                async with peer(chardev) as other:
                    if peer_writes:
                        # Some peers are known to be there only once they say something.
                        await other.send_all(b"first\n")
                    stream = await anext(streams)
                    assert chardev.filename
                    if peer_writes:
                        assert await receive_exactly(stream, 6) == b"first\n"
                    if peer_reads:
                        text = b"\0\xff\x01 %d " % turn + bytes(range(256))
                        await stream.send_all(text)
                        assert await receive_exactly(other, len(text)) == text
                    if peer_writes:
                        await other.send_all(b"again\n")
                        assert await receive_exactly(stream, 6) == b"again\n"
                if sees_peer_leave:
                    assert await receive_to_end(stream) == b""
                await stream.aclose()
                await stream.aclose()  # as any trio stream: again is fine
        chardev.detach(frontend)


async def _check_stop_in_session(chardev: Chardev, peer: PeerFactory) -> None:
    async with running(chardev) as table, peer(chardev) as other:
        async with aclosing(chardev.sessions()) as streams, trio.open_nursery() as nursery:
            chardev.attach(FakeFrontend())
            await _poke(other)
            stream = await anext(streams)
            nursery.start_soon(receive_to_end, stream)  # returns, or the nursery never ends
            table.request_stop(chardev.id)
            await table.wait_gone(chardev.id)
        assert [left async for left in chardev.sessions()] == []


async def _check_stop_without_peer(chardev: Chardev) -> None:
    async with running(chardev) as table:
        table.request_stop(chardev.id)
        await table.wait_gone(chardev.id)
    assert [left async for left in chardev.sessions()] == []


async def _check_detach_ends_session(chardev: Chardev, peer: PeerFactory) -> None:
    """A front-end that dies without closing its stream does not block the chardev."""
    async with running(chardev), peer(chardev) as other:
        frontend = FakeFrontend()
        chardev.attach(frontend)
        async with aclosing(chardev.sessions()) as streams:
            await _poke(other)
            stream = await anext(streams)
        chardev.detach(frontend)
        await receive_to_end(stream)


async def _poke(other: trio.abc.Stream) -> None:
    try:
        await other.send_all(b"!")
    except (trio.BrokenResourceError, NotImplementedError):
        pass
