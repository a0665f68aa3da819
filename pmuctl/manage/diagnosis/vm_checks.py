# SPDX-License-Identifier: Apache-2.0
"""The checks of a VM: each looks at facts that were read before, and at nothing else."""

import shlex
from collections.abc import Callable, Iterator, Mapping

from pmuctl.errors import command
from pmuctl.manage.affinity.blockers import Blocker
from pmuctl.manage.affinity.vcpu_threads import no_threads, unknown_threads
from pmuctl.manage.hints import bring_online, pins
from pmuctl.model.alignment import VmAlignment, aligned_mask
from pmuctl.model.check_result import CheckId, Finding, Outcome, Result
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import Consequence
from pmuctl.model.vm import VmState, Window
from pmuctl.model.vmm_identity import VmmKind
from pmuctl.value import field, replace, value

HELD_LONG = 300.0
"""Seconds after which a VM that still waits may have been forgotten."""
SPIN_SHARE = 0.8
"""The share of a CPU, outside the guest, from which on a vCPU's thread is said to spin."""


@value(kw_only=True)
class VmFacts:
    """What the checks of a VM judge.

    `online` are the host's CPUs, `recorded` those pmuctl put its vCPUs on; `age` is that of its
    process in seconds. `blockers` tell what keeps vCPUs that leave off the CPUs of their PMU, by
    number, `spins` the share of a CPU that a vCPU's thread took without running its guest.
    """

    alignment: VmAlignment
    online: CpuSet | None = None
    recorded: Mapping[int, CpuSet] = field(default_factory=dict)
    age: float | None = None
    blockers: Mapping[int, Blocker] = field(default_factory=dict)
    spins: Mapping[int, float] = field(default_factory=dict)


def check_vm(facts: VmFacts) -> list[Finding]:
    """Every check of a VM, in the order of CHECKS; what does not apply has no finding."""
    name = facts.alignment.vm.name
    return [Finding.of(id, name, its) for id, check in CHECKS.items() for its in check(facts)]


def _socket(facts: VmFacts) -> Iterator[Outcome]:
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
            # its process may have other sockets
            where = () if vm.is_own else ("--socket", vm.socket)
            fix = command("vm", "show", vm.name, *where, "--deadline", 30)
            yield Outcome(Result.WARN, why, fix=fix)
        case VmState.DENIED:
            why = "this user may not ask it"
            # to root another VM may have this name
            address = replace(vm, is_own=False).address
            yield Outcome(Result.WARN, why, fix=f"sudo {command('doctor', address)}")
        case VmState.ORPHANED:
            pass
        case _:
            yield Outcome(Result.PASS, "its control socket answers")


def _supervisor(facts: VmFacts) -> Iterator[Outcome]:
    vm = facts.alignment.vm
    if vm.state is VmState.ORPHANED:
        why = "its supervisor has ended: it can make no further vCPU, and cannot be asked"
        fix = vm.problem.fix if vm.problem else None
        yield Outcome(Result.WARN, why, fix=fix)
    elif vm.supervised and vm.state not in (VmState.DEAD, VmState.SILENT, VmState.DENIED):
        yield Outcome(Result.PASS, "its supervisor is there")


def _window(facts: VmFacts) -> Iterator[Outcome]:
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


def _pmu_online(facts: VmFacts) -> Iterator[Outcome]:
    name, cpus = facts.alignment.effective_pmu.only, facts.alignment.effective_pmu.only_cpus
    if facts.alignment.effective_pmu.pmu is None or not cpus or facts.online is None:
        return
    if cpus & facts.online:
        yield Outcome(Result.PASS, f"CPUs {cpus & facts.online} of {name} are online")
    else:
        then = facts.alignment.effective_pmu.consequence.words(facts.alignment.vm.identity.kind)
        why = f"no CPU of {name} ({cpus}) is online: {then}"
        yield Outcome(Result.FAIL, why, bring_online(cpus))


def _blocked(facts: VmFacts) -> Iterator[Outcome]:
    cpus = facts.alignment.effective_pmu.only_cpus
    if not facts.blockers:
        return
    if cpus and facts.online is not None and not cpus & facts.online:  # as vm.pmu-online tells
        return
    first = next(iter(facts.blockers.values()))
    why = f"vCPU {CpuSet.of(facts.blockers)} cannot be put on its PMU: {first.words}"
    yield Outcome(Result.FAIL, why, fix=first.fix)


def _aligned(facts: VmFacts) -> Iterator[Outcome]:
    why, judged = facts.alignment.explanation, facts.alignment.alignment
    if why is None:
        return
    if judged.aligned is False:
        is_fatal = judged.consequence is Consequence.FAIL_ENTRY
        yield Outcome(Result.FAIL if is_fatal else Result.WARN, why, _alignment(facts))
    elif judged.aligned:
        yield Outcome(Result.PASS, why)
    elif unknown_threads(facts.alignment.vm) and facts.alignment.vm.state not in (
        VmState.STARTING,
        VmState.WAITING,
    ):
        its = no_threads(facts.alignment.vm)
        yield Outcome(Result.WARN, f"{its.message}: {why}", fix=its.fix)
    elif facts.alignment.vcpus:
        yield Outcome(Result.WARN, why, command("vm", "vcpus", facts.alignment.vm.address))


def _alignment(facts: VmFacts) -> str:
    """What brings its vCPUs onto their PMU: align where it would do it, else the pin to make.

    First what is in the way of both is to go.
    """
    obstacles = dict.fromkeys(its.fix for its in facts.blockers.values())
    return " && ".join([*obstacles, _placement(facts)])


def _placement(facts: VmFacts) -> str:
    if facts.alignment.effective_pmu.only is None:
        return pins(facts.alignment.vm.address, facts.alignment.effective_pmu.cpus.values())
    cpus = facts.alignment.effective_pmu.only_cpus or CpuSet()
    masks = [(its.affinity, facts.recorded.get(its.index)) for its in facts.alignment.misplaced]
    if all(now is None or aligned_mask(now, cpus, then) for now, then in masks):
        return command("affinity", "align", facts.alignment.vm.address)
    return command(
        "affinity", "set", facts.alignment.vm.address, f"pmu/{facts.alignment.effective_pmu.only}"
    )


def _spinning(facts: VmFacts) -> Iterator[Outcome]:
    spins = {index: share for index, share in facts.spins.items() if share >= SPIN_SHARE}
    if not facts.spins:
        return
    if not spins:
        why = "no vCPU that can leave its PMU takes a CPU for itself"
        yield Outcome(Result.PASS, why)
        return
    share = max(spins.values())
    who = "QEMU" if facts.alignment.vm.identity.kind is VmmKind.QEMU else "its VMM"
    why = (
        f"vCPU {CpuSet.of(spins)} takes {share:.0%} of a CPU and runs no guest: {who} makes "
        "KVM_RUN again and again, and KVM answers KVM_EXIT_FAIL_ENTRY"
    )
    yield Outcome(Result.FAIL, why, fix=_alignment(facts))


Check = Callable[[VmFacts], Iterator[Outcome]]

CHECKS: Mapping[CheckId, Check] = {
    CheckId.VM_SOCKET: _socket,
    CheckId.VM_SUPERVISOR: _supervisor,
    CheckId.VM_WINDOW: _window,
    CheckId.VM_PMU_ONLINE: _pmu_online,
    CheckId.VM_BLOCKED: _blocked,
    CheckId.VM_ALIGNED: _aligned,
    CheckId.VM_SPINNING: _spinning,
}
