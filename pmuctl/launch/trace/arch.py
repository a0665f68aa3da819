# SPDX-License-Identifier: Apache-2.0
"""What differs between the architectures on which a VMM can be traced: one row each."""

import os
from collections.abc import Sequence

from pmuctl.errors import UnsupportedError
from pmuctl.uapi.kvm import KVM_ARM_VCPU_INIT, KVM_CREATE_VCPU
from pmuctl.uapi.seccomp import (
    AUDIT_ARCH_AARCH64,
    AUDIT_ARCH_ARM,
    AUDIT_ARCH_I386,
    AUDIT_ARCH_X86_64,
)
from pmuctl.value import value

LOW_32_BITS = 0xFFFFFFFF
"""Descriptors, requests and vCPU numbers are 32 bits to the kernel, registers have 64."""


@value(kw_only=True)
class Arch:
    """System call numbers, and the layout of the register set NT_PRSTATUS in 64-bit words.

    `other_ioctls` are ioctl(2) as programs of other kinds than native ones call it, which cannot
    be followed: pairs of an architecture and a number. `register_count` is the size of NT_PRSTATUS
    in words; `pc`, `sp`, `nr` and `args` are indexes into it.
    `insn_size` is the length of the instruction that makes a system call (bytes). `nr_at_entry` is
    the index of the register that holds the call's number once it is made, None if that is a
    register set of its own. `nr_dup2` is None where there is only dup3.

    `private_calls` are system calls that concern memory only, by which no other thread can learn
    of a vCPU, `masking_calls` those that pass on a thread's signal mask, `duplicating_calls` those
    that may duplicate a descriptor, `forking_calls` those that always give the child descriptors
    of its own, `carrying_calls` those by which descriptors get to and from places that cannot be
    looked into (io_uring_*, pidfd_getfd). `window_ioctl` is the ioctl whose end opens the window:
    there KVM takes the settings of a VM, and has derived nothing from them yet.
    """

    audit_arch: int
    nr_ioctl: int
    other_ioctls: tuple[tuple[int, int], ...]
    nr_close: int
    nr_close_range: int
    nr_dup2: int | None
    nr_dup3: int
    nr_clone: int
    nr_clone3: int
    nr_unshare: int
    nr_sendmsg: int
    nr_sendmmsg: int
    nr_recvmsg: int
    nr_recvmmsg: int
    duplicating_calls: frozenset[int]
    forking_calls: frozenset[int]
    carrying_calls: frozenset[int]
    masking_calls: frozenset[int]
    nr_mmap: int
    nr_exit: int
    nr_exit_group: int
    nr_seccomp: int
    private_calls: frozenset[int]
    register_count: int
    insn_size: int
    pc: int
    sp: int
    nr: int
    args: tuple[int, ...]
    nr_at_entry: int | None
    window_ioctl: int

    def restart_call(self, registers: Sequence[int]) -> list[int]:
        """Return registers, read at a system call's entry, set to make that call again."""
        result = list(registers)
        result[self.pc] -= self.insn_size
        if self.nr_at_entry is not None:
            result[self.nr] = result[self.nr_at_entry]
        return result

    def inject_call(self, registers: Sequence[int], nr: int, args: Sequence[int]) -> list[int]:
        """Return registers, read at a system call's exit, set to make another call."""
        result = list(registers)
        result[self.pc] -= self.insn_size
        result[self.nr] = nr
        for register, argument in zip(self.args, args, strict=False):
            result[register] = argument
        return result


X32_SYSCALL_BIT = 0x40000000
"""arch/x86/include/uapi/asm/unistd.h"""
CARRYING_CALLS = frozenset({425, 426, 427, 438})
"""io_uring_setup, io_uring_enter, io_uring_register and pidfd_getfd, everywhere the same."""

ARCHES = {
    # struct user_pt_regs: x0-x30, sp, pc, pstate
    "aarch64": Arch(
        audit_arch=AUDIT_ARCH_AARCH64,
        nr_ioctl=29,
        other_ioctls=((AUDIT_ARCH_ARM, 54),),
        nr_close=57,
        nr_close_range=436,
        nr_dup2=None,
        nr_dup3=24,
        nr_clone=220,
        nr_clone3=435,
        nr_unshare=97,
        nr_sendmsg=211,
        nr_sendmmsg=269,
        nr_recvmsg=212,
        nr_recvmmsg=243,
        duplicating_calls=frozenset({23, 24, 25}),  # dup, dup3, fcntl
        forking_calls=frozenset(),
        carrying_calls=CARRYING_CALLS,
        # rt_sigprocmask, clone, clone3, execve, execveat
        masking_calls=frozenset({135, 220, 435, 221, 281}),
        nr_mmap=222,
        nr_exit=93,
        nr_exit_group=94,
        nr_seccomp=277,
        private_calls=frozenset({214, 215, 226, 233}),  # brk, munmap, mprotect, madvise
        register_count=34,
        insn_size=4,
        pc=32,
        sp=31,
        nr=8,
        args=(0, 1, 2, 3, 4, 5),
        nr_at_entry=None,
        window_ioctl=KVM_ARM_VCPU_INIT,
    ),
    # struct user_regs_struct: … r10 is word 7, r9 8, r8 9, rax 10, rdx 12, rsi 13, rdi 14,
    # orig_rax 15, rip 16, rsp 19
    "x86_64": Arch(
        audit_arch=AUDIT_ARCH_X86_64,
        nr_ioctl=16,
        # int 0x80, and x32 by its own number and by the native one
        other_ioctls=(
            (AUDIT_ARCH_I386, 54),
            (AUDIT_ARCH_X86_64, X32_SYSCALL_BIT | 514),
            (AUDIT_ARCH_X86_64, X32_SYSCALL_BIT | 16),
        ),
        nr_close=3,
        nr_close_range=436,
        nr_dup2=33,
        nr_dup3=292,
        nr_clone=56,
        nr_clone3=435,
        nr_unshare=272,
        nr_sendmsg=46,
        nr_sendmmsg=307,
        nr_recvmsg=47,
        nr_recvmmsg=299,
        duplicating_calls=frozenset({32, 33, 292, 72}),  # dup2, too
        forking_calls=frozenset({57, 58}),  # fork, vfork
        carrying_calls=CARRYING_CALLS,
        # fork and vfork, too
        masking_calls=frozenset({14, 56, 57, 58, 435, 59, 322}),
        nr_mmap=9,
        nr_exit=60,
        nr_exit_group=231,
        nr_seccomp=317,
        private_calls=frozenset({12, 11, 10, 28}),
        register_count=27,
        insn_size=2,
        pc=16,
        sp=19,
        nr=10,
        args=(14, 13, 12, 7, 9, 8),
        nr_at_entry=15,
        window_ioctl=KVM_CREATE_VCPU,
    ),
}


def native_arch() -> Arch:
    """Return the row of this machine; raise UnsupportedError if there is none."""
    name = os.uname().machine
    try:
        return ARCHES[name]
    except KeyError:
        raise UnsupportedError(
            f"pmuctl run does not know {name} machines",
            why=f"it traces VMMs on {', '.join(ARCHES)}",
            fix="run it on an arm64 host",
        ) from None
