# SPDX-License-Identifier: Apache-2.0
"""KVM's file descriptors as /proc/PID/fd shows them, and the processes that have them."""

import re
from collections.abc import Mapping

from pmuctl.model.vm_ref import ProcessId
from pmuctl.value import field, value

KVM_VM_LINK = "anon_inode:kvm-vm"
"""The target of /proc/PID/fd/N of a VM's file descriptor (virt/kvm/kvm_main.c)."""
KVM_VCPU_LINK = "anon_inode:kvm-vcpu"
"""A vCPU descriptor's target; a colon and its number follow from Linux 4.16 on (create_vcpu_fd()
there)."""

KVM_LINK = "anon_inode:kvm-v"
"""What both begin with."""

_VCPU = re.compile(rf"{KVM_VCPU_LINK}:([0-9]{{1,9}})")


@value(kw_only=True)
class KvmProcess:
    """A process that has KVM VMs or vCPUs open, and its descriptors of them.

    `vms` is empty if only vCPUs are left open, which keep their VM alive. `vcpus` maps the file
    descriptor of each vCPU to the number given to KVM_CREATE_VCPU; `unnumbered` are descriptors of
    vCPUs whose number the kernel does not tell.
    """

    process: ProcessId
    vms: tuple[int, ...]
    vcpus: Mapping[int, int]
    unnumbered: tuple[int, ...] = ()

    @property
    def has_vcpus(self) -> bool:
        """Whether it has a vCPU open."""
        return bool(self.vcpus or self.unnumbered)

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def files(self) -> tuple[int, ...]:
        """The descriptors that keep its VMs alive: theirs, or else the lowest one of a vCPU."""
        return self.vms or tuple(sorted((*self.vcpus, *self.unnumbered))[:1])


@value(kw_only=True)
class KvmScan:
    """Every process seen to have a VM open, and how many others are `unreadable`.

    Kernel threads, which have no descriptors, do not count as unreadable. `is_partial` is True if
    /proc does not show all processes: other users' are hidden (hidepid), some are outside this
    pid namespace, or a captured tree does not tell which there were. `left_out` is how many tasks
    were not looked at for want of time, by user (None: of none alone, as a setuid program).
    """

    processes: tuple[KvmProcess, ...]
    unreadable: int = 0
    is_partial: bool = False
    left_out: Mapping[int | None, int] = field(default_factory=dict)


def has_kvm(links: Mapping[int, str]) -> bool:
    """Return whether a VM, or a vCPU of one, is among these descriptors."""
    return any(
        link in (KVM_VM_LINK, KVM_VCPU_LINK) or _VCPU.fullmatch(link)
        for link in links.values()
        if link.startswith(KVM_LINK)
    )


def make_kvm_process(process: ProcessId, links: Mapping[int, str]) -> KvmProcess:
    """Return a process with the KVM descriptors among these."""
    vms = tuple(sorted(fd for fd, link in links.items() if link == KVM_VM_LINK))
    unnumbered = tuple(sorted(fd for fd, link in links.items() if link == KVM_VCPU_LINK))
    return KvmProcess(process=process, vms=vms, vcpus=vcpus_of(links), unnumbered=unnumbered)


def vcpus_of(links: Mapping[int, str]) -> dict[int, int]:
    """Return the vCPUs with a number among these: descriptor → number given to KVM_CREATE_VCPU."""
    return {fd: int(match[1]) for fd, link in links.items() if (match := _VCPU.fullmatch(link))}
