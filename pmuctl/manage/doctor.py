# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a host and its VMs: the facts are gathered here, and judged by the checks."""

import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pmuctl.control.registry import own_dir, runtime_dirs
from pmuctl.errors import UsageError
from pmuctl.host.debugfs import PATH_KVM
from pmuctl.host.machine import KvmAccess
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.probe_cache import read_cached, read_kernel
from pmuctl.host.procs import Procfs
from pmuctl.host.threads import Threads
from pmuctl.manage.blocker import Blocker, Host, find_blocker
from pmuctl.manage.host_checks import HostFacts, RuntimeDir, check_host
from pmuctl.manage.naming import take_stock
from pmuctl.manage.preflight import Kvm
from pmuctl.manage.reach import Reach
from pmuctl.manage.standing import recorded_masks
from pmuctl.manage.stock import Listing
from pmuctl.manage.vcpus import PlacedVcpu, read_ground, scan_vcpus
from pmuctl.manage.vm_checks import VmFacts, check_vm
from pmuctl.model.finding import Finding
from pmuctl.model.kernel import Probed
from pmuctl.model.pmu import Pmu
from pmuctl.model.ref import VmRef
from pmuctl.model.truth import Chosen, Ground, chosen_pmu, judge_vm
from pmuctl.model.vm import Vm

SAMPLE_SECONDS = 0.3
"""How long threads that may spin are looked at: 30 clock ticks."""
TICKS = 100
"""Clock ticks a second in /proc: USER_HZ (include/uapi/asm-generic/param.h)."""


def diagnose(
    reach: Reach, refs: Sequence[VmRef], *, kvm: Kvm | None, threads: Threads | None
) -> list[Finding]:
    """The findings of the host and of every VM, or of the VMs that are named.

    Without `kvm` of that only what was captured is known, without `threads` masks are those that
    /proc tells, as in another machine's tree. Raises NotFoundError for what means no VM.
    """
    seen = take_stock(reach, refs)
    pmus = scan_pmus(reach.sysfs)
    access = kvm.access() if kvm else None
    may_ask = access in (None, KvmAccess.USABLE)
    probed = _probe(reach, pmus, kvm) if may_ask else None
    ground = read_ground(reach.sysfs, reach.environ, pmus=pmus)
    found: list[Finding] = []
    if not refs:
        facts = _host_facts(reach, seen, ground, access=access, probed=probed)
        found += check_host(facts)
    for vm in _sampled(seen.vms, ground, reach, threads):
        found += check_vm(vm)
    return found


def _probe(reach: Reach, pmus: Sequence[Pmu], kvm: Kvm | None) -> Probed | None:
    """What KVM does, tried on scratch VMs once a boot, or captured; None where it could not be."""
    if kvm is None:
        return read_cached(reach.sysfs, pmus, reach.environ, uid=reach.uid)
    try:
        return read_kernel(reach.sysfs, pmus, reach.environ, uid=reach.uid, probe=kvm.probe)
    except OSError:
        return None


def _host_facts(
    reach: Reach,
    seen: Listing,
    ground: Ground,
    *,
    access: KvmAccess | None,
    probed: Probed | None,
) -> HostFacts:
    return HostFacts(
        uid=reach.uid,
        pmus=ground.pmus,
        online=ground.online,
        kvm=access,
        probed=probed,
        directories=_directories(reach.environ, reach.uid) if reach.is_live else (),
        processes=seen.unreadable,
        is_partial=seen.is_partial,
        # that a capture has none of it can also mean that there was no VM
        has_debugfs=bool(reach.sysfs.entries(PATH_KVM)) or (None if access is None else False),
        is_live=reach.is_live,
    )


def _directories(environ: Mapping[str, str], uid: int) -> list[RuntimeDir]:
    """This user's own, and all others that are there."""
    own: Path | None = None
    with suppress(UsageError):
        own = own_dir(environ, uid)
    found: list[RuntimeDir] = []
    for path, owner in runtime_dirs(environ, uid):
        owners = (0,) if owner is None and path != own else (0, uid if owner is None else owner)
        try:
            its = path.lstat()
        except OSError:
            if path == own:
                found.append(RuntimeDir(path=str(path), owners=owners))
            continue
        found.append(
            RuntimeDir(
                path=str(path),
                owners=owners,
                owner=its.st_uid,
                mode=stat.S_IMODE(its.st_mode),
                is_directory=stat.S_ISDIR(its.st_mode),
            )
        )
    return found


def _sampled(
    vms: Sequence[Vm], ground: Ground, reach: Reach, threads: Threads | None
) -> list[VmFacts]:
    """The facts of each VM; those whose vCPUs may spin are looked at for a moment, all at once."""
    facts = [_vm_facts(vm, ground, reach, threads) for vm in vms]
    suspects = [
        (its.vm.pid, vcpu.vcpu.index, vcpu.vcpu.tid)
        for its in facts
        if its.chosen.is_explicit and reach.is_live
        for vcpu in its.strays
        if its.vm.pid is not None and vcpu.vcpu.tid is not None
    ]
    if not suspects:
        return facts
    before = {tid: _busy(reach.procs, pid, tid) for pid, _, tid in suspects}
    began = time.monotonic()
    time.sleep(SAMPLE_SECONDS)
    took = time.monotonic() - began
    shares: dict[int, dict[int, float]] = {}
    for pid, index, tid in suspects:
        then, now = before[tid], _busy(reach.procs, pid, tid)
        if then is not None and now is not None:
            ran_guest = now[1] > then[1]
            share = 0.0 if ran_guest else (now[0] - then[0]) / TICKS / took
            shares.setdefault(pid, {})[index] = min(share, 1.0)
    return [_with_spins(its, shares[its.vm.pid]) if its.vm.pid in shares else its for its in facts]


def _with_spins(facts: VmFacts, spins: Mapping[int, float]) -> VmFacts:
    return replace(facts, spins=spins)


def _busy(procs: Procfs, pid: int, tid: int) -> tuple[int, int] | None:
    """The clock ticks that a thread has had of a CPU, and those of them in a guest.

    From proc_pid_stat(5): utime (14), which has the guest's in it, stime (15), guest_time (43).
    """
    text = procs.read_text(f"{pid}/task/{tid}/stat")
    fields = text.rpartition(")")[2].split() if text else []
    try:
        return int(fields[11]) + int(fields[12]), int(fields[40])
    except (IndexError, ValueError):
        return None


def _vm_facts(vm: Vm, ground: Ground, reach: Reach, threads: Threads | None) -> VmFacts:
    chosen = chosen_pmu(vm, ground)
    vcpus = list(
        scan_vcpus(
            [vm],
            ground.pmus,
            reach.procs,
            threads,
            online=ground.online,
            probed=ground.probed,
        )
    )
    host = Host(
        sysfs=reach.sysfs,
        procs=reach.procs,
        threads=threads or Threads(),
        environ=reach.environ,
        uid=reach.uid,
        pmus=ground.pmus,
        online=ground.online,
        probed=ground.probed,
    )
    return VmFacts(
        vm=vm,
        chosen=chosen,
        vcpus=vcpus,
        judgement=judge_vm([its.affinity for its in vcpus], chosen, ground),
        pmus={name: ground.cpus_of(name) for name in chosen.names},
        online=ground.online,
        recorded=recorded_masks(vm, host) if reach.is_live else {},
        age=_age(reach.procs, vm.pid),
        blockers=_blockers(vm, chosen, vcpus, host),
    )


def _blockers(
    vm: Vm, chosen: Chosen, vcpus: Sequence[PlacedVcpu], host: Host
) -> dict[int, Blocker]:
    """The vCPUs whose cpuset allows no CPU of their PMU, where one is online."""
    ground = Ground(pmus=host.pmus, online=host.online)
    cpus = ground.cpus_of(chosen.pmu.name) if chosen.pmu else None
    if not cpus or vm.pid is None or (host.online is not None and not cpus & host.online):
        return {}
    found = {
        its.vcpu.index: find_blocker(vm.pid, its.vcpu.tid, cpus, host)
        for its in vcpus
        if its.vcpu.tid is not None
    }
    return {index: its for index, its in found.items() if its is not None}


def _age(procs: Procfs, pid: int | None) -> float | None:
    """Seconds since a process started; None where that cannot be told."""
    start = None if pid is None else procs.start_time(pid)
    uptime = procs.read_text("uptime")
    if start is None or uptime is None:
        return None
    with suppress(ValueError, IndexError):
        return float(uptime.split()[0]) - start / TICKS
    return None
