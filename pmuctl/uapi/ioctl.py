# SPDX-License-Identifier: Apache-2.0
"""include/uapi/asm-generic/ioctl.h: request numbers from struct sizes (bytes), and the call."""

import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

_IOC_NONE = 0
_IOC_WRITE = 1
_IOC_READ = 2

_IOC_NRSHIFT = 0
_IOC_TYPESHIFT = 8
_IOC_SIZESHIFT = 16
_IOC_DIRSHIFT = 30


def _IOC(dir_: int, type_: int, nr: int, size: int) -> int:
    return (
        dir_ << _IOC_DIRSHIFT
        | type_ << _IOC_TYPESHIFT
        | nr << _IOC_NRSHIFT
        | size << _IOC_SIZESHIFT
    )


def _IO(type_: int, nr: int) -> int:
    return _IOC(_IOC_NONE, type_, nr, 0)


def _IOR(type_: int, nr: int, size: int) -> int:
    return _IOC(_IOC_READ, type_, nr, size)


def _IOW(type_: int, nr: int, size: int) -> int:
    return _IOC(_IOC_WRITE, type_, nr, size)


def _IOWR(type_: int, nr: int, size: int) -> int:
    return _IOC(_IOC_READ | _IOC_WRITE, type_, nr, size)


def ioctl(fd: int, request: int, arg: "int | ctypes.Structure" = 0, *, what: str) -> int:
    """Make one ioctl and return its result; the kernel may fill in a struct `arg`.

    `what` names the call and its object in an error's text ("KVM_RUN of vCPU 1"). Raise OSError
    with the kernel's errno. Nothing is retried, so EINTR reaches the caller as InterruptedError:
    for KVM_RUN it is an exit like the others.
    """
    try:
        return fcntl.ioctl(fd, request, arg)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), what) from None
