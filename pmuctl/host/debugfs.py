# SPDX-License-Identifier: Apache-2.0
"""KVM's directory in debugfs, if it is mounted and readable (root): makers of VMs, runs of vCPUs.

The directory of a VM is named for the thread that made it and the descriptor that it got
(kvm_create_vm_debugfs(), virt/kvm/kvm_main.c). On architectures with a directory for each vCPU
(__KVM_HAVE_ARCH_VCPU_DEBUGFS: x86), it has a file `pid`; arm64 has none from 6.1 to 7.3.
"""

import re
from collections.abc import Collection, Iterator, Mapping

from pmuctl.host.kvm.fds import KvmProcess
from pmuctl.host.sysfs import Sysfs

PATH_KVM = "sys/kernel/debug/kvm"

_VM = re.compile(r"([1-9][0-9]{0,9})-([0-9]{1,9})")
_VCPU = re.compile(r"vcpu([0-9]{1,9})")

Names = Mapping[tuple[int, int], str]
"""(Thread id of the VM's maker, VM descriptor) → name of the VM's directory."""


def scan_names(sysfs: Sysfs) -> Names:
    """Return the VMs that KVM shows, an empty dict if this user may not look."""
    matches = (_VM.fullmatch(name) for name in sysfs.entries(PATH_KVM))
    return {(int(match[1]), int(match[2])): match[0] for match in matches if match}


def names_of(names: Names, holder: KvmProcess, tids: Collection[int]) -> Iterator[tuple[int, str]]:
    """Yield the VM descriptors of a process with the names of their directories.

    A VM is not found if the thread that made it has ended.
    """
    for fd in holder.vms:
        for maker in (holder.pid, *tids):
            if name := names.get((maker, fd)):
                yield fd, name
                break


def has_run(sysfs: Sysfs, name: str) -> bool:
    """Return whether KVM has counted an exit of this VM from its guest; False if unreadable.

    An exit is counted after the guest was entered (kvm_arch_vcpu_ioctl_run(),
    arch/arm64/kvm/arm.c), and a VM's file has the sum over its vCPUs (kvm_vcpu_stats_desc[]).
    """
    return (sysfs.read_int(f"{PATH_KVM}/{name}/exits") or 0) > 0


def read_vcpus(sysfs: Sysfs, name: str) -> dict[int, int]:
    """Return the vCPUs of a VM that have run: number → thread id that ran it last."""
    tids = {}
    for entry in sysfs.entries(f"{PATH_KVM}/{name}"):
        if match := _VCPU.fullmatch(entry):
            tid = sysfs.read_int(f"{PATH_KVM}/{name}/{entry}/pid")
            if tid is not None and tid > 0:
                tids[int(match[1])] = tid
    return tids
