# SPDX-License-Identifier: Apache-2.0
"""The vPMU of a VM as a state machine: what KVM accepts when, and the errno it gives.

Source: kvm_arm_pmu_v3_set_attr(), kvm_arm_pmu_v3_has_attr() and kvm_arm_pmu_v3_enable() in
arch/arm64/kvm/pmu-emul.c, and the same calls measured on kernels 6.1 to 7.3.
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from pmuctl.model.event import WIDEST_BITS, EventSet
from pmuctl.model.filter import FilterRange, kernel_allows
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

OK = 0
FIRST_PPI, FIRST_SPI, LAST_SPI = 16, 32, 1019


class Irqchip(Enum):
    """How far the in-kernel GIC is."""

    NONE = "none"
    CREATED = "created"
    READY = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What differs between hosts; found by asking and by probing, never from a version.

    `counters` maps the perf type of each PMU that KVM registered to its number of programmable
    counters; a number that is not known is None, and then any number up to 31 is accepted.
    """

    counters: Mapping[int, int | None]
    attributes: frozenset[int] = frozenset(ATTR_NAMES)
    event_bits: int = WIDEST_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Vcpu:
    """One vCPU: whether it was made with the PMU feature, its PMU interrupt, whether INITed."""

    has_pmu: bool = True
    irq: int | None = None
    initialised: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Vpmu:
    """The state KVM keeps for one VM.

    `pmu` is the perf type the VM counts with, None while KVM's own choice stands and is not
    known. `allowed` is what the filter lets through, None while there is none. `counters` is what
    SET_NR_COUNTERS set since the last SET_PMU.
    """

    kernel: Kernel
    vcpus: tuple[Vcpu, ...] = (Vcpu(),)
    irqchip: Irqchip = Irqchip.READY
    pmu: int | None = None
    counters: int | None = None
    allowed: EventSet | None = field(default=None, repr=False)
    has_run: bool = False


Value = int | FilterRange | None
"""What an attribute's addr points to; None stands for an address that cannot be read."""


def set_attr(vm: Vpmu, vcpu: int, attr: int, value: Value = None) -> tuple[int, Vpmu]:
    """KVM_SET_DEVICE_ATTR on one vCPU: the errno (0 is done) and the state after it."""
    its = vm.vcpus[vcpu]
    if not its.has_pmu:
        return errno.ENODEV, vm
    if its.initialised:
        return errno.EBUSY, vm
    if attr not in vm.kernel.attributes:
        return errno.ENXIO, vm
    if attr == KVM_ARM_VCPU_PMU_V3_INIT:
        return _init(vm, vcpu)
    if attr == KVM_ARM_VCPU_PMU_V3_IRQ and vm.irqchip is Irqchip.NONE:
        return errno.EINVAL, vm
    if attr == KVM_ARM_VCPU_PMU_V3_FILTER and isinstance(value, FilterRange):
        return _filter(vm, value)
    if not isinstance(value, int):
        return errno.EFAULT, vm
    if attr == KVM_ARM_VCPU_PMU_V3_IRQ:
        return _irq(vm, vcpu, value)
    if attr == KVM_ARM_VCPU_PMU_V3_SET_PMU:
        return _set_pmu(vm, value)
    return _set_nr_counters(vm, value)


def accepted(vm: Vpmu, attr: int, value: int | FilterRange) -> Vpmu:
    """The state after a setting that KVM took (SET_PMU, SET_NR_COUNTERS or FILTER)."""
    if isinstance(value, FilterRange):
        bits = vm.kernel.event_bits
        return replace(vm, allowed=kernel_allows([value], bits=bits, standing=vm.allowed))
    if attr == KVM_ARM_VCPU_PMU_V3_SET_PMU:
        return replace(vm, pmu=value, counters=None)
    return replace(vm, counters=value)


def has_attr(vm: Vpmu, vcpu: int, attr: int) -> int:
    """KVM_HAS_DEVICE_ATTR: 0 where the attribute is known and the vCPU has a PMU, else ENXIO."""
    known = attr in vm.kernel.attributes and vm.vcpus[vcpu].has_pmu
    return OK if known else errno.ENXIO


def run(vm: Vpmu, vcpu: int) -> tuple[int, Vpmu]:
    """The first KVM_RUN of a vCPU: EINVAL where its PMU was not INITed."""
    its = vm.vcpus[vcpu]
    if its.has_pmu and not its.initialised:
        return errno.EINVAL, vm
    return OK, replace(vm, has_run=True)


def is_sealed(vm: Vpmu) -> bool:
    """Whether KVM takes no more settings: a vCPU has run, or every vCPU is INITed."""
    return vm.has_run or all(vcpu.initialised for vcpu in vm.vcpus)


def _with_vcpu(vm: Vpmu, index: int, vcpu: Vcpu) -> Vpmu:
    return replace(vm, vcpus=(*vm.vcpus[:index], vcpu, *vm.vcpus[index + 1 :]))


def _init(vm: Vpmu, vcpu: int) -> tuple[int, Vpmu]:
    its = vm.vcpus[vcpu]
    if vm.irqchip is Irqchip.CREATED:
        return errno.ENODEV, vm
    if vm.irqchip is Irqchip.READY and its.irq is None:
        return errno.ENXIO, vm
    return OK, _with_vcpu(vm, vcpu, replace(its, initialised=True))


def _irq(vm: Vpmu, vcpu: int, irq: int) -> tuple[int, Vpmu]:
    its = vm.vcpus[vcpu]
    others = [other.irq for other in vm.vcpus if other.irq is not None]
    is_ppi = FIRST_PPI <= irq < FIRST_SPI
    if not is_ppi and not FIRST_SPI <= irq <= LAST_SPI:
        return errno.EINVAL, vm
    # a PPI is the same on all vCPUs, an SPI is nobody else's (pmu_irq_is_valid())
    if any(other != irq for other in others) if is_ppi else irq in others:
        return errno.EINVAL, vm
    if its.irq is not None:
        return errno.EBUSY, vm
    return OK, _with_vcpu(vm, vcpu, replace(its, irq=irq))


def _filter(vm: Vpmu, call: FilterRange) -> tuple[int, Vpmu]:
    if call.base + call.nevents > 1 << vm.kernel.event_bits:
        return errno.EINVAL, vm
    if vm.has_run:
        return errno.EBUSY, vm
    return OK, accepted(vm, KVM_ARM_VCPU_PMU_V3_FILTER, call)


def _set_pmu(vm: Vpmu, pmu: int) -> tuple[int, Vpmu]:
    if pmu not in vm.kernel.counters:
        return errno.ENXIO, vm
    if vm.has_run or (vm.allowed is not None and pmu != vm.pmu):
        return errno.EBUSY, vm
    return OK, accepted(vm, KVM_ARM_VCPU_PMU_V3_SET_PMU, pmu)


def _set_nr_counters(vm: Vpmu, counters: int) -> tuple[int, Vpmu]:
    # with no PMU known the largest number that any of them has is the only bound that is certain
    known = vm.kernel.counters
    limits = [known.get(vm.pmu)] if vm.pmu is not None else list(known.values())
    limit = max((31 if its is None else its for its in limits), default=31)
    if not 0 <= counters <= limit:
        return errno.EINVAL, vm
    return OK, accepted(vm, KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS, counters)
