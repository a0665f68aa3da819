# SPDX-License-Identifier: Apache-2.0
"""The vPMU of a VM as a state machine: what KVM accepts when, and the errno it gives.

Source: kvm_arm_pmu_v3_{set,get,has}_attr() and kvm_arm_pmu_v3_enable() in
arch/arm64/kvm/pmu-emul.c, and the same calls on kernels 6.1 to 7.3: tests/lab/test_model.py holds
this module against them, call by call and with random sequences.
"""

import errno
from enum import Enum

from pmuctl.model.event import EventSet
from pmuctl.model.event_filter import FilterRange, kernel_allows
from pmuctl.model.kvm_caps import DefaultPmu, KvmCaps
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_FILTER,
    KVM_ARM_VCPU_PMU_V3_INIT,
    KVM_ARM_VCPU_PMU_V3_IRQ,
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
    KVM_ARM_VCPU_PMU_V3_SET_PMU,
)
from pmuctl.value import field, replace, value

OK = 0
FIRST_PPI, FIRST_SPI, LAST_SPI = 16, 32, 1019
TIMER_PPIS = frozenset({27, 30})
"""The interrupts of a vCPU's virtual and physical timer (vcpu.rst section 2)."""


class Irqchip(Enum):
    """How far the in-kernel GIC is."""

    NONE = "none"
    CREATED = "created"
    READY = "ready"


@value(kw_only=True)
class Vcpu:
    """One vCPU: whether it was made with the PMU feature, its PMU interrupt, whether INITed.

    `has_timers` says that its timers have taken their interrupts, as the first KVM_RUN lets them.
    """

    has_pmu: bool = True
    irq: int | None = None
    initialised: bool = False
    has_timers: bool = False


@value(kw_only=True)
class Vpmu:
    """The state KVM keeps for one VM.

    `pmu` is the perf type the VM counts with, None while KVM's own choice stands and is not
    known; `pmu_is_set` tells that SET_PMU named it, and so that vCPUs enter only on its CPUs.
    `allowed` is what the filter lets through, None while there is none. `counters` is what
    SET_NR_COUNTERS set since the last SET_PMU. `nr_irqs` is how many interrupts the GIC has.
    `is_strict` stands for the feature KVM_ARM_VCPU_PMU_V3_STRICT: no default PMU.
    """

    caps: KvmCaps
    vcpus: tuple[Vcpu, ...] = (Vcpu(),)
    irqchip: Irqchip = Irqchip.READY
    pmu: int | None = None
    pmu_is_set: bool = False
    counters: int | None = None
    allowed: EventSet | None = field(default=None, repr=False)
    has_run: bool = False
    nr_irqs: int = LAST_SPI + 1
    is_strict: bool = False


class BadAction:
    """A kvm_pmu_event_filter whose action is neither ALLOW nor DENY."""


Value = int | FilterRange | BadAction | None
"""What an attribute's addr points to; None stands for an address that cannot be read."""


def init_vcpu(vm: Vpmu, *, has_pmu: bool = True, cpu: int | None = None) -> tuple[int, Vpmu]:
    """KVM_ARM_VCPU_INIT of the VM's next vCPU by a thread on `cpu`: the errno and the state.

    ENODEV where the default PMU is that of this CPU and there is none; EINVAL on a host without
    a vPMU; ENOENT for a strict VM where the kernel does not know of it.
    """
    if vm.is_strict and not vm.caps.has_strict:
        return errno.ENOENT, vm
    if has_pmu and not vm.caps.counters:
        return errno.EINVAL, vm
    if has_pmu and vm.caps.default is DefaultPmu.AT_VCPU_INIT:
        error, vm = _with_default(vm, cpu)
        if error:
            return error, vm
    return OK, replace(vm, vcpus=(*vm.vcpus, Vcpu(has_pmu=has_pmu)))


def set_attr(
    vm: Vpmu, vcpu: int, attr: int, value: Value = None, *, cpu: int | None = None
) -> tuple[int, Vpmu]:
    """KVM_SET_DEVICE_ATTR on one vCPU by a thread on `cpu`: the errno (0 is done) and the state.

    A refusal may leave a trace only where any attribute makes KVM choose the default PMU.
    """
    its = vm.vcpus[vcpu]
    if not its.has_pmu:
        return errno.ENODEV, vm
    if its.initialised:
        return errno.EBUSY, vm
    if vm.caps.default in (DefaultPmu.ONE, DefaultPmu.AT_ATTRIBUTE):
        error, vm = _with_default(vm, cpu)
        if error:
            return error, vm
    if attr not in vm.caps.attributes:
        return errno.ENXIO, vm
    if attr == KVM_ARM_VCPU_PMU_V3_INIT:
        return _init(vm, vcpu)
    if attr == KVM_ARM_VCPU_PMU_V3_IRQ and vm.irqchip is Irqchip.NONE:
        return errno.EINVAL, vm
    if attr == KVM_ARM_VCPU_PMU_V3_FILTER and isinstance(value, FilterRange | BadAction):
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
        bits = event_bits(vm)
        return replace(vm, allowed=kernel_allows([value], bits=bits, standing=vm.allowed))
    if attr == KVM_ARM_VCPU_PMU_V3_SET_PMU:
        return replace(vm, pmu=value, pmu_is_set=True, counters=None)
    return replace(vm, counters=value)


def get_attr(vm: Vpmu, vcpu: int, attr: int, *, writable: bool = True) -> tuple[int, int | None]:
    """KVM_GET_DEVICE_ATTR: the errno and the value; only IRQ can be read back.

    `writable` is whether addr points to memory.
    """
    its = vm.vcpus[vcpu]
    if attr != KVM_ARM_VCPU_PMU_V3_IRQ:
        return errno.ENXIO, None
    if vm.irqchip is Irqchip.NONE:
        return errno.EINVAL, None
    if not its.has_pmu:
        return errno.ENODEV, None
    if its.irq is None:
        return errno.ENXIO, None
    return (OK, its.irq) if writable else (errno.EFAULT, None)


def has_attr(vm: Vpmu, vcpu: int, attr: int) -> int:
    """KVM_HAS_DEVICE_ATTR: 0 where the attribute is known and the vCPU has a PMU, else ENXIO."""
    known = attr in vm.caps.attributes and vm.vcpus[vcpu].has_pmu
    return OK if known else errno.ENXIO


def run(vm: Vpmu, vcpu: int) -> tuple[int, Vpmu]:
    """The first KVM_RUN of a vCPU: the errno and the state after it.

    EBUSY with a GIC that is not initialised; EINVAL where its PMU was not INITed, or with an
    interrupt that the GIC does not have or a timer has (kvm_arch_vcpu_run_pid_change()).
    """
    its = vm.vcpus[vcpu]
    if vm.irqchip is Irqchip.CREATED:
        return errno.EBUSY, vm
    if vm.irqchip is Irqchip.READY:
        if its.initialised and its.irq in TIMER_PPIS:
            return errno.EINVAL, vm
        vm = _with_vcpu(vm, vcpu, replace(its, has_timers=True))
    if its.has_pmu and not its.initialised:
        return errno.EINVAL, vm
    if its.has_pmu and vm.irqchip is Irqchip.READY and not _in_gic(vm, its.irq):
        return errno.EINVAL, vm
    return OK, replace(vm, has_run=True)


def is_sealed(vm: Vpmu) -> bool:
    """Whether KVM takes no more settings: a vCPU has run, or every vCPU is INITed."""
    return vm.has_run or all(vcpu.initialised for vcpu in vm.vcpus)


def event_bits(vm: Vpmu) -> int:
    """The width of the event numbers that FILTER takes for this VM."""
    its = vm.caps.event_bits_of.get(vm.pmu) if vm.pmu is not None else None
    return vm.caps.most_event_bits if its is None else its


def _with_default(vm: Vpmu, cpu: int | None) -> tuple[int, Vpmu]:
    """KVM's own choice of a PMU, where none was made yet."""
    caps = vm.caps
    if vm.pmu is not None or vm.is_strict:
        return OK, vm
    if caps.default is DefaultPmu.ONE:
        return OK, replace(vm, pmu=caps.default_pmu)
    if cpu is None or not caps.cpus:
        return OK, vm
    pmu = next((pmu for pmu, cpus in caps.cpus.items() if cpu in cpus), None)
    return (errno.ENODEV if pmu is None else OK), replace(vm, pmu=pmu)


def _with_vcpu(vm: Vpmu, index: int, vcpu: Vcpu) -> Vpmu:
    return replace(vm, vcpus=(*vm.vcpus[:index], vcpu, *vm.vcpus[index + 1 :]))


def _in_gic(vm: Vpmu, irq: int | None) -> bool:
    return irq is not None and FIRST_PPI <= irq < vm.nr_irqs


def _init(vm: Vpmu, vcpu: int) -> tuple[int, Vpmu]:
    its = vm.vcpus[vcpu]
    if vm.is_strict and vm.pmu is None:
        return errno.ENXIO, vm
    if vm.irqchip is Irqchip.CREATED:
        return errno.ENODEV, vm
    if vm.irqchip is Irqchip.READY:
        if its.irq is None:
            return errno.ENXIO, vm
        if not _in_gic(vm, its.irq):
            return errno.EINVAL, vm
        if its.has_timers and its.irq in TIMER_PPIS:
            return errno.EEXIST, vm
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


def _filter(vm: Vpmu, call: FilterRange | BadAction) -> tuple[int, Vpmu]:
    if isinstance(call, BadAction) or call.base + call.nevents > 1 << event_bits(vm):
        return errno.EINVAL, vm
    if vm.is_strict and vm.pmu is None:
        return errno.ENXIO, vm
    if vm.has_run:
        return errno.EBUSY, vm
    return OK, accepted(vm, KVM_ARM_VCPU_PMU_V3_FILTER, call)


def _set_pmu(vm: Vpmu, pmu: int) -> tuple[int, Vpmu]:
    if pmu not in vm.caps.counters:
        return errno.ENXIO, vm
    if vm.has_run or (vm.allowed is not None and pmu != vm.pmu):
        return errno.EBUSY, vm
    return OK, accepted(vm, KVM_ARM_VCPU_PMU_V3_SET_PMU, pmu)


def _set_nr_counters(vm: Vpmu, counters: int) -> tuple[int, Vpmu]:
    if vm.is_strict and vm.pmu is None:
        return errno.EINVAL, vm
    # with no PMU known the largest number that any of them has is the only bound that is certain
    known = vm.caps.counters
    limits = [known.get(vm.pmu)] if vm.pmu is not None else list(known.values())
    limit = max((31 if its is None else its for its in limits), default=31)
    if not 0 <= counters <= limit:
        return errno.EINVAL, vm
    return OK, accepted(vm, KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS, counters)
