# SPDX-License-Identifier: Apache-2.0
"""The checks of a VM, which judge facts that were read before and read nothing themselves."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence

from pmuctl.errors import command
from pmuctl.manage.affinity.blockers import Blocker
from pmuctl.manage.affinity.vcpu_threads import (
    has_unknown_threads,
    make_dead_error,
    no_threads,
)
from pmuctl.manage.hints import FIND_OUT_PMU, bring_online, pin_command
from pmuctl.model.alignment import AlignmentState, VmAlignment, aligned_mask, format_vcpus
from pmuctl.model.check_result import CheckId, Finding, Outcome, Result
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import Consequence
from pmuctl.model.vm import VmState, Window
from pmuctl.model.vmm.identity import VmmKind
from pmuctl.value import field, replace, value

HELD_LONG = 300.0
"""Seconds after its start from which on a VM that still waits may have been forgotten."""
SPIN_SHARE = 0.8
"""The share of a CPU outside the guest from which on a vCPU's thread counts as spinning."""


@value(kw_only=True)
class VmFacts:
    """The facts that the checks of a VM judge; None if a fact is not known.

    `online` are the online CPUs of the host, `choices` the CPUs of each PMU that the VM can have,
    of the one to suggest first, `age` is the age of the VM's process in seconds. By
    vCPU number, `recorded` are the CPUs that pmuctl put it on, `blockers` is what keeps a
    misplaced vCPU off the CPUs of its PMU, and `spins` the share of a CPU that its thread took
    without running the guest.
    """

    alignment: VmAlignment
    online: CpuSet | None = None
    choices: Sequence[CpuSet] = ()
    recorded: Mapping[int, CpuSet] = field(default_factory=dict)
    age: float | None = None
    blockers: Mapping[int, Blocker] = field(default_factory=dict)
    spins: Mapping[int, float] = field(default_factory=dict)


def check_vm(facts: VmFacts) -> list[Finding]:
    """Return the findings of all checks that apply, in the order of CHECKS."""
    name = facts.alignment.vm.name
    return [
        Finding.of(id, name, outcome) for id, check in CHECKS.items() for outcome in check(facts)
    ]


def _check_socket(facts: VmFacts) -> Iterator[Outcome]:
    vm = facts.alignment.vm
    if vm.socket is None:
        return
    path = shlex.quote(vm.socket)
    match vm.state:
        case VmState.DEAD:
            why = f"nobody listens at {vm.socket}: its VMM has ended"
            yield Outcome(Result.WARN, why, fix=f"rm {path}")
        case VmState.SILENT:
            why = vm.problem.message if vm.problem else "its control socket does not answer"
            # --socket, because its process may have other sockets
            option = () if vm.is_own else ("--socket", vm.socket)
            fix = command("vm", "show", vm.name, *option, "--deadline", 30)
            yield Outcome(Result.WARN, why, fix=fix)
        case VmState.DENIED:
            why = "this user may not ask it"
            # the full address, because for root another VM may have this name
            address = replace(vm, is_own=False).address
            yield Outcome(Result.WARN, why, fix=f"sudo {command('doctor', address)}")
        case VmState.ORPHANED:
            pass
        case _:
            yield Outcome(Result.PASS, "its control socket answers")


def _check_supervisor(facts: VmFacts) -> Iterator[Outcome]:
    vm = facts.alignment.vm
    if vm.state is VmState.ORPHANED:
        why = "its supervisor has ended: it can make no further vCPU, and cannot be asked"
        fix = vm.problem.fix if vm.problem else None
        yield Outcome(Result.WARN, why, fix=fix)
    elif vm.supervised and vm.state not in (VmState.DEAD, VmState.SILENT, VmState.DENIED):
        yield Outcome(Result.PASS, "its supervisor is there")


def _check_made(facts: VmFacts) -> Iterator[Outcome]:
    vm = facts.alignment.vm
    if vm.unmade is not None:
        why = f"{vm.unmade.message}: {vm.unmade.why or 'the settings reached none'}"
        yield Outcome(Result.WARN, why, fix=vm.unmade.fix)
    elif vm.supervised and vm.vcpus:
        yield Outcome(Result.PASS, "its VMM has made its VM with KVM")


def _check_window(facts: VmFacts) -> Iterator[Outcome]:
    vm = facts.alignment.vm
    if vm.state is VmState.WAITING:
        is_long = facts.age is not None and facts.age > HELD_LONG
        why = "it waits for pmuctl vm release"
        if is_long and facts.age is not None:
            why = f"it still waits for pmuctl vm release, {facts.age / 60:.0f} min after its start"
        fix = command("vm", "release", facts.alignment.vm.address) if is_long else None
        yield Outcome(Result.WARN if is_long else Result.PASS, why, fix=fix)
    elif vm.window in (Window.OPEN, Window.SEALED) and vm.socket is not None:
        yield Outcome(Result.PASS, str(vm.window))


def _check_vcpus(facts: VmFacts) -> Iterator[Outcome]:
    alignment, vm = facts.alignment, facts.alignment.vm
    if why := alignment.explain_dead():
        yield Outcome(Result.FAIL, why, make_dead_error(vm, CpuSet.of(vm.dead_vcpus)).fix)
    elif vm.supervised and vm.vcpus and all(vcpu.has_run and vcpu.tid for vcpu in vm.vcpus):
        yield Outcome(Result.PASS, "all threads of its vCPUs are there")


def _check_pmu_online(facts: VmFacts) -> Iterator[Outcome]:
    name, cpus = facts.alignment.effective_pmu.only, facts.alignment.effective_pmu.only_cpus
    if facts.alignment.effective_pmu.pmu is None or not cpus or facts.online is None:
        return
    if cpus & facts.online:
        yield Outcome(Result.PASS, f"CPUs {cpus & facts.online} of {name} are online")
    else:
        then = facts.alignment.effective_pmu.consequence.explain(facts.alignment.vm.identity.kind)
        why = f"no CPU of {name} ({cpus}) is online: {then}"
        yield Outcome(Result.FAIL, why, bring_online(cpus))


def _check_blocked(facts: VmFacts) -> Iterator[Outcome]:
    cpus = facts.alignment.effective_pmu.only_cpus
    if not facts.blockers:
        return
    if cpus and facts.online is not None and not cpus & facts.online:  # vm.pmu-online reports it
        return
    first = next(iter(facts.blockers.values()))
    why = f"{format_vcpus(facts.blockers)} cannot be put on its PMU: {first.why}"
    yield Outcome(Result.FAIL, why, fix=first.fix)


def _check_aligned(facts: VmFacts) -> Iterator[Outcome]:
    why, alignment = facts.alignment.explanation, facts.alignment.alignment
    if why is None or alignment.state is AlignmentState.DEAD:
        return
    if alignment.aligned is False:
        # if it is not known which CPUs are online, those outside the PMU need not be
        is_fatal = alignment.consequence is Consequence.FAIL_ENTRY and facts.online is not None
        yield Outcome(Result.FAIL if is_fatal else Result.WARN, why, _fix_alignment(facts))
    elif alignment.aligned:
        yield Outcome(Result.PASS, why)
    elif has_unknown_threads(facts.alignment.vm) and facts.alignment.vm.state not in (
        VmState.STARTING,
        VmState.WAITING,
    ):
        error = no_threads(facts.alignment.vm)
        yield Outcome(Result.WARN, f"{error.message}: {why}", fix=error.fix)
    elif facts.alignment.vcpus:
        yield Outcome(Result.WARN, why, FIND_OUT_PMU)


def _fix_alignment(facts: VmFacts) -> str:
    """Return the commands that bring the vCPUs onto their PMU, blockers removed first."""
    fixes = dict.fromkeys(blocker.fix for blocker in facts.blockers.values())
    return " && ".join([*fixes, _fix_placement(facts)])


def _fix_placement(facts: VmFacts) -> str:
    """Return `affinity align` if it would move the vCPUs, else the `affinity set` that does."""
    alignment = facts.alignment
    pmu = alignment.effective_pmu
    if pmu.only is None:
        choices = facts.choices or pmu.cpus.values()
        pin = pin_command(alignment.vm.address, choices, facts.online)
        return pin or command("vm", "show", alignment.vm.address)
    cpus = pmu.only_cpus or CpuSet()
    masks = [(vcpu.affinity, facts.recorded.get(vcpu.index)) for vcpu in alignment.misplaced]
    if all(now is None or aligned_mask(now, cpus, then) for now, then in masks):
        return command("affinity", "align", alignment.vm.address)
    return command("affinity", "set", alignment.vm.address, f"pmu/{pmu.only}")


def _check_spinning(facts: VmFacts) -> Iterator[Outcome]:
    spins = {index: share for index, share in facts.spins.items() if share >= SPIN_SHARE}
    if not facts.spins:
        return
    if not spins:
        why = "no vCPU that can leave its PMU takes a CPU for itself"
        yield Outcome(Result.PASS, why)
        return
    share = max(spins.values())
    takes, runs = ("takes", "runs") if len(spins) == 1 else ("take up to", "run")
    who = "QEMU" if facts.alignment.vm.identity.kind is VmmKind.QEMU else "its VMM"
    why = (
        f"{format_vcpus(spins)} {takes} {share:.0%} of a CPU and {runs} no guest: {who} makes "
        "KVM_RUN again and again, and KVM answers KVM_EXIT_FAIL_ENTRY"
    )
    yield Outcome(Result.FAIL, why, fix=_fix_alignment(facts))


Check = Callable[[VmFacts], Iterator[Outcome]]

CHECKS: Mapping[CheckId, Check] = {
    CheckId.VM_SOCKET: _check_socket,
    CheckId.VM_SUPERVISOR: _check_supervisor,
    CheckId.VM_MADE: _check_made,
    CheckId.VM_WINDOW: _check_window,
    CheckId.VM_VCPUS: _check_vcpus,
    CheckId.VM_PMU_ONLINE: _check_pmu_online,
    CheckId.VM_BLOCKED: _check_blocked,
    CheckId.VM_ALIGNED: _check_aligned,
    CheckId.VM_SPINNING: _check_spinning,
}
