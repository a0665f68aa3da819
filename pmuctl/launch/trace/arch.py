# SPDX-License-Identifier: Apache-2.0
"""What differs between the machines a VMM can be traced on: one row each."""

import os
from collections.abc import Sequence

from pmuctl.errors import UnsupportedError
from pmuctl.uapi.kvm import KVM_ARM_VCPU_INIT, KVM_CREATE_VCPU
from pmuctl.uapi.seccomp import AUDIT_ARCH_AARCH64, AUDIT_ARCH_X86_64
from pmuctl.value import value


@value(kw_only=True)
class Arch:
    """Numbers of system calls, and where the register set NT_PRSTATUS (64-bit words) has what.

    `instruction` is the length of the instruction that makes a system call, in bytes.
    `nr_at_entry` is the register whose value is the call's number once it is made, None where
    that is a register set of its own. `private` are calls that no other thread hears of, which
    concern memory only, `closing` those that may close a descriptor, `masking`
    those that a thread's signal mask is handed on by. `window` is the ioctl whose
    end opens the window: there KVM takes the settings of a VM, and nothing has been derived from
    them yet.
    """

    audit_arch: int
    nr_ioctl: int
    nr_close: int
    closing: frozenset[int]
    masking: frozenset[int]
    nr_mmap: int
    nr_exit_group: int
    nr_seccomp: int
    private: frozenset[int]
    words: int
    instruction: int
    pc: int
    sp: int
    nr: int
    args: tuple[int, ...]
    nr_at_entry: int | None
    window: int

    def again(self, registers: Sequence[int]) -> list[int]:
        """Registers of a thread stopped at a system call's entry, made to make it once more."""
        its = list(registers)
        its[self.pc] -= self.instruction
        if self.nr_at_entry is not None:
            its[self.nr] = its[self.nr_at_entry]
        return its

    def calling(self, registers: Sequence[int], nr: int, args: Sequence[int]) -> list[int]:
        """Registers of a thread stopped at a system call's exit, made to make another one."""
        its = list(registers)
        its[self.pc] -= self.instruction
        its[self.nr] = nr
        for register, argument in zip(self.args, args, strict=False):
            its[register] = argument
        return its


MACHINES = {
    # struct user_pt_regs: x0-x30, sp, pc, pstate
    "aarch64": Arch(
        audit_arch=AUDIT_ARCH_AARCH64,
        nr_ioctl=29,
        nr_close=57,
        closing=frozenset({57, 436, 24}),  # close, close_range, dup3
        masking=frozenset({135, 220, 435}),  # rt_sigprocmask, clone, clone3
        nr_mmap=222,
        nr_exit_group=94,
        nr_seccomp=277,
        private=frozenset({214, 215, 226, 233}),  # brk, munmap, mprotect, madvise
        words=34,
        instruction=4,
        pc=32,
        sp=31,
        nr=8,
        args=(0, 1, 2, 3, 4, 5),
        nr_at_entry=None,
        window=KVM_ARM_VCPU_INIT,
    ),
    # struct user_regs_struct: … r10 is word 7, r9 8, r8 9, rax 10, rdx 12, rsi 13, rdi 14,
    # orig_rax 15, rip 16, rsp 19
    "x86_64": Arch(
        audit_arch=AUDIT_ARCH_X86_64,
        nr_ioctl=16,
        nr_close=3,
        closing=frozenset({3, 436, 292, 33}),  # dup2, too
        masking=frozenset({14, 56, 57, 58, 435}),  # fork and vfork, too
        nr_mmap=9,
        nr_exit_group=231,
        nr_seccomp=317,
        private=frozenset({12, 11, 10, 28}),
        words=27,
        instruction=2,
        pc=16,
        sp=19,
        nr=10,
        args=(14, 13, 12, 7, 9, 8),
        nr_at_entry=15,
        window=KVM_CREATE_VCPU,
    ),
}


def native_arch() -> Arch:
    """The row of the machine this runs on; raises UnsupportedError where there is none."""
    name = os.uname().machine
    try:
        return MACHINES[name]
    except KeyError:
        raise UnsupportedError(
            f"pmuctl run does not know {name} machines",
            why=f"it traces VMMs on {', '.join(MACHINES)}",
            fix="run it on an arm64 host",
        ) from None
