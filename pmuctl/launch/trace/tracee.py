# SPDX-License-Identifier: Apache-2.0
"""One thread of a VMM under ptrace: its registers and memory, and system calls injected into it.

Any OSError with ESRCH means that the thread is gone, or was killed meanwhile.
"""

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.launch.trace.arch import Arch
from pmuctl.launch.trace.process_end import WALL, kill_process, wait_for_stop
from pmuctl.uapi.ptrace import (
    NT_ARM_SYSTEM_CALL,
    NT_PRSTATUS,
    PTRACE_CONT,
    PTRACE_DETACH,
    PTRACE_EVENT_STOP,
    PTRACE_GET_SYSCALL_INFO,
    PTRACE_GETREGSET,
    PTRACE_GETSIGMASK,
    PTRACE_INTERRUPT,
    PTRACE_SEIZE,
    PTRACE_SETREGSET,
    PTRACE_SETSIGMASK,
    PTRACE_SYSCALL,
    PTRACE_SYSCALL_INFO_EXIT,
    iovec,
    process_vm_read,
    process_vm_write,
    ptrace,
    ptrace_syscall_info,
)

SYSCALL_STOP = signal.SIGTRAP | 0x80
"""The stop signal of system calls under PTRACE_O_TRACESYSGOOD."""
STOP_SECONDS = 5.0
"""How long a thread may take to stop (seconds): it may be stuck in the kernel."""
ALL_SIGNALS = b"\xff" * 8
BELOW_STACK = 256
"""Bytes below the stack pointer that a function may use without moving it (128 on x86-64)."""


class ThreadGoneError(Exception):
    """The traced thread ended while it was worked on."""


class StuckError(OSError):
    """A call put into a thread does not return: another runs the vCPU it is for, say.

    The thread cannot be worked on any more: it does not stop.
    """

    def __init__(self, tid: int) -> None:
        super().__init__(errno.EIO, os.strerror(errno.EIO), f"thread {tid}")


class Tracee:
    """A seized thread. `call` is the system call it is in, as (number, arguments).

    `followed` says that it stops at system calls, `leaving` that it is detached at the next stop
    where that does no harm, `parked` that it is kept stopped, `is_entering` that it is on its way
    through the gate, `is_ending` that it is to end its process, `is_running` that it cannot be
    stopped to do that; `stops` counts its stops.
    `shortage` is why the process it belongs to could not be read. `patience` is how long a call
    that is put into it may take (seconds).
    """

    def __init__(self, tid: int, tgid: int, arch: Arch, *, patience: float = STOP_SECONDS) -> None:
        self.tid = tid
        self.tgid = tgid
        self.followed = False
        self.leaving = False
        self.parked = False
        self.is_entering = False
        self.is_ending = False
        self.is_running = False
        self.stops = 0
        self.call: tuple[int, tuple[int, ...]] | None = None
        self.shortage: ResourceExhaustedError | None = None
        self._arch = arch
        self._patience = patience
        self._mask: bytes | None = None

    def seize(self, options: int) -> None:
        """Begin to trace the thread, which goes on running; raise OSError (EPERM)."""
        ptrace(PTRACE_SEIZE, self.tid, 0, options)

    def interrupt(self) -> None:
        """Make the thread stop soon, with PTRACE_EVENT_STOP."""
        ptrace(PTRACE_INTERRUPT, self.tid)

    def resume(self, signum: int = 0) -> None:
        """Let the thread go on, up to its next system call if it is followed."""
        ptrace(PTRACE_SYSCALL if self.followed else PTRACE_CONT, self.tid, 0, signum)

    def detach(self, signum: int = 0) -> None:
        """Stop tracing: at a call's exit, at PTRACE_EVENT_STOP or before a signal.

        Detached at a call's entry the thread would find a signal pending that does not exist:
        KVM_RUN and KVM_CREATE_VM give EINTR then.
        """
        self.unblock_signals()
        ptrace(PTRACE_DETACH, self.tid, 0, signum)

    def syscall_info(self) -> ptrace_syscall_info:
        """Return which call the thread is at the entry or the exit of."""
        info = ptrace_syscall_info()
        ptrace(PTRACE_GET_SYSCALL_INFO, self.tid, ctypes.sizeof(info), ctypes.addressof(info))
        return info

    def block_signals(self) -> None:
        """Keep signal handlers from running: each would restart the call it is in, for ever."""
        if self._mask is None:
            mask = ctypes.create_string_buffer(8)
            ptrace(PTRACE_GETSIGMASK, self.tid, 8, ctypes.addressof(mask))
            self._mask = mask.raw
            self._set_mask(ALL_SIGNALS)

    def unblock_signals(self) -> None:
        """Undo `block_signals`."""
        if self._mask is not None:
            self._set_mask(self._mask)
            self._mask = None

    def forget_calls(self) -> None:
        """Take note that another thread executed a program, and has this one's id by now."""
        self.call = self._mask = None
        self.is_entering = False

    def set_argument(self, position: int, value: int) -> None:
        """Change an argument of the call that the thread has entered."""
        registers = self.registers()
        registers[self._arch.args[position]] = value
        self.set_registers(registers)

    def write(self, address: int, data: bytes) -> None:
        """Write to the process's memory; raise OSError."""
        process_vm_write(self.tid, address, data)

    def _set_mask(self, mask: bytes) -> None:
        buffer = ctypes.create_string_buffer(mask, 8)
        ptrace(PTRACE_SETSIGMASK, self.tid, 8, ctypes.addressof(buffer))

    def registers(self) -> list[int]:
        """Return the general registers."""
        buffer = (ctypes.c_uint64 * self._arch.register_count)()
        vector = iovec(ctypes.addressof(buffer), ctypes.sizeof(buffer))
        ptrace(PTRACE_GETREGSET, self.tid, NT_PRSTATUS, ctypes.addressof(vector))
        return list(buffer)

    def set_registers(self, registers: list[int]) -> None:
        """Write all general registers."""
        buffer = (ctypes.c_uint64 * self._arch.register_count)(*registers)
        vector = iovec(ctypes.addressof(buffer), ctypes.sizeof(buffer))
        ptrace(PTRACE_SETREGSET, self.tid, NT_PRSTATUS, ctypes.addressof(vector))

    def read(self, address: int, size: int) -> bytes:
        """Return this many bytes of the process's memory; raise OSError."""
        return process_vm_read(self.tid, address, size)

    def skip_call(self) -> list[int]:
        """Go from a call's entry to its exit without it; return registers to make it after all."""
        registers = self.registers()
        if (register := self._arch.nr_at_entry) is None:
            number = ctypes.c_int(-1)
            vector = iovec(ctypes.addressof(number), ctypes.sizeof(number))
            ptrace(PTRACE_SETREGSET, self.tid, NT_ARM_SYSTEM_CALL, ctypes.addressof(vector))
        else:
            skipped = list(registers)
            skipped[register] = (1 << 64) - 1
            self.set_registers(skipped)
        self._step_to_syscall_stop()
        self.call = None
        return self._arch.restart_call(registers)

    def ask_instead(self, request: int, address: int) -> int:
        """Make another ioctl of the same descriptor in place of the one the thread has entered.

        Return what it returned, -errno for an error. Afterwards the thread makes its own call,
        whose entry is its next stop. `address` is the ioctl's argument.
        """
        registers = self.registers()
        replaced = list(registers)
        replaced[self._arch.args[1]], replaced[self._arch.args[2]] = request, address
        self.set_registers(replaced)
        self._step_to_syscall_stop(seconds=self._patience)
        self.call = None
        result: int = self.syscall_info().exit.rval
        self.set_registers(self._arch.restart_call(registers))
        return result

    def ask(self, fd: int, request: int, address: int) -> int:
        """Make an ioctl with this argument in the thread, which is stopped at a call's exit.

        Return what it returned, -errno for an error; the thread's memory is not touched.
        """
        with self._deaf():
            saved = self.registers()
            result = self._inject(saved, fd, request, address)
            self.set_registers(saved)
            return result

    def ioctl(self, fd: int, request: int, argument: bytes, pointer: int | None = None) -> int:
        """Make an ioctl in the thread while it is stopped at a call's exit, and return there.

        `argument` is the struct and what may follow it; `pointer` is the offset of a member that
        is to be the address of what follows the first 24 bytes. Return what the ioctl returned,
        -errno for an error. Signal handlers wait. Raise OSError if the thread's memory may not be
        written.
        """
        with self._deaf():
            return self._inject_ioctl(fd, request, argument, pointer)

    @contextmanager
    def _deaf(self) -> Iterator[None]:
        """Keep signal handlers from running within, and afterwards if they were kept before."""
        was_open = self._mask is None
        self.block_signals()
        try:
            yield
        finally:
            if was_open:
                with suppress(ProcessLookupError):
                    self.unblock_signals()

    def _inject_ioctl(self, fd: int, request: int, argument: bytes, pointer: int | None) -> int:
        """Make the ioctl with its argument below the stack, and restore memory and registers."""
        saved = self.registers()
        address = (saved[self._arch.sp] - BELOW_STACK - len(argument)) & ~15
        if address < 0:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT), f"memory of {self.tid}")
        if pointer is not None:
            pointer_bytes = struct.pack("<Q", address + 24)
            argument = argument[:pointer] + pointer_bytes + argument[pointer + 8 :]
        before = self.read(address, len(argument))
        process_vm_write(self.tid, address, argument)
        result = self._inject(saved, fd, request, address)
        process_vm_write(self.tid, address, before)
        self.set_registers(saved)
        return result

    def _inject(self, saved: list[int], fd: int, request: int, address: int) -> int:
        """Make an ioctl, whose registers are then left as they are; return what it returned."""
        args = (fd, request, address)
        self.set_registers(self._arch.inject_call(saved, self._arch.nr_ioctl, args))
        self._step_to_syscall_stop()
        self._step_to_syscall_stop(seconds=self._patience)
        info = self.syscall_info()
        if info.op != PTRACE_SYSCALL_INFO_EXIT:
            raise OSError(errno.EIO, os.strerror(errno.EIO), f"thread {self.tid}")
        result: int = info.exit.rval
        return result

    def exit_group(self, status: int) -> None:
        """Make the process end with this status; the thread is stopped at a call's exit.

        If it cannot be stopped, kill the process.
        """
        self.followed = self.parked = self.is_ending = True  # nobody else resumes it on its way
        if self.is_running:
            kill_process(self.tgid)
            return
        args = (status,)
        registers = self._arch.inject_call(self.registers(), self._arch.nr_exit_group, args)
        self.set_registers(registers)
        self.resume()

    def go_on_ending(self, status: int) -> None:
        """Go on with `exit_group` after a stop, or kill the process if that was refused.

        A seccomp filter of the VMM's own may make the call return, or raise SIGSYS.
        """
        signum = os.WSTOPSIG(status)
        is_exit = signum == SYSCALL_STOP and self.syscall_info().op == PTRACE_SYSCALL_INFO_EXIT
        if is_exit or (signum == signal.SIGSYS and not status >> 16):
            kill_process(self.tgid)
        else:
            self.resume()  # at the call's entry, or a signal came before that

    def _step_to_syscall_stop(self, seconds: float | None = None) -> None:
        """Run to the next stop at a system call, whatever is between; raise ThreadGoneError.

        Raise StuckError if there is no stop for so long.
        """
        signum = 0
        while True:
            try:
                ptrace(PTRACE_SYSCALL, self.tid, 0, signum)
                if seconds is not None and not wait_for_stop(self.tid, seconds):
                    self.is_running = True
                    raise StuckError(self.tid)
                _, status = os.waitpid(self.tid, WALL)
            except (ProcessLookupError, ChildProcessError):
                raise ThreadGoneError from None
            if not os.WIFSTOPPED(status):
                raise ThreadGoneError
            signum = os.WSTOPSIG(status)
            if signum == SYSCALL_STOP:
                return
            if status >> 16:  # an event is no signal; a group stop waits for the detach
                signum = 0


def is_group_stop(status: int) -> bool:
    """Return True if a stop is one of job control (SIGSTOP and its kin), seen by the tracer."""
    kin = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
    return status >> 16 == PTRACE_EVENT_STOP and os.WSTOPSIG(status) in kin
