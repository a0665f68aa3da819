# SPDX-License-Identifier: Apache-2.0
"""Whether a vCPU thread can leave its PMU, what happens then, and the mask that keeps it there."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from pmuctl.model.cpuset import CpuSet


class Consequence(StrEnum):
    """What happens on a CPU that is not of the VM's PMU (vcpu.rst 1.4, and measured)."""

    FAIL_ENTRY = "fail-entry"
    """a PMU was set: KVM_RUN returns KVM_EXIT_FAIL_ENTRY, reason CPU_UNSUPPORTED"""
    COUNTERS_STOP = "counters-stop"
    """KVM chose the PMU: the guest's counters stand still, without an exit or an error"""

    def words(self) -> str:
        """What that means, for a person."""
        if self is Consequence.FAIL_ENTRY:
            return (
                "KVM_RUN fails there with KVM_EXIT_FAIL_ENTRY: most VMMs end the VM, "
                "and QEMU spins at 100 %"
            )
        return "the guest's counters stop there silently"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Whether a thread stays on its PMU's CPUs: None where that cannot be known.

    `outside` are the CPUs it may be on that are not of its PMU, `consequence` is what happens
    there; both are None unless it can leave. `outside` is None, too, where all CPUs that it may
    be on are offline: once it wakes up the kernel lets it run anywhere (select_fallback_rq()).
    """

    aligned: bool | None
    outside: CpuSet | None = None
    consequence: Consequence | None = None


def judge(
    affinity: CpuSet | None, choices: Collection[CpuSet | None], *, is_explicit: bool
) -> Judgement:
    """Hold a thread's mask against the CPUs of its PMU, or of each that may be its PMU.

    A mask is what sched_getaffinity(2) tells, so without the CPUs that are offline. With several
    choices it is certain only that a thread leaves whichever it is. A PMU whose CPUs
    are not known (None) leaves it open.
    """
    cpus = [its for its in choices if its is not None]
    if affinity is None or not cpus or len(cpus) < len(choices):
        return Judgement(aligned=None)
    consequence = Consequence.FAIL_ENTRY if is_explicit else Consequence.COUNTERS_STOP
    if not affinity:
        return Judgement(aligned=False, consequence=consequence)
    inside = [its for its in cpus if affinity <= its]
    if len(inside) == len(cpus):
        return Judgement(aligned=True)
    if inside:
        return Judgement(aligned=None)
    return Judgement(
        aligned=False,
        outside=affinity - cpus[0] if len(cpus) == 1 else affinity,
        consequence=consequence,
    )


def aligned_mask(now: CpuSet, pmu: CpuSet, recorded: CpuSet | None = None) -> CpuSet | None:
    """The mask that brings a thread back onto the CPUs of its PMU: a pin is never widened.

    What the thread may be on, less what is not of the PMU. Where that leaves nothing, those of
    `recorded` that are of the PMU: the CPUs pmuctl itself had put the thread on. None where there
    are none: then the pin is somebody else's, and not pmuctl's to change.
    """
    return now & pmu or (recorded or CpuSet()) & pmu or None


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
