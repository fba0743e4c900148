"""block/drivers/file.py, and _posix.py beneath it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from qsd_trio.block.abc import Perm, ReqFlag, StatusFlag
from qsd_trio.block.drivers import _posix
from qsd_trio.block.drivers.file import File, create
from qsd_trio.block.io import Node
from qsd_trio.errors import QmpError
from qsd_trio.host import libc
from qsd_trio.host.files import HostFile
from qsd_trio.qapi import (
    BlockdevAioOptions,
    BlockdevCreateOptionsFile,
    BlockdevOptionsFile,
    OnOffAuto,
    PreallocMode,
)
from qsd_trio.testing.block_drivers import check_block_driver
from qsd_trio.testing.memory import FakeOpener, opened, pattern
from tests.texts import refused

SIZE = 300_001  # not a multiple of anything


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(pattern(1000) * (SIZE // 1000) + b"x")
    return path


def options(path: Path | str, **more: Any) -> BlockdevOptionsFile:
    return BlockdevOptionsFile(filename=str(path), **more)


def file_of(node: Node) -> HostFile:
    assert isinstance(node.driver, File)
    return node.driver._file


def hint(path: Path) -> str:
    return f"Is another process using the image [{path}]?"


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def size(path: Path) -> int:
    return path.stat().st_size


# -- the contract ------------------------------------------------------------------------------------


@pytest.mark.parametrize("aio", [None, BlockdevAioOptions.THREADS, BlockdevAioOptions.IO_URING])
async def test_keeps_the_contract(path: Path, aio: BlockdevAioOptions | None) -> None:
    await check_block_driver(lambda: opened(File, options(path, aio=aio)))


async def test_keeps_the_contract_without_the_page_cache(path: Path) -> None:
    native = options(path, aio=BlockdevAioOptions.NATIVE)
    await check_block_driver(lambda: opened(File, native, cache_direct=True), steps=25)


async def test_keeps_the_contract_when_nothing_is_done_inline(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostFile, "read_now", lambda *_: -1)
    monkeypatch.setattr(HostFile, "write_now", lambda *_: False)
    for aio in (BlockdevAioOptions.THREADS, BlockdevAioOptions.IO_URING):
        chosen = options(path, aio=aio)
        await check_block_driver(lambda chosen=chosen: opened(File, chosen), steps=25)


async def test_keeps_the_contract_where_the_file_system_can_do_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(libc, "fallocate", refuse)
    await check_block_driver(lambda: opened(File, options(path)), steps=25)


async def test_keeps_the_contract_read_only(path: Path) -> None:
    await check_block_driver(lambda: opened(File, options(path), read_only=True), writable=False)


# -- opening -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filename", "text"),
    [
        ("", "The 'file' block driver requires a file name"),
        ("none", "Could not open 'none': No such file or directory"),
        ("file:image", "Could not open 'file:image': No such file or directory"),
        (".", "Could not open '.': Is a directory"),
        ("/dev/null", "'file' driver requires '/dev/null' to be a regular file"),
    ],
)
async def test_refuses_what_is_no_image_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filename: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(QmpError) as caught:
        await File.open(FakeOpener(), options(filename))
    assert str(caught.value) == text
    assert len(os.listdir("/proc/self/fd")) == before


async def test_refuses_options_that_need_more(path: Path) -> None:
    with pytest.raises(QmpError) as caught:
        await File.open(FakeOpener(), options(path, aio=BlockdevAioOptions.NATIVE))
    assert str(caught.value) == (
        "aio=native was specified, but it requires cache.direct=on, which was not specified."
    )
    with refused("No persistent reservation manager with id 'pr0'"):
        await File.open(FakeOpener(), options(path, pr_manager="pr0"))


async def test_a_length_that_cannot_be_known_is_an_error() -> None:
    with pytest.raises(QmpError) as caught:
        await File.open(FakeOpener(read_only=True), options("/proc/version"))
    assert str(caught.value) == "Could not refresh total sector count: Invalid argument"


async def test_a_file_system_without_direct_io_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> HostFile:
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(HostFile, "open", refuse)
    with pytest.raises(QmpError) as caught:
        await File.open(FakeOpener(cache_direct=True), options(path))
    assert str(caught.value) == f"Could not open '{path}': filesystem does not support O_DIRECT"


async def test_tells_what_query_commands_show(path: Path) -> None:
    async with opened(File, options(path)) as node:
        assert node.driver.filename() == str(path)
        assert node.getlength() == 300_032  # whole sectors
        assert node.driver.allocated_size() == allocated(path)
        assert await node.driver.image_info() == {"dirty-flag": False}
        assert node.driver.has_zero_init()
        assert node.driver.driver_stats() == {
            "driver": "file",
            "discard-nb-ok": 0,
            "discard-nb-failed": 0,
            "discard-bytes-ok": 0,
        }


# -- requests ----------------------------------------------------------------------------------------


async def test_maps_to_itself_while_the_page_cache_is_in_use(path: Path) -> None:
    async with opened(File, options(path)) as node:
        assert node.map_read(100, 50) == ((file_of(node), 100, 50),)
        assert node.map_write(100, 50) == ((file_of(node), 100, 50),)
    async with opened(File, options(path), read_only=True) as node:
        assert node.map_read(100, 50) is not None
        assert node.map_write(100, 50) is None
    async with opened(File, options(path), cache_direct=True) as node:
        assert node.map_read(0, 512) is None
        assert node.map_write(0, 512) is None


async def test_discards_give_storage_back_and_are_counted(path: Path) -> None:
    async with opened(File, options(path)) as node:
        before = allocated(path)
        await node.pdiscard(4096, 65536)
        assert allocated(path) == before - 65536
        stats = node.driver.driver_stats()
        assert stats is not None
        assert (stats["discard-nb-ok"], stats["discard-bytes-ok"]) == (1, 65536)


async def test_a_discard_that_is_not_supported_is_asked_for_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def refuse(fd: int, mode: int, *_: int) -> None:
        calls.append(mode)
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(libc, "fallocate", refuse)
    async with opened(File, options(path)) as node:
        await node.pdiscard(0, 4096)  # the gate takes it for granted that a discard may do nothing
        await node.pdiscard(0, 4096)
        assert len(calls) == 1
        stats = node.driver.driver_stats()
        assert stats is not None
        assert stats["discard-nb-failed"] == 2


async def test_other_errors_of_a_discard_are_raised(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(libc, "fallocate", fail)
    async with opened(File, options(path)) as node:
        with pytest.raises(OSError, match="broken"):
            await node.pdiscard(0, 4096)
        with pytest.raises(OSError, match="broken"):
            await node.pwrite_zeroes(0, 4096)


async def test_zeroes_keep_or_give_back_storage_as_asked(path: Path) -> None:
    async with opened(File, options(path)) as node:
        before = allocated(path)
        await node.pwrite_zeroes(4096, 65536)
        assert allocated(path) == before
        await node.pwrite_zeroes(4096, 65536, ReqFlag.MAY_UNMAP)
        assert allocated(path) == before - 65536


@pytest.mark.parametrize("flags", [ReqFlag.NONE, ReqFlag.MAY_UNMAP])
async def test_zeroes_beyond_the_end_make_the_file_longer(path: Path, flags: ReqFlag) -> None:
    async with opened(File, options(path)) as node:
        await node.pwrite_zeroes(290_000, 100_000, flags)
        assert size(path) == 390_000
        assert node.driver.getlength() == 390_000


async def test_fast_zeroes_are_fast_or_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = libc.fallocate

    def only_punch(fd: int, mode: int, offset: int, length: int) -> None:
        if mode & libc.FALLOC_FL_ZERO_RANGE:
            raise OSError(errno.EOPNOTSUPP, "no")
        real(fd, mode, offset, length)

    monkeypatch.setattr(libc, "fallocate", only_punch)
    async with opened(File, options(path)) as node:
        before = allocated(path)
        await node.pwrite_zeroes(4096, 65536, ReqFlag.NO_FALLBACK)
        assert allocated(path) == before, "punched, then given storage again"
    monkeypatch.setattr(libc, "fallocate", lambda *_: only_punch(0, 16, 0, 0))
    async with opened(File, options(path)) as node:
        with pytest.raises(OSError, match="supported") as caught:
            await node.pwrite_zeroes(4096, 65536, ReqFlag.NO_FALLBACK)
        assert caught.value.errno == errno.ENOTSUP


async def test_status_shows_holes(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as out:
        out.truncate(1 << 20)
        out.seek(65536)
        out.write(b"data")
    async with opened(File, options(path)) as node:
        hole = await node.block_status(0, 1 << 20)
        assert hole.length == 65536
        assert hole.flags == StatusFlag.ZERO | StatusFlag.OFFSET_VALID | StatusFlag.ALLOCATED
        data = await node.block_status(65536, 1 << 19)
        assert data.length == 4096
        assert data.flags == StatusFlag.DATA | StatusFlag.OFFSET_VALID | StatusFlag.ALLOCATED
        quick = await node.block_status(0, 1 << 20, want_zero=False)
        assert quick.length == 1 << 20
        assert quick.flags & StatusFlag.DATA


async def test_fua_writes_ask_for_stable_storage(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: list[int] = []
    real = os.pwritev

    def watch(fd: int, iov: Any, offset: int, flag: int = 0) -> int:
        flags.append(flag)
        return real(fd, iov, offset, flag)

    monkeypatch.setattr(os, "pwritev", watch)
    async with opened(File, options(path)) as node:
        await node.pwritev(0, [memoryview(b"x")], ReqFlag.FUA)
    assert flags == [os.RWF_DSYNC]


# -- truncate ----------------------------------------------------------------------------------------


async def truncate(node: Node, length: int, prealloc: str = "off") -> None:
    await node.truncate(length, prealloc=prealloc)


@pytest.mark.parametrize("prealloc", ["falloc", "full"])
async def test_preallocated_growth_has_storage(path: Path, prealloc: str) -> None:
    async with opened(File, options(path)) as node:
        await truncate(node, 1 << 20, prealloc)
        assert node.getlength() == 1 << 20
    assert size(path) == 1 << 20
    assert allocated(path) >= 1 << 20


@pytest.mark.parametrize(
    ("length", "prealloc", "text"),
    [
        (1 << 62, "off", "Could not resize file: File too large"),
        (1 << 45, "falloc", "Could not preallocate new data: File too large"),
        (512, "full", "Cannot use preallocation for shrinking files"),
        (1 << 20, "metadata", "Unsupported preallocation mode: metadata"),
    ],
)
async def test_a_truncate_that_fails_changes_nothing(
    path: Path, length: int, prealloc: str, text: str
) -> None:
    async with opened(File, options(path)) as node:
        with pytest.raises(QmpError) as caught:
            await truncate(node, length, prealloc)
        assert str(caught.value) == text
        assert size(path) == SIZE
        assert node.driver.getlength() == SIZE


# -- permissions, auto-read-only, reopening ----------------------------------------------------------


async def test_locks_follow_permissions(path: Path) -> None:
    async with opened(File, options(path)) as a, opened(File, options(path)) as b:
        await a.driver.set_permissions(Perm.WRITE, Perm.ALL & ~Perm.WRITE)
        with refused('Failed to get "write" lock', hint(path)):
            await b.driver.set_permissions(Perm.WRITE, Perm.ALL)
        await a.driver.set_permissions(Perm.NONE, Perm.ALL)
        await b.driver.set_permissions(Perm.WRITE, Perm.ALL)


async def test_locking_off_takes_none(path: Path) -> None:
    off = options(path, locking=OnOffAuto.OFF)
    async with opened(File, options(path)) as a, opened(File, off) as b:
        await a.driver.set_permissions(Perm.WRITE, Perm.NONE)
        await b.driver.set_permissions(Perm.WRITE, Perm.NONE)


@pytest.mark.parametrize("locking", [OnOffAuto.ON, OnOffAuto.AUTO])
async def test_a_file_system_without_locks(
    path: Path, monkeypatch: pytest.MonkeyPatch, locking: OnOffAuto
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_posix.ImageLocks, "change", refuse)
    async with opened(File, options(path, locking=locking)) as node:
        if locking is OnOffAuto.ON:
            with refused(f"Failed to lock '{path}': No locks available"):
                await node.driver.set_permissions(Perm.WRITE, Perm.ALL)
        else:
            await node.driver.set_permissions(Perm.WRITE, Perm.ALL)


async def test_auto_read_only_is_open_for_writing_only_while_someone_writes(path: Path) -> None:
    async with opened(File, options(path), auto_read_only=True) as node:
        file, number = file_of(node), file_of(node).fd
        assert not file.writable
        await node.driver.set_permissions(Perm.CONSISTENT_READ, Perm.ALL)
        assert not file.writable
        await node.driver.set_permissions(Perm.WRITE, Perm.ALL)
        assert file.writable
        assert file.fd == number
        await node.pwritev(0, [memoryview(b"new")])
        async with opened(File, options(path)) as other:
            with refused('Failed to get shared "write" lock', hint(path)):
                await other.driver.set_permissions(Perm.CONSISTENT_READ, Perm.ALL & ~Perm.WRITE)
            await node.driver.set_permissions(Perm.NONE, Perm.ALL)
            assert not file.writable
            await other.driver.set_permissions(Perm.CONSISTENT_READ, Perm.ALL & ~Perm.WRITE)


async def test_auto_read_only_finds_the_file_that_was_renamed(path: Path) -> None:
    async with opened(File, options(path), auto_read_only=True) as node:
        os.rename(path, path.with_name("moved"))
        await node.driver.set_permissions(Perm.WRITE, Perm.ALL)
        assert file_of(node).writable


@pytest.mark.parametrize(
    ("before", "after", "writable", "direct"),
    [
        ({}, {"read_only": True}, False, False),
        ({"read_only": True}, {}, True, False),
        ({}, {"cache_direct": True}, True, True),
        ({"cache_direct": True}, {}, True, False),
        ({"read_only": True}, {"auto_read_only": True}, False, False),
    ],
)
async def test_reopening_changes_the_mode(
    path: Path, before: dict[str, bool], after: dict[str, bool], writable: bool, direct: bool
) -> None:
    expected = pattern(1000)
    async with opened(File, options(path), **before) as node:
        await node.driver.set_permissions(Perm.CONSISTENT_READ, Perm.ALL & ~Perm.RESIZE)
        commit = await node.driver.reopen(FakeOpener(**after), options(path))
        assert file_of(node).direct == before.get("cache_direct", False), "only prepared"
        await commit()
        assert (file_of(node).writable, file_of(node).direct) == (writable, direct)
        node.refresh()
        buffer = bytearray(700)
        await node.preadv(300, [memoryview(buffer)])
        assert buffer == expected[300:]
        async with opened(File, options(path)) as other:
            with refused('Failed to get "resize" lock', hint(path)):
                await other.driver.set_permissions(Perm.RESIZE, Perm.ALL)


async def test_a_reopen_that_is_not_committed_leaves_nothing(path: Path) -> None:
    async with opened(File, options(path)) as node:
        before = len(os.listdir("/proc/self/fd"))
        await node.driver.reopen(FakeOpener(read_only=True), options(path))
        assert len(os.listdir("/proc/self/fd")) == before
        native = FakeOpener(read_only=True)
        assert isinstance(node.driver, File)
        node.driver._native = True
        with refused(_posix._NATIVE_NEEDS_DIRECT):
            await node.driver.reopen(native, options(path))


# -- creating ----------------------------------------------------------------------------------------


class Creation:
    """No node is needed for creating a file."""

    async def node(self, reference: Any) -> Any:
        raise AssertionError(reference)

    def object(self, id_: str, type_: Any) -> Any:
        raise AssertionError(id_)


async def make(path: Path, length: int, **more: Any) -> None:
    await create(Creation(), BlockdevCreateOptionsFile(filename=str(path), size=length, **more))


async def test_creates_or_empties_a_file(tmp_path: Path) -> None:
    path = tmp_path / "new"
    await make(path, 1000, nocow=True, extent_size_hint=65536)
    assert size(path) == 1000
    path.write_bytes(b"old" * 10)
    await make(path, 20)
    assert path.read_bytes() == bytes(20)
    await make(path, 1 << 20, preallocation=PreallocMode.FULL)
    assert allocated(path) >= 1 << 20


@pytest.mark.parametrize(
    ("name", "length", "more", "text"),
    [
        ("no/new", 0, {}, "Could not create 'no/new': No such file or directory"),
        (".", 0, {}, "Could not create '.': Is a directory"),
        ("new", 1 << 60, {}, "Could not resize file: File too large"),
        ("new", -1, {}, "Could not resize file: Invalid argument"),
        ("new", 1, {"extent_size_hint": 1 << 32}, "Extent size hint is too large"),
        (
            "new",
            1,
            {"preallocation": PreallocMode.METADATA},
            "Unsupported preallocation mode: metadata",
        ),
        ("/dev/null", 1, {}, "Could not resize file: Invalid argument"),
    ],
)
async def test_creation_errors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    length: int,
    more: dict[str, Any],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QmpError) as caught:
        await make(Path(name), length, **more)
    assert str(caught.value) == text


async def test_creation_leaves_an_image_in_use_alone(path: Path) -> None:
    async with opened(File, options(path)) as node:
        await node.driver.set_permissions(Perm.CONSISTENT_READ, Perm.ALL & ~Perm.WRITE)
        with refused('Failed to get "write" lock', hint(path)):
            await make(path, 0)
    assert size(path) == SIZE
