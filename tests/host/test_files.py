"""host/files.py: what is done at once, what goes to a worker, direct I/O, syncs."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from qsd_trio.host import files, libc
from qsd_trio.host.files import MAX_BUFFERS, MAX_INLINE, HostFile, is_block_device
from qsd_trio.host.inline import CERTAIN, SLOW_PER_UNIT
from qsd_trio.testing.memory import pattern

CONTENT = pattern(100_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    return path


@asynccontextmanager
async def opened(path: Path, flags: int = os.O_RDWR) -> AsyncIterator[HostFile]:
    file = await HostFile.open(str(path), flags)
    try:
        yield file
    finally:
        await file.aclose()


def content(path: Path) -> bytes:
    return path.read_bytes()


def buffers(*lengths: int) -> list[memoryview]:
    return [memoryview(bytearray(b"\xa5" * length)) for length in lengths]


def joined(iov: list[memoryview]) -> bytes:
    return b"".join(iov)


@pytest.fixture
def worker_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """List the system calls that worker threads make."""
    calls: list[str] = []
    main = threading.get_ident()

    class Watched:
        def __getattr__(self, name: str) -> object:
            if threading.get_ident() != main:
                calls.append(name)
            return getattr(os, name)

    monkeypatch.setattr(files, "os", Watched())
    return calls


async def test_reads_at_once_what_is_cached(path: Path) -> None:
    async with opened(path) as file:
        iov = buffers(10, 4000)
        assert file.read_now(iov, 50) == 4010
        assert joined(iov) == CONTENT[50:4060]


async def test_the_end_of_the_file_is_told_from_a_miss(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as file:
        iov = buffers(100)
        assert file.read_now(iov, len(CONTENT) - 30) == 30
        assert file.read_now(iov, len(CONTENT) + 30) == 0
        real = os.preadv
        monkeypatch.setattr(os, "preadv", lambda fd, iov, at, flags=0: real(fd, [iov[0][:40]], at))
        assert file.read_now(iov, 0) == -1, "half of it was in the cache"


async def test_a_miss_goes_to_a_worker(path: Path, worker_calls: list[str]) -> None:
    async with opened(path) as file:
        monkey = pytest.MonkeyPatch()

        def miss(*_: object) -> int:
            raise BlockingIOError

        with monkey.context() as patch:
            real = os.preadv
            patch.setattr(
                os, "preadv", lambda *args: miss() if args[3:] == (os.RWF_NOWAIT,) else real(*args)
            )
            iov = buffers(1000)
            assert file.read_now(iov, 0) == -1
            worker_calls.clear()
            await file.preadv(iov, 7)
            assert joined(iov) == CONTENT[7:1007]
            assert worker_calls == ["preadv"]


async def test_a_file_system_without_nowait_is_not_asked_again(path: Path) -> None:
    async with opened(path) as file:
        with pytest.MonkeyPatch.context() as patch:

            def refuse(*_: object) -> int:
                raise OSError(errno.EOPNOTSUPP, "no")

            patch.setattr(os, "preadv", refuse)
            assert file.read_now(buffers(10), 0) == -1
        assert not file.can_read_now
        iov = buffers(10)
        await file.preadv(iov, 0)
        assert joined(iov) == CONTENT[:10]


async def test_other_read_errors_are_raised(path: Path) -> None:
    async with opened(path) as file:
        with pytest.MonkeyPatch.context() as patch:

            def fail(*_: object) -> int:
                raise OSError(errno.EIO, "broken")

            patch.setattr(os, "preadv", fail)
            with pytest.raises(OSError, match="broken"):
                file.read_now(buffers(10), 0)
            with pytest.raises(OSError, match="broken"):
                await file.preadv(buffers(10), 0)


async def test_async_reads_fill_with_zeroes_beyond_the_end(path: Path) -> None:
    async with opened(path) as file:
        iov = buffers(20, 20, 20)
        await file.preadv(iov, len(CONTENT) - 30)
        assert joined(iov) == CONTENT[-30:] + bytes(30)
        many = buffers(*[3] * (MAX_BUFFERS + 10))
        await file.preadv(many, len(CONTENT) - MAX_BUFFERS * 3)
        assert joined(many) == CONTENT[-MAX_BUFFERS * 3 :] + bytes(30)


async def test_writes_of_all_sizes(path: Path) -> None:
    async with opened(path) as file:
        assert file.write_now([memoryview(b"abc"), memoryview(b"de")], 10)
        await file.pwritev([memoryview(b"fg")], 15)
        await file.pwritev([memoryview(b"h")], 17, dsync=True)
        assert content(path)[9:20] == CONTENT[9:10] + b"abcdefgh" + CONTENT[18:20]
        large = memoryview(bytes(MAX_INLINE) + b"x")
        assert not file.write_now([large], 0), "that would hold the loop"
        await file.pwritev([large], 0)
        assert os.pread(file.fd, 2, MAX_INLINE - 1) == b"\0x"
        pieces = [memoryview(bytes([n % 251])) for n in range(MAX_BUFFERS + 5)]
        assert not file.write_now(pieces, 0)
        await file.pwritev(pieces, 3)
        assert os.pread(file.fd, len(pieces), 3) == joined(pieces)


async def test_a_short_write_is_continued(path: Path) -> None:
    async with opened(path) as file:
        with pytest.MonkeyPatch.context() as patch:
            real = os.pwritev
            patch.setattr(os, "pwritev", lambda fd, iov, *rest: real(fd, [iov[0][:3]], *rest))
            assert file.write_now([memoryview(b"abcdefg"), memoryview(b"hi")], 1)
            await file.pwritev([memoryview(b"jklm")], 10, dsync=True)
        assert content(path)[:14] == CONTENT[:1] + b"abcdefghijklm"


async def test_a_slow_write_moves_writing_to_workers_and_back(
    path: Path, worker_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    cost = [SLOW_PER_UNIT / 100]

    def now() -> float:
        clock[0] += cost[0]
        return clock[0]

    monkeypatch.setattr(files, "perf_counter", now)
    data = [memoryview(b"data")]
    async with opened(path) as file:
        worker_calls.clear()
        await file.pwritev(data, 0)
        assert worker_calls == []
        cost[0] = 2 * CERTAIN
        await file.pwritev(data, 0)  # nobody could know: inline
        assert worker_calls == []
        assert not file.can_write_now
        assert not file.write_now(data, 0)
        await file.pwritev(data, 4)
        assert worker_calls == ["pwritev"]
        cost[0] = SLOW_PER_UNIT / 100
        clock[0] += 10
        await file.pwritev(data, 8)
        assert worker_calls == ["pwritev"] * 2
        assert file.can_write_now
    assert content(path)[:12] == b"data" * 3


async def test_read_only_files_are_never_written_inline(path: Path) -> None:
    async with opened(path, os.O_RDONLY) as file:
        assert not file.can_write_now
        with pytest.raises(OSError, match="Bad file"):
            await file.pwritev([memoryview(b"x")], 0)


async def test_direct_io_goes_around_the_page_cache_from_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "direct"
    path.write_bytes(CONTENT[:65536])
    async with opened(path, os.O_RDWR | os.O_DIRECT) as file:
        _, align = file.direct_alignment()
        assert align in (512, 1024, 2048, 4096)
        assert not file.can_read_now
        assert not file.can_write_now
        iov = buffers(1, 4095, 4096)  # nothing aligned about these
        await file.preadv(iov, 4096)
        assert joined(iov) == CONTENT[4096 : 4096 + 8192]
        new = pattern(4096, 9)
        await file.pwritev([memoryview(new)[:5], memoryview(new)[5:]], 8192)
        iov = buffers(8192)
        await file.preadv(iov, 61440)
        assert joined(iov) == CONTENT[61440:65536] + bytes(4096)
    assert content(path)[8192:12288] == new


async def test_alignment_is_probed_where_the_kernel_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "direct"
    path.write_bytes(bytes(65536))
    async with opened(path, os.O_RDWR | os.O_DIRECT) as file:
        told = file.direct_alignment()[1]
        monkeypatch.setattr(libc, "direct_io_alignment", lambda _: None)
        assert file.direct_alignment()[1] == told


async def test_syncs_that_wait_share_the_next_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, begun = threading.Semaphore(0), threading.Semaphore(0)
    syncs: list[int] = []

    def slow(fd: int) -> None:
        syncs.append(fd)
        begun.release()
        assert release.acquire(timeout=10)

    monkeypatch.setattr(os, "fdatasync", slow)
    async with opened(path) as file, trio.open_nursery() as nursery:
        nursery.start_soon(file.fdatasync)
        while not begun.acquire(blocking=False):  # noqa: ASYNC110  # set by a thread
            await trio.sleep(0.0005)
        for _ in range(20):
            nursery.start_soon(file.fdatasync)
        with trio.CancelScope() as scope:
            scope.cancel()
            await file.fdatasync()
        assert scope.cancelled_caught
        release.release(2)
    assert len(syncs) == 2, "one that ran, one for all who came later"


async def test_after_a_failed_sync_none_succeeds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as file:

        def fail(_: int) -> None:
            raise OSError(errno.EIO, "lost")

        monkeypatch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="lost"):
            await file.fdatasync()
        monkeypatch.undo()
        with pytest.raises(OSError, match="lost"):
            await file.fdatasync()


async def test_closing_waits_for_a_sync_whose_caller_has_gone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, open_at_end = threading.Event(), []

    def slow(fd: int) -> None:
        assert release.wait(10)
        open_at_end.append(os.fstat(fd).st_size)

    monkeypatch.setattr(os, "fdatasync", slow)
    file = await HostFile.open(str(path), os.O_RDWR)
    with trio.move_on_after(0.001):
        await file.fdatasync()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.aclose)
        await trio.testing.wait_all_tasks_blocked()
        release.set()
    assert open_at_end == [len(CONTENT)]
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(file.fd)


async def test_knows_what_is_cached(path: Path) -> None:
    with path.open("r+b") as sync:
        os.fsync(sync.fileno())
        os.posix_fadvise(sync.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    async with opened(path) as file:
        if file.cached_now(0, 4096):
            pytest.skip("this file system keeps everything in memory")
        await file.preadv(buffers(4096), 8192)
        assert file.cached_now(8192, 4096)
        assert file.cached_now(8200, 10)
        assert not file.cached_now(len(CONTENT) + 8192, 4096)


@pytest.mark.parametrize("told", [True, False])
async def test_knows_what_is_cached_on_old_kernels_too(
    path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    if not told:
        monkeypatch.setattr(libc, "cached_pages", lambda *_: None)
    async with opened(path) as file:
        await file.preadv(buffers(20000), 0)
        assert file.cached_now(100, 19000)
        assert not file.cached_now(1 << 20, 100)


async def test_sendfile_sends_or_says_that_the_socket_is_full(path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        async with opened(path) as file:
            assert file.sendfile_now(ours.fileno(), 10, 100) == 100
            assert theirs.recv(200) == CONTENT[10:110]
            assert file.sendfile_now(ours.fileno(), len(CONTENT), 100) == 0
            while (sent := file.sendfile_now(ours.fileno(), 0, 50_000)) > 0:
                pass
            assert sent == -1


async def test_finds_data_and_holes(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as out:
        out.truncate(1 << 20)
        out.seek(1 << 19)
        out.write(bytes(65536))
    async with opened(path) as file:
        assert file.data_or_hole(0, 1 << 20) == (False, 1 << 19)
        assert file.data_or_hole(1 << 19, 1 << 20) == (True, (1 << 19) + 65536)
        assert file.data_or_hole((1 << 19) + 100, (1 << 19) + 200) == (True, (1 << 19) + 200)
        assert file.data_or_hole(1 << 20, 1 << 21) == (False, 1 << 21)


async def test_replacing_keeps_the_number_and_takes_over_the_mode(path: Path) -> None:
    async with opened(path, os.O_RDONLY) as file:
        number = file.fd
        file.replace(os.open(path, os.O_RDWR | os.O_DIRECT))
        assert file.fd == number
        assert file.writable
        assert file.direct
        assert not os.get_inheritable(number)
        file.replace(os.open(path, os.O_RDWR))
        assert file.can_write_now
        assert file.write_now([memoryview(b"x")], 0)


async def test_opening_raises_what_the_kernel_says(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await HostFile.open(str(tmp_path / "none"), os.O_RDWR)
    assert not is_block_device(str(tmp_path / "none"))
    assert not is_block_device("/dev/null")


async def test_fallocate_and_truncate(path: Path) -> None:
    async with opened(path) as file:
        await file.fallocate(libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE, 4096, 8192)
        assert os.pread(file.fd, 8192, 4096) == bytes(8192)
        await file.ftruncate(5)
        assert file.size() == 5
        with pytest.raises(OSError, match="Operation not supported"):
            await file.fallocate(0x4000, 0, 1)
