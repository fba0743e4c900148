"""Does to a file whatever a program may, and prints what came of each: run as a program, on a FUSE export."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import stat
import sys
import time
from collections.abc import Callable
from functools import partial

KEEP, PUNCH, COLLAPSE, ZERO, INSERT = 1, 2, 8, 16, 32
K = 1024

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    if libc.fallocate(fd, mode, offset, length):
        raise OSError(ctypes.get_errno(), "")
    return 0


def say(name: str, call: Callable[[], object]) -> None:
    try:
        result = call()
    except OSError as exc:
        result = errno.errorcode[exc.errno or 0]
    print(f"{name}: {result}", flush=True)


def open_and_close(path: str, flags: int) -> None:
    os.close(os.open(path, flags))


def shown(data: bytes) -> str:
    return f"{len(data)} {hashlib.md5(data).hexdigest()[:8]} {data[:2].hex()}"


def status(path: str, what: str = "all") -> str:
    st = os.stat(path)
    text = f"{stat.filemode(st.st_mode)} {st.st_size} links {st.st_nlink} ino {st.st_ino}"
    if what == "all":
        text += f" {st.st_uid}:{st.st_gid} block {st.st_blksize}"
        text += f" now {abs(st.st_mtime - time.time()) < 4 and st.st_mtime == st.st_ctime}"
    return text


def attributes(path: str) -> None:
    say("stat", lambda: status(path))
    for mode in (0o600, 0o400, 0o444, 0o640, 0o666, 0o4755, 0o200, 0, 0o600):
        say(f"chmod {mode:o}", partial(os.chmod, path, mode))
        say("stat", lambda: status(path))
    for owner in ((0, 0), (1, -1), (-1, 1), (65534, 65534), (0, 0)):
        say(f"chown {owner}", partial(os.chown, path, *owner))
        say("stat", lambda: status(path))
    say("utime", lambda: os.utime(path))
    say("utime 1", lambda: os.utime(path, (1, 1)))
    say("xattr", lambda: os.setxattr(path, "user.a", b"b"))
    say("getxattr", lambda: os.getxattr(path, "user.a"))
    say("listxattr", lambda: os.listxattr(path))
    say("statvfs", lambda: tuple(os.statvfs(path))[:5])
    say("namemax", lambda: os.statvfs(path).f_namemax)
    say("below", lambda: os.stat(path + "/x"))
    say("listdir", lambda: os.listdir(path))
    say("unlink", lambda: os.unlink(path))
    say("rename", lambda: os.rename(path, path + "2"))
    say("readlink", lambda: os.readlink(path))
    say("access", lambda: os.access(path, os.X_OK))


def content(path: str) -> None:
    for flags in ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_APPEND|O_RDWR", "O_DIRECT", "O_DIRECTORY"):
        value = sum(getattr(os, flag) for flag in flags.split("|"))
        say(f"open {flags}", partial(open_and_close, path, value))
    fd = os.open(path, os.O_RDWR)
    size = os.fstat(fd).st_size
    say("read", lambda: shown(os.pread(fd, 4096, 0)))
    say("read odd", lambda: shown(os.pread(fd, 70001, 12345)))
    say("read end", lambda: shown(os.pread(fd, 4096, size - 100)))
    say("read at end", lambda: shown(os.pread(fd, 4096, size)))
    say("read beyond", lambda: shown(os.pread(fd, 4096, size + 5000)))
    say("write", lambda: os.pwrite(fd, b"abc" * 1000, 1000))
    say("read back", lambda: shown(os.pread(fd, 8192, 0)))
    say("write large", lambda: os.pwrite(fd, b"xy" * 700 * K, 64 * K))
    say("read large", lambda: shown(os.pread(fd, 2048 * K, 0)))
    say("write across the end", lambda: os.pwrite(fd, b"e" * 4096, size - 1024))
    say("size", lambda: os.fstat(fd).st_size)
    end = os.fstat(fd).st_size
    say("write beyond", lambda: os.pwrite(fd, b"f" * 512, end + 4096))
    say("size", lambda: os.fstat(fd).st_size)
    say("write nothing", lambda: os.pwrite(fd, b"", 0))
    say("fsync", lambda: os.fsync(fd))
    say("fdatasync", lambda: os.fdatasync(fd))
    say("flock", lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
    say("lockf", lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
    say("ioctl", lambda: fcntl.ioctl(fd, 0x1260))
    say("copy_file_range", lambda: os.copy_file_range(fd, fd, 4096, 0, 65536))
    os.close(fd)
    say("O_TRUNC", lambda: os.close(os.open(path, os.O_TRUNC | os.O_WRONLY)))
    say("size", lambda: os.stat(path).st_size)


def mapped(path: str) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 65536) as area:
        area[100:104] = b"mmap"
        area.flush()
    with open(path, "rb") as again:
        say("mapped", lambda: shown(again.read(4096)))


def direct(path: str) -> None:
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 65536) as area, memoryview(area) as view:
        view[:4096] = b"d" * 4096
        say("direct write", lambda: os.pwritev(fd, [view[:4096]], 8192))
        say("direct read", lambda: os.preadv(fd, [view], 0))
        say("direct data", lambda: shown(bytes(view)))
        say("direct odd", lambda: os.preadv(fd, [view[:100]], 50))
    os.close(fd)


def seeking(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    for offset in (0, 4096, 5000, 65536, 1 << 20, size // 2, size - 1, size, size + 1, 1 << 62):
        say(f"data {offset}", partial(os.lseek, fd, offset, os.SEEK_DATA))
        say(f"hole {offset}", partial(os.lseek, fd, offset, os.SEEK_HOLE))
    say("end", lambda: os.lseek(fd, 0, os.SEEK_END))
    os.close(fd)


def space(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    size = os.fstat(fd).st_size
    unit = 64 * K
    os.pwrite(fd, b"z" * unit * 8, 0)
    modes = [KEEP, PUNCH, PUNCH | KEEP, ZERO, ZERO | KEEP, COLLAPSE, INSERT, 64]
    for mode in modes:
        for offset, length in (
            (unit, unit),
            (size - unit, 2 * unit),
            (size, unit),
            (size + unit, unit),
        ):
            say(
                f"fallocate {mode} {offset} {length}",
                partial(fallocate, fd, mode, offset, length),
            )
            say("size", lambda: os.fstat(fd).st_size)
            say("data", lambda: shown(os.pread(fd, 9 * unit, 0)))
        if mode == ZERO:
            size = os.fstat(fd).st_size
    for offset, length in ((0, 512), (size - 512, 1024), (size, unit), (size + 3 * unit, unit)):
        say(
            f"fallocate 0 {offset} {length}",
            partial(fallocate, fd, 0, offset, length),
        )
        say("size", lambda: os.fstat(fd).st_size)
    say("fallocate huge", lambda: fallocate(fd, 0, 1 << 62, 1 << 20))
    os.close(fd)


def lengths(path: str) -> None:
    size = os.stat(path).st_size
    for new in (size + 65536, size - 65536, size - 65536 + 100, 1 << 62, 65536, size):
        say(f"truncate {new}", partial(os.truncate, path, new))
        say("size", lambda: os.stat(path).st_size)
    with open(path, "rb") as file:
        say("data", lambda: shown(file.read()))


def closing(path: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"last", 0)
    say("close", lambda: os.close(fd))
    say("stat", lambda: status(path, "size"))


if __name__ == "__main__":
    for step in sys.argv[2:]:
        print(f"-- {step}")
        say(step, partial(globals()[step], sys.argv[1]))
