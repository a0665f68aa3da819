# SPDX-License-Identifier: Apache-2.0
"""What KVM tells in debugfs, to root where that is mounted: who made a VM, whether it has run.

The directory of a VM is named for the thread that made it and the descriptor that it got
(kvm_create_vm_debugfs(), virt/kvm/kvm_main.c). Where the architecture has directories of vCPUs
(__KVM_HAVE_ARCH_VCPU_DEBUGFS: x86 has), each has a file `pid`; arm64 has none from 6.1 to 7.3.
"""

import re
from collections.abc import Collection, Iterator, Mapping

from pmuctl.host.kvm.fds import KvmProcess
from pmuctl.host.sysfs import Sysfs

PATH_KVM = "sys/kernel/debug/kvm"

_VM = re.compile(r"([1-9][0-9]{0,9})-([0-9]{1,9})")
_VCPU = re.compile(r"vcpu([0-9]{1,9})")

Names = Mapping[tuple[int, int], str]
"""(Thread id of the maker, VM descriptor) → the VM's directory."""


def scan_names(sysfs: Sysfs) -> Names:
    """The VMs that KVM shows; none where this user may not look."""
    matches = (_VM.fullmatch(name) for name in sysfs.entries(PATH_KVM))
    return {(int(its[1]), int(its[2])): its[0] for its in matches if its}


def names_of(names: Names, holder: KvmProcess, tids: Collection[int]) -> Iterator[tuple[int, str]]:
    """The VM descriptors of a process with their directories.

    The maker's thread may have ended since: then the VM is not found.
    """
    for fd in holder.vms:
        for maker in (holder.pid, *tids):
            if name := names.get((maker, fd)):
                yield fd, name
                break


def has_run(sysfs: Sysfs, name: str) -> bool:
    """Whether KVM says that a vCPU of this VM has been in its guest, and left it; False also where
    that cannot be read.

    Each time is counted after the guest was entered (kvm_arch_vcpu_ioctl_run(),
    arch/arm64/kvm/arm.c), and a VM's file has the sum of its vCPUs' (kvm_vcpu_stats_desc[]).
    """
    return (sysfs.read_int(f"{PATH_KVM}/{name}/exits") or 0) > 0


def read_vcpus(sysfs: Sysfs, name: str) -> dict[int, int]:
    """The vCPUs of a VM that have run, each with the thread that ran it last."""
    found = {}
    for entry in sysfs.entries(f"{PATH_KVM}/{name}"):
        if match := _VCPU.fullmatch(entry):
            tid = sysfs.read_int(f"{PATH_KVM}/{name}/{entry}/pid")
            if tid is not None and tid > 0:
                found[int(match[1])] = tid
    return found
