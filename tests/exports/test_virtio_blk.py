"""Virtio-blk requests against a device over a memfd: results, batches, crashes, and random work against a model."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from qsd_trio.block.abc import ReqFlag
from qsd_trio.protocol.virtio.blk import (
    BARRIER,
    CONFIG_SIZE,
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    OK,
    OUT,
    UNSUPP,
    WRITE_ZEROES,
)
from qsd_trio.protocol.virtio.inflight import InflightQueue, log_size
from qsd_trio.protocol.virtio.memory import VirtqueueError
from tests.exports.nbd_kit import FakeBackend
from tests.exports.virtio_kit import NO_STATUS, NUM, SLOTS, Guest, device, served

SIZE = 1 << 20
SECTORS = SIZE // 512


@pytest.fixture
def backend() -> Iterator[FakeBackend]:
    backend = FakeBackend(SIZE)
    backend.fill(bytes(range(256)) * (SIZE // 256))
    yield backend
    backend.close()


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


def segment(sector: int, count: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, count, flags)


#: name: (type, sector, out data, room for data, status)
ROWS: dict[str, tuple[int, int, bytes, int, int]] = {
    "read": (IN, 3, b"", 1024, OK),
    "read at the very end": (IN, SECTORS - 1, b"", 512, OK),
    "read of nothing": (IN, 0, b"", 0, OK),
    "read of nothing at the end": (IN, SECTORS, b"", 0, OK),
    "read of nothing beyond the end": (IN, SECTORS + 1, b"", 0, IOERR),
    "read beyond the end": (IN, SECTORS - 1, b"", 1024, IOERR),
    "read no whole sectors": (IN, 0, b"", 511, IOERR),
    "read at 2^55": (IN, 1 << 55, b"", 512, IOERR),
    "read at 2^63": (IN, 1 << 63, b"", 512, IOERR),
    "read with data": (IN, 0, b"?" * 512, 512, OK),
    "old read with a barrier": (IN | BARRIER, 0, b"", 512, OK),
    "write": (OUT, 3, b"x" * 1024, 0, OK),
    "write of nothing": (OUT, SECTORS, b"", 0, OK),
    "write beyond the end": (OUT, SECTORS, b"x" * 512, 0, IOERR),
    "write no whole sectors": (OUT, 0, b"x" * 513, 0, IOERR),
    "write with room": (OUT, 0, b"x" * 512, 512, OK),
    "flush": (FLUSH, 0, b"", 0, OK),
    "flush with payload": (FLUSH, 99999, b"x" * 10, 3, OK),
    "id": (GET_ID, 0, b"", 20, OK),
    "id without room": (GET_ID, 0, b"", 0, OK),
    "discard": (DISCARD, 0, segment(8, 8), 0, OK),
    "discard of nothing": (DISCARD, 0, segment(8, 0), 0, OK),
    "discard of the most": (DISCARD, 0, segment(0, SECTORS), 0, OK),
    "discard of too much": (DISCARD, 0, segment(0, 32769), 0, IOERR),
    "discard beyond the end": (DISCARD, 0, segment(SECTORS, 1), 0, IOERR),
    "discard with unmap": (DISCARD, 0, segment(0, 8, 1), 0, UNSUPP),
    "discard with flags": (DISCARD, 0, segment(0, 8, 2), 0, UNSUPP),
    "discard beyond the end with flags": (DISCARD, 0, segment(SECTORS, 1, 2), 0, IOERR),
    "discard of two segments": (DISCARD, 0, segment(0, 8) * 2, 0, UNSUPP),
    "discard of half a segment": (DISCARD, 0, segment(0, 8)[:15], 0, IOERR),
    "discard without segment": (DISCARD, 0, b"", 0, IOERR),
    "discard with a barrier": (DISCARD | BARRIER, 0, segment(8, 8), 0, IOERR),
    "write zeroes": (WRITE_ZEROES, 0, segment(8, 8), 0, OK),
    "write zeroes with unmap": (WRITE_ZEROES, 0, segment(8, 8, 1), 0, OK),
    "write zeroes with flags": (WRITE_ZEROES, 0, segment(8, 8, 3), 0, UNSUPP),
    "write zeroes of too much": (WRITE_ZEROES, 0, segment(0, 32769), 0, IOERR),
    "write zeroes with a barrier": (WRITE_ZEROES | BARRIER, 0, segment(8, 8), 0, IOERR),
    "scsi": (2, 0, b"", 512, UNSUPP),
    "type 10": (10, 0, b"", 20, UNSUPP),
    "secure erase": (14, 0, segment(0, 8), 0, UNSUPP),
    "type 99": (99, 0, b"", 0, UNSUPP),
}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("row", ROWS)
async def test_results(backend: FakeBackend, guest: Guest, row: str, fast: bool) -> None:
    kind, sector, out, room, status = ROWS[row]
    before = backend.content
    backend.fast = fast
    async with served(device(backend), guest):
        head = guest.put(
            [header(kind, sector), *([out] if out else [])], [*([room] if room else []), 1]
        )
        assert await guest.answer(head) == room + 1
        answer = guest.room(head, 16 + len(out), room + 1)
    assert answer[-1] == status
    data = answer[:-1]
    kind &= ~BARRIER
    if kind == IN and status == OK:
        assert data == before[sector * 512 : sector * 512 + room]
    elif kind == GET_ID:
        assert data[:15] == b"vhost_user_blk\0"[:room]
        assert data[15:] == bytes([NO_STATUS]) * max(0, room - 15)
    else:
        assert data == bytes([NO_STATUS]) * room, "not touched"
    after = bytearray(before)
    if kind == OUT and status == OK:
        after[sector * 512 : sector * 512 + len(out)] = out
    if kind == WRITE_ZEROES and status == OK:
        after[8 * 512 : 16 * 512] = bytes(8 * 512)
    assert backend.content == after


@pytest.mark.parametrize(
    ("kind", "payload"),
    [(OUT, b"x" * 512), (OUT, b"x" * 511), (DISCARD, segment(0, 8)), (WRITE_ZEROES, b"")],
)
async def test_a_read_only_device_changes_nothing(
    backend: FakeBackend, guest: Guest, kind: int, payload: bytes
) -> None:
    before = backend.content
    async with served(device(backend, writable=False), guest):
        head = guest.put([header(kind), *([payload] if payload else [])], [1])
        assert await guest.answer(head) == 1
        assert guest.room(head, 16 + len(payload), 1) == bytes([IOERR])
    assert backend.content == before
    assert backend.calls == []


async def test_only_the_start_must_be_a_multiple_of_the_block(
    backend: FakeBackend, guest: Guest
) -> None:
    async with served(device(backend, block_size=4096), guest):
        right = guest.put([header(IN, 8)], [512, 1])
        wrong = guest.put([header(IN, 9)], [4096, 1])
        await guest.answer(right)
        await guest.answer(wrong)
        assert guest.room(right, 16 + 512, 1) == bytes([OK])
        assert guest.room(wrong, 16 + 4096, 1) == bytes([IOERR])


@pytest.mark.parametrize("cut", [1, 4, 8, 15])
async def test_a_header_may_be_cut_anywhere(backend: FakeBackend, guest: Guest, cut: int) -> None:
    whole = header(OUT, 5) + b"y" * 512
    async with served(device(backend), guest):
        head = guest.put([whole[:cut], whole[cut:200], whole[200:]], [1])
        assert await guest.answer(head) == 1
        assert guest.room(head, len(whole), 1) == bytes([OK])
    assert backend.content[5 * 512 : 6 * 512] == b"y" * 512


async def test_the_status_is_the_last_byte_however_long_the_last_piece(
    backend: FakeBackend, guest: Guest
) -> None:
    async with served(device(backend), guest):
        head = guest.put([header(IN, 1)], [100, 413])
        assert await guest.answer(head) == 513
        assert guest.room(head, 16, 513) == backend.content[512:1024] + bytes([OK])


async def test_requests_that_are_none_are_given_back(
    backend: FakeBackend, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    """The real daemon never does: its driver waits for ever, and its deletion too."""
    async with served(device(backend), guest):
        for readable, writable in (([header(IN)], []), ([], [512, 1]), ([b"short"], [1])):
            assert await guest.answer(guest.put(readable, writable)) == 0
        head = guest.put([header(IN)], [512, 1])
        assert await guest.answer(head) == 513, "the queue goes on"
    assert caplog.messages == [
        "virtio-blk request missing headers",
        "virtio-blk request missing headers",
        "virtio-blk request outhdr too short",
    ]


async def test_a_broken_ring_ends_after_what_is_in_flight(
    backend: FakeBackend, guest: Guest
) -> None:
    gate = trio.Event()
    backend.fast = False
    backend.before = lambda _name, _offset: gate.wait()
    broken: list[VirtqueueError] = []

    async def serve() -> None:
        try:
            await device(backend).serve(guest.queue(), guest.kick_fd, guest.call)
        except VirtqueueError as exc:
            broken.append(exc)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            head = guest.put([header(IN, 1)], [512, 1])
            await trio.testing.wait_all_tasks_blocked()
            guest.ring.offer(NUM)
            guest.publish()
            await trio.testing.wait_all_tasks_blocked()
            assert not broken
            gate.set()
            assert await guest.answer(head) == 513
    assert [str(exc) for exc in broken] == [f"Guest says index {NUM} is available"]


async def test_cancelling_finishes_requests_in_flight(backend: FakeBackend, guest: Guest) -> None:
    gate = trio.Event()
    backend.fast = False
    backend.before = lambda _name, _offset: gate.wait()
    async with served(device(backend), guest) as scope:
        heads = [guest.put([header(IN, sector)], [512, 1]) for sector in range(5)]
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert guest.ring.used_index == 0
        late = guest.put([header(IN)], [512, 1])
        gate.set()
        for head in heads:
            assert await guest.answer(head) == 513
    assert guest.ring.used_index == 5, "what came after that is not begun"
    async with served(device(backend), guest):  # ... but by the next who serves the queue
        assert await guest.answer(late) == 513


async def test_abandoned_requests_are_not_answered(backend: FakeBackend, guest: Guest) -> None:
    backend.fast = False
    backend.before = lambda _name, _offset: trio.Event().wait()
    blk = device(backend)
    async with served(blk, guest) as scope:
        guest.put([header(IN)], [512, 1])
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        blk.abandon()
    assert guest.ring.used_index == 0


async def test_a_batch_is_notified_of_once(backend: FakeBackend, guest: Guest) -> None:
    heads = [guest.put([header(IN, sector)], [512, 1], publish=False) for sector in range(10)]
    guest.publish()
    async with served(device(backend), guest):
        for head in heads:
            assert await guest.answer(head) == 513
    assert guest.calls == 1
    assert backend.calls == [], "all by the fast path"


@pytest.mark.parametrize("cached", [True, False])
async def test_write_cache(backend: FakeBackend, guest: Guest, cached: bool) -> None:
    blk = device(backend, write_cache=cached)
    assert blk.config()[32] == cached, "the real daemon says 0 in any case"
    async with served(blk, guest):
        for out in (header(OUT) + b"x" * 512, header(DISCARD) + segment(0, 1)):
            await guest.answer(guest.put([out[:16], out[16:]], [1]))
        first = list(backend.calls)
        blk.wce = 7 if not cached else 0
        backend.calls.clear()
        await guest.answer(guest.put([header(OUT), b"x" * 512], [1]))
        then = list(backend.calls)
    durable = ("pwritev", 0, 512, ReqFlag.FUA)
    assert first == (
        [("pdiscard", 0, 512)] if cached else [durable, ("pdiscard", 0, 512), ("flush", 0)]
    )
    assert then == ([durable] if cached else [])


async def test_errors_of_the_node(backend: FakeBackend, guest: Guest) -> None:
    def fail(_name: str, _offset: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    backend.fast = False
    backend.before = fail
    async with served(device(backend), guest):
        for kind in (IN, OUT, FLUSH, DISCARD, WRITE_ZEROES):
            out = {OUT: b"x" * 512, DISCARD: segment(0, 1), WRITE_ZEROES: segment(0, 1)}.get(
                kind, b""
            )
            head = guest.put([header(kind), *([out] if out else [])], [512, 1])
            await guest.answer(head)
            assert guest.room(head, 16 + len(out) + 512, 1) == bytes([IOERR])


async def test_capacity_follows_the_node(backend: FakeBackend, guest: Guest) -> None:
    blk = device(backend)
    backend.on_resize.append(blk.resized)
    assert len(blk.config()) == CONFIG_SIZE
    assert blk.config()[:8] == SECTORS.to_bytes(8, "little")
    async with served(blk, guest):
        backend.resize(SIZE * 2)
        assert blk.config()[:8] == (2 * SECTORS).to_bytes(8, "little")
        head = guest.put([header(IN, SECTORS)], [512, 1])
        await guest.answer(head)
        assert guest.room(head, 16 + 512, 1) == bytes([OK])


async def test_the_loop_stays_responsive_under_a_flood(backend: FakeBackend, guest: Guest) -> None:
    """A driver that never stops: everybody else still gets his turn."""
    turns = 0

    async def flood() -> None:
        heads = [guest.put([header(IN, sector)], [512, 1]) for sector in range(SLOTS)]
        for _ in range(30):
            for head in heads:
                await guest.answer(head)
                guest.free(head)
            heads = [guest.put([header(IN, sector)], [512, 1]) for sector in range(SLOTS)]
        nursery.cancel_scope.cancel()

    async with served(device(backend), guest), trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1
    assert turns > 30


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("seed", range(3))
async def test_random_work_against_a_model(
    backend: FakeBackend, event_idx: bool, seed: int
) -> None:
    rng = random.Random(seed)
    guest = Guest(event_idx=event_idx, inflight=seed == 2)
    model = bytearray(backend.content)
    async with served(device(backend), guest):
        for step in range(60):
            backend.fast = rng.random() < 0.7
            # Requests in flight at once touch different places.
            places = rng.sample(range(SECTORS // 8), rng.randint(1, SLOTS))
            expected: dict[int, tuple[int, bytes]] = {}
            for place in places:
                sector, count = place * 8, rng.randint(1, 8)
                start, stop = sector * 512, (sector + count) * 512
                if rng.random() < 0.5:
                    data = bytes([step]) * (stop - start)
                    cut = rng.randrange(1, len(data))
                    head = guest.put([header(OUT, sector), data[:cut], data[cut:]], [1])
                    model[start:stop] = data
                    expected[head] = (16 + len(data), bytes([OK]))
                else:
                    head = guest.put([header(IN, sector)], [stop - start, 1])
                    expected[head] = (16, bytes(model[start:stop]) + bytes([OK]))
            for head, (skip, answer) in expected.items():
                await guest.answer(head)
                assert guest.room(head, skip, len(answer)) == answer
                guest.free(head)
    guest.close()
    assert backend.content == model
    if guest.log is not None:
        assert InflightQueue(guest.log, NUM).recover(guest.ring.used_index) == []


async def test_a_killed_device_is_succeeded(backend: FakeBackend) -> None:
    """The next one does what the first had begun, in that order, and then goes on."""
    guest = Guest(inflight=True)
    assert guest.log is not None
    assert len(guest.log) == log_size(NUM)
    backend.fast = False
    backend.before = lambda name, _offset: trio.Event().wait() if name == "pwritev" else None
    blk = device(backend)
    async with served(blk, guest) as scope:
        writes = [guest.put([header(OUT, n), bytes([n]) * 512], [1]) for n in range(1, 6)]
        read = guest.put([header(IN, 100)], [512, 1])
        assert await guest.answer(read) == 513, "out of order: others are still in flight"
        blk.abandon()  # killed: no answers
        scope.cancel()
    assert guest.ring.used_index == 1
    late = guest.put([header(IN, 1)], [512, 1])
    backend.before = None
    backend.calls.clear()
    guest._last_avail = 1  # a front-end knows the used ring only; the log knows better
    async with served(device(backend), guest):
        for head in (*writes, late):
            await guest.answer(head)
    assert sorted(offset for name, offset, *_ in backend.calls if name == "pwritev") == [
        n * 512 for n in range(1, 6)
    ]
    assert guest.ring.used_index == 7
    for n in range(1, 6):
        assert backend.content[n * 512 : (n + 1) * 512] == bytes([n]) * 512
    guest.close()


async def test_a_kick_descriptor_that_is_none(backend: FakeBackend, guest: Guest) -> None:
    fd = os.memfd_create("not an event")
    try:
        with pytest.raises(OSError), trio.fail_after(5):
            await device(backend).serve(guest.queue(), fd, guest.call)
    finally:
        os.close(fd)
