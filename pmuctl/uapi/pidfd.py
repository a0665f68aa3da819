# SPDX-License-Identifier: Apache-2.0
"""include/uapi/linux/kcmp.h and asm-generic/unistd.h: calls for which os has no function."""

import ctypes
import os

__NR_pidfd_getfd = 438  # on every architecture
__NR_close_range = 436
__NR_kcmp = {"aarch64": 272, "x86_64": 312}

LAST_FD = 0xFFFFFFFF

KCMP_FILE = 0
KCMP_VM = 1
KCMP_FILES = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """Duplicate another process's descriptor: pidfd_getfd(2), since v5.6. Raise OSError."""
    result: int = _libc.syscall(
        ctypes.c_long(__NR_pidfd_getfd), ctypes.c_int(pidfd), ctypes.c_int(fd), ctypes.c_uint(0)
    )
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "pidfd_getfd")
    return result


def close_fds_from(first: int) -> None:
    """Close this descriptor and all above it: close_range(2), since v5.9; raise OSError."""
    args = (first, LAST_FD, 0)
    if _libc.syscall(ctypes.c_long(__NR_close_range), *map(ctypes.c_uint, args)) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "close_range")


def kcmp_file(pid: int, fd: int, other_pid: int, other_fd: int) -> bool | None:
    """Return whether two processes' descriptors share an open file (kcmp(2)); None if unknown."""
    return _kcmp(pid, other_pid, KCMP_FILE, fd, other_fd)


def kcmp_memory(pid: int, other_pid: int) -> bool | None:
    """Return whether two tasks share their memory (kcmp(2)); None if unknown."""
    return _kcmp(pid, other_pid, KCMP_VM)


def kcmp_descriptors(tid: int, other_tid: int) -> bool | None:
    """Return whether two tasks share their table of descriptors (kcmp(2)); None if unknown."""
    return _kcmp(tid, other_tid, KCMP_FILES)


def kcmp_descriptors_order(tid: int, other_tid: int) -> int | None:
    """Return how the kernel orders the descriptor tables of two tasks (kcmp(2)).

    That is 0 if it is one table, 1 if the first comes before the second, 2 if it comes after it;
    None if unknown.
    """
    order = _call_kcmp(tid, other_tid, KCMP_FILES)
    return order if order in (0, 1, 2) else None


def _kcmp(pid: int, other_pid: int, kind: int, fd: int = 0, other_fd: int = 0) -> bool | None:
    result = _call_kcmp(pid, other_pid, kind, fd, other_fd)
    return None if result is None else result == 0


def _call_kcmp(pid: int, other_pid: int, kind: int, fd: int = 0, other_fd: int = 0) -> int | None:
    number = __NR_kcmp.get(os.uname().machine)
    if number is None:
        return None
    args = (pid, other_pid, kind, fd, other_fd)
    result: int = _libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, args))
    return None if result == -1 else result
