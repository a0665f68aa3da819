# SPDX-License-Identifier: Apache-2.0
"""The vPMU of a VM as a state machine: which settings KVM accepts when, and the errno it gives.

Source: kvm_arm_pmu_v3_set_attr() in arch/arm64/kvm/pmu-emul.c, and the same calls on kernels 6.1
to 7.3: tests/lab/test_model.py compares this module with them, call by call and with random
sequences. The rest of KVM's vPMU, of which pmuctl needs nothing, is in tests/fakes/kvm_model.py.
"""

import errno

from pmuctl.model.event import EventSet
from pmuctl.model.event_filter import FilterRange, kernel_allows
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_FILTER,
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
    KVM_ARM_VCPU_PMU_V3_SET_PMU,
)
from pmuctl.value import field, replace, value

OK = 0


@value(kw_only=True)
class Vcpu:
    """One vCPU: whether it was made with the PMU feature, and whether its PMU was INITed."""

    has_pmu: bool = True
    initialised: bool = False


@value(kw_only=True)
class Vpmu:
    """The state that KVM keeps for one VM.

    `pmu` is the perf type of the PMU with which the VM counts; it is None while KVM's own choice
    stands and is not known. `pmu_is_set` is True if SET_PMU chose it, and vCPUs therefore enter
    only on its CPUs. `counters` is what SET_NR_COUNTERS set since the last SET_PMU. `allowed` is
    the set of events that the filter allows, None while there is no filter.
    """

    caps: KvmCaps
    vcpus: tuple[Vcpu, ...] = (Vcpu(),)
    pmu: int | None = None
    pmu_is_set: bool = False
    counters: int | None = None
    allowed: EventSet | None = field(default=None, repr=False)
    has_run: bool = False


def set_attr(vm: Vpmu, vcpu: int, attr: int, argument: int | FilterRange) -> tuple[int, Vpmu]:
    """Return the errno (0 is success) and the next state of one KVM_SET_DEVICE_ATTR on a vCPU.

    `attr` is SET_PMU, SET_NR_COUNTERS or FILTER. A refusal changes nothing.
    """
    if error := check_vcpu(vm, vcpu) or check_attribute(vm, attr):
        return error, vm
    if isinstance(argument, FilterRange):
        return _set_filter(vm, argument)
    if attr == KVM_ARM_VCPU_PMU_V3_SET_PMU:
        return _set_pmu(vm, argument)
    return _set_nr_counters(vm, argument)


def check_vcpu(vm: Vpmu, vcpu: int) -> int:
    """Return the errno that a vCPU gives for every attribute, known or not; 0 if it gives none."""
    if not vm.vcpus[vcpu].has_pmu:
        return errno.ENODEV
    return errno.EBUSY if vm.vcpus[vcpu].initialised else OK


def check_attribute(vm: Vpmu, attr: int) -> int:
    """Return ENXIO if this kernel's KVM does not have the attribute, else 0."""
    return OK if attr in vm.caps.attributes else errno.ENXIO


def apply_accepted(vm: Vpmu, attr: int, argument: int | FilterRange) -> Vpmu:
    """Return the state after a setting that KVM accepted (SET_PMU, SET_NR_COUNTERS or FILTER)."""
    if isinstance(argument, FilterRange):
        allowed = kernel_allows(
            [argument], bits=vm.caps.event_bits_for(vm.pmu), standing=vm.allowed
        )
        return replace(vm, allowed=allowed)
    if attr == KVM_ARM_VCPU_PMU_V3_SET_PMU:
        return replace(vm, pmu=argument, pmu_is_set=True, counters=None)
    return replace(vm, counters=argument)


def is_sealed(vm: Vpmu) -> bool:
    """Return whether KVM takes no more settings: a vCPU has run, or every vCPU is INITed."""
    return vm.has_run or all(vcpu.initialised for vcpu in vm.vcpus)


def _set_filter(vm: Vpmu, call: FilterRange) -> tuple[int, Vpmu]:
    if call.base + call.nevents > 1 << vm.caps.event_bits_for(vm.pmu):
        return errno.EINVAL, vm
    if vm.has_run:
        return errno.EBUSY, vm
    return OK, apply_accepted(vm, KVM_ARM_VCPU_PMU_V3_FILTER, call)


def _set_pmu(vm: Vpmu, pmu: int) -> tuple[int, Vpmu]:
    if pmu not in vm.caps.counters:
        return errno.ENXIO, vm
    if vm.has_run or (vm.allowed is not None and pmu != vm.pmu):
        return errno.EBUSY, vm
    return OK, apply_accepted(vm, KVM_ARM_VCPU_PMU_V3_SET_PMU, pmu)


def _set_nr_counters(vm: Vpmu, counters: int) -> tuple[int, Vpmu]:
    # if the PMU is not known, only the largest number that any PMU has is a certain limit
    known = vm.caps.counters
    limits = [known.get(vm.pmu)] if vm.pmu is not None else list(known.values())
    limit = max((31 if number is None else number for number in limits), default=31)
    if not 0 <= counters <= limit:
        return errno.EINVAL, vm
    return OK, apply_accepted(vm, KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS, counters)
