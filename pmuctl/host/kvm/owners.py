# SPDX-License-Identifier: Apache-2.0
"""The processes whose VMs are their own, and not only inherited from, or passed on by, another.

KVM runs a VM only in the address space that made it, and answers EIO in any other (`kvm->mm`,
virt/kvm/kvm_main.c): a helper that a VMM forks has its descriptors, but not its VM.
"""

from collections.abc import Iterator, Mapping, Sequence

from pmuctl.host import debugfs
from pmuctl.host.kvm.fds import KvmProcess, KvmScan
from pmuctl.host.procfs import Procfs
from pmuctl.host.sysfs import Sysfs
from pmuctl.uapi.kvm import KVM_RUN
from pmuctl.value import replace

NR_IOCTL = (29, 16)
"""ioctl(2) as a number: arm64's (asm-generic/unistd.h) and x86-64's."""


def scan_owners(procs: Procfs, sysfs: Sysfs) -> KvmScan:
    """Who has KVM VMs open, but for helpers: those have only VMs that certainly are another's.

    Where that is not certain, both are among them. VMs of which only KVM itself tells, for their
    maker's thread has descriptors of its own, are found by that thread.
    """
    scan, names = procs.scan_kvm(), debugfs.scan_names(sysfs)
    by_pid = {its.pid: its for its in scan.holders}
    for its in _unshared(names, by_pid, procs):
        by_pid[its.pid] = _joined(by_pid[its.pid], its) if its.pid in by_pid else its
    holders = tuple(its for _, its in sorted(by_pid.items()))
    if len(holders) > 1:
        made = _made(holders, procs, names)
        holders = tuple(its for its in holders if not _is_helper(its, by_pid, made, procs))
    return replace(scan, holders=holders)


def _unshared(
    names: debugfs.Names, by_pid: Mapping[int, KvmProcess], procs: Procfs
) -> Iterator[KvmProcess]:
    """What the makers of VMs have open that their processes are not seen to have."""
    for tid, fd in names:
        if tid not in by_pid or fd not in by_pid[tid].vms:
            its = procs.thread_holder(tid)
            if its is not None and not (its.pid in by_pid and fd in by_pid[its.pid].vms):
                yield its


def _joined(holder: KvmProcess, more: KvmProcess) -> KvmProcess:
    vms = tuple(sorted({*holder.vms, *more.vms}))
    return replace(holder, vms=vms, vcpus={**more.vcpus, **holder.vcpus})


def _made(
    holders: Sequence[KvmProcess], procs: Procfs, names: debugfs.Names
) -> list[tuple[int, int]]:
    """The VMs whose maker KVM names: its process and descriptor."""
    if not names:
        return []
    return [
        (its.pid, fd)
        for its in holders
        for fd, _ in debugfs.names_of(names, its, procs.threads(its.pid))
    ]


def _is_helper(
    holder: KvmProcess,
    by_pid: Mapping[int, KvmProcess],
    made: Sequence[tuple[int, int]],
    procs: Procfs,
) -> bool:
    if not holder.vms or any(pid == holder.pid for pid, _ in made):
        return False
    others = [*made, *_run_by_parent(holder, by_pid, procs)]
    return all(
        any(procs.is_same_file(holder.pid, fd, *other) for other in others) for fd in holder.vms
    )


def _run_by_parent(
    holder: KvmProcess, by_pid: Mapping[int, KvmProcess], procs: Procfs
) -> Iterator[tuple[int, int]]:
    """The only VM of the parent, where that has run a guest and this process never has.

    So it is known without debugfs, to users that are not root.
    """
    parent = by_pid.get(procs.parent(holder.pid) or 0)
    if parent is not None and len(parent.vms) == 1:
        if _has_run(parent.pid, procs) and not _has_run(holder.pid, procs):
            yield parent.pid, parent.vms[0]


def _has_run(pid: int, procs: Procfs) -> bool:
    tids = procs.threads(pid)
    return any(
        procs.guest_time(pid, tid) or running_vcpu(pid, tid, procs) is not None for tid in tids
    )


def running_vcpu(pid: int, tid: int, procs: Procfs) -> int | None:
    """The descriptor of the vCPU with which a thread sleeps in KVM_RUN, None where in none.

    A guest that keeps its CPU busy is not seen there.
    """
    call = procs.syscall(pid, tid)
    return call[1] if len(call) > 2 and call[0] in NR_IOCTL and call[2] == KVM_RUN else None
