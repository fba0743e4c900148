"""Split virtqueues against a driver's model: what is right, what is broken, and what a driver may do meanwhile."""

from __future__ import annotations

from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd_trio.host.barrier import make_barrier
from qsd_trio.protocol.virtio.memory import Region, RegionMemory, VirtqueueError
from qsd_trio.protocol.virtio.queue import (
    DESCRIPTOR,
    INDIRECT,
    MAX_PIECES,
    NEXT,
    WRITE,
    Virtqueue,
    ring_sizes,
)
from qsd_trio.testing.virtqueue import DriverRing

BASE = 0x1_0000_0000
DATA = BASE + 0x8000


class Machine:
    """A guest's memory with one ring in it, and the device's view of that ring."""

    def __init__(
        self,
        num: int = 8,
        *,
        event_idx: bool = False,
        notify_on_empty: bool = False,
        start: int = 0,
        size: int = 0x10000,
    ) -> None:
        self.bytes = memoryview(bytearray(size))
        self.memory = RegionMemory([Region(guest_address=BASE, user_address=0, view=self.bytes)])
        self.ring = DriverRing(self.bytes, offset=0, address=BASE, num=num, event_idx=event_idx)
        if start:
            self.ring.set_index(start)
        desc, avail, used = self.ring.parts
        self.queue = Virtqueue(
            self.memory,
            desc,
            avail,
            used,
            num,
            last_avail=start,
            used_index=start,
            event_idx=event_idx,
            notify_on_empty=notify_on_empty,
            barrier=make_barrier(),
        )
        if start:
            used[:4].cast("H")[1] = start
            self.ring._last_used = start


def offer(machine: Machine, *descriptors: tuple[int, int, int, int], head: int = 0) -> None:
    """Write descriptors from index 0 on and offer ``head``."""
    for index, descriptor in enumerate(descriptors):
        machine.ring.write_descriptor(index, *descriptor)
    machine.ring.offer(head)
    machine.ring.publish()


def test_a_request_is_taken_apart_in_order() -> None:
    machine = Machine()
    head = machine.ring.add([(DATA, 16, False), (DATA + 16, 100, True), (DATA + 200, 1, True)])
    assert machine.queue.pop() is None, "not published yet"
    machine.ring.publish()
    machine.bytes[0x8000:0x8004] = b"head"
    element = machine.queue.pop()
    assert element is not None
    assert element.head == head
    assert [len(piece) for piece in element.readable] == [16]
    assert [len(piece) for piece in element.writable] == [100, 1]
    assert bytes(element.readable[0][:4]) == b"head"
    element.writable[0][:3] = b"yes"
    assert bytes(machine.bytes[0x8010:0x8013]) == b"yes"
    assert machine.queue.pop() is None
    machine.queue.push(head, 101)
    assert list(machine.ring.take()) == [], "not published yet"
    assert machine.queue.publish()
    assert list(machine.ring.take()) == [(head, 101)]
    assert not machine.queue.publish(), "nothing new"


@pytest.mark.parametrize(
    ("descriptors", "head", "text"),
    [
        ([], 8, "Guest says index 8 is available"),
        ([], 65535, "Guest says index 65535 is available"),
        ([(DATA, 16, NEXT, 8)], 0, "Desc next is 8"),
        ([(DATA, 16, NEXT, 1), (DATA, 16, NEXT, 0)], 0, "Looped descriptor"),
        ([(DATA, 16, NEXT, 0)], 0, "Looped descriptor"),
        ([(DATA, 16, WRITE | NEXT, 1), (DATA, 16, 0, 0)], 0, "Incorrect order for descriptors"),
        ([(DATA, 0, 0, 0)], 0, "virtio: zero sized buffers are not allowed"),
        ([(0, 16, 0, 0)], 0, "virtio: invalid address for buffers"),
        ([(BASE - 1, 16, 0, 0)], 0, "virtio: invalid address for buffers"),
        ([(BASE + 0xFFFF, 2, 0, 0)], 0, "virtio: invalid address for buffers"),
        ([(DATA, 0xFFFFFFFF, 0, 0)], 0, "virtio: invalid address for buffers"),
        ([(2**64 - 1, 16, 0, 0)], 0, "virtio: invalid address for buffers"),
        ([(DATA, 8, INDIRECT, 0)], 0, "Invalid size for indirect buffer table"),
        ([(DATA, 0, INDIRECT, 0)], 0, "Invalid indirect buffer table"),
        ([(0, 16, INDIRECT, 0)], 0, "Invalid indirect buffer table"),
        ([(DATA, 0xFFFFFFF0, INDIRECT, 0)], 0, "Invalid indirect buffer table"),
    ],
)
def test_broken_rings(descriptors: list[tuple[int, int, int, int]], head: int, text: str) -> None:
    machine = Machine()
    offer(machine, *descriptors, head=head)
    with pytest.raises(VirtqueueError) as caught:
        machine.queue.pop()
    assert str(caught.value) == text


def write_table(machine: Machine, at: int, *descriptors: tuple[int, int, int, int]) -> None:
    for index, descriptor in enumerate(descriptors):
        DESCRIPTOR.pack_into(machine.bytes, at + 16 * index, *descriptor)


def test_an_indirect_table_is_followed_and_nothing_else() -> None:
    machine = Machine()
    # INDIRECT with NEXT follows the table only; INDIRECT inside a table is data like any other.
    write_table(machine, 0x4000, (DATA, 16, NEXT, 1), (DATA, 3, INDIRECT | WRITE, 0))
    offer(machine, (BASE + 0x4000, 32, INDIRECT | NEXT, 1), (0, 0, 0, 0))
    element = machine.queue.pop()
    assert element is not None
    assert [len(piece) for piece in element.readable] == [16]
    assert [len(piece) for piece in element.writable] == [3]


@pytest.mark.parametrize(
    ("count", "last", "text"),
    [
        (MAX_PIECES, 0, None),
        (MAX_PIECES + 1, 0, "virtio: too many descriptors in indirect table"),
        (MAX_PIECES + 100, 0, "virtio: too many descriptors in indirect table"),
        (4, NEXT, "Looped descriptor"),
    ],
)
def test_long_tables(count: int, last: int, text: str | None) -> None:
    machine = Machine()
    table = [(DATA, 1, NEXT, index + 1) for index in range(count)]
    table[-1] = (DATA, 1, last, 0)
    write_table(machine, 0x1000, *table)
    offer(machine, (BASE + 0x1000, 16 * count, INDIRECT, 0))
    if text is None:
        element = machine.queue.pop()
        assert element is not None
        assert len(element.readable) == count
    else:
        with pytest.raises(VirtqueueError, match=text):
            machine.queue.pop()


def test_a_table_may_lie_in_two_regions() -> None:
    machine = Machine()
    cut = 0x1018  # in the middle of a descriptor
    write_table(machine, 0x1000, (DATA, 16, NEXT, 1), (DATA, 1, WRITE, 0))
    machine.queue._memory = RegionMemory(
        [
            Region(guest_address=BASE, user_address=0, view=machine.bytes[:cut]),
            Region(guest_address=BASE + cut, user_address=0, view=machine.bytes[cut:]),
        ]
    )
    offer(machine, (BASE + 0x1000, 32, INDIRECT, 0))
    element = machine.queue.pop()
    assert element is not None
    assert (len(element.readable), len(element.writable)) == (1, 1)


def test_a_buffer_may_lie_in_two_regions() -> None:
    left, right, far = (memoryview(bytearray(4096)) for _ in range(3))
    memory = RegionMemory(
        [
            Region(guest_address=0x3001, user_address=0x9000, view=far),
            Region(guest_address=0x2000, user_address=0x5000, view=right),
            Region(guest_address=0x1000, user_address=0x7000, view=left),
        ]
    )
    pieces = memory.view(0x1F00, 0x200, write=True)
    assert [len(piece) for piece in pieces] == [0x100, 0x100]
    pieces[1][0] = 7
    assert right[0] == 7
    with pytest.raises(VirtqueueError):
        memory.view(0x2F00, 0x200, write=False)  # a byte is missing in between
    assert memory.at_user_address(0x5000, 4096) is not None
    assert memory.at_user_address(0x5000, 4097) is None
    assert memory.at_user_address(0x6000, 1) is None


@pytest.mark.parametrize("overlap", [0x1FFF, 0x1000])
def test_regions_must_not_overlap(overlap: int) -> None:
    view = memoryview(bytearray(4096))
    with pytest.raises(ValueError, match="overlapping"):
        RegionMemory(
            Region(guest_address=address, user_address=address, view=view)
            for address in (0x1000, overlap)
        )


@pytest.mark.parametrize("jump", [9, 100, 32768, 65535])
def test_an_index_that_jumps_breaks_the_ring(jump: int) -> None:
    machine = Machine(num=8)
    machine.ring.set_index(jump)
    with pytest.raises(VirtqueueError, match=f"Guest moved used index from 0 to {jump}"):
        machine.queue.pop()


def test_more_in_flight_than_the_queue_holds() -> None:
    machine = Machine(num=2)
    machine.ring.write_descriptor(0, DATA, 1)
    for _ in range(2):
        machine.ring.offer(0)
    machine.ring.publish()
    assert machine.queue.pop() is not None
    assert machine.queue.pop() is not None
    machine.ring.offer(0)
    machine.ring.publish()
    with pytest.raises(VirtqueueError, match="Virtqueue size exceeded"):
        machine.queue.pop()


class Changing:
    """A table whose bytes are others each time they are read: a driver that races with us."""

    def __init__(self, *versions: tuple[int, int, int, int]) -> None:
        self.versions = list(versions)
        self.reads = 0

    def __call__(self, _table: memoryview, at: int) -> tuple[int, int, int, int]:
        self.reads += 1
        return self.versions[min(self.reads, len(self.versions)) - 1]


def test_each_descriptor_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    offer(machine, (DATA, 16, 0, 0))
    changing = Changing((DATA, 16, 0, 0), (0, 0xFFFFFFFF, NEXT, 0))
    monkeypatch.setattr("qsd_trio.protocol.virtio.queue._unpack", changing)
    element = machine.queue.pop()
    assert element is not None
    assert [len(piece) for piece in element.readable] == [16]
    assert changing.reads == 1


# -- notifications -------------------------------------------------------------------------------------


@given(
    start=st.integers(0, 65535),
    batches=st.lists(st.integers(1, 8), min_size=1, max_size=20),
    wanted=st.integers(0, 65535),
)
def test_event_idx_is_right_around_the_wrap(start: int, batches: list[int], wanted: int) -> None:
    machine = Machine(event_idx=True, start=start)
    ring, queue = machine.ring, machine.queue
    used_event = ring.parts[1].cast("H")[2 + ring.num :]
    used_event[0] = wanted
    done = start
    for number, batch in enumerate(batches):
        for _ in range(batch):
            ring.add([(DATA, 1, False)])
        ring.publish()
        while (element := queue.pop()) is not None:
            queue.push(element.head, 0)
        passed = {(done + step) & 0xFFFF for step in range(batch)}
        # It is told when the entry it waits for has been used; and once at the start in any case.
        used_event[0] = wanted
        assert queue.publish() == (wanted in passed or not number)
        done = (done + batch) & 0xFFFF
        assert len(list(ring.take())) == batch


def test_without_event_idx_a_flag_says_it() -> None:
    machine = Machine()
    for suppressed in (False, True):
        machine.ring.suppress_interrupts(suppressed)
        head = machine.ring.add([(DATA, 1, False)])
        machine.ring.publish()
        assert machine.queue.pop() is not None
        machine.queue.push(head, 0)
        assert machine.queue.publish() is not suppressed


def test_notify_on_empty_wins_over_the_flag() -> None:
    machine = Machine(notify_on_empty=True)
    machine.ring.suppress_interrupts(True)
    for _ in range(2):
        machine.ring.add([(DATA, 1, False)])
    machine.ring.publish()
    queue = machine.queue
    first, second = queue.pop(), queue.pop()
    assert first is not None
    assert second is not None
    queue.push(first.head, 0)
    assert not queue.publish(), "one is in flight"
    queue.push(second.head, 0)
    assert queue.publish()


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_parked_device_is_kicked(event_idx: bool) -> None:
    machine = Machine(event_idx=event_idx)
    ring, queue = machine.ring, machine.queue
    queue.disable_notifications()
    ring.add([(DATA, 1, False)])
    # With EVENT_IDX the very first entry is one that the driver kicks for: avail_event is 0.
    assert ring.publish() is event_idx
    assert not queue.enable_notifications(), "there is something to do: no time to sleep"
    assert queue.pop() is not None
    assert queue.enable_notifications()
    ring.add([(DATA, 1, False)])
    assert ring.publish()
    assert queue.has_more()


@pytest.mark.parametrize("num", [1, 100, 1024])
def test_queue_sizes(num: int) -> None:
    machine = Machine(num=num)
    for _ in range(3 * num):
        head = machine.ring.add([(DATA, 1, False)])
        machine.ring.publish()
        element = machine.queue.pop()
        assert element is not None
        assert element.head == head
        machine.queue.push(head, 5)
        machine.queue.publish()
        assert list(machine.ring.take()) == [(head, 5)]


@pytest.mark.parametrize("num", [0, 32769])
def test_queue_sizes_that_are_none(num: int) -> None:
    parts = [memoryview(bytearray(size)) for size in ring_sizes(num, False)]
    with pytest.raises(ValueError, match="queue size"):
        Virtqueue(
            RegionMemory(),
            *parts,
            num,
            last_avail=0,
            used_index=0,
            event_idx=False,
            notify_on_empty=False,
            barrier=make_barrier(),
        )


# -- anything ------------------------------------------------------------------------------------------

ADDRESSES = st.one_of(
    st.sampled_from([DATA, BASE, BASE + 0xFFF0, 0, 2**64 - 1]), st.integers(0, 2**64 - 1)
)
DESCRIPTORS = st.tuples(
    ADDRESSES,
    st.one_of(st.sampled_from([0, 1, 16, 32, 4096]), st.integers(0, 2**32 - 1)),
    st.integers(0, 7),
    st.one_of(st.integers(0, 8), st.integers(0, 65535)),
)


@settings(max_examples=200, deadline=None)
@given(
    descriptors=st.lists(DESCRIPTORS, min_size=8, max_size=8),
    heads=st.lists(st.one_of(st.integers(0, 8), st.integers(0, 65535)), min_size=8, max_size=8),
    index=st.one_of(st.integers(0, 8), st.integers(0, 65535)),
    noise=st.binary(max_size=64),
)
def test_any_ring_is_served_or_broken(
    descriptors: list[tuple[int, int, int, int]], heads: list[int], index: int, noise: bytes
) -> None:
    machine = Machine()
    machine.bytes[0x8000 : 0x8000 + len(noise)] = noise
    for at, descriptor in enumerate(descriptors):
        machine.ring.write_descriptor(at, *descriptor)
    for head in heads:
        machine.ring.offer(head)
    machine.ring.set_index(index)
    begun = perf_counter()
    served = 0
    try:
        while (element := machine.queue.pop()) is not None:
            served += 1
            assert element.head < 8
            assert element.readable or element.writable
            machine.queue.push(element.head, 0)
            machine.queue.publish()
    except VirtqueueError:
        pass
    assert served <= 8
    assert perf_counter() - begun < 1
