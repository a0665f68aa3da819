# SPDX-License-Identifier: Apache-2.0
"""Whether the vCPUs of a VM can leave its PMU, what that does to the guest, and what mends it."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import Consequence, EffectivePmu
from pmuctl.model.vm import Vm, VmVcpu
from pmuctl.model.vmm_identity import VmmKind
from pmuctl.value import field, value


class AlignmentState(StrEnum):
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
        if self is AlignmentState.UNKNOWN:
            return None
        return self is AlignmentState.STAYS


@value(kw_only=True)
class Alignment:
    """A verdict. `outside` are the CPUs off its PMU, for each that it can be, only of LEAVES.

    `consequence` is what happens there, None unless it can leave. Raises ValueError for an
    `outside` that the verdict does not have.
    """

    state: AlignmentState
    outside: Mapping[str, CpuSet] = field(default_factory=dict)
    consequence: Consequence | None = None

    def __post_init__(self) -> None:
        if (self.state is AlignmentState.LEAVES) != bool(self.outside):
            raise ValueError(f"{self.state}, outside on {dict(self.outside)}")

    @property
    def aligned(self) -> bool | None:
        """Whether it cannot leave its PMU; None where that is not known."""
        return self.state.aligned

    @property
    def only_outside(self) -> CpuSet | None:
        """The CPUs off its PMU, where it is known which that is."""
        return next(iter(self.outside.values())) if len(self.outside) == 1 else None


UNKNOWN = Alignment(state=AlignmentState.UNKNOWN)


def align_mask_state(
    mask: CpuSet | None, chosen: EffectivePmu, online: CpuSet | None
) -> Alignment:
    """Whether a thread with this mask stays on the VM's PMU; offline CPUs do not count.

    Of several PMUs it is certain only that it stays on each, or leaves whichever it is. A PMU
    whose CPUs are not known leaves it open.
    """
    known = {name: its for name, its in chosen.cpus.items() if its is not None}
    if mask is None or not known or len(known) < len(chosen.cpus):
        return UNKNOWN
    mask = mask if online is None else mask & online
    if not mask:
        return Alignment(state=AlignmentState.STRANDED, consequence=chosen.consequence)
    outside = {name: mask - its for name, its in known.items()}
    if all(outside.values()):
        return Alignment(
            state=AlignmentState.LEAVES, outside=outside, consequence=chosen.consequence
        )
    return UNKNOWN if any(outside.values()) else Alignment(state=AlignmentState.STAYS)


def align_vm_state(
    masks: Sequence[CpuSet | None], chosen: EffectivePmu, online: CpuSet | None
) -> Alignment:
    """Whether all of a VM's vCPUs, which have these masks, stay on its PMU.

    Of several PMUs that it can have it stays on each, or on none, or it is not known: a PMU is
    the whole VM's, so one vCPU that leaves the first and one that leaves the second are `no`.
    """
    known = [mask for mask in masks if mask is not None]
    if not known:
        return UNKNOWN
    judged = align_mask_state(
        CpuSet.of(cpu for mask in known for cpu in mask.cpus), chosen, online
    )
    if judged.state is AlignmentState.LEAVES:
        return judged
    each = (align_mask_state(mask, chosen, online) for mask in known)
    stranded = next((its for its in each if its.state is AlignmentState.STRANDED), None)
    return stranded or (UNKNOWN if None in masks else judged)


def explain_alignment(
    judged: Alignment, chosen: EffectivePmu, whose: str, kind: VmmKind | None = None
) -> str | None:
    """What a judgement means for the guest; None of a VM without a PMU.

    `whose` are the vCPUs that can leave, `kind` is that of the VMM where it is known.
    """
    if not chosen.cpus:
        return None
    then = chosen.consequence.words(kind)
    match judged.state:
        case AlignmentState.STAYS:
            return f"no vCPU can leave {chosen}"
        case AlignmentState.UNKNOWN:
            return f"not known whether its vCPUs stay on {chosen}; where they do not, {then}"
        case AlignmentState.STRANDED:
            where = f"anywhere, for all its CPUs are offline, also outside {chosen}"
        case AlignmentState.LEAVES if judged.only_outside is not None:
            where = f"on {_cpus(judged.only_outside)}, outside {chosen}"
        case AlignmentState.LEAVES:
            each = (f"{_cpus(its)} if that is {name}" for name, its in judged.outside.items())
            where = f"outside its PMU, on {' or '.join(each)}"
    return f"{whose} may run {where}: {then}"


def _cpus(cpus: CpuSet) -> str:
    return f"CPUs {cpus}" if len(cpus) > 1 else f"CPU {cpus}"


@value(kw_only=True)
class VcpuAlignment:
    """A vCPU, the CPUs its thread may be on (None where not known), and whether it can leave."""

    vcpu: VmVcpu
    affinity: CpuSet | None
    alignment: Alignment

    @property
    def index(self) -> int:
        """Its number."""
        return self.vcpu.index

    @property
    def tid(self) -> int | None:
        """Its thread, where that is known."""
        return self.vcpu.tid


@value(kw_only=True)
class VmAlignment:
    """A VM, the PMU it has or can have, and whether its vCPUs stay there: each, and all."""

    vm: Vm
    effective_pmu: EffectivePmu
    vcpus: tuple[VcpuAlignment, ...]
    alignment: Alignment

    @classmethod
    def of(
        cls, vm: Vm, chosen: EffectivePmu, masks: dict[int, CpuSet], online: CpuSet | None
    ) -> "VmAlignment":
        """A VM whose threads have these masks, by thread id."""
        vcpus = tuple(
            VcpuAlignment(
                vcpu=its, affinity=mask, alignment=align_mask_state(mask, chosen, online)
            )
            for its in vm.vcpus or ()
            for mask in [None if its.tid is None else masks.get(its.tid)]
        )
        judged = align_vm_state([its.affinity for its in vcpus], chosen, online)
        return cls(vm=vm, effective_pmu=chosen, vcpus=vcpus, alignment=judged)

    @property
    def is_misplaced(self) -> bool:
        """Whether a vCPU can leave its PMU, or some of them do whichever it is."""
        return self.alignment.aligned is False

    @property
    def misplaced(self) -> tuple[VcpuAlignment, ...]:
        """The vCPUs that can leave the VM's PMU, whichever it is."""
        return tuple(its for its in self.vcpus if its.alignment.aligned is False)

    @property
    def is_split(self) -> bool:
        """Whether no vCPU leaves by itself: they are on several PMUs, of which it has one."""
        return self.is_misplaced and not self.misplaced

    @property
    def offenders(self) -> tuple[VcpuAlignment, ...]:
        """The vCPUs that its judgement is about: those that leave one of the PMUs it can have."""
        if not self.is_misplaced:
            return ()
        if self.alignment.state is AlignmentState.STRANDED:
            return tuple(
                its for its in self.misplaced if its.alignment.state is AlignmentState.STRANDED
            )
        stay = (AlignmentState.STAYS, AlignmentState.STRANDED)
        known = (its for its in self.vcpus if its.affinity is not None)
        return tuple(its for its in known if its.alignment.state not in stay)

    @property
    def explanation(self) -> str | None:
        """What it means for the guest where its vCPUs may be; None without a PMU."""
        whose = f"vCPU {CpuSet.of(its.index for its in self.offenders)}"
        return explain_alignment(self.alignment, self.effective_pmu, whose, self.vm.identity.kind)


def aligned_mask(
    now: CpuSet,
    pmu: CpuSet,
    recorded: CpuSet | None = None,
    *,
    online: CpuSet | None = None,
) -> CpuSet | None:
    """The mask that brings a thread back onto the CPUs of its PMU: a pin is never widened.

    What the thread may be on, less what is not of the PMU; a CPU that is offline stays, for it can
    come back. Where no CPU of that is `online`, those of `recorded` that are of the PMU: the CPUs
    pmuctl itself had put the thread on. None where there are none: then the pin is somebody
    else's, and not pmuctl's to change.
    """
    masks = [mask for mask in (now & pmu, (recorded or CpuSet()) & pmu) if mask]
    usable = (mask for mask in masks if online is None or mask & online)
    return next(usable, masks[0] if masks else None)


class Obstacle(StrEnum):
    """Why the kernel puts a thread on none of the CPUs that are wanted (EINVAL)."""

    OFFLINE = "offline"
    CPUSET = "cpuset"


def find_obstacle(
    wanted: CpuSet, *, online: CpuSet | None, allowed: CpuSet | None
) -> Obstacle | None:
    """What is in the way of these CPUs: none is online, or the thread's cpuset allows none.

    From __sched_setaffinity(), kernel/sched/syscalls.c: the mask is cut down to the cpuset's CPUs,
    and then has to have an active one. What is not known (None) is no obstacle.
    """
    if online is not None and not wanted & online:
        return Obstacle.OFFLINE
    usable = wanted if online is None else wanted & online
    return Obstacle.CPUSET if allowed is not None and not usable & allowed else None
