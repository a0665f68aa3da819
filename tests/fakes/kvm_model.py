# SPDX-License-Identifier: Apache-2.0
"""A model of KVM's whole vPMU, for the fake VMM and the lab: what it accepts, and its errnos.

Source: kvm_arm_pmu_v3_{set,get,has}_attr() and kvm_arm_pmu_v3_enable() in
arch/arm64/kvm/pmu-emul.c. SET_PMU, FILTER and SET_NR_COUNTERS are pmuctl's own model of the vPMU
(pmuctl.model.vpmu), so that tests/lab/test_model.py compares that one with real kernels.
"""

import errno
from collections.abc import Mapping
from enum import Enum

from pmuctl.model import vpmu as product
from pmuctl.model.event_filter import FilterRange
from pmuctl.model.kvm_caps import DefaultPmu, KvmCaps
from pmuctl.model.vpmu import OK, Vcpu, Vpmu
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_FILTER,
    KVM_ARM_VCPU_PMU_V3_INIT,
    KVM_ARM_VCPU_PMU_V3_IRQ,
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
    KVM_ARM_VCPU_PMU_V3_SET_PMU,
)
from pmuctl.value import field, replace, value

SETTINGS = frozenset(
    {
        KVM_ARM_VCPU_PMU_V3_SET_PMU,
        KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
        KVM_ARM_VCPU_PMU_V3_FILTER,
    }
)
"""The attributes that pmuctl itself sets, and models."""

FIRST_PPI, FIRST_SPI, LAST_SPI = 16, 32, 1019
TIMER_PPIS = frozenset({27, 30})
"""The interrupts of a vCPU's virtual and physical timer (vcpu.rst section 2)."""


class Irqchip(Enum):
    """How far the in-kernel GIC is."""

    NONE = "none"
    CREATED = "created"
    READY = "ready"


@value(kw_only=True)
class KvmVm:
    """A VM: the state of its vPMU that pmuctl models, and the rest of what KVM keeps for it.

    `irqs` maps a vCPU to its PMU interrupt; `with_timers` are the vCPUs whose timers have taken
    their interrupts, as the first KVM_RUN lets them. `nr_irqs` is how many interrupts the GIC has.
    `is_strict` stands for the feature KVM_ARM_VCPU_PMU_V3_STRICT: no default PMU.
    """

    vpmu: Vpmu
    irqchip: Irqchip = Irqchip.READY
    irqs: Mapping[int, int] = field(default_factory=dict)
    with_timers: frozenset[int] = frozenset()
    nr_irqs: int = LAST_SPI + 1
    is_strict: bool = False

    @property
    def caps(self) -> KvmCaps:
        """What the KVM of its host can do."""
        return self.vpmu.caps

    @property
    def has_no_pmu(self) -> bool:
        """Whether it has no PMU before SET_PMU, being strict."""
        return self.is_strict and self.vpmu.pmu is None


class BadAction:
    """A kvm_pmu_event_filter whose action is neither ALLOW nor DENY."""


Value = int | FilterRange | BadAction | None
"""What an attribute's addr points to; None stands for an address that cannot be read."""


class Entry(Enum):
    """What becomes of a vCPU on a CPU."""

    COUNTS = "counts"
    STANDS_STILL = "stands still"
    """It runs, but its counters do not count: the default PMU does not have the CPU."""
    REFUSED = "refused"
    """KVM_RUN returns 0 with KVM_EXIT_FAIL_ENTRY: the PMU that was set does not have the CPU."""


def init_vcpu(vm: KvmVm, *, has_pmu: bool = True, cpu: int | None = None) -> tuple[int, KvmVm]:
    """KVM_ARM_VCPU_INIT of the VM's next vCPU by a thread on `cpu`: the errno and the state.

    ENODEV if the default PMU is that of this CPU and there is none; EINVAL on a host without a
    vPMU; ENOENT for a strict VM if the kernel does not know of it.
    """
    if vm.is_strict and not vm.caps.has_strict:
        return errno.ENOENT, vm
    if has_pmu and not vm.caps.counters:
        return errno.EINVAL, vm
    if has_pmu and vm.caps.default is DefaultPmu.AT_VCPU_INIT:
        error, vm = _choose_default_pmu(vm, cpu)
        if error:
            return error, vm
    return OK, _with_vcpus(vm, (*vm.vpmu.vcpus, Vcpu(has_pmu=has_pmu)))


def set_attr(
    vm: KvmVm, vcpu: int, attr: int, argument: Value = None, *, cpu: int | None = None
) -> tuple[int, KvmVm]:
    """KVM_SET_DEVICE_ATTR on one vCPU by a thread on `cpu`: the errno (0 is done) and the state.

    A refusal leaves a trace only if any attribute makes KVM choose the default PMU.
    """
    refused = product.check_vcpu(vm.vpmu, vcpu)
    if not refused and vm.caps.default in (DefaultPmu.ONE, DefaultPmu.AT_ATTRIBUTE):
        error, vm = _choose_default_pmu(vm, cpu)
        if error:
            return error, vm
    is_filter = attr == KVM_ARM_VCPU_PMU_V3_FILTER
    if attr in SETTINGS and isinstance(argument, FilterRange if is_filter else int):
        return _apply_setting(vm, vcpu, attr, argument)
    if error := refused or product.check_attribute(vm.vpmu, attr):
        return error, vm
    if attr == KVM_ARM_VCPU_PMU_V3_INIT:
        return _init_pmu(vm, vcpu)
    if attr == KVM_ARM_VCPU_PMU_V3_IRQ:
        return _set_irq(vm, vcpu, argument)
    return (errno.EINVAL if is_filter and isinstance(argument, BadAction) else errno.EFAULT), vm


def get_attr(vm: KvmVm, vcpu: int, attr: int, *, writable: bool = True) -> tuple[int, int | None]:
    """KVM_GET_DEVICE_ATTR: the errno and the value; only IRQ can be read back.

    `writable` is whether addr points to memory.
    """
    if attr != KVM_ARM_VCPU_PMU_V3_IRQ:
        return errno.ENXIO, None
    if vm.irqchip is Irqchip.NONE:
        return errno.EINVAL, None
    if not vm.vpmu.vcpus[vcpu].has_pmu:
        return errno.ENODEV, None
    if vcpu not in vm.irqs:
        return errno.ENXIO, None
    return (OK, vm.irqs[vcpu]) if writable else (errno.EFAULT, None)


def has_attr(vm: KvmVm, vcpu: int, attr: int) -> int:
    """KVM_HAS_DEVICE_ATTR: 0 if the attribute is known and the vCPU has a PMU, else ENXIO."""
    known = attr in vm.caps.attributes and vm.vpmu.vcpus[vcpu].has_pmu
    return OK if known else errno.ENXIO


def run(vm: KvmVm, vcpu: int) -> tuple[int, KvmVm]:
    """The first KVM_RUN of a vCPU: the errno and the state after it.

    EBUSY with a GIC that is not initialised; EINVAL if its PMU was not INITed, or with an
    interrupt that the GIC does not have or a timer has (kvm_arch_vcpu_run_pid_change()).
    """
    state = vm.vpmu.vcpus[vcpu]
    if vm.irqchip is Irqchip.CREATED:
        return errno.EBUSY, vm
    if vm.irqchip is Irqchip.READY:
        if state.initialised and vm.irqs.get(vcpu) in TIMER_PPIS:
            return errno.EINVAL, vm
        vm = replace(vm, with_timers=vm.with_timers | {vcpu})
    if state.has_pmu and not state.initialised:
        return errno.EINVAL, vm
    if state.has_pmu and vm.irqchip is Irqchip.READY and not _is_in_gic(vm, vm.irqs.get(vcpu)):
        return errno.EINVAL, vm
    return OK, replace(vm, vpmu=replace(vm.vpmu, has_run=True))


def enter(vm: KvmVm, cpu: int) -> Entry | None:
    """What becomes of a vCPU that runs on this CPU; None if the CPUs of its PMU are not known.

    vcpu.rst section 1.4, and kvm_arch_vcpu_load().
    """
    pmu = vm.vpmu.pmu
    cpus = vm.caps.cpus.get(pmu) if pmu is not None else None
    if cpus is None:
        return None
    if cpu in cpus:
        return Entry.COUNTS
    return Entry.REFUSED if vm.vpmu.pmu_is_set else Entry.STANDS_STILL


def guest_counters(vm: KvmVm) -> int | None:
    """How many programmable counters the guest sees (PMCR_EL0.N); None if it is not known."""
    vpmu = vm.vpmu
    if vpmu.counters is not None or vpmu.pmu is None:
        return vpmu.counters
    return vm.caps.counters.get(vpmu.pmu)


def _apply_setting(
    vm: KvmVm, vcpu: int, attr: int, argument: int | FilterRange
) -> tuple[int, KvmVm]:
    error, vpmu = product.set_attr(vm.vpmu, vcpu, attr, argument)
    if vm.has_no_pmu and error in (OK, errno.EBUSY) and attr != KVM_ARM_VCPU_PMU_V3_SET_PMU:
        return (errno.ENXIO if attr == KVM_ARM_VCPU_PMU_V3_FILTER else errno.EINVAL), vm
    return (error, vm) if error else (OK, replace(vm, vpmu=vpmu))


def _choose_default_pmu(vm: KvmVm, cpu: int | None) -> tuple[int, KvmVm]:
    """KVM's own choice of a PMU, unless there is one already."""
    caps = vm.caps
    if vm.vpmu.pmu is not None or vm.is_strict:
        return OK, vm
    if caps.default is DefaultPmu.ONE:
        return OK, replace(vm, vpmu=replace(vm.vpmu, pmu=caps.default_pmu))
    if cpu is None or not caps.cpus:
        return OK, vm
    pmu = next((pmu for pmu, cpus in caps.cpus.items() if cpu in cpus), None)
    error = errno.ENODEV if pmu is None else OK
    return error, replace(vm, vpmu=replace(vm.vpmu, pmu=pmu))


def _with_vcpus(vm: KvmVm, vcpus: tuple[Vcpu, ...]) -> KvmVm:
    return replace(vm, vpmu=replace(vm.vpmu, vcpus=vcpus))


def _is_in_gic(vm: KvmVm, irq: int | None) -> bool:
    return irq is not None and FIRST_PPI <= irq < vm.nr_irqs


def _init_pmu(vm: KvmVm, vcpu: int) -> tuple[int, KvmVm]:
    if vm.has_no_pmu:
        return errno.ENXIO, vm
    if vm.irqchip is Irqchip.CREATED:
        return errno.ENODEV, vm
    if vm.irqchip is Irqchip.READY:
        irq = vm.irqs.get(vcpu)
        if irq is None:
            return errno.ENXIO, vm
        if not _is_in_gic(vm, irq):
            return errno.EINVAL, vm
        if vcpu in vm.with_timers and irq in TIMER_PPIS:
            return errno.EEXIST, vm
    vcpus = vm.vpmu.vcpus
    done = replace(vcpus[vcpu], initialised=True)
    return OK, _with_vcpus(vm, (*vcpus[:vcpu], done, *vcpus[vcpu + 1 :]))


def _set_irq(vm: KvmVm, vcpu: int, irq: Value) -> tuple[int, KvmVm]:
    if vm.irqchip is Irqchip.NONE:
        return errno.EINVAL, vm
    if not isinstance(irq, int):
        return errno.EFAULT, vm
    is_ppi = FIRST_PPI <= irq < FIRST_SPI
    if not is_ppi and not FIRST_SPI <= irq <= LAST_SPI:
        return errno.EINVAL, vm
    # a PPI is the same on all vCPUs, an SPI belongs to one vCPU (pmu_irq_is_valid())
    taken = vm.irqs.values()
    if any(other != irq for other in taken) if is_ppi else irq in taken:
        return errno.EINVAL, vm
    if vcpu in vm.irqs:
        return errno.EBUSY, vm
    return OK, replace(vm, irqs={**vm.irqs, vcpu: irq})
