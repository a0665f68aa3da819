# SPDX-License-Identifier: Apache-2.0
"""The checks of a VM: each looks at facts that were read before, and at nothing else."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pmuctl.errors import command
from pmuctl.manage.blocker import Blocker
from pmuctl.manage.choice import pins
from pmuctl.manage.host_checks import bring_online
from pmuctl.manage.vcpus import PlacedVcpu
from pmuctl.model.align import Consequence, Judgement, aligned_mask
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.finding import Finding, Result
from pmuctl.model.truth import Chosen
from pmuctl.model.vm import Vm, VmState, Window
from pmuctl.model.vmm import VmmKind

HELD_LONG = 300.0
"""Seconds after which a VM that still waits may have been forgotten."""
SPIN_SHARE = 0.8
"""The share of a CPU, outside the guest, from which on a vCPU's thread is said to spin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmFacts:
    """What the checks of a VM judge.

    `judgement` is that of all its vCPUs, `pmus` are the PMUs it has or can have with their CPUs,
    `recorded` the CPUs pmuctl put its vCPUs on; `age` is that of its process in seconds.
    `blockers` are the vCPUs whose cpuset does not allow their PMU, `spins` the share of a CPU
    that a thread took without running its guest.
    """

    vm: Vm
    chosen: Chosen
    vcpus: Sequence[PlacedVcpu]
    judgement: Judgement
    pmus: Mapping[str, CpuSet | None] = field(default_factory=dict)
    online: CpuSet | None = None
    recorded: Mapping[int, CpuSet] = field(default_factory=dict)
    age: float | None = None
    blockers: Mapping[int, Blocker] = field(default_factory=dict)
    spins: Mapping[int, float] = field(default_factory=dict)

    @property
    def strays(self) -> list[PlacedVcpu]:
        """The vCPUs that can leave the VM's PMU."""
        return [its for its in self.vcpus if its.aligned is False]


def check_vm(facts: VmFacts) -> list[Finding]:
    """Every check of a VM, in the order of CHECKS; what does not apply has no finding."""
    return [finding for check in CHECKS.values() for finding in check(facts)]


def _socket(facts: VmFacts) -> Iterator[Finding]:
    vm = facts.vm
    if vm.socket is None:
        return
    path = shlex.quote(vm.socket)
    match vm.state:
        case VmState.DEAD:
            why = f"nobody listens at {vm.socket}: its VMM has ended"
            yield _found(facts, "vm.socket", Result.WARN, why, fix=f"rm {path}")
        case VmState.SILENT:
            why = vm.problem.message if vm.problem else "its control socket does not answer"
            fix = command("vm", "show", facts.vm.name, "--deadline", 30)
            yield _found(facts, "vm.socket", Result.WARN, why, fix=fix)
        case VmState.DENIED:
            why = "this user may not ask it"
            yield _found(
                facts,
                "vm.socket",
                Result.WARN,
                why,
                fix=f"sudo {command('doctor', facts.vm.name)}",
            )
        case VmState.ORPHANED:
            pass
        case _:
            yield _found(facts, "vm.socket", Result.PASS, "its control socket answers")


def _supervisor(facts: VmFacts) -> Iterator[Finding]:
    vm = facts.vm
    if vm.state is VmState.ORPHANED:
        why = "its supervisor has ended: it can make no further vCPU, and cannot be asked"
        fix = vm.problem.fix if vm.problem else None
        yield _found(facts, "vm.supervisor", Result.WARN, why, fix=fix)
    elif vm.supervised and vm.state not in (VmState.DEAD, VmState.SILENT, VmState.DENIED):
        yield _found(facts, "vm.supervisor", Result.PASS, "its supervisor is there")


def _window(facts: VmFacts) -> Iterator[Finding]:
    vm = facts.vm
    if vm.state is VmState.WAITING:
        is_long = facts.age is not None and facts.age > HELD_LONG
        why = "it waits for pmuctl vm release"
        if is_long and facts.age is not None:
            why = f"it still waits for pmuctl vm release, {facts.age / 60:.0f} min after its start"
        fix = command("vm", "release", facts.vm.name) if is_long else None
        yield _found(facts, "vm.window", Result.WARN if is_long else Result.PASS, why, fix=fix)
    elif vm.window in (Window.OPEN, Window.SEALED) and vm.socket is not None:
        yield _found(facts, "vm.window", Result.PASS, str(vm.window))


def _pmu_online(facts: VmFacts) -> Iterator[Finding]:
    cpus = facts.pmus.get(facts.chosen.pmu.name) if facts.chosen.pmu else None
    if facts.chosen.pmu is None or not cpus or facts.online is None:
        return
    name = facts.chosen.pmu.name
    if cpus & facts.online:
        why = f"CPUs {cpus & facts.online} of {name} are online"
        yield _found(facts, "vm.pmu-online", Result.PASS, why)
    else:
        why = f"no CPU of {name} ({cpus}) is online: {_consequence(facts).words()}"
        yield _found(facts, "vm.pmu-online", Result.FAIL, why, fix=bring_online(cpus))


def _blocked(facts: VmFacts) -> Iterator[Finding]:
    if not facts.blockers:
        return
    first = next(iter(facts.blockers.values()))
    why = f"vCPU {CpuSet.of(facts.blockers)} cannot be put on its PMU: {first.words}"
    yield _found(facts, "vm.blocked", Result.FAIL, why, fix=first.fix)


def _aligned(facts: VmFacts) -> Iterator[Finding]:
    if not facts.chosen.names:
        return
    where = " or ".join(f"{name} ({facts.pmus.get(name)})" for name in facts.chosen.names)
    its = facts.judgement
    if its.aligned is False:
        then = _consequence(facts)
        vcpus = CpuSet.of(stray.vcpu.index for stray in facts.strays or facts.vcpus)
        on = f"on CPUs {its.outside}" if its.outside else "anywhere, for all its CPUs are offline"
        why = f"vCPU {vcpus} may run {on}, outside {where}: {then.words()}"
        result = Result.FAIL if then is Consequence.FAIL_ENTRY else Result.WARN
        yield _found(facts, "vm.aligned", result, why, fix=_alignment(facts))
    elif its.aligned:
        yield _found(facts, "vm.aligned", Result.PASS, f"no vCPU can leave {where}")
    elif facts.vcpus:
        why = f"not known whether its vCPUs stay on {where}"
        fix = command("vm", "vcpus", facts.vm.name)
        yield _found(facts, "vm.aligned", Result.WARN, why, fix=fix)


def _alignment(facts: VmFacts) -> str:
    """What brings its vCPUs onto their PMU: align where it would do it, else the pin to make."""
    if facts.chosen.pmu is None:
        return pins(facts.vm.name, facts.pmus.values())
    cpus = facts.pmus.get(facts.chosen.pmu.name) or CpuSet()
    masks = [(its.affinity, facts.recorded.get(its.vcpu.index)) for its in facts.strays]
    if all(now is None or aligned_mask(now, cpus, then) for now, then in masks):
        return command("affinity", "align", facts.vm.name)
    return command("affinity", "set", facts.vm.name, f"pmu/{facts.chosen.pmu.name}")


def _spinning(facts: VmFacts) -> Iterator[Finding]:
    spins = {index: share for index, share in facts.spins.items() if share >= SPIN_SHARE}
    if not facts.spins:
        return
    if not spins:
        why = "no vCPU that can leave its PMU takes a CPU for itself"
        yield _found(facts, "vm.spinning", Result.PASS, why)
        return
    share = max(spins.values())
    who = "QEMU" if facts.vm.identity.kind is VmmKind.QEMU else "its VMM"
    why = (
        f"vCPU {CpuSet.of(spins)} takes {share:.0%} of a CPU and runs no guest: {who} makes "
        "KVM_RUN again and again, and KVM answers KVM_EXIT_FAIL_ENTRY"
    )
    yield _found(facts, "vm.spinning", Result.FAIL, why, fix=_alignment(facts))


Check = Callable[[VmFacts], Iterator[Finding]]

CHECKS: Mapping[str, Check] = {
    "vm.socket": _socket,
    "vm.supervisor": _supervisor,
    "vm.window": _window,
    "vm.pmu-online": _pmu_online,
    "vm.blocked": _blocked,
    "vm.aligned": _aligned,
    "vm.spinning": _spinning,
}


def _consequence(facts: VmFacts) -> Consequence:
    return Consequence.FAIL_ENTRY if facts.chosen.is_explicit else Consequence.COUNTERS_STOP


def _found(
    facts: VmFacts, id: str, result: Result, why: str, *, fix: str | None = None
) -> Finding:
    return Finding(id=id, subject=facts.vm.name, result=result, why=why, fix=fix)
