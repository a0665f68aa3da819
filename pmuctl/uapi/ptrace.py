# SPDX-License-Identifier: Apache-2.0
"""include/uapi/linux/ptrace.h, as far as it is used here, and the call itself."""

import ctypes
import os

PTRACE_CONT = 7
PTRACE_DETACH = 17
PTRACE_SYSCALL = 24
PTRACE_GETREGSET = 0x4204
PTRACE_SETREGSET = 0x4205
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_LISTEN = 0x4208
PTRACE_GETSIGMASK = 0x420A
PTRACE_SETSIGMASK = 0x420B
PTRACE_GET_SYSCALL_INFO = 0x420E

PTRACE_O_TRACESYSGOOD = 1
PTRACE_O_TRACEFORK = 1 << 1
PTRACE_O_TRACEVFORK = 1 << 2
PTRACE_O_TRACECLONE = 1 << 3
PTRACE_O_TRACEEXEC = 1 << 4
PTRACE_O_EXITKILL = 1 << 20

PTRACE_EVENT_EXEC = 4
PTRACE_EVENT_STOP = 128

PTRACE_SYSCALL_INFO_ENTRY = 1
PTRACE_SYSCALL_INFO_EXIT = 2

# include/uapi/linux/elf.h: names of register sets
NT_PRSTATUS = 1
NT_ARM_SYSTEM_CALL = 0x404

# include/uapi/linux/prctl.h
PR_SET_NAME = 15
PR_SET_NO_NEW_PRIVS = 38
PR_SET_THP_DISABLE = 41
PR_SET_PTRACER = 0x59616D61


class _entry(ctypes.Structure):
    _fields_ = (("nr", ctypes.c_uint64), ("args", ctypes.c_uint64 * 6))


class _exit(ctypes.Structure):
    _fields_ = (("rval", ctypes.c_int64), ("is_error", ctypes.c_uint8))


class _stop(ctypes.Union):
    _fields_ = (("entry", _entry), ("exit", _exit))


class ptrace_syscall_info(ctypes.Structure):
    _anonymous_ = ("_stop",)
    _fields_ = (
        ("op", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8),
        ("flags", ctypes.c_uint16),
        ("arch", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("_stop", _stop),
    )


class iovec(ctypes.Structure):
    """include/uapi/linux/uio.h."""

    _fields_ = (("iov_base", ctypes.c_void_p), ("iov_len", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long
_libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
for _function in (_libc.process_vm_readv, _libc.process_vm_writev):
    _function.argtypes = (
        ctypes.c_int,
        ctypes.POINTER(iovec),
        ctypes.c_ulong,
        ctypes.POINTER(iovec),
        ctypes.c_ulong,
        ctypes.c_ulong,
    )
    _function.restype = ctypes.c_ssize_t


def ptrace(request: int, tid: int, addr: int = 0, data: int = 0) -> int:
    """Call ptrace(2) with plain numbers; raise OSError with the kernel's errno."""
    ctypes.set_errno(0)
    result: int = _libc.ptrace(request, tid, addr, data)
    if result == -1 and (number := ctypes.get_errno()):
        raise OSError(number, os.strerror(number), f"ptrace {request:#x} of {tid}")
    return result


def set_thread_name(name: str) -> None:
    """Set the name of this thread that ps(1) shows, at most 15 bytes (PR_SET_NAME)."""
    buffer = ctypes.create_string_buffer(name.encode())
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def prctl(option: int, value: int) -> None:
    """Call prctl(2) with one argument; raise OSError."""
    if _libc.prctl(option, value, 0, 0, 0) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"prctl {option:#x}")


def process_vm_read(pid: int, address: int, size: int) -> bytes:
    """Read one piece of memory (process_vm_readv(2)); raise OSError if it cannot all be read."""
    buffer = ctypes.create_string_buffer(size)
    _transfer_memory(_libc.process_vm_readv, pid, address, buffer)
    return buffer.raw


def process_vm_write(pid: int, address: int, data: bytes) -> None:
    """Write one piece of memory (process_vm_writev(2)); raise OSError if not all is written."""
    buffer = ctypes.create_string_buffer(data, len(data))
    _transfer_memory(_libc.process_vm_writev, pid, address, buffer)


def _transfer_memory(
    function: "ctypes._FuncPointer", pid: int, address: int, buffer: "ctypes.Array[ctypes.c_char]"
) -> None:
    size = len(buffer)
    here, there = iovec(ctypes.addressof(buffer), size), iovec(address, size)
    done = function(pid, here, 1, there, 1, 0)
    if done != size:
        number = ctypes.get_errno() if done < 0 else 14  # EFAULT: an unmapped page ends it
        raise OSError(number, os.strerror(number), f"memory of {pid}")
