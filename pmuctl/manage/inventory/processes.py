# SPDX-License-Identifier: Apache-2.0
"""VMs found by their processes: all VMs of the host, with and without a control socket."""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from posixpath import join

from pmuctl.control.client.qemu_monitor import DEADLINE, QemuMonitor, may_query, query_qemu
from pmuctl.errors import PmuctlError, UnreachableError
from pmuctl.host import debugfs
from pmuctl.host.host import Host
from pmuctl.host.kvm.fds import KvmProcess
from pmuctl.host.kvm.owners import running_vcpu, scan_owners
from pmuctl.host.kvm.process_scan import ScanLimits
from pmuctl.host.mounts import may_hang
from pmuctl.host.parallel import run_parallel
from pmuctl.host.procfs import Procfs
from pmuctl.manage.inventory.ended_threads import find_dead_vcpus
from pmuctl.manage.inventory.program import identify_program, read_program
from pmuctl.manage.inventory.session import Session
from pmuctl.model.vm import Evidence, Vm, VmState, VmVcpu, Window
from pmuctl.model.vm_ref import ProcessId, VmId
from pmuctl.model.vmm.identity import (
    VmmIdentity,
    is_pmuctl,
    vcpu_of_thread,
    vm_name,
    vm_uuid,
)
from pmuctl.value import field, replace, value

MONITORS_MAX = 4
"""Monitors that are tried for a process: its command line is untrusted and may name thousands."""
ALL_MONITORS = 2.0
"""Seconds for the monitors of all processes together; the rest of them is not queried."""
SCAN_LEAST = 2.0
"""Seconds that the scan of all processes may take, however short the deadline of a VM is."""
USERS_SHOWN = 3
"""Users that a message about processes names, at most."""
WAIT_LONGER = "--deadline SEC waits longer"
STOPPED = "T"
"""The state of a process that a signal has stopped (proc_pid_stat(5))."""

Tids = Mapping[int, tuple[int, Evidence]]
"""vCPU number → the thread that runs it, and how that is known."""


@value(kw_only=True)
class VmProcess:
    """A process that has VMs open, and what it says it is."""

    kvm_process: KvmProcess
    identity: VmmIdentity
    is_pmuctl: bool

    @property
    def pid(self) -> int:
        """The process id."""
        return self.kvm_process.pid


@value(kw_only=True)
class ProcessScan:
    """The processes of a host that have VMs open, and how many others are `unreadable`.

    `is_partial` is True if other users' processes are hidden altogether. `unscanned` is how many
    tasks were not looked at for want of time, by user (None: of none alone).
    """

    processes: tuple[VmProcess, ...] = ()
    unreadable: int = 0
    is_partial: bool = False
    unscanned: Mapping[int | None, int] = field(default_factory=dict)


def scan_processes(session: Session, *, named: Iterable[int] = ()) -> ProcessScan:
    """Scan all processes once; command line and name are read only of those that have a VM.

    A helper that has only a VMM's descriptors does not count as a process with a VM. The processes
    `named` are looked at first, and those that had VMs at an earlier look with this session.
    """
    host, processes = session.host, []
    procs = host.procs
    limits = ScanLimits(
        seconds=max(session.deadline, SCAN_LEAST),
        first=dict.fromkeys((*named, *session.vm_pids)),
        uid=session.user,
    )
    scan = scan_owners(procs, host.sysfs, limits)
    session.vm_pids[:] = [kvm_process.pid for kvm_process in scan.processes]
    for kvm_process in scan.processes:
        argv, comm = read_program(procs, kvm_process.pid)
        processes.append(
            VmProcess(
                kvm_process=kvm_process,
                identity=identify_program(procs, kvm_process.pid, argv, comm),
                is_pmuctl=is_pmuctl(argv, comm),
            )
        )
    return ProcessScan(
        processes=tuple(processes),
        unreadable=scan.unreadable,
        is_partial=scan.is_partial,
        unscanned=scan.left_out,
    )


def explain_unscanned(unscanned: Mapping[int | None, int]) -> str:
    """Return how many processes were not looked at, and whose they are."""
    count = sum(unscanned.values())
    users = ", ".join(f"uid {user}" for user in sorted(filter(None, unscanned))[:USERS_SHOWN])
    more = "" if len(unscanned) <= USERS_SHOWN else " and others"
    whose = f" of {users}{more}" if users else ""
    what = "process" if count == 1 else "processes"
    return f"for {count} {what}{whose} there was no time: VMs of theirs are not seen"


def make_unscanned_error(unscanned: Mapping[int | None, int]) -> PmuctlError:
    """Return the error of a command on all VMs that has not seen all processes."""
    return UnreachableError(
        "not all processes were looked at",
        why=explain_unscanned(unscanned),
        fix=WAIT_LONGER,
    )


def vms_of_processes(processes: Sequence[VmProcess], session: Session) -> list[Vm]:
    """Return the VMs of these processes, without those of processes that have ended meanwhile.

    Scratch VMs are those that probes of this user's pmuctl make; they never run.
    """
    monitors = _query_monitors(processes, session)
    names = debugfs.scan_names(session.host.sysfs) if processes else {}
    found: list[Vm] = []
    for process in processes:
        vms = list(_iter_vms(process, session.host, names, monitors.get(process.pid)))
        # another process may have its pid by now
        if session.host.procs.is_there(process.kvm_process.process):
            found += vms
    return found


def _query_monitors(processes: Sequence[VmProcess], session: Session) -> dict[int, QemuMonitor]:
    """Return what QEMUs reply at monitors that are free, by pid; they are queried concurrently.

    A QEMU that has no vCPU yet may wait for its monitor's first client, so it is left alone. A
    monitor serves one client at a time, and that should be the VM's manager: so a QEMU that was
    queried before, with whatever result, is not queried again until it has other vCPUs.
    """
    if not session.host.is_live:
        return {}
    qemus = [
        process
        for process in processes
        if process.identity.monitors and process.kvm_process.has_vcpus
    ]
    known = {
        process.pid: session.monitor_answers[key]
        for process in qemus
        if (key := _make_monitor_key(process)) in session.monitor_answers
    }
    todo = [process for process in qemus if process.pid not in known]
    if todo:
        for key in [
            key for key in session.monitor_answers if not session.host.procs.is_there(key[0])
        ]:
            del session.monitor_answers[key]
    until = time.monotonic() + ALL_MONITORS
    replies = run_parallel([partial(_query_monitor, process, session, until) for process in todo])
    known |= {process.pid: reply for process, reply in zip(todo, replies, strict=True)}
    return {pid: reply for pid, reply in known.items() if reply}


def _make_monitor_key(process: VmProcess) -> tuple[ProcessId, frozenset[int]]:
    kvm_process = process.kvm_process
    vcpus = (*kvm_process.vcpus.values(), *kvm_process.unnumbered)
    return kvm_process.process, frozenset(vcpus)


def _query_monitor(process: VmProcess, session: Session, until: float) -> QemuMonitor | None:
    """Return the reply of a QEMU's monitor, or None; either is kept for the next look.

    If `until` (monotonic) has passed, return None and keep nothing.
    """
    if time.monotonic() >= until:
        return None
    procs, pid, reply = session.host.procs, process.pid, None
    until = min(until, time.monotonic() + DEADLINE)
    parent = procs.parent(pid)
    parent_comm = procs.comm(parent, parent) if parent else ""
    proc_dir = procs.root / str(pid)
    for path in process.identity.monitors[:MONITORS_MAX]:
        if reply is None and may_query(path, parent_comm) and _is_answered(path, procs, pid):
            reply = query_qemu(path, proc_dir, pid=pid, uid=procs.uid(pid), until=until)
    # the status may change, the VM's name and threads do not
    session.monitor_answers[_make_monitor_key(process)] = reply and replace(reply, status=None)
    return reply


def _is_answered(path: str, procs: Procfs, pid: int) -> bool:
    """Return whether a path, as a process sees it, leads over no mount that may never answer."""
    place = join(procs.working_directory(pid) or "/", path)
    mounts = procs.read_text(f"{pid}/mountinfo") or ""
    return not may_hang(place, str(procs.root / str(pid) / "root"), mounts)


def _iter_vms(
    process: VmProcess, host: Host, names: debugfs.Names, monitor: QemuMonitor | None
) -> Iterator[Vm]:
    """Yield one VM for a process, or one for each VM descriptor if their vCPUs can be told apart.

    If the VMs of one process cannot be told apart, the threads of vCPUs that share a number stay
    unknown; which vCPUs there are, too, if they have no numbers.
    """
    procs, kvm_process = host.procs, process.kvm_process
    tids = procs.threads(process.pid)
    own_names = dict(debugfs.names_of(names, kvm_process, tids))
    vcpus_by_fd = {fd: debugfs.read_vcpus(host.sysfs, name) for fd, name in own_names.items()}
    shown = {fd: vcpus for fd, vcpus in vcpus_by_fd.items() if vcpus}
    if len(shown) > 1:
        for fd, vcpus in shown.items():
            threads = {n: (tid, Evidence.DEBUGFS) for n, tid in vcpus.items() if tid in tids}
            vm = _make_vm(process, procs, None, sorted(vcpus), threads, fd=fd)
            yield replace(vm, name=f"pid/{process.pid}/{fd}")
        return
    last_tids = {index: tid for vcpus in shown.values() for index, tid in vcpus.items()}
    is_one_vm = len(vcpus_by_fd) == 1 or _is_one_vm(kvm_process, procs)
    indices: Sequence[int] | None = sorted(set(kvm_process.vcpus.values()))
    if kvm_process.unnumbered:
        indices = _number_vcpus(procs, kvm_process, tids, monitor) if is_one_vm else None
        if indices and len(indices) == 1:
            kvm_process = replace(kvm_process, vcpus={kvm_process.unnumbered[0]: indices[0]})
    threads = dict(_find_threads(procs, kvm_process, tids, indices or (), monitor, last_tids))
    if not is_one_vm:
        count = Counter(kvm_process.vcpus.values())
        threads = {index: thread for index, thread in threads.items() if count[index] == 1}
    dead: Collection[int] = ()
    if is_one_vm and host.is_live and len(threads) < len(indices or ()):
        dead = find_dead_vcpus(procs, kvm_process, process.identity, tids, last_tids)
    fd = next(iter((*shown, *kvm_process.files)))
    has_run = any(debugfs.has_run(host.sysfs, name) for name in own_names.values())
    vm = _make_vm(process, procs, monitor, indices, threads, fd=fd, has_run=has_run, dead=dead)
    # any process can call itself pmuctl, so only this user's are taken for probes
    is_own = vm.owner == host.uid and process.is_pmuctl
    yield replace(vm, is_scratch=is_own and vm.state is VmState.STARTING)


def _number_vcpus(
    procs: Procfs, kvm_process: KvmProcess, tids: Collection[int], monitor: QemuMonitor | None
) -> list[int]:
    """Return the numbers of a VM's vCPUs whose descriptors have none.

    They are those of its monitor or of the names of its threads, if these are as many as the
    descriptors and vCPU 0 is among them; otherwise they are counted from 0, as VMMs do.
    """
    count = len(kvm_process.unnumbered)
    told = set(monitor.threads) if monitor else set()
    if len(told) != count:
        names = (vcpu_of_thread(procs.comm(kvm_process.pid, tid)) for tid in tids)
        told = {index for index in names if index is not None}
    return sorted(told) if len(told) == count and 0 in told else list(range(count))


def _is_one_vm(kvm_process: KvmProcess, procs: Procfs) -> bool:
    """Return True if all VM descriptors of a process are certainly of the same VM."""
    pid, fds = kvm_process.pid, kvm_process.vms
    return bool(fds) and all(procs.is_same_file(pid, fds[0], pid, fd) for fd in fds[1:])


def _find_threads(
    procs: Procfs,
    kvm_process: KvmProcess,
    tids: Collection[int],
    indices: Sequence[int],
    monitor: QemuMonitor | None,
    last_tids: Mapping[int, int],
) -> Tids:
    """Return the threads of vCPUs, each by the best evidence; no thread is that of two vCPUs.

    Names of threads that are numbered from 1 are no evidence. `last_tids` maps vCPU numbers to the
    threads that ran them last, by debugfs.
    """
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
    for index, tid in last_tids.items():
        take(index, tid, Evidence.DEBUGFS)
    if len(found) < len(indices):
        for tid in sorted(tids):
            fd = running_vcpu(kvm_process.pid, tid, procs)
            if fd is not None:
                take(kvm_process.vcpus.get(fd), tid, Evidence.KVM_RUN)
    if len(found) < len(indices):
        names = {tid: vcpu_of_thread(procs.comm(kvm_process.pid, tid)) for tid in sorted(tids)}
        numbers = {named for named in names.values() if named is not None}
        # some VMMs name the thread of vCPU 0 "vcpu-1"
        if 0 in numbers or 0 not in indices or numbers <= set(indices):
            for tid, named in names.items():
                take(named, tid, Evidence.NAME)
    return found


def _make_vm(
    process: VmProcess,
    procs: Procfs,
    monitor: QemuMonitor | None,
    indices: Sequence[int] | None,
    threads: Tids,
    *,
    fd: int,
    has_run: bool = False,
    dead: Collection[int] = (),
) -> Vm:
    """Return the VM of a process; `indices` are the numbers of its vCPUs, None if not known.

    Those in `dead` that have no thread are dead.
    """
    pid, identity = process.pid, process.identity
    vcpus = tuple(
        _make_vcpu(procs, pid, index, threads.get(index), is_dead=index in dead)
        for index in indices or ()
    )
    # a thread with guest time is a vCPU's, even if it is not known of which; that of the process
    # counts those of VMs before, too
    has_run |= any(vcpu.has_run for vcpu in vcpus) or (
        (bool(vcpus) or indices is None)
        and any(procs.guest_time(pid, tid) for tid in procs.threads(pid))
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
        id=VmId(process.kvm_process.process, fd),
        owner=procs.uid(pid),
        window=Window.NONE if identity.has_vpmu is False else window,
        by="a vCPU has run" if window and identity.has_vpmu is not False else None,
        vcpus=None if indices is None else vcpus,
        identity=identity,
    )


def _make_vcpu(
    procs: Procfs, pid: int, index: int, thread: tuple[int, Evidence] | None, *, is_dead: bool
) -> VmVcpu:
    """Return a vCPU; it has run if its thread has guest time, or was seen to run it."""
    if thread is None and is_dead:
        return VmVcpu(index=index, tid=None, initialised=None, has_run=True, is_dead=True)
    if thread is None:
        return VmVcpu(index=index, tid=None, initialised=None, has_run=None)
    tid, evidence = thread
    stat = procs.thread_stat(pid, tid)
    has_run = evidence in (Evidence.DEBUGFS, Evidence.KVM_RUN) or bool(stat and stat.guest_time)
    return VmVcpu(
        index=index, tid=tid, initialised=None, has_run=has_run or None, evidence=evidence
    )
