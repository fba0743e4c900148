"""host/uring.py: a real ring of the kernel's, and the fallback without one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from qsd_trio.host import uring as module
from qsd_trio.host.uring import ENTRIES, Uring, uring
from qsd_trio.testing.memory import pattern

CONTENT = pattern(1 << 16)


def ring_is_allowed() -> bool:
    async def probe() -> bool:
        return uring() is not None

    return trio.run(probe)


needs_ring = pytest.mark.skipif(
    not ring_is_allowed() and "QSD_REQUIRE" not in os.environ,
    reason="this kernel allows no io_uring",
)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    number = os.open(path, os.O_RDWR)
    yield number
    os.close(number)


def the_ring() -> Uring:
    ring = uring()
    assert ring is not None
    return ring


@needs_ring
async def test_reads_and_writes_vectors(fd: int) -> None:
    ring = the_ring()
    buffer = memoryview(bytearray(300))
    assert await ring.preadv(fd, [buffer[:7], buffer[7:]], 1000) == 300
    assert bytes(buffer) == CONTENT[1000:1300]
    pieces = [memoryview(b"abc"), memoryview(bytearray(b"defg"))[1:]]
    assert await ring.pwritev(fd, pieces, 5, os.RWF_DSYNC) == 6
    assert os.pread(fd, 8, 4) == CONTENT[4:5] + b"abcefg" + CONTENT[11:12]


@needs_ring
async def test_the_end_of_the_file_and_errors(fd: int) -> None:
    ring = the_ring()
    buffer = memoryview(bytearray(100))
    assert await ring.preadv(fd, [buffer], len(CONTENT) - 40) == 40
    with pytest.raises(OSError, match="Bad file") as caught:
        await ring.preadv(1 << 20, [buffer], 0)
    assert caught.value.errno == errno.EBADF


@needs_ring
async def test_more_requests_than_the_ring_holds_in_few_submissions(fd: int) -> None:
    ring = the_ring()
    before = ring.submissions
    wrong: list[int] = []

    async def check(at: int) -> None:
        buffer = memoryview(bytearray(64))
        await ring.preadv(fd, [buffer], at)
        if buffer != CONTENT[at : at + 64]:
            wrong.append(at)

    async with trio.open_nursery() as nursery:
        for number in range(3 * ENTRIES):
            nursery.start_soon(check, number * 64)
    assert wrong == []
    assert ring.submissions - before < 30


@needs_ring
async def test_cancelled_before_submission_it_never_happens(fd: int) -> None:
    ring = the_ring()
    with trio.CancelScope() as scope:
        scope.cancel()
        await ring.pwritev(fd, [memoryview(b"never")], 0)
    assert scope.cancelled_caught
    assert await ring.preadv(fd, [memoryview(bytearray(1))], 0) == 1
    assert os.pread(fd, 5, 0) == CONTENT[:5]


@needs_ring
def test_every_run_has_its_own_ring_and_gives_it_back(fd: int) -> None:
    async def use() -> Uring:
        buffer = memoryview(bytearray(10))
        assert await the_ring().preadv(fd, [buffer], 0) == 10
        return the_ring()

    open_before = len(os.listdir("/proc/self/fd"))
    assert trio.run(use) is not trio.run(use)
    assert len(os.listdir("/proc/self/fd")) == open_before


async def test_without_a_ring_there_is_none_and_no_noise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_SYS_SETUP", -1)
    assert uring() is None
    assert caplog.records == []
