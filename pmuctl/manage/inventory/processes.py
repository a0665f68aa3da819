# SPDX-License-Identifier: Apache-2.0
"""VMs found by their processes: every one on the host, whether or not it has a control socket."""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial

from pmuctl.control.client.qemu_monitor import DEADLINE, QemuMonitor, may_query, query_qemu
from pmuctl.host import debugfs
from pmuctl.host.host import Host
from pmuctl.host.kvm.fds import KvmProcess
from pmuctl.host.kvm.owners import running_vcpu, scan_owners
from pmuctl.host.parallel import run_parallel
from pmuctl.host.procfs import Procfs
from pmuctl.manage.inventory.session import Session
from pmuctl.model.vm import Evidence, Vm, VmState, VmVcpu, Window
from pmuctl.model.vm_ref import ProcessId, VmId
from pmuctl.model.vmm_identity import (
    VmmIdentity,
    identify,
    is_pmuctl,
    vcpu_of_thread,
    vm_name,
    vm_uuid,
)
from pmuctl.value import replace, value

MONITORS_MAX = 4
"""Monitors of one process that are tried: its command line, anybody's word, may name thousands."""
ALL_MONITORS = 2.0
"""Seconds for the monitors of all processes; those that are left then are not asked."""
STOPPED = "T"
"""The state of a process that a signal has stopped (proc_pid_stat(5))."""

Tids = Mapping[int, tuple[int, Evidence]]
"""vCPU number → the thread that runs it, and how that is known."""


@value(kw_only=True)
class VmProcess:
    """A process that has VMs open, and what it says it is."""

    holder: KvmProcess
    identity: VmmIdentity
    is_pmuctl: bool

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.holder.pid


@value(kw_only=True)
class ProcessScan:
    """The processes of a host that have VMs open, and how many could not be looked at.

    `is_partial` tells that other users' processes are hidden altogether.
    """

    processes: tuple[VmProcess, ...] = ()
    unreadable: int = 0
    is_partial: bool = False


def scan_processes(host: Host) -> ProcessScan:
    """Look once at all processes; files are read only of those that have a VM.

    A helper that has only a VMM's descriptors is no process of a VM.
    """
    procs, found = host.procs, []
    scan = scan_owners(procs, host.sysfs)
    for holder in scan.holders:
        argv, comm = procs.command_line(holder.pid), procs.comm(holder.pid, holder.pid)
        its = VmProcess(
            holder=holder, identity=identify(argv, comm), is_pmuctl=is_pmuctl(argv, comm)
        )
        found.append(its)
    return ProcessScan(
        processes=tuple(found), unreadable=scan.unreadable, is_partial=scan.is_partial
    )


def vms_of_processes(processes: Sequence[VmProcess], session: Session) -> list[Vm]:
    """The VMs of these processes.

    What has ended meanwhile is left out. Scratch VMs are those of probes, which never run, of
    pmuctls of this user's.
    """
    monitors = _ask(processes, session)
    names = debugfs.scan_names(session.host.sysfs) if processes else {}
    found: list[Vm] = []
    for process in processes:
        its = list(_vms(process, session.host, names, monitors.get(process.pid)))
        # another process may have its pid by now
        if session.host.procs.is_there(process.holder.process):
            found += its
    return found


def _ask(processes: Sequence[VmProcess], session: Session) -> dict[int, QemuMonitor]:
    """What QEMUs say at monitors that are free, asked side by side.

    A QEMU that has no vCPU yet may wait for its monitor's first client, and is left alone. So is
    one that was asked already, whatever came of that, unless it has got other vCPUs: a monitor
    serves one client at a time, and its manager is to be that.
    """
    if not session.host.is_live:
        return {}
    all_asked = [its for its in processes if its.identity.monitors and its.holder.vcpus]
    known = {
        its.pid: session.monitor_answers[key]
        for its in all_asked
        if (key := _key(its)) in session.monitor_answers
    }
    asked = [its for its in all_asked if its.pid not in known]
    if asked:
        for key in [
            key for key in session.monitor_answers if not session.host.procs.is_there(key[0])
        ]:
            del session.monitor_answers[key]
    until = time.monotonic() + ALL_MONITORS
    answers = run_parallel([partial(_monitor, its, session, until) for its in asked])
    known |= {its.pid: answer for its, answer in zip(asked, answers, strict=True)}
    return {pid: answer for pid, answer in known.items() if answer}


def _key(process: VmProcess) -> tuple[ProcessId, frozenset[int]]:
    holder = process.holder
    return holder.process, frozenset(holder.vcpus.values())


def _monitor(process: VmProcess, session: Session, until: float) -> QemuMonitor | None:
    """What it says, kept for the next look whatever that is; not where it is too late to ask."""
    if time.monotonic() >= until:
        return None
    procs, pid, answer = session.host.procs, process.pid, None
    until = min(until, time.monotonic() + DEADLINE)
    parent = procs.parent(pid)
    above = procs.comm(parent, parent) if parent else ""
    place = procs.root / str(pid)
    for path in process.identity.monitors[:MONITORS_MAX]:
        if answer is None and may_query(path, above):
            answer = query_qemu(path, place, pid=pid, uid=procs.uid(pid), until=until)
    # whether it still runs may change, what it is called and its threads do not
    session.monitor_answers[_key(process)] = answer and replace(answer, status=None)
    return answer


def _vms(
    process: VmProcess, host: Host, names: debugfs.Names, monitor: QemuMonitor | None
) -> Iterator[Vm]:
    """One VM for a process, or one for each VM descriptor where vCPUs can be told apart.

    Which thread is whose of several VMs that are not, is not known of vCPUs of the same number.
    """
    procs, holder = host.procs, process.holder
    tids = procs.threads(holder.pid)
    own_names = dict(debugfs.names_of(names, holder, tids))
    told = {fd: debugfs.read_vcpus(host.sysfs, name) for fd, name in own_names.items()}
    apart = {fd: its for fd, its in told.items() if its}
    if len(apart) > 1:
        for fd, its in apart.items():
            threads = {n: (tid, Evidence.DEBUGFS) for n, tid in its.items() if tid in tids}
            vm = _vm(process, procs, None, sorted(its), threads, fd=fd)
            yield replace(vm, name=f"pid/{holder.pid}/{fd}")
        return
    last = {index: tid for its in apart.values() for index, tid in its.items()}
    indices = sorted(set(holder.vcpus.values()))
    threads = dict(_threads(procs, holder, tids, indices, monitor, last))
    if len(told) != 1 and not _is_one(holder, procs):
        count = Counter(holder.vcpus.values())
        threads = {index: its for index, its in threads.items() if count[index] == 1}
    fd = next(iter((*apart, *holder.files)))
    has_run = any(debugfs.has_run(host.sysfs, name) for name in own_names.values())
    vm = _vm(process, procs, monitor, indices, threads, fd=fd, has_run=has_run)
    # anybody can call himself pmuctl: only what this user starts is left out
    is_own = vm.owner == host.uid and process.is_pmuctl
    yield replace(vm, is_scratch=is_own and vm.state is VmState.STARTING)


def _is_one(holder: KvmProcess, procs: Procfs) -> bool:
    """Whether all its VM descriptors are certainly of the same VM."""
    pid, vms = holder.pid, holder.vms
    return bool(vms) and all(procs.is_same_file(pid, vms[0], pid, fd) for fd in vms[1:])


def _threads(
    procs: Procfs,
    holder: KvmProcess,
    tids: Collection[int],
    indices: Sequence[int],
    monitor: QemuMonitor | None,
    last: Mapping[int, int],
) -> Tids:
    """The threads of vCPUs, each by the best evidence there is; no thread is two vCPUs'."""
    found: dict[int, tuple[int, Evidence]] = {}
    used: set[int] = set()

    def take(index: int | None, tid: int, evidence: Evidence) -> None:
        if index is None or index not in indices or index in found:
            return
        if tid in tids and tid not in used:
            found[index] = (tid, evidence)
            used.add(tid)

    for index, tid in (monitor.threads if monitor else {}).items():
        take(index, tid, Evidence.QMP)
    for index, tid in last.items():
        take(index, tid, Evidence.DEBUGFS)
    if len(found) < len(indices):
        for tid in sorted(tids):
            fd = running_vcpu(holder.pid, tid, procs)
            if fd is not None:
                take(holder.vcpus.get(fd), tid, Evidence.KVM_RUN)
    if len(found) < len(indices):
        for tid in sorted(tids):
            take(vcpu_of_thread(procs.comm(holder.pid, tid)), tid, Evidence.NAME)
    return found


def _vm(
    process: VmProcess,
    procs: Procfs,
    monitor: QemuMonitor | None,
    indices: Sequence[int],
    threads: Tids,
    *,
    fd: int,
    has_run: bool = False,
) -> Vm:
    pid, identity = process.pid, process.identity
    vcpus = tuple(_vcpu(procs, pid, index, threads.get(index)) for index in indices)
    # a thread that spent time in a guest is a vCPU's, though it may not be known of which
    has_run |= any(its.has_run for its in vcpus) or (
        bool(vcpus) and any(procs.guest_time(pid, tid) for tid in procs.threads(pid))
    )
    leader = procs.thread_stat(pid, pid)
    state = VmState.STARTING
    if has_run or (monitor and monitor.status == "running"):
        pauses = monitor is not None and monitor.status not in (None, "running")
        is_stopped = leader is not None and leader.state == STOPPED
        state = VmState.PAUSED if pauses or is_stopped else VmState.RUNNING
    window = None if state is VmState.STARTING else Window.SEALED
    monitor = monitor or QemuMonitor()
    return Vm(
        name=identity.name or vm_name(monitor.name) or f"pid/{pid}",
        socket=None,
        state=state,
        uuid=identity.uuid or vm_uuid(monitor.uuid),
        vmm=identity.kind,
        id=VmId(process.holder.process, fd),
        owner=procs.uid(pid),
        window=Window.NONE if identity.has_vpmu is False else window,
        by="a vCPU has run" if window and identity.has_vpmu is not False else None,
        vcpus=vcpus,
        identity=identity,
    )


def _vcpu(procs: Procfs, pid: int, index: int, thread: tuple[int, Evidence] | None) -> VmVcpu:
    """A vCPU has run if its thread spent time in a guest, or KVM_RUN was seen of it."""
    if thread is None:
        return VmVcpu(index=index, tid=None, initialised=None, has_run=None)
    tid, evidence = thread
    its = procs.thread_stat(pid, tid)
    has_run = evidence in (Evidence.DEBUGFS, Evidence.KVM_RUN) or bool(its and its.guest_time)
    return VmVcpu(
        index=index, tid=tid, initialised=None, has_run=has_run or None, evidence=evidence
    )
