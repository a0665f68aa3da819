# SPDX-License-Identifier: Apache-2.0
"""The capabilities of a host's KVM, as far as the rules of a vPMU depend on them."""

from collections.abc import Collection, Mapping
from enum import Enum
from typing import TypeVar

from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import WIDEST_BITS
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_FILTER,
    KVM_ARM_VCPU_PMU_V3_INIT,
    KVM_ARM_VCPU_PMU_V3_IRQ,
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
    KVM_ARM_VCPU_PMU_V3_SET_PMU,
)
from pmuctl.value import field, value

ATTR_NAMES: Mapping[int, str] = {
    KVM_ARM_VCPU_PMU_V3_IRQ: "IRQ",
    KVM_ARM_VCPU_PMU_V3_INIT: "INIT",
    KVM_ARM_VCPU_PMU_V3_FILTER: "FILTER",
    KVM_ARM_VCPU_PMU_V3_SET_PMU: "SET_PMU",
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS: "SET_NR_COUNTERS",
}
"""The attributes of the group KVM_ARM_VCPU_PMU_V3_CTRL, without their common prefix."""

DERIVED = "derived"
"""The origin of a PMU that KVM chose by itself, if it is certain which."""

_Key = TypeVar("_Key")


class DefaultPmu(Enum):
    """The rule by which KVM chooses the PMU that a VM has until SET_PMU."""

    ONE = "one"
    """One PMU for every VM, on whichever CPU the calls are made (v5.18 to v6.3)."""
    AT_ATTRIBUTE = "at-attribute"
    """The PMU of the CPU on which the VM's first PMU attribute is set (v6.4, 1c913a1c35aa)."""
    AT_VCPU_INIT = "at-vcpu-init"
    """The PMU of the CPU on which the first KVM_ARM_VCPU_INIT is made (v6.7, 427733579744)."""


@value(kw_only=True)
class KvmCaps:
    """What KVM can do on a host; found by asking and by probing, never from a version.

    `has_vpmu` is None if KVM could not be asked (there is no /dev/kvm, or it may not be opened):
    then nothing else is known either. If it is False, there is nothing else to know.
    `counters` maps the perf type of each PMU that KVM registered to its number of programmable
    counters; a number that is not known is None, and then any number up to 31 is accepted.
    `event_bits` is the width of the event space, `event_bits_of` that of single PMUs if they
    differ (before v6.6, 335ca49ff31f). `default` says whose PMU a VM has at first, None if that
    is not known; `default_pmu` is the one of DefaultPmu.ONE. `cpus` has the CPUs of each PMU;
    without it no rule about CPUs applies. `has_strict` is whether there is the vCPU feature
    KVM_ARM_VCPU_PMU_V3_STRICT.
    """

    has_vpmu: bool | None
    attributes: frozenset[int] = frozenset()
    counters: Mapping[int, int | None] = field(default_factory=dict)
    event_bits: int | None = None
    event_bits_of: Mapping[int, int] = field(default_factory=dict)
    default: DefaultPmu | None = None
    default_pmu: int | None = None
    has_strict: bool = False
    cpus: Mapping[int, CpuSet] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether nothing was left unknown that could have been found out."""
        known = (self.event_bits, self.default, *self.counters.values())
        return self.has_vpmu is False or (bool(self.has_vpmu) and None not in known)

    def event_bits_for(self, pmu_type: int | None) -> int:
        """Return the width of the event numbers that FILTER takes for a VM with this PMU.

        Return the widest there is if that is not known.
        """
        known = None if pmu_type is None else self.event_bits_of.get(pmu_type)
        return known or self.event_bits or WIDEST_BITS


def default_by_cpu(
    masks: Collection[CpuSet | None], pmu_cpus: Mapping[_Key, CpuSet]
) -> _Key | None:
    """Return the key of the PMU that KVM gave a VM by the rule DefaultPmu.AT_VCPU_INIT.

    `masks` are the online CPUs that threads could run on, before and after each call that may have
    decided it; None if they are not known. `pmu_cpus` maps the key of each PMU to its CPUs. Return
    None unless all CPUs of all masks belong to one PMU: only then is the answer certain.
    """
    for key, cpus in pmu_cpus.items():
        if masks and all(mask and mask <= cpus for mask in masks):
            return key
    return None
