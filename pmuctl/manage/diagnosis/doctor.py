# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a host and its VMs: the facts are gathered here, and judged by the checks."""

import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pmuctl.control.runtime.sockets import own_dir, runtime_dirs
from pmuctl.errors import UsageError
from pmuctl.host.debugfs import PATH_KVM
from pmuctl.host.kvm.access import Kvm, KvmAccess
from pmuctl.host.kvm.cache import read_kvm_caps
from pmuctl.host.procfs import TICKS, Procfs
from pmuctl.manage.affinity.assess import assess, find_vm_obstacle, read_vm_affinity_record
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.diagnosis.host_checks import HostFacts, RuntimeDir, check_host
from pmuctl.manage.diagnosis.spinning import ThreadId, rest, spins
from pmuctl.manage.diagnosis.vm_checks import VmFacts, check_vm
from pmuctl.manage.inventory.inventory import VmList
from pmuctl.model.alignment import VmAlignment
from pmuctl.model.check_result import Finding
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.model.vm import Window
from pmuctl.value import replace


def diagnose(
    host_state: HostState, vm_list: VmList, *, is_whole: bool, rest: Callable[[], float] = rest
) -> tuple[list[Finding], list[str]]:
    """Return the findings about these VMs, and why one of them has none.

    If the list `is_whole`, the host is checked, too, and nothing is said of VMs without finding.
    Of another machine only what was captured is known: its KVM is not asked.
    """
    kvm = host_state.host.kvm
    access = kvm.access() if kvm else None
    if kvm is not None and access is KvmAccess.USABLE:
        # what was found just now is known of VMs, too, even if it could not be kept
        host_state = host_state.with_kvm_caps(_probe_kvm(host_state, kvm))
    findings = check_host(_read_host_facts(host_state, vm_list, access, kvm)) if is_whole else []
    unchecked: list[str] = []
    facts = [_read_vm_facts(assess(vm, host_state), host_state) for vm in vm_list.vms]
    for vm_facts in _with_spins(facts, host_state, rest):
        found = check_vm(vm_facts)
        findings += found
        if not is_whole and not found:
            why = _why_unchecked(vm_facts.alignment, host_state)
            unchecked.append(f"{vm_facts.alignment.vm.name}: no check applies: {why}")
    return findings, unchecked


def _why_unchecked(held: VmAlignment, host_state: HostState) -> str:
    """Why no check applies to a VM: it has no PMU, or nothing is known of it."""
    vm = held.vm
    if vm.window is Window.NONE or vm.identity.has_vpmu is False:
        return "it has no PMU: its VMM made it without one"
    if not host_state.pmus:
        return "it has no PMU: this host has no CPU PMU"
    if not held.effective_pmu.cpus:
        return "it has no PMU yet: none of its vCPUs is made"
    return "which vCPUs it has is not known"


def _probe_kvm(host_state: HostState, kvm: Kvm) -> KvmCaps | None:
    """What KVM does, tried on scratch VMs once a boot; None where it could not be."""
    try:
        return read_kvm_caps(
            host_state.host.sysfs,
            host_state.pmus,
            host_state.host.environ,
            uid=host_state.host.uid,
            probe=kvm.probe,
        )
    except OSError:
        return None


def _read_host_facts(
    host_state: HostState, vm_list: VmList, access: KvmAccess | None, kvm: Kvm | None
) -> HostFacts:
    is_live = host_state.host.is_live
    return HostFacts(
        uid=host_state.host.uid,
        pmus=host_state.pmus,
        online=host_state.online,
        kvm=access,
        kvm_group=kvm.group() if kvm and access is KvmAccess.DENIED else None,
        probed=host_state.host_pmus.probed,
        directories=_directories(host_state.host.environ, host_state.host.uid) if is_live else (),
        processes=vm_list.unreadable,
        is_partial=vm_list.is_partial,
        # that a capture has none of it can also mean that there was no VM
        has_debugfs=bool(host_state.host.sysfs.entries(PATH_KVM))
        or (None if access is None else False),
        is_live=is_live,
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


def _with_spins(
    facts: Sequence[VmFacts], host_state: HostState, rest: Callable[[], float]
) -> Iterator[VmFacts]:
    """The facts of each VM; those whose vCPUs may spin are looked at for a moment, all at once."""
    threads = [_suspects(its.alignment) if host_state.host.is_live else {} for its in facts]
    found = spins(
        {thread for its in threads for thread in its.values()}, host_state.host.procs, rest=rest
    )
    for its, suspects in zip(facts, threads, strict=True):
        yield replace(
            its,
            spins={index: found[thread] for index, thread in suspects.items() if thread in found},
        )


def _suspects(held: VmAlignment) -> dict[int, ThreadId]:
    """The threads of vCPUs that KVM may run no more: a VMM that tries again and again spins."""
    if held.vm.pid is None or not held.effective_pmu.is_explicit:
        return {}
    strays = ((its.index, its.tid) for its in held.misplaced)
    return {index: ThreadId(held.vm.pid, tid) for index, tid in strays if tid is not None}


def _read_vm_facts(held: VmAlignment, host_state: HostState) -> VmFacts:
    masks = read_vm_affinity_record(held.vm, host_state).cpus
    found = {its.index: find_vm_obstacle(held, its, masks, host_state) for its in held.misplaced}
    return VmFacts(
        alignment=held,
        online=host_state.online,
        recorded=masks,
        age=_age(host_state.host.procs, held.vm.pid),
        blockers={index: its for index, its in found.items() if its is not None},
    )


def _age(procs: Procfs, pid: int | None) -> float | None:
    """Seconds since a process started; None where that cannot be told."""
    start = None if pid is None else procs.start_time(pid)
    uptime = procs.read_text("uptime")
    if start is None or uptime is None:
        return None
    with suppress(ValueError, IndexError):
        return float(uptime.split()[0]) - start / TICKS
    return None
