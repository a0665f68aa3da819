# SPDX-License-Identifier: Apache-2.0
"""Diagnosis of a host and its VMs: the facts that the checks judge are read here."""

import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pmuctl.control.runtime.sockets import own_dir, runtime_dirs
from pmuctl.errors import UsageError
from pmuctl.host.cpus import scan_present
from pmuctl.host.debugfs import PATH_KVM
from pmuctl.host.kvm.access import Kvm, KvmAccess
from pmuctl.host.procfs import TICKS, Procfs
from pmuctl.manage.affinity.assess import assess, find_vm_obstacle, read_vm_affinity_record
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.diagnosis.host_checks import HostFacts, RuntimeDir, check_host
from pmuctl.manage.diagnosis.spinning import ThreadId, measure_spin_shares, sleep_sample
from pmuctl.manage.diagnosis.vm_checks import VmFacts, check_vm
from pmuctl.manage.host_info import read_host_kvm_caps
from pmuctl.manage.inventory.inventory import VmList
from pmuctl.manage.inventory.processes import explain_unscanned
from pmuctl.manage.inventory.replies import make_problem_error
from pmuctl.manage.inventory.start_records import starts_without_vm
from pmuctl.model.alignment import VmAlignment
from pmuctl.model.check_result import CheckId, Finding, Outcome, Result
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.value import replace


def diagnose(
    host_state: HostState,
    vm_list: VmList,
    *,
    is_whole: bool,
    sleep: Callable[[], float] = sleep_sample,
) -> tuple[list[Finding], list[str]]:
    """Return the findings about these VMs, and for each VM without one the reason why.

    If the list `is_whole`, the host is checked, too, and VMs without a finding get no reason. Of
    another machine only what was captured is known: its KVM is not asked.
    """
    kvm = host_state.host.kvm
    access = kvm.access() if kvm else None
    if access is KvmAccess.USABLE:
        # the checks of VMs use what was probed now even if the cache could not be written
        host_state = host_state.with_kvm_caps(_probe_kvm(host_state, access))
    findings = check_host(_read_host_facts(host_state, vm_list, access, kvm)) if is_whole else []
    if is_whole:
        findings += _find_unmade_vms(host_state)
    unchecked: list[str] = []
    facts = [_read_vm_facts(assess(vm, host_state), host_state) for vm in vm_list.vms]
    counts = Counter(vm.name for vm in vm_list.vms)
    for vm_facts in _add_spin_shares(facts, host_state, sleep):
        vm = vm_facts.alignment.vm
        found = check_vm(vm_facts)
        if counts[vm.name] > 1:
            # two rows about two VMs must not read as two about one
            subject = f"{vm.name} (pid/{vm.pid})" if vm.pid else f"{vm.name} ({vm.socket})"
            found = [replace(finding, subject=subject) for finding in found]
        findings += found
        if not is_whole and not found:
            why = _explain_unchecked(vm_facts.alignment, host_state)
            unchecked.append(f"{vm_facts.alignment.vm.name}: no check applies: {why}")
    return findings, unchecked


def _find_unmade_vms(host_state: HostState) -> Iterator[Finding]:
    """Yield a finding for each command that has ended without a VM for its settings."""
    host = host_state.host
    for record in starts_without_vm(host.environ, host.uid, host.procs) if host.is_live else ():
        error = make_problem_error(record)
        assert error is not None
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.began))
        why = f"{error.message} by its last start, {when}: {error.why}"
        outcome = Outcome(Result.WARN, why, fix=error.fix)
        yield Finding.of(CheckId.VM_MADE, record.name, outcome)


def _explain_unchecked(alignment: VmAlignment, host_state: HostState) -> str:
    """Return why no check applies to a VM: it has no PMU, or nothing is known of it."""
    vm = alignment.vm
    if vm.is_without_pmu:
        return vm.identity.explain_no_vpmu()
    if not host_state.pmus and host_state.host_pmus.is_complete:
        return "it has no PMU: this host has no CPU PMU"
    if not alignment.effective_pmu.cpus:
        return "it has no PMU yet: none of its vCPUs is made"
    return "which vCPUs it has is not known"


def _probe_kvm(host_state: HostState, access: KvmAccess) -> KvmCaps | None:
    """Return what KVM does, probed on scratch VMs once a boot; None if the probe failed."""
    try:
        return read_host_kvm_caps(host_state.host, host_state.pmus, access)
    except OSError:
        return None


def _read_host_facts(
    host_state: HostState, vm_list: VmList, access: KvmAccess | None, kvm: Kvm | None
) -> HostFacts:
    """Read what the checks of a host judge."""
    is_live = host_state.host.is_live
    return HostFacts(
        uid=host_state.host.uid,
        pmus=host_state.pmus,
        are_pmus_complete=host_state.host_pmus.is_complete,
        online=host_state.online,
        present=scan_present(host_state.host.sysfs),
        kvm=access,
        kvm_group=kvm.group() if kvm and access is KvmAccess.DENIED else None,
        probed=host_state.host_pmus.probed,
        directories=_stat_runtime_dirs(host_state.host.environ, host_state.host.uid)
        if is_live
        else (),
        unreadable_processes=vm_list.unreadable,
        is_partial=vm_list.is_partial,
        unscanned=explain_unscanned(vm_list.unscanned) if vm_list.unscanned else None,
        unsearched=[*map(str, vm_list.unsearched)],
        # a capture without it tells nothing: maybe there was no VM
        has_debugfs=bool(host_state.host.sysfs.entries(PATH_KVM))
        or (None if access is None else False),
        is_live=is_live,
    )


def _stat_runtime_dirs(environ: Mapping[str, str], uid: int) -> list[RuntimeDir]:
    """Return this user's own directory of control sockets, and all others that exist."""
    own: Path | None = None
    with suppress(UsageError):
        own = own_dir(environ, uid)
    found: list[RuntimeDir] = []
    for path, owner in runtime_dirs(environ, uid):
        owners = (0,) if owner is None and path != own else (0, uid if owner is None else owner)
        try:
            status = path.lstat()
        except OSError:
            if path == own:
                found.append(RuntimeDir(path=str(path), owners=owners))
            continue
        found.append(
            RuntimeDir(
                path=str(path),
                owners=owners,
                owner=status.st_uid,
                mode=stat.S_IMODE(status.st_mode),
                is_directory=stat.S_ISDIR(status.st_mode),
            )
        )
    return found


def _add_spin_shares(
    facts: Sequence[VmFacts], host_state: HostState, sleep: Callable[[], float]
) -> Iterator[VmFacts]:
    """Yield the facts of each VM with the CPU shares of vCPUs that may spin, measured together."""
    is_live = host_state.host.is_live
    suspects = [_find_suspects(vm_facts.alignment) if is_live else {} for vm_facts in facts]
    shares = measure_spin_shares(
        {thread for by_vcpu in suspects for thread in by_vcpu.values()},
        host_state.host.procs,
        sleep=sleep,
    )
    for vm_facts, by_vcpu in zip(facts, suspects, strict=True):
        yield replace(
            vm_facts,
            spins={vcpu: shares[thread] for vcpu, thread in by_vcpu.items() if thread in shares},
        )


def _find_suspects(alignment: VmAlignment) -> dict[int, ThreadId]:
    """Return the threads, by vCPU, for which KVM_RUN may fail: a VMM that retries it spins.

    Return an empty dict if the process is not known, or the PMU was not set explicitly.
    """
    pid = alignment.vm.pid
    if pid is None or not alignment.effective_pmu.is_explicit:
        return {}
    return {
        vcpu.index: ThreadId(pid, vcpu.tid) for vcpu in alignment.misplaced if vcpu.tid is not None
    }


def _read_vm_facts(alignment: VmAlignment, host_state: HostState) -> VmFacts:
    """Read what the checks of a VM judge, but for the CPU shares of its vCPUs."""
    masks = read_vm_affinity_record(alignment.vm, host_state).cpus
    blockers = {
        vcpu.index: find_vm_obstacle(alignment, vcpu, masks, host_state)
        for vcpu in alignment.misplaced
    }
    return VmFacts(
        alignment=alignment,
        online=host_state.online,
        choices=host_state.rank_cpus(alignment.effective_pmu),
        recorded=masks,
        age=_read_process_age(host_state.host.procs, alignment.vm.pid),
        blockers={index: blocker for index, blocker in blockers.items() if blocker is not None},
    )


def _read_process_age(procs: Procfs, pid: int | None) -> float | None:
    """Return the seconds since a process started; None if they are not known."""
    start = None if pid is None else procs.start_time(pid)
    uptime = procs.read_text("uptime")
    if start is None or uptime is None:
        return None
    with suppress(ValueError, IndexError):
        return float(uptime.split()[0]) - start / TICKS
    return None
