# SPDX-License-Identifier: Apache-2.0
"""Affinity of a VM's vCPU threads: choosing it, bringing it back onto the PMU, checking it."""

from pmuctl.errors import (
    NOTHING_CHANGED,
    PinnedError,
    PmuctlError,
    RefusedError,
    UnsupportedError,
    command,
)
from pmuctl.manage.affinity.assess import read_vm_affinity_record
from pmuctl.manage.affinity.blockers import find_blocker
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.affinity.pin import VmAffinityResult, apply_affinity
from pmuctl.manage.affinity.vcpu_threads import (
    VcpuThreads,
    blocked,
    check_inside,
    current_masks,
    no_threads,
    unknown_threads,
)
from pmuctl.manage.hints import cpus_words, pins
from pmuctl.manage.resolve import present_cpus
from pmuctl.model.alignment import AlignmentState, align_mask_state, aligned_mask
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import Consequence, EffectivePmu, effective_pmu
from pmuctl.model.plan import SetAffinity, no_vpmu
from pmuctl.model.vm import Vm, Window


def set_affinity(
    vm: Vm, text: str, host_state: HostState, *, vcpus: CpuSet | None = None, dry_run: bool
) -> VmAffinityResult:
    """Put the threads of these vCPUs, by default all, on the CPUs that the text names.

    Raises UsageError, NotFoundError and RefusedError for CPUs that will not do, and what
    `apply_affinity` does.
    """
    try:
        cpus = choose_cpus(text, vm, host_state)
    except RefusedError as error:
        error.fix = f"{error.fix} --vcpu {vcpus}" if vcpus else error.fix
        raise
    crew = VcpuThreads.of(vm, host_state, only=vcpus)
    wanted = dict.fromkeys(crew.tids, cpus)
    return apply_affinity(crew, wanted, host_state, all_of_them=True, dry_run=dry_run)


def choose_cpus(text: str, vm: Vm, host_state: HostState) -> CpuSet:
    """The CPUs that a text names, which have to be of the VM's PMU where one was set.

    Raises UsageError, NotFoundError and RefusedError for others.
    """
    cpus = present_cpus(text, host_state.pmus, host_state.host.sysfs, subject=vm.name)
    chosen = effective_pmu(vm, host_state.host_pmus)
    if chosen.is_explicit and chosen.only is not None and chosen.only_cpus is not None:
        check_inside(cpus, chosen.only_cpus, vm, chosen.only)
    elif (
        chosen.is_explicit and align_mask_state(cpus, chosen, None).state is AlignmentState.LEAVES
    ):
        raise RefusedError(
            f"{cpus_words(cpus)} not of one PMU",
            subject=vm.name,
            why=f"its VMM has chosen {chosen}; " + Consequence.FAIL_ENTRY.words(),
            now=NOTHING_CHANGED,
            fix=pins(vm.address, chosen.cpus.values()),
        )
    return cpus


def align_vm(vm: Vm, host_state: HostState, *, dry_run: bool) -> VmAffinityResult:
    """Bring the vCPU threads of a VM back onto the CPUs of its PMU, by the rule of `aligned_mask`.

    Raises UnsupportedError without a vPMU, or a PMU of the host; RefusedError where it is not
    known which PMU it has, PinnedError for a pin that is not pmuctl's, and what
    `apply_affinity` does.
    """
    chosen = effective_pmu(vm, host_state.host_pmus)
    cpus = chosen.only_cpus
    if cpus is None:
        raise _no_pmu(vm, chosen, host_state)
    crew = VcpuThreads.of(vm, host_state)
    masks = read_vm_affinity_record(vm, host_state).cpus
    wanted: dict[int, CpuSet] = {}
    pinned: dict[int, CpuSet] = {}
    for vcpu, now in current_masks(crew, host_state).items():
        mask = aligned_mask(now, cpus, masks.get(vcpu), online=host_state.online)
        if mask is None:
            pinned[vcpu] = now
        else:
            wanted[vcpu] = mask
    for vcpu, now in pinned.items():
        # that there is no CPU for it is worth more than whose pin it is
        if blocker := find_blocker(crew.pid, crew.tids[vcpu], cpus, host_state):
            raise blocked(vm, SetAffinity(vcpu, crew.tids[vcpu], cpus, now), blocker)
    if pinned:
        raise _pinned(vm, chosen, pinned)
    return apply_affinity(crew, wanted, host_state, all_of_them=False, dry_run=dry_run)


def _no_pmu(vm: Vm, chosen: EffectivePmu, host_state: HostState) -> PmuctlError:
    error: PmuctlError
    if vm.query_error is not None:
        return vm.query_error
    if vm.window is Window.NONE or vm.identity.has_vpmu is False:
        error = no_vpmu()
    elif not chosen.cpus and not host_state.pmus:
        error = UnsupportedError(
            "it has no PMU that its vCPUs could be aligned to",
            why="this host has no CPU PMU",
            fix="pmuctl doctor",
        )
    elif not chosen.cpus and vm.window is not Window.OPEN:
        error = RefusedError(
            "it has no PMU yet that its vCPUs could be aligned to",
            why="its VMM has not made a vCPU",
            fix=command("vm", "wait", vm.address, "--for", "running"),
        )
    elif not chosen.cpus:
        error = RefusedError(
            "it has no PMU yet that its vCPUs could be aligned to",
            why="its window is open, and none was chosen",
            fix=command("vm", "set", vm.address, "pmu", "PMU"),
        )
    elif chosen.only is not None:
        error = RefusedError(f"the CPUs of {chosen.only} cannot be read", fix="pmuctl pmu list")
    elif not vm.vcpus or unknown_threads(vm):
        # no pin could be made by whoever finds out which PMU it has
        return no_threads(vm)
    else:
        who = "its VMM" if chosen.is_explicit else "KVM"
        error = RefusedError(
            "which PMU it has is not known",
            why=f"{who} chose {chosen} by itself, and does not tell which",
            fix=f"{pins(vm.address, chosen.cpus.values()) or 'pmuctl pmu list'}, "
            "whichever it counts with; or start it anew with pmuctl run --pmu PMU",
        )
    error.subject, error.now = vm.name, NOTHING_CHANGED
    return error


def _pinned(vm: Vm, chosen: EffectivePmu, pinned: dict[int, CpuSet]) -> PinnedError:
    vcpus = CpuSet.of(pinned)
    masks = ", ".join(dict.fromkeys(str(its) or "offline CPUs" for its in pinned.values()))
    only = () if len(pinned) == len(vm.vcpus or ()) else ("--vcpu", vcpus)
    return PinnedError(
        f"vCPU {vcpus} may not run on any CPU of {chosen.only}",
        subject=vm.name,
        why=f"pinned to {masks}, that PMU's CPUs are {chosen.only_cpus}; "
        "pmuctl did not make this pin, and a pin is never widened",
        now=NOTHING_CHANGED,
        fix=command("affinity", "set", vm.address, chosen.only_cpus or "", *only),
    )
