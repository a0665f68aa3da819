# SPDX-License-Identifier: Apache-2.0
"""The mask that brings a vCPU thread back onto its PMU, and what is in the way of one."""

from enum import StrEnum

from pmuctl.model.cpuset import CpuSet


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
