# SPDX-License-Identifier: Apache-2.0
"""Setting the affinity of one VM's vCPU threads, and aligning it with the VM's PMU."""

from pmuctl.errors import (
    NOTHING_CHANGED,
    PinnedError,
    PmuctlError,
    RefusedError,
    UnknownThreadsError,
    UnsupportedError,
    command,
)
from pmuctl.manage.affinity.assess import read_vm_affinity_record
from pmuctl.manage.affinity.blockers import check_inside, find_blocker
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.affinity.mask_changes import current_masks, make_blocked_error
from pmuctl.manage.affinity.pin import VmAffinityResult, apply_affinity
from pmuctl.manage.affinity.vcpu_threads import VcpuThreads, no_threads, unknown_threads
from pmuctl.manage.hints import FIND_OUT_PMU, describe_cpus, pin_command
from pmuctl.manage.resolve import resolve_cpus
from pmuctl.model.alignment import AlignmentState, align_mask_state, aligned_mask, format_vcpus
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import Consequence, EffectivePmu, effective_pmu
from pmuctl.model.plan import SetAffinity, make_pinned_error, no_vpmu
from pmuctl.model.vm import Vm, Window
from pmuctl.value import replace


def set_affinity(
    vm: Vm, text: str, host_state: HostState, *, vcpus: CpuSet | None = None, dry_run: bool
) -> VmAffinityResult:
    """Put the threads of `vcpus`, by default of all, on the CPUs that `text` names.

    Raise what `choose_cpus`, `VcpuThreads.of` and `apply_affinity` raise.
    """
    try:
        cpus = choose_cpus(text, vm, host_state)
        vcpu_threads = VcpuThreads.of(vm, host_state, only=vcpus)
    except UnknownThreadsError as error:
        error.fix = _set_with_pmu(vm, cpus, host_state) or error.fix
        raise
    except RefusedError as error:
        if unknown_threads(vm):
            named = resolve_cpus(text, host_state.pmus, host_state.host.sysfs)
            error.fix = _set_with_pmu(vm, named, host_state) or error.fix
        elif vcpus and error.fix:
            error.fix = f"{error.fix} --vcpu {vcpus}"
        raise
    wanted = dict.fromkeys(vcpu_threads.tids, cpus)
    result = apply_affinity(
        vcpu_threads, wanted, host_state, record_unchanged=True, dry_run=dry_run
    )
    pmu = effective_pmu(vm, host_state.host_pmus)
    if not pmu.candidates and pmu.is_known:
        return result
    return replace(result, warnings=(*result.warnings, _make_unknown_pmu_warning(vm, pmu)))


def _set_with_pmu(vm: Vm, cpus: CpuSet, host_state: HostState) -> str | None:
    """Return the command that keeps a waiting VM on those of these CPUs that are of its PMU.

    Which threads run its vCPUs is not known before they have run, but its supervisor keeps them
    on the CPUs that were set together with a PMU. Return None for a VM that takes no PMU.
    """
    if vm.window is not Window.OPEN or not vm.supervised:
        return None
    is_open = vm.explicit_pmu is None
    pmus = [
        pmu
        for pmu in host_state.rank_pmus()
        if pmu.cpus and (is_open or pmu.name == effective_pmu(vm, host_state.host_pmus).only)
    ]
    chosen = next((pmu for pmu in pmus if pmu.cpus and pmu.cpus & cpus), None) or next(
        iter(pmus), None
    )
    if chosen is None or chosen.cpus is None:
        return None
    inside = chosen.cpus & cpus or chosen.cpus
    return command("vm", "set", vm.address, "pmu", chosen.name, "affinity", inside)


def choose_cpus(text: str, vm: Vm, host_state: HostState) -> CpuSet:
    """Return the CPUs that `text` names; if a PMU was set, they must be of that.

    Raise UsageError, NotFoundError or RefusedError for others.
    """
    cpus = resolve_cpus(text, host_state.pmus, host_state.host.sysfs, subject=vm.name)
    pmu = effective_pmu(vm, host_state.host_pmus)
    if pmu.is_explicit and pmu.only is not None and pmu.only_cpus is not None:
        check_inside(cpus, pmu.only_cpus, vm, pmu.only)
    elif pmu.is_explicit and align_mask_state(cpus, pmu, None).state is AlignmentState.LEAVES:
        raise RefusedError(
            f"{describe_cpus(cpus)} not of one PMU",
            subject=vm.name,
            why=f"its VMM has pmu {pmu}; " + Consequence.FAIL_ENTRY.explain(),
            now=NOTHING_CHANGED,
            fix=pin_command(vm.address, host_state.rank_cpus(pmu), host_state.online),
        )
    return cpus


def align_vm(vm: Vm, host_state: HostState, *, dry_run: bool) -> VmAffinityResult:
    """Put the vCPU threads of a VM back on the CPUs of its PMU, by the rule of `aligned_mask`.

    Raise UnsupportedError if the VM has no vPMU or the host no PMU, RefusedError if it is not
    known which PMU the VM has, PinnedError for a pin that is not pmuctl's, and what
    `apply_affinity` raises.
    """
    pmu = effective_pmu(vm, host_state.host_pmus)
    cpus = pmu.only_cpus
    if cpus is None:
        raise _make_no_pmu_error(vm, pmu, host_state)
    vcpu_threads = VcpuThreads.of(vm, host_state)
    masks = read_vm_affinity_record(vm, host_state).cpus
    wanted: dict[int, CpuSet] = {}
    pinned: dict[int, CpuSet] = {}
    for vcpu, now in current_masks(vcpu_threads, host_state).items():
        mask = aligned_mask(now, cpus, masks.get(vcpu), online=host_state.online)
        if mask is None:
            pinned[vcpu] = now
        else:
            wanted[vcpu] = mask
    for vcpu, now in pinned.items():
        # that no CPU of the PMU can be used says more than whose pin it is
        if blocker := find_blocker(vcpu_threads.pid, vcpu_threads.tids[vcpu], cpus, host_state):
            raise make_blocked_error(
                vm, SetAffinity(vcpu, vcpu_threads.tids[vcpu], cpus, now), blocker
            )
    if pinned:
        raise _make_pinned_error(vm, pmu, pinned)
    return apply_affinity(
        vcpu_threads, wanted, host_state, record_unchanged=False, dry_run=dry_run
    )


def _make_unknown_pmu_warning(vm: Vm, pmu: EffectivePmu) -> RefusedError:
    """Return the warning that its threads may be on CPUs of a PMU that the VM does not have."""
    which = f": {pmu}" if pmu.candidates else ""
    return RefusedError(
        "it is not known whether these CPUs are those of its PMU",
        subject=vm.name,
        why=f"which PMU it has is not known{which}; on other CPUs {pmu.consequence.explain()}",
        fix=FIND_OUT_PMU,
    )


def _make_no_pmu_error(vm: Vm, pmu: EffectivePmu, host_state: HostState) -> PmuctlError:
    error: PmuctlError
    if vm.query_error is not None:
        return vm.query_error
    if vm.is_without_pmu:
        error = no_vpmu(vm.identity)
    elif not pmu.is_known:
        error = UnsupportedError(
            "it is not known which PMU it has",
            why="not all CPU PMUs of this host can be read",
            fix="ls -lL /sys/bus/event_source/devices",
        )
    elif not pmu.cpus and not host_state.pmus:
        error = UnsupportedError(
            "it has no PMU that its vCPUs could be aligned to",
            why="this host has no CPU PMU",
            fix="pmuctl doctor",
        )
    elif not pmu.cpus and vm.window is not Window.OPEN:
        error = RefusedError(
            "it has no PMU yet that its vCPUs could be aligned to",
            why="its VMM has not made a vCPU",
            fix=command("vm", "wait", vm.address, "--for", "running"),
        )
    elif not pmu.cpus:
        error = RefusedError(
            "it has no PMU yet that its vCPUs could be aligned to",
            why="its window is open, and none was set",
            fix=command("vm", "set", vm.address, "pmu", host_state.rank_pmus()[0].name),
        )
    elif pmu.only is not None:
        error = RefusedError(f"the CPUs of {pmu.only} cannot be read", fix="pmuctl pmu list")
    elif not vm.vcpus or unknown_threads(vm):
        # the pin that the last case suggests needs the threads
        return no_threads(vm)
    else:
        who = "its VMM" if pmu.is_explicit else "KVM"
        error = RefusedError(
            "which PMU it has is not known",
            why=f"{who} chose {pmu} by itself, and does not tell which; "
            "a start with pmuctl run --pmu makes it certain",
            fix=pin_command(vm.address, host_state.rank_cpus(pmu), host_state.online)
            or "pmuctl pmu list",
        )
    error.subject, error.now = vm.name, NOTHING_CHANGED
    return error


def _make_pinned_error(vm: Vm, pmu: EffectivePmu, pinned: dict[int, CpuSet]) -> PinnedError:
    vcpus = CpuSet.of(pinned)
    masks = ", ".join(dict.fromkeys(str(mask) or "offline CPUs" for mask in pinned.values()))
    only = () if len(pinned) == len(vm.vcpus or ()) else ("--vcpu", vcpus)
    cause = f"pmuctl did not make this pin to {masks}"
    cpus = pmu.only_cpus or CpuSet()
    error = make_pinned_error(format_vcpus(vcpus), cause, cpus, pmu.only)
    error.subject, error.now = vm.name, NOTHING_CHANGED
    error.fix = command("affinity", "set", vm.address, cpus, *only)
    return error
