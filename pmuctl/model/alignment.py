# SPDX-License-Identifier: Apache-2.0
"""Alignment of vCPU threads with the CPUs of their VM's PMU: its state, meaning and repair."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import reduce
from operator import or_

from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import Consequence, EffectivePmu
from pmuctl.model.vm import Vm, VmVcpu
from pmuctl.model.vmm.identity import VmmKind
from pmuctl.value import field, value


class AlignmentState(StrEnum):
    """Where a vCPU, or all of a VM's together, may run, relative to the CPUs of the VM's PMU."""

    STAYS = "stays"
    """it may run on no other CPU"""
    LEAVES = "leaves"
    """it may run on other CPUs, whichever of several possible PMUs the VM has"""
    STRANDED = "stranded"
    """no CPU it may run on is online: once it wakes up it runs anywhere (select_fallback_rq())"""
    DEAD = "dead"
    """it runs nowhere any more: its thread has ended"""
    UNKNOWN = "unknown"

    @property
    def aligned(self) -> bool | None:
        """Whether no vCPU can leave its PMU; None if that is not known."""
        if self is AlignmentState.UNKNOWN:
            return None
        return self is AlignmentState.STAYS


@value(kw_only=True)
class Alignment:
    """An alignment state with its details.

    `outside` maps each PMU that the VM can have to the CPUs outside it on which a vCPU may run;
    only LEAVES has it. `consequence` is what happens there, None unless a vCPU can leave. Raises
    ValueError if LEAVES comes without `outside`, or another state with it.
    """

    state: AlignmentState
    outside: Mapping[str, CpuSet] = field(default_factory=dict)
    consequence: Consequence | None = None

    def __post_init__(self) -> None:
        if (self.state is AlignmentState.LEAVES) != bool(self.outside):
            raise ValueError(f"{self.state}, outside on {dict(self.outside)}")

    @property
    def aligned(self) -> bool | None:
        """Whether no vCPU can leave its PMU; None if that is not known."""
        return self.state.aligned

    @property
    def only_outside(self) -> CpuSet | None:
        """The CPUs outside the PMU; None unless it is known which PMU that is."""
        return next(iter(self.outside.values())) if len(self.outside) == 1 else None


_MISPLACED = (AlignmentState.LEAVES, AlignmentState.STRANDED)
UNKNOWN = Alignment(state=AlignmentState.UNKNOWN)
DEAD = Alignment(state=AlignmentState.DEAD)


def align_mask_state(
    mask: CpuSet | None, effective_pmu: EffectivePmu, online: CpuSet | None
) -> Alignment:
    """Return whether a thread with this mask stays on the VM's PMU; offline CPUs do not count.

    If the VM can have one of several PMUs, only two answers are certain: the thread stays on each
    of them, or leaves whichever it is. If the CPUs of one PMU are not known, the answer is not.
    """
    pmu_cpus = {name: cpus for name, cpus in effective_pmu.cpus.items() if cpus is not None}
    if mask is None or not pmu_cpus or len(pmu_cpus) < len(effective_pmu.cpus):
        return UNKNOWN
    mask = mask if online is None else mask & online
    consequence = effective_pmu.consequence
    if not mask:
        return Alignment(state=AlignmentState.STRANDED, consequence=consequence)
    outside = {name: mask - cpus for name, cpus in pmu_cpus.items()}
    if all(outside.values()):
        return Alignment(state=AlignmentState.LEAVES, outside=outside, consequence=consequence)
    return UNKNOWN if any(outside.values()) else Alignment(state=AlignmentState.STAYS)


def align_vm_state(
    masks: Sequence[CpuSet | None], effective_pmu: EffectivePmu, online: CpuSet | None
) -> Alignment:
    """Return whether all vCPUs of a VM, which have these masks, stay on its PMU.

    If the VM can have one of several PMUs, it stays on each, or on none, or the answer is not
    known. A PMU is the whole VM's: if one vCPU leaves the first PMU and another vCPU leaves the
    second, the VM leaves.
    """
    known = [mask for mask in masks if mask is not None]
    if not known:
        return UNKNOWN
    together = align_mask_state(reduce(or_, known), effective_pmu, online)
    if together.state is AlignmentState.LEAVES:
        return together
    for mask in known:
        alignment = align_mask_state(mask, effective_pmu, online)
        if alignment.state is AlignmentState.STRANDED:
            return alignment
    return UNKNOWN if None in masks else together


def explain_alignment(
    alignment: Alignment,
    effective_pmu: EffectivePmu,
    vcpus: str,
    kind: VmmKind | None = None,
) -> str | None:
    """Return what an alignment means for the guest; None if the VM has no PMU.

    `vcpus` names the vCPUs that can leave, `kind` is the kind of the VMM if it is known.
    """
    if not effective_pmu.is_known:
        return "not known whether its vCPUs stay on its PMU: not all PMUs of this host are known"
    if not effective_pmu.cpus:
        return None
    consequence = effective_pmu.consequence.explain(kind)
    match alignment.state:
        case AlignmentState.STAYS:
            return f"no vCPU can leave {effective_pmu}"
        case AlignmentState.UNKNOWN:
            return (
                f"not known whether its vCPUs stay on {effective_pmu}; "
                f"where they do not, {consequence}"
            )
        case AlignmentState.DEAD:
            return None
        case AlignmentState.STRANDED:
            where = f"anywhere, for all its CPUs are offline, also outside {effective_pmu}"
        case AlignmentState.LEAVES if alignment.only_outside is not None:
            where = f"on {_format_cpus(alignment.only_outside)}, outside {effective_pmu}"
        case AlignmentState.LEAVES:
            choices = (
                f"{_format_cpus(cpus)} if that is {name}"
                for name, cpus in alignment.outside.items()
            )
            where = f"outside its PMU, on {' or '.join(choices)}"
    return f"{vcpus} may run {where}: {consequence}"


def format_vcpus(numbers: Iterable[int]) -> str:
    """Return "vCPU 1" or "vCPUs 0-1"."""
    vcpus = CpuSet.of(numbers)
    return f"vCPUs {vcpus}" if len(vcpus) > 1 else f"vCPU {vcpus}"


def _format_cpus(cpus: CpuSet) -> str:
    return f"CPUs {cpus}" if len(cpus) > 1 else f"CPU {cpus}"


@value(kw_only=True)
class VcpuAlignment:
    """A vCPU, the mask of its thread (None if it is not known), and whether it can leave."""

    vcpu: VmVcpu
    affinity: CpuSet | None
    alignment: Alignment

    @property
    def index(self) -> int:
        """The number of the vCPU."""
        return self.vcpu.index

    @property
    def tid(self) -> int | None:
        """The thread id of the vCPU; None if it is not known."""
        return self.vcpu.tid


@value(kw_only=True)
class VmAffinityRecord:
    """The CPUs that pmuctl last put a VM's vCPUs on, by vCPU number.

    `is_left_alone` is True if pmuctl leaves the affinity to the admin (affinity none).
    """

    cpus: Mapping[int, CpuSet] = field(default_factory=dict)
    is_left_alone: bool = False


@value(kw_only=True)
class VmAlignment:
    """A VM, the PMU it has or can have, and whether its vCPUs stay there: each, and all.

    `affinity_record` is None if it was not read.
    """

    vm: Vm
    effective_pmu: EffectivePmu
    vcpus: tuple[VcpuAlignment, ...]
    alignment: Alignment
    affinity_record: VmAffinityRecord | None = None

    @classmethod
    def of(
        cls,
        vm: Vm,
        effective_pmu: EffectivePmu,
        masks: dict[int, CpuSet],
        online: CpuSet | None,
    ) -> "VmAlignment":
        """Return the alignment of a VM; `masks` maps thread ids of its vCPUs to their masks."""
        vcpus = tuple(
            VcpuAlignment(
                vcpu=vcpu,
                affinity=mask,
                alignment=DEAD if vcpu.is_dead else align_mask_state(mask, effective_pmu, online),
            )
            for vcpu in vm.vcpus or ()
            for mask in [None if vcpu.tid is None else masks.get(vcpu.tid)]
        )
        living = [vcpu.affinity for vcpu in vcpus if not vcpu.vcpu.is_dead]
        alignment = align_vm_state(living, effective_pmu, online)
        if alignment.state not in _MISPLACED and len(living) < len(vcpus):
            alignment = DEAD
        return cls(vm=vm, effective_pmu=effective_pmu, vcpus=vcpus, alignment=alignment)

    @property
    def aligned(self) -> bool | None:
        """Whether no vCPU can leave the VM's PMU; None if that is not known."""
        return self.alignment.aligned

    @property
    def is_misplaced(self) -> bool:
        """Whether a vCPU can leave its PMU, or some vCPUs do whichever PMU the VM has."""
        return self.alignment.state in _MISPLACED

    @property
    def is_unknown(self) -> bool:
        """Whether it is not known if its vCPUs stay on a PMU that it has, or may have."""
        return self.aligned is None and (
            bool(self.effective_pmu.names) or not self.effective_pmu.is_known
        )

    @property
    def misplaced(self) -> tuple[VcpuAlignment, ...]:
        """The vCPUs that can leave the VM's PMU, whichever it is."""
        return tuple(vcpu for vcpu in self.vcpus if vcpu.alignment.state in _MISPLACED)

    @property
    def is_split(self) -> bool:
        """Whether no vCPU leaves by itself, but they are on several PMUs; the VM has only one."""
        return self.is_misplaced and not self.misplaced

    @property
    def offenders(self) -> tuple[VcpuAlignment, ...]:
        """The vCPUs that make the VM misplaced: those that leave one of the PMUs it can have."""
        if not self.is_misplaced:
            return ()
        if self.alignment.state is AlignmentState.STRANDED:
            return tuple(
                vcpu for vcpu in self.misplaced if vcpu.alignment.state is AlignmentState.STRANDED
            )
        stay = (AlignmentState.STAYS, AlignmentState.STRANDED)
        known = (vcpu for vcpu in self.vcpus if vcpu.affinity is not None)
        return tuple(vcpu for vcpu in known if vcpu.alignment.state not in stay)

    @property
    def explanation(self) -> str | None:
        """What the placement of the vCPUs means for the guest; None if the VM has no PMU."""
        vcpus = format_vcpus(vcpu.index for vcpu in self.offenders)
        kind = self.vm.identity.kind
        living = explain_alignment(self.alignment, self.effective_pmu, vcpus, kind)
        return "; ".join(filter(None, (self.explain_dead(), living))) or None

    def explain_dead(self) -> str | None:
        """Return what became of vCPUs whose threads have ended; None if there are none."""
        if not self.vm.dead_vcpus:
            return None
        cause = ""
        if self.effective_pmu.is_explicit and self.vm.identity.kind is VmmKind.KVMTOOL:
            cause = ", as kvmtool has it where KVM_RUN fails with KVM_EXIT_FAIL_ENTRY"
        dead = format_vcpus(self.vm.dead_vcpus)
        if len(self.vm.dead_vcpus) > 1:
            return f"{dead} are dead: they have run, and their threads have ended{cause}"
        return f"{dead} is dead: it has run, and its thread has ended{cause}"


def aligned_mask(
    now: CpuSet,
    pmu: CpuSet,
    recorded: CpuSet | None = None,
    *,
    online: CpuSet | None = None,
) -> CpuSet | None:
    """Return the mask that brings a thread back onto the CPUs of its PMU; it never widens a pin.

    That is the CPUs of `now` that belong to the PMU; if somebody has widened the mask past the
    PMU, those of them on which pmuctl itself had put the thread (`recorded`). An offline CPU stays
    in the mask, because it can come back. If none of them is `online`, the mask is the CPUs of
    `recorded` that belong to the PMU. Return None if there are none: the pin is then somebody
    else's, and not pmuctl's to change.
    """
    inside, before = now & pmu, (recorded or CpuSet()) & pmu
    narrower = CpuSet() if now <= pmu else inside & before
    masks = [mask for mask in (narrower, inside, before) if mask]
    usable = (mask for mask in masks if online is None or mask & online)
    return next(usable, masks[0] if masks else None)


class Obstacle(StrEnum):
    """A reason why the kernel puts a thread on none of the wanted CPUs (EINVAL)."""

    OFFLINE = "offline"
    CPUSET = "cpuset"


def find_obstacle(
    wanted: CpuSet, *, online: CpuSet | None, allowed: CpuSet | None
) -> Obstacle | None:
    """Return why a thread cannot get these CPUs: none is online, or its cpuset allows none.

    From __sched_setaffinity(), kernel/sched/syscalls.c: the mask is cut down to the cpuset's CPUs,
    and then needs an active one. What is not known (None) is no obstacle.
    """
    if online is not None and not wanted & online:
        return Obstacle.OFFLINE
    usable = wanted if online is None else wanted & online
    return Obstacle.CPUSET if allowed is not None and not usable & allowed else None
