# SPDX-License-Identifier: Apache-2.0
"""Whether the vCPUs of a VM can leave its PMU, where to, and what that does to the guest."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm import VmPmu
from pmuctl.model.vmm_identity import VmmKind
from pmuctl.value import field, value

_ON_FAIL_ENTRY = {
    VmmKind.QEMU: "QEMU spins at 100 %",
    VmmKind.KVMTOOL: "kvmtool ends the VM",
    VmmKind.CROSVM: "crosvm ends the VM",
    VmmKind.CLOUD_HYPERVISOR: "cloud-hypervisor ends the vCPU's thread",
}


class Consequence(StrEnum):
    """What happens on a CPU that is not of the VM's PMU (vcpu.rst 1.4, and measured)."""

    FAIL_ENTRY = "fail-entry"
    """a PMU was set: KVM_RUN returns KVM_EXIT_FAIL_ENTRY, reason CPU_UNSUPPORTED"""
    COUNTERS_STOP = "counters-stop"
    """KVM chose the PMU: the guest's counters stand still, without an exit or an error"""

    def words(self, kind: VmmKind | None = None) -> str:
        """What that means, for a person; of a VMM of this kind, where that is known."""
        if self is Consequence.COUNTERS_STOP:
            return "the guest's counters stop there silently"
        any_vmm = "most VMMs end the VM, and QEMU spins at 100 %"
        then = _ON_FAIL_ENTRY.get(kind, any_vmm) if kind else any_vmm
        return f"KVM_RUN fails there with KVM_EXIT_FAIL_ENTRY: {then}"


@value(kw_only=True)
class Chosen:
    """The PMU of a VM, None where it has none (yet), or where it is not known which it has.

    `cpus` are those of that PMU, or of each it can be, by name: None where they could not be read.
    `is_explicit` tells that it was set, by SET_PMU: KVM then runs no vCPU elsewhere.
    """

    pmu: VmPmu | None = None
    cpus: Mapping[str, CpuSet | None] = field(default_factory=dict)
    is_explicit: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The PMU, or those it can be."""
        return tuple(self.cpus)

    @property
    def candidates(self) -> tuple[str, ...]:
        """Those it can be, where it is not known which it is."""
        return () if self.pmu else self.names

    @property
    def only(self) -> str | None:
        """The one that it has or can only be."""
        return self.names[0] if len(self.cpus) == 1 else None

    @property
    def only_cpus(self) -> CpuSet | None:
        """The CPUs of that one."""
        return self.cpus[self.only] if self.only else None

    @property
    def consequence(self) -> Consequence:
        """What happens where a vCPU leaves it."""
        return Consequence.FAIL_ENTRY if self.is_explicit else Consequence.COUNTERS_STOP

    def __str__(self) -> str:
        return " or ".join(
            f"{name} ({'?' if its is None else its})" for name, its in self.cpus.items()
        )


class Verdict(StrEnum):
    """How a vCPU, or all of a VM's together, stand to the CPUs of the VM's PMU."""

    STAYS = "stays"
    """it may be on no other CPU"""
    LEAVES = "leaves"
    """it may be on others, whichever of several PMUs it is"""
    STRANDED = "stranded"
    """no CPU it may be on is online: once it wakes up it runs anywhere (select_fallback_rq())"""
    UNKNOWN = "unknown"

    @property
    def aligned(self) -> bool | None:
        """Whether it cannot leave its PMU; None where that is not known."""
        if self is Verdict.UNKNOWN:
            return None
        return self is Verdict.STAYS


@value(kw_only=True)
class Judgement:
    """A verdict. `outside` are the CPUs off its PMU, for each that it can be, only of LEAVES.

    `consequence` is what happens there, None unless it can leave. Raises ValueError for an
    `outside` that the verdict does not have.
    """

    verdict: Verdict
    outside: Mapping[str, CpuSet] = field(default_factory=dict)
    consequence: Consequence | None = None

    def __post_init__(self) -> None:
        if (self.verdict is Verdict.LEAVES) != bool(self.outside):
            raise ValueError(f"{self.verdict}, outside on {dict(self.outside)}")

    @property
    def aligned(self) -> bool | None:
        """Whether it cannot leave its PMU; None where that is not known."""
        return self.verdict.aligned

    @property
    def only_outside(self) -> CpuSet | None:
        """The CPUs off its PMU, where it is known which that is."""
        return next(iter(self.outside.values())) if len(self.outside) == 1 else None


UNKNOWN = Judgement(verdict=Verdict.UNKNOWN)


def judge_mask(mask: CpuSet | None, chosen: Chosen, online: CpuSet | None) -> Judgement:
    """Whether a thread with this mask stays on the VM's PMU; offline CPUs do not count.

    Of several PMUs it is certain only that it stays on each, or leaves whichever it is. A PMU
    whose CPUs are not known leaves it open.
    """
    known = {name: its for name, its in chosen.cpus.items() if its is not None}
    if mask is None or not known or len(known) < len(chosen.cpus):
        return UNKNOWN
    mask = mask if online is None else mask & online
    if not mask:
        return Judgement(verdict=Verdict.STRANDED, consequence=chosen.consequence)
    outside = {name: mask - its for name, its in known.items()}
    if all(outside.values()):
        return Judgement(verdict=Verdict.LEAVES, outside=outside, consequence=chosen.consequence)
    return UNKNOWN if any(outside.values()) else Judgement(verdict=Verdict.STAYS)


def judge_vm(masks: Sequence[CpuSet | None], chosen: Chosen, online: CpuSet | None) -> Judgement:
    """Whether all of a VM's vCPUs, which have these masks, stay on its PMU.

    Of several PMUs that it can have it stays on each, or on none, or it is not known: a PMU is
    the whole VM's, so one vCPU that leaves the first and one that leaves the second are `no`.
    """
    known = [mask for mask in masks if mask is not None]
    if not known:
        return UNKNOWN
    judged = judge_mask(CpuSet.of(cpu for mask in known for cpu in mask.cpus), chosen, online)
    if judged.verdict is Verdict.LEAVES:
        return judged
    each = (judge_mask(mask, chosen, online) for mask in known)
    stranded = next((its for its in each if its.verdict is Verdict.STRANDED), None)
    return stranded or (UNKNOWN if None in masks else judged)


def words(
    judged: Judgement, chosen: Chosen, whose: str, kind: VmmKind | None = None
) -> str | None:
    """What a judgement means for the guest; None of a VM without a PMU.

    `whose` are the vCPUs that can leave, `kind` is that of the VMM where it is known.
    """
    if not chosen.cpus:
        return None
    then = chosen.consequence.words(kind)
    match judged.verdict:
        case Verdict.STAYS:
            return f"no vCPU can leave {chosen}"
        case Verdict.UNKNOWN:
            return f"not known whether its vCPUs stay on {chosen}; where they do not, {then}"
        case Verdict.STRANDED:
            where = f"anywhere, for all its CPUs are offline, also outside {chosen}"
        case Verdict.LEAVES if judged.only_outside is not None:
            where = f"on {_cpus(judged.only_outside)}, outside {chosen}"
        case Verdict.LEAVES:
            each = (f"{_cpus(its)} if that is {name}" for name, its in judged.outside.items())
            where = f"outside its PMU, on {' or '.join(each)}"
    return f"{whose} may run {where}: {then}"


def _cpus(cpus: CpuSet) -> str:
    return f"CPUs {cpus}" if len(cpus) > 1 else f"CPU {cpus}"
