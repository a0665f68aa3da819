# SPDX-License-Identifier: Apache-2.0
"""Processes that own KVM VMs, as opposed to those that inherited or were sent a descriptor.

KVM runs a VM only in the address space that made it, and fails with EIO in any other (`kvm->mm`,
virt/kvm/kvm_main.c): a helper that a VMM forks has its descriptors, but not its VM.
"""

from collections.abc import Iterator, Mapping, Sequence

from pmuctl.host import debugfs
from pmuctl.host.kvm.fds import KvmProcess, KvmScan
from pmuctl.host.kvm.process_scan import KvmScanner, ScanLimits
from pmuctl.host.procfs import Procfs
from pmuctl.host.sysfs import Sysfs
from pmuctl.uapi.kvm import KVM_RUN
from pmuctl.value import replace

NR_IOCTL = (29, 16)
"""System call numbers of ioctl(2): arm64's (asm-generic/unistd.h) and x86-64's."""


def scan_owners(procs: Procfs, sysfs: Sysfs, limits: ScanLimits | None = None) -> KvmScan:
    """Return the processes that have KVM VMs open, without helpers.

    A helper has only VMs that certainly belong to another process; if that is not certain, both
    processes stay. VMs in a descriptor table of their maker's thread alone, which only debugfs
    shows, are found by that thread.
    """
    scanner = KvmScanner(procs, limits)
    scan, names = scanner.scan(), debugfs.scan_names(sysfs)
    by_pid = {process.pid: process for process in scan.processes}
    for process in _scan_unshared(names, by_pid, scanner):
        known = by_pid.get(process.pid)
        by_pid[process.pid] = process if known is None else _merge_fds(known, process)
    holders = tuple(process for _, process in sorted(by_pid.items()))
    if len(holders) > 1:
        made = _find_made_vms(holders, procs, names)
        holders = tuple(
            process for process in holders if not _is_helper(process, by_pid, made, procs)
        )
    return replace(scan, processes=holders, left_out=dict(scanner.left_out))


def _scan_unshared(
    names: debugfs.Names, by_pid: Mapping[int, KvmProcess], scanner: KvmScanner
) -> Iterator[KvmProcess]:
    """Yield what makers of VMs have open in threads with a descriptor table of their own."""
    for tid, fds in _group_by_thread(names).items():
        if tid not in by_pid or not fds <= set(by_pid[tid].vms):
            process = scanner.read_thread(tid)
            if process and not (process.pid in by_pid and fds <= set(by_pid[process.pid].vms)):
                yield process


def _group_by_thread(names: debugfs.Names) -> dict[int, set[int]]:
    """Return the descriptors of VMs by the thread that made them."""
    grouped: dict[int, set[int]] = {}
    for tid, fd in names:
        grouped.setdefault(tid, set()).add(fd)
    return grouped


def _merge_fds(process: KvmProcess, unshared: KvmProcess) -> KvmProcess:
    """Return the process with the descriptors of both; its own vCPUs win."""
    vms = tuple(sorted({*process.vms, *unshared.vms}))
    unnumbered = tuple(sorted({*process.unnumbered, *unshared.unnumbered}))
    vcpus = {**unshared.vcpus, **process.vcpus}
    return replace(process, vms=vms, vcpus=vcpus, unnumbered=unnumbered)


def _find_made_vms(
    holders: Sequence[KvmProcess], procs: Procfs, names: debugfs.Names
) -> list[tuple[int, int]]:
    """Return pid and VM descriptor of the VMs that debugfs shows these processes to have made."""
    if not names:
        return []
    return [
        (process.pid, fd)
        for process in holders
        for fd, _ in debugfs.names_of(names, process, procs.threads(process.pid))
    ]


def _is_helper(
    holder: KvmProcess,
    by_pid: Mapping[int, KvmProcess],
    made: Sequence[tuple[int, int]],
    procs: Procfs,
) -> bool:
    """Return whether all VMs of a process certainly belong to others."""
    if not holder.vms or any(pid == holder.pid for pid, _ in made):
        return False
    others = [*made, *_iter_parent_vms(holder, by_pid, procs)]
    return all(
        any(procs.is_same_file(holder.pid, fd, *other) for other in others) for fd in holder.vms
    )


def _iter_parent_vms(
    holder: KvmProcess, by_pid: Mapping[int, KvmProcess], procs: Procfs
) -> Iterator[tuple[int, int]]:
    """Yield the only VM of the parent, if the parent has run a guest and this process never has.

    That shows the owner without debugfs, so also to users other than root.
    """
    parent = by_pid.get(procs.parent(holder.pid) or 0)
    if parent is not None and len(parent.vms) == 1:
        if _has_run(parent.pid, procs) and not _has_run(holder.pid, procs):
            yield parent.pid, parent.vms[0]


def _has_run(pid: int, procs: Procfs) -> bool:
    return bool(procs.process_guest_time(pid)) or any(
        running_vcpu(pid, tid, procs) is not None for tid in procs.threads(pid)
    )


def running_vcpu(pid: int, tid: int, procs: Procfs) -> int | None:
    """Return the descriptor of the vCPU with which a thread sleeps in KVM_RUN, else None.

    A guest that keeps its CPU busy is not seen, because its thread does not sleep.
    """
    call = procs.syscall(pid, tid)
    return call[1] if len(call) > 2 and call[0] in NR_IOCTL and call[2] == KVM_RUN else None
