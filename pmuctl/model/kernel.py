# SPDX-License-Identifier: Apache-2.0
"""What differs between the KVMs of two hosts, as far as the rules of a vPMU depend on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import WIDEST_BITS
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_FILTER,
    KVM_ARM_VCPU_PMU_V3_INIT,
    KVM_ARM_VCPU_PMU_V3_IRQ,
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
    KVM_ARM_VCPU_PMU_V3_SET_PMU,
)

ATTR_NAMES: Mapping[int, str] = {
    KVM_ARM_VCPU_PMU_V3_IRQ: "IRQ",
    KVM_ARM_VCPU_PMU_V3_INIT: "INIT",
    KVM_ARM_VCPU_PMU_V3_FILTER: "FILTER",
    KVM_ARM_VCPU_PMU_V3_SET_PMU: "SET_PMU",
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS: "SET_NR_COUNTERS",
}
"""The attributes of the group KVM_ARM_VCPU_PMU_V3_CTRL, without their common prefix."""


class DefaultPmu(Enum):
    """Whose PMU a VM has until SET_PMU."""

    ONE = "one"
    """One PMU for every VM, whatever CPU anything happens on (v5.18 to v6.3)."""
    AT_ATTRIBUTE = "at-attribute"
    """That of the CPU on which the VM's first PMU attribute is set (v6.4, 1c913a1c35aa)."""
    AT_VCPU_INIT = "at-vcpu-init"
    """That of the CPU on which the first KVM_ARM_VCPU_INIT is made (v6.7, 427733579744)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What differs between hosts; found by asking and by probing, never from a version.

    `counters` maps the perf type of each PMU that KVM registered to its number of programmable
    counters; a number that is not known is None, and then any number up to 31 is accepted.
    `event_bits` is the width of the event space, `event_bits_of` that of single PMUs where they
    differ (before v6.6, 335ca49ff31f). `default` says whose PMU a VM has at first, None where
    that is not known; `default_pmu` is the one of DefaultPmu.ONE. `cpus` has the CPUs of each
    PMU; without it no rule about CPUs applies. `has_strict` is whether there is the vCPU feature
    KVM_ARM_VCPU_PMU_V3_STRICT.
    """

    counters: Mapping[int, int | None]
    attributes: frozenset[int] = frozenset(ATTR_NAMES)
    event_bits: int = WIDEST_BITS
    event_bits_of: Mapping[int, int] = field(default_factory=dict)
    default: DefaultPmu | None = None
    default_pmu: int | None = None
    cpus: Mapping[int, CpuSet] = field(default_factory=dict)
    has_strict: bool = False
