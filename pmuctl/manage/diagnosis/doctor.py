# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a host and its VMs: the facts are gathered here, and judged by the checks."""

import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pmuctl.control.runtime.sockets import own_dir, runtime_dirs
from pmuctl.errors import UsageError
from pmuctl.host.debugfs import PATH_KVM
from pmuctl.host.kvm.access import KvmAccess
from pmuctl.host.kvm.cache import read_kvm_caps
from pmuctl.host.procfs import TICKS, Procfs
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.manage.affinity.assess import assess, find_vm_obstacle, read_vm_affinity_record
from pmuctl.manage.affinity.host_state import HostState, read_host_state
from pmuctl.manage.diagnosis.host_checks import HostFacts, RuntimeDir, check_host
from pmuctl.manage.diagnosis.spinning import ThreadId, rest, spins
from pmuctl.manage.diagnosis.vm_checks import VmFacts, check_vm
from pmuctl.manage.inventory.inventory import VmList
from pmuctl.manage.inventory.query import Session
from pmuctl.manage.start.preflight import Kvm
from pmuctl.model.alignment import VmAlignment
from pmuctl.model.check_result import Finding
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.model.vm import Window
from pmuctl.value import replace


def diagnose(
    reach: Session,
    seen: VmList,
    *,
    is_whole: bool,
    kvm: Kvm | None,
    threads: ThreadAffinity,
    rest: Callable[[], float] = rest,
) -> tuple[list[Finding], list[str]]:
    """The findings of these VMs, and of the host if they are all there are (`is_whole`); else why
    one of them has none.

    Without `kvm`, as in another machine's tree, only what was captured of that is known.
    """
    site = read_host_state(reach, threads)
    access = kvm.access() if kvm else None
    if kvm is not None and access is KvmAccess.USABLE:
        # what was found just now is known of VMs, too, also where it could not be kept
        site = site.with_probed(_probe(site, kvm))
    found = check_host(_host_facts(site, seen, access, kvm)) if is_whole else []
    unchecked: list[str] = []
    for facts in _with_spins([_vm_facts(assess(vm, site), site) for vm in seen.vms], site, rest):
        its = check_vm(facts)
        found += its
        if not is_whole and not its:
            unchecked.append(
                f"{facts.vm.name}: no check applies: {_why_unchecked(facts.held, site)}"
            )
    return found, unchecked


def _why_unchecked(held: VmAlignment, site: HostState) -> str:
    """Why no check applies to a VM: it has no PMU, or nothing is known of it."""
    vm = held.vm
    if vm.window is Window.NONE or vm.identity.has_vpmu is False:
        return "it has no PMU: its VMM made it without one"
    if not site.pmus:
        return "it has no PMU: this host has no CPU PMU"
    if not held.effective_pmu.cpus:
        return "it has no PMU yet: none of its vCPUs is made"
    return "which vCPUs it has is not known"


def _probe(site: HostState, kvm: Kvm) -> KvmCaps | None:
    """What KVM does, tried on scratch VMs once a boot; None where it could not be."""
    try:
        return read_kvm_caps(site.sysfs, site.pmus, site.environ, uid=site.uid, probe=kvm.probe)
    except OSError:
        return None


def _host_facts(
    site: HostState, seen: VmList, access: KvmAccess | None, kvm: Kvm | None
) -> HostFacts:
    is_live = site.reach.is_live
    return HostFacts(
        uid=site.uid,
        pmus=site.pmus,
        online=site.online,
        kvm=access,
        kvm_group=kvm.group() if kvm and access is KvmAccess.DENIED else None,
        probed=site.ground.probed,
        directories=_directories(site.environ, site.uid) if is_live else (),
        processes=seen.unreadable,
        is_partial=seen.is_partial,
        # that a capture has none of it can also mean that there was no VM
        has_debugfs=bool(site.sysfs.entries(PATH_KVM)) or (None if access is None else False),
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
    facts: Sequence[VmFacts], site: HostState, rest: Callable[[], float]
) -> Iterator[VmFacts]:
    """The facts of each VM; those whose vCPUs may spin are looked at for a moment, all at once."""
    threads = [_suspects(its.held) if site.reach.is_live else {} for its in facts]
    found = spins({thread for its in threads for thread in its.values()}, site.procs, rest=rest)
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


def _vm_facts(held: VmAlignment, site: HostState) -> VmFacts:
    masks = read_vm_affinity_record(held.vm, site).cpus
    found = {its.index: find_vm_obstacle(held, its, masks, site) for its in held.misplaced}
    return VmFacts(
        held=held,
        online=site.online,
        recorded=masks,
        age=_age(site.procs, held.vm.pid),
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
