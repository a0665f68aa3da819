# SPDX-License-Identifier: Apache-2.0
"""include/uapi/asm-generic/unistd.h: what os has no function for."""

import ctypes
import os

__NR_pidfd_getfd = 438  # on every architecture

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2), since v5.6: a duplicate of another process's descriptor; raises OSError."""
    result: int = _libc.syscall(
        ctypes.c_long(__NR_pidfd_getfd), ctypes.c_int(pidfd), ctypes.c_int(fd), ctypes.c_uint(0)
    )
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "pidfd_getfd")
    return result
