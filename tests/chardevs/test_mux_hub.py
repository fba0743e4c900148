"""mux (several front-ends, one chardev) and hub (one front-end, several chardevs)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
import trio
import trio.testing

from qsd_trio.chardevs.abc import Chardev
from qsd_trio.errors import QmpError
from qsd_trio.services import open_service_table
from qsd_trio.testing.chardevs import FakeFrontend, receive_exactly, receive_to_end
from tests.chardevs.kit import Opener, make


class MemoryChardev(Chardev):
    """A chardev whose peers are made by the test."""

    backend_name = "memory-stream"

    def __init__(self, id_: str) -> None:
        super().__init__(id_, make("null").options)
        self._peers, self._coming = trio.open_memory_channel[trio.abc.Stream](10)

    @classmethod
    def create(cls, *_: object) -> MemoryChardev:
        raise NotImplementedError

    @property
    def filename(self) -> str:
        return "test"

    @asynccontextmanager
    async def backend_opened(self) -> AsyncIterator[None]:
        yield

    async def serve(self) -> None:
        async for stream in self._coming:
            await self.offer(stream)

    def connect(self) -> trio.StapledStream[trio.abc.SendStream, trio.abc.ReceiveStream]:
        ours, theirs = trio.testing.memory_stream_pair()
        self._peers.send_nowait(theirs)
        return ours


@asynccontextmanager
async def table_of(*chardevs: Chardev) -> AsyncIterator[None]:
    failure: QmpError | None = None
    async with open_service_table(Chardev, "chardev") as table:
        try:
            for chardev in chardevs:
                await table.start(chardev)
        except QmpError as exc:
            failure = exc  # a nursery would wrap it
        else:
            yield
    if failure is not None:
        raise failure


async def test_mux_switches_the_input() -> None:
    base = MemoryChardev("base")
    mux = make("mux", opener := Opener(base), chardev="base")
    with trio.fail_after(5):
        async with table_of(base, mux):
            assert base.frontend is mux
            async with aclosing(mux.sessions()) as first, aclosing(mux.sessions()) as second:
                user = base.connect()
                async with trio.open_nursery() as nursery:
                    got: list[trio.abc.Stream] = []

                    async def begin(streams: object) -> None:
                        got.append(await anext(streams))  # type: ignore[call-overload]

                    nursery.start_soon(begin, first)
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.start_soon(begin, second)
                one, two = got
                await user.send_all(b"to two")
                assert await receive_exactly(two, 6) == b"to two"
                await user.send_all(b"\x01cto one\x01\x01!")
                assert await receive_exactly(one, 8) == b"to one\x01!"
                await one.send_all(b"from one,")
                await two.send_all(b"from two")
                assert await receive_exactly(user, 17) == b"from one,from two"
                await user.send_all(b"\x01h")
                shown = b""
                while b"C-a C-a" not in shown:
                    shown += await receive_exactly(user, 1)
                await user.send_all(b"\x01x")
                await trio.testing.wait_all_tasks_blocked()
                assert opener.quits == 1
                await user.aclose()
                assert await receive_to_end(one) == b""
                assert await receive_to_end(two) == b""
                await one.aclose()
                await two.aclose()
                again = base.connect()  # the next peer gets both front-ends again
                one, two = await anext(first), await anext(second)
                await again.send_all(b"x")
                assert await receive_exactly(one, 1) == b"x"
                await again.aclose()


async def test_mux_time_stamps() -> None:
    base = MemoryChardev("base")
    mux = make("mux", Opener(base), chardev="base")
    with trio.fail_after(5):
        async with table_of(base, mux), aclosing(mux.sessions()) as streams:
            user = base.connect()
            stream = await anext(streams)
            await user.send_all(b"\x01t")
            await trio.testing.wait_all_tasks_blocked()
            await stream.send_all(b"rest of a line\nnext\n")
            assert await receive_exactly(user, 15) == b"rest of a line\n"
            assert (await receive_exactly(user, 20)).endswith(b"] next\n")


async def test_mux_has_four_places_and_is_always_busy() -> None:
    base = MemoryChardev("base")
    mux = make("mux", Opener(base), chardev="base")
    async with table_of(base, mux):
        assert mux.busy
        holders = [FakeFrontend() for _ in range(5)]
        for holder in holders[:4]:
            mux.attach(holder)
        with pytest.raises(QmpError, match="Device 'c' is in use"):
            mux.attach(holders[4])
        mux.detach(holders[0])
        mux.attach(holders[4])


async def test_mux_needs_its_base() -> None:
    with pytest.raises(QmpError, match=r"^mux: base chardev x not found$"):
        async with table_of(make("mux", chardev="x")):
            pass
    base = MemoryChardev("base")
    base.attach(FakeFrontend())
    with pytest.raises(QmpError, match=r"^Device 'base' is in use$"):
        async with table_of(base, make("mux", Opener(base), chardev="base")):
            pass


async def test_hub_joins_its_chardevs() -> None:
    bases = [MemoryChardev("a"), MemoryChardev("b")]
    hub = make("hub", Opener(*bases), chardevs=["a", "b"])
    with trio.fail_after(5):
        async with table_of(*bases, hub), aclosing(hub.sessions()) as streams:
            for _ in range(2):
                a = bases[0].connect()
                stream = await anext(streams)
                b = bases[1].connect()
                await b.send_all(b"from b")
                assert await receive_exactly(stream, 6) == b"from b"
                await a.send_all(b"from a")
                assert await receive_exactly(stream, 6) == b"from a"
                await stream.send_all(b"to all")
                assert await receive_exactly(a, 6) == b"to all"
                assert await receive_exactly(b, 6) == b"to all"
                await a.aclose()
                await trio.testing.wait_all_tasks_blocked()
                await stream.send_all(b"to b")
                assert await receive_exactly(b, 4) == b"to b"
                await b.aclose()
                assert await receive_to_end(stream) == b""
                await stream.aclose()


async def test_hub_drops_its_peers_when_the_front_end_leaves() -> None:
    base = MemoryChardev("a")
    hub = make("hub", Opener(base), chardevs=["a"])
    with trio.fail_after(5):
        async with table_of(base, hub), aclosing(hub.sessions()) as streams:
            peer = base.connect()
            await (await anext(streams)).aclose()
            assert await receive_to_end(peer) == b""


async def test_hub_checks_its_list() -> None:
    for chardevs in ([], ["a"] * 5):
        with pytest.raises(QmpError):
            make("hub", Opener(), chardevs=chardevs)
    with pytest.raises(QmpError, match="can't be found by id 'nobody'"):
        async with table_of(make("hub", Opener(), chardevs=["nobody"])):
            pass
