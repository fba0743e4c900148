"""The kernel's keyring: reading one key's payload (keyctl(2), KEYCTL_READ)."""

from __future__ import annotations

import ctypes
import os

#: By machine name; the C library has no wrapper.
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}
_KEYCTL_READ = 11


def read_key(serial: int) -> bytes:
    """Return the payload of key ``serial``; OSError if it cannot be read."""
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is None:
        raise OSError(38, os.strerror(38))  # ENOSYS
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    length = 0
    while True:
        buffer = ctypes.create_string_buffer(length)
        got = syscall(
            ctypes.c_long(number),
            ctypes.c_long(_KEYCTL_READ),
            ctypes.c_int32(serial),
            buffer,
            ctypes.c_size_t(length),
        )
        if got < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        if got <= length:
            return buffer.raw[:got]
        length = got  # the key has grown, or this was the first round, which asks for the length
