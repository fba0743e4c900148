"""The in-flight log: killed at any moment, the next one knows what was not finished; and it believes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd_trio.protocol.virtio.inflight import InflightQueue, log_size
from qsd_trio.protocol.virtio.memory import VirtqueueError

NUM = 8


def fresh() -> tuple[memoryview, InflightQueue]:
    memory = memoryview(bytearray(log_size(NUM)))
    return memory, InflightQueue(memory, NUM)


def test_size_is_what_other_back_ends_make() -> None:
    assert 2 * log_size(128) == 4224


def test_what_was_begun_is_resubmitted_in_order() -> None:
    memory, log = fresh()
    for head in (5, 1, 7, 2):
        log.begin(head)
    log.finish([1])
    log.finished([1], 1)
    assert InflightQueue(memory, NUM).recover(1) == [5, 7, 2]


@given(
    begun=st.permutations(range(NUM)),
    finished=st.integers(1, NUM),
    step=st.integers(0, 2),
    used=st.integers(0, 65535),
)
def test_killed_while_a_batch_becomes_visible(
    begun: list[int], finished: int, step: int, used: int
) -> None:
    memory, log = fresh()
    memory.cast("H")[7] = used  # used_idx so far
    for head in begun:
        log.begin(head)
    batch = begun[:finished]
    log.finish(batch)
    visible = used
    if step >= 1:
        visible = used + finished & 0xFFFF  # the used ring's index was written
    if step >= 2:
        log.finished(batch[:1], visible)  # ... and a part of what follows
        memory.cast("H")[7] = used
    left = begun if step == 0 else begun[finished:]
    again = InflightQueue(memory, NUM)
    assert again.recover(visible) == left
    assert again.recover(visible) == left, "it can be killed again"


def test_counters_go_on_after_a_recovery() -> None:
    memory, log = fresh()
    log.begin(3)
    log.begin(1)
    again = InflightQueue(memory, NUM)
    assert again.recover(0) == [3, 1]
    again.begin(0)
    assert InflightQueue(memory, NUM).recover(0) == [3, 1, 0]


def test_a_log_of_something_else_is_refused() -> None:
    memory, _ = fresh()
    memory.cast("H")[4] = 2  # version
    with pytest.raises(VirtqueueError):
        InflightQueue(memory, NUM)
    memory, _ = fresh()
    memory.cast("H")[5] = NUM - 1  # desc_num
    with pytest.raises(VirtqueueError):
        InflightQueue(memory, NUM)
    with pytest.raises(VirtqueueError):
        InflightQueue(memory[:-1], NUM)


def test_marks_must_be_0_or_1() -> None:
    memory, log = fresh()
    memory[16] = 2
    with pytest.raises(VirtqueueError, match="marks"):
        log.recover(0)


@given(data=st.binary(min_size=log_size(NUM), max_size=log_size(NUM)), used=st.integers(0, 65535))
def test_any_log_is_recovered_or_refused(data: bytes, used: int) -> None:
    memory = memoryview(bytearray(data))
    memory.cast("H")[4] = 1
    memory.cast("H")[5] = NUM
    for at in range(16, len(memory), 16):
        memory[at] &= 1
    try:
        heads = InflightQueue(memory, NUM).recover(used)
    except VirtqueueError:
        return
    assert len(set(heads)) == len(heads)
    assert all(head < NUM for head in heads)
