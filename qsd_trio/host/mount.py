"""Mount and unmount FUSE file systems on single files, with and without privileges.

All functions block: run them in a worker thread, as whatever looks at a mounted file asks its server, who
may be the event loop. ``look`` alone asks nobody.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import socket
import stat
import subprocess
from functools import lru_cache
from typing import Final, final

import attrs

DEVICE: Final = "/dev/fuse"
HELPER: Final = "fusermount3"
HELPER_TIMEOUT: Final = 30.0  # seconds; it waits for nobody
#: Stale mounts may lie on top of each other, one for each predecessor that was killed.
MAX_STALE: Final = 64

_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MNT_DETACH: Final = 2
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


#: What this process serves: mountpoint, as it was given, -> device number (major:minor). Whoever waits for
#: an answer of these in the thread that gives it waits forever.
_served: Final[dict[str, str]] = {}


class MountError(Exception):
    """Mounting failed; the text says what is missing."""


class AlreadyServedError(Exception):
    """The path leads to a mount of this very process."""


@final
@attrs.frozen(kw_only=True)
class Mountpoint:
    """What stands in mountinfo about the file system that a path leads to."""

    device: str  # major:minor
    root: str
    path: str
    fstype: str


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = [
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_ulong,
        ctypes.c_char_p,
    ]
    libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
    return libc


# -- looking -----------------------------------------------------------------------------------------


def look(path: str) -> Mountpoint | None:
    """Return the FUSE mount whose root ``path`` is, or None. Asks no file system; OSError: no such file."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
            (mount_id,) = (line.split()[1] for line in info if line.startswith("mnt_id:"))
        real = os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            if line.startswith(f"{mount_id} "):
                found = _parse(line)
                if found.fstype.split(".")[0] == "fuse" and found.path == real:
                    return found
    return None


def _parse(line: str) -> Mountpoint:
    """Take a line of proc_pid_mountinfo(5) apart."""
    before, _, after = line.partition(" - ")
    _, _, device, root, path, *_ = before.split(" ")
    return Mountpoint(
        device=device,
        root=_ESCAPE.sub(lambda found: chr(int(found[1], 8)), root),
        path=_ESCAPE.sub(lambda found: chr(int(found[1], 8)), path),
        fstype=after.split(" ")[0],
    )


def clear_stale(path: str) -> int:
    """Remove mounts on ``path`` whose server is gone; return how many there were."""
    for count in range(MAX_STALE):
        if look(path) is None:
            return count
        try:
            os.statvfs(path)  # always asks the server; stat(2) is answered from memory for a second
        except OSError as exc:
            if exc.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                raise
        else:
            return count
        unmount(path)
    return MAX_STALE


def check_mountpoint(path: str) -> bool:
    """Return whether ``path`` is a regular file, having removed what a killed predecessor left on it.

    Raises AlreadyServedError, or OSError if the file can't be looked at.
    """
    if path in _served:
        raise AlreadyServedError
    found = look(path)
    if found is not None and found.device in _served.values():
        raise AlreadyServedError
    clear_stale(path)
    return stat.S_ISREG(os.stat(path).st_mode)


# -- mounting ----------------------------------------------------------------------------------------


def mount(path: str, options: str) -> int:
    """Mount on the regular file ``path``; return the descriptor of /dev/fuse, non-blocking.

    By mount(2) where that is allowed, else by fusermount3. Raises MountError. Undo it by ``release``.
    """
    fd = _mount_by_syscall(path, options)
    if fd is None:
        fd = _mount_by_helper(path, options)
    os.set_blocking(fd, False)
    found = look(path)
    _served[path] = found.device if found is not None else ""
    return fd


def _mount_by_syscall(path: str, options: str) -> int | None:
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MountError(
            f"{DEVICE} is not there: load the kernel's module fuse, or give the container that device"
        ) from None
    except PermissionError:
        return None  # the helper may
    except OSError as exc:
        raise MountError(f"cannot open {DEVICE}: {exc.strerror}") from exc
    data = f"fd={fd},rootmode=100000,user_id={os.getuid()},group_id={os.getgid()},{options}"
    flags = _MS_NOSUID | _MS_NODEV
    if _libc().mount(os.fsencode(DEVICE), os.fsencode(path), b"fuse", flags, os.fsencode(data)):
        number = ctypes.get_errno()
        os.close(fd)
        if number == errno.EPERM:
            return None
        raise MountError(f"mount failed: {os.strerror(number)}")
    return fd


def _mount_by_helper(path: str, options: str) -> int:
    """Let the set-uid helper mount and send the descriptor over the socket _FUSE_COMMFD."""
    program = shutil.which(HELPER)
    if program is None:
        raise MountError(
            f"mounting needs the capability CAP_SYS_ADMIN, or the program {HELPER} (package fuse3)"
        )
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
            try:
                done = subprocess.run(
                    [program, "-o", f"rw,nosuid,nodev,fsname={DEVICE},{options}", "--", path],
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    timeout=HELPER_TIMEOUT,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as exc:
                raise MountError(f"cannot run {program}: {exc}") from exc
        _, fds, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if not fds:
        said = os.fsdecode(done.stderr).strip()
        raise MountError(said or f"{program} failed with status {done.returncode}")
    return fds[0]


# -- unmounting --------------------------------------------------------------------------------------


def detach(path: str) -> None:
    """Take our mount off ``path`` and have dirty pages of mapped files written, while its server serves."""
    if not _is_ours(path):
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        unmount(path)  # its mode may forbid to open it
        return
    try:
        detached = _unmount_by_syscall(path)
        os.fsync(fd)
    finally:
        os.close(fd)
    if not detached:
        # Not with the file open: the child would close its copy, and ask the server, who waits for the child.
        _unmount_by_helper(path)


def release(path: str) -> None:
    """Take our mount off ``path`` if it is still there. Its server has closed the device."""
    try:
        if _is_ours(path):
            unmount(path)
    finally:
        _served.pop(path, None)


def _is_ours(path: str) -> bool:
    """Return whether ``path`` still leads to what was mounted there: others may unmount, and mount, too."""
    try:
        found = look(path)
    except OSError:
        return False
    return found is not None and found.device == _served.get(path)


def unmount(path: str) -> None:
    """Detach what is mounted on ``path``. OSError if that is not possible."""
    if not _unmount_by_syscall(path):
        _unmount_by_helper(path)


def _unmount_by_syscall(path: str) -> bool:
    """Return whether it was allowed."""
    if not _libc().umount2(os.fsencode(path), _MNT_DETACH):
        return True
    number = ctypes.get_errno()
    if number == errno.EPERM:
        return False
    raise OSError(number, os.strerror(number), path)


def _unmount_by_helper(path: str) -> None:
    program = shutil.which(HELPER)
    if program is None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), path)
    done = subprocess.run(
        [program, "-u", "-q", "-z", "--", path],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=HELPER_TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise OSError(errno.EPERM, os.fsdecode(done.stderr).strip() or HELPER, path)
