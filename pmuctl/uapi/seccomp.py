# SPDX-License-Identifier: Apache-2.0
"""include/uapi/linux/seccomp.h and filter.h, as far as they are used here, and the call itself."""

import ctypes
import os

from pmuctl.uapi.ioctl import _IOW, _IOWR

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3

SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_USER_NOTIF = 0x7FC00000
SECCOMP_RET_ALLOW = 0x7FFF0000

SECCOMP_USER_NOTIF_FLAG_CONTINUE = 1

# include/uapi/linux/audit.h
AUDIT_ARCH_X86_64 = 0xC000003E
AUDIT_ARCH_AARCH64 = 0xC00000B7
AUDIT_ARCH_ARM = 0x40000028
AUDIT_ARCH_I386 = 0x40000003

# include/uapi/linux/bpf_common.h and filter.h
BPF_LD_W_ABS = 0x20
BPF_JMP_JEQ_K = 0x15
BPF_RET_K = 0x06


class seccomp_data(ctypes.Structure):
    _fields_ = (
        ("nr", ctypes.c_int),
        ("arch", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
    )


class seccomp_notif(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_uint64),
        ("pid", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("data", seccomp_data),
    )


class seccomp_notif_resp(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_uint64),
        ("val", ctypes.c_int64),
        ("error", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
    )


class notif_id(ctypes.Structure):
    """The argument of SECCOMP_IOCTL_NOTIF_ID_VALID, which has no struct in the header."""

    _fields_ = (("id", ctypes.c_uint64),)


class sock_filter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class sock_fprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_uint16), ("filter", ctypes.POINTER(sock_filter)))


SECCOMP_IOC_MAGIC = ord("!")
SECCOMP_IOCTL_NOTIF_RECV = _IOWR(SECCOMP_IOC_MAGIC, 0, ctypes.sizeof(seccomp_notif))
SECCOMP_IOCTL_NOTIF_SEND = _IOWR(SECCOMP_IOC_MAGIC, 1, ctypes.sizeof(seccomp_notif_resp))
SECCOMP_IOCTL_NOTIF_ID_VALID = _IOW(SECCOMP_IOC_MAGIC, 2, ctypes.sizeof(notif_id))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def seccomp(nr: int, operation: int, flags: int, program: "ctypes.Array[sock_filter]") -> int:
    """Call seccomp(2) by its number on this machine; raise OSError with the kernel's errno."""
    filter_program = sock_fprog(len(program), program)
    result: int = _libc.syscall(
        ctypes.c_long(nr),
        ctypes.c_ulong(operation),
        ctypes.c_ulong(flags),
        ctypes.byref(filter_program),
    )
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "seccomp")
    return result
