# SPDX-License-Identifier: Apache-2.0
"""KVM's file descriptors as /proc/PID/fd shows them, and who has them."""

import re
from collections.abc import Mapping

from pmuctl.model.vm_ref import ProcessId
from pmuctl.value import value

KVM_VM_LINK = "anon_inode:kvm-vm"
"""What /proc/PID/fd/N of a VM's file descriptor points to (virt/kvm/kvm_main.c)."""
KVM_VCPU_LINK = "anon_inode:kvm-vcpu:"
"""How that of a vCPU's begins; its number follows (create_vcpu_fd() there)."""

_VCPU = re.compile(rf"{KVM_VCPU_LINK}([0-9]{{1,9}})")


@value(kw_only=True)
class KvmProcess:
    """A process that has KVM VMs or vCPUs open, and its descriptors of them.

    `vms` are none where only vCPUs are left open, which keep their VM. `vcpus` maps the file
    descriptor of each vCPU to the number KVM_CREATE_VCPU was given.
    """

    process: ProcessId
    vms: tuple[int, ...]
    vcpus: Mapping[int, int]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def files(self) -> tuple[int, ...]:
        """What keeps its VMs: their descriptors, or else the lowest of a vCPU."""
        return self.vms or tuple(sorted(self.vcpus)[:1])


@value(kw_only=True)
class KvmScan:
    """Every process that is seen to have a VM open, and how many could not be looked at.

    Of the latter the kernel's own threads, which have no descriptors, are none.
    `is_partial` tells that /proc does not even show some processes: other users' (hidepid), or
    those outside of this pid namespace.
    """

    holders: tuple[KvmProcess, ...]
    unreadable: int = 0
    is_partial: bool = False


def has_kvm(links: Mapping[int, str]) -> bool:
    """Whether a VM, or a vCPU of one, is among these."""
    return any(
        its == KVM_VM_LINK or (its.startswith(KVM_VCPU_LINK) and _VCPU.fullmatch(its))
        for its in links.values()
    )


def holder_of(process: ProcessId, links: Mapping[int, str]) -> KvmProcess:
    """What a process has of KVM among these."""
    vms = tuple(sorted(fd for fd, its in links.items() if its == KVM_VM_LINK))
    return KvmProcess(process=process, vms=vms, vcpus=vcpus_of(links))


def vcpus_of(links: Mapping[int, str]) -> dict[int, int]:
    """The vCPUs among these: file descriptor to the number KVM_CREATE_VCPU was given."""
    return {fd: int(its[1]) for fd, link in links.items() if (its := _VCPU.fullmatch(link))}
