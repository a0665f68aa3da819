# SPDX-License-Identifier: Apache-2.0
"""The model of the vPMU, rule by rule; that the kernel agrees is shown in tests/lab."""

import errno

import pytest

from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import EventSet
from pmuctl.model.event_filter import Action, FilterRange
from pmuctl.model.kvm_caps import ATTR_NAMES, DefaultPmu, KvmCaps
from pmuctl.model.vpmu import Vcpu, Vpmu, is_sealed
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_FILTER as FILTER,
)
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_INIT as INIT,
)
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_IRQ as IRQ,
)
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS as SET_NR_COUNTERS,
)
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_SET_PMU as SET_PMU,
)
from pmuctl.value import replace
from tests.fakes.kvm_model import (
    BadAction,
    Entry,
    Irqchip,
    KvmVm,
    Value,
    enter,
    get_attr,
    guest_counters,
    has_attr,
    init_vcpu,
    run,
    set_attr,
)

A, B = 10, 11
KERNEL = KvmCaps(has_vpmu=True, attributes=frozenset(ATTR_NAMES), counters={A: 6, B: 4})
OLD = KvmCaps(
    has_vpmu=True, counters={A: 6, B: 4}, attributes=frozenset({IRQ, INIT, FILTER, SET_PMU})
)


def fresh(caps: KvmCaps = KERNEL, *vcpus: Vcpu) -> KvmVm:
    """A VM of these vCPUs, by default of two with the feature, on which no call was made."""
    return KvmVm(vpmu=Vpmu(caps=caps, vcpus=vcpus or (Vcpu(), Vcpu())))


def empty(caps: KvmCaps, *, strict: bool = False) -> KvmVm:
    """A VM without a vCPU."""
    return KvmVm(vpmu=Vpmu(caps=caps, vcpus=()), is_strict=strict)


FRESH = fresh()
PLAIN = fresh(KERNEL, Vcpu(has_pmu=False))
"""A VM whose vCPU was made without the feature."""

CYCLES = FilterRange(0x11, 1, Action.DENY)


def after(vm: KvmVm, *calls: tuple[int, int, Value]) -> KvmVm:
    for vcpu, attr, value in calls:
        error, vm = set_attr(vm, vcpu, attr, value)
        assert error == 0, (attr, value, errno.errorcode[error])
    return vm


def answer(vm: KvmVm, attr: int, value: Value = None, vcpu: int = 0) -> str:
    error, after_it = set_attr(vm, vcpu, attr, value)
    assert not error or after_it is vm, "a refusal changes nothing"
    return errno.errorcode[error] if error else "OK"


INITED = after(FRESH, (0, IRQ, 23), (0, INIT, None))
RAN = run(INITED, 0)[1]


def test_without_the_feature_every_attribute_is_enodev_and_unknown() -> None:
    vm = PLAIN
    assert answer(vm, SET_PMU, A) == "ENODEV"
    assert answer(vm, 99) == "ENODEV"
    assert has_attr(vm, 0, SET_PMU) == errno.ENXIO


def test_an_initialised_vcpu_is_busy_even_for_unknown_attributes() -> None:
    for attr, value in ((SET_PMU, A), (SET_PMU, 9999), (FILTER, CYCLES), (INIT, None), (99, 0)):
        assert answer(INITED, attr, value) == "EBUSY"
    assert has_attr(INITED, 0, SET_PMU) == 0


def test_another_vcpu_that_is_not_initialised_still_sets_it_for_all() -> None:
    assert answer(INITED, SET_PMU, B, vcpu=1) == "OK"
    assert answer(INITED, FILTER, CYCLES, vcpu=1) == "OK"


def test_after_a_run_only_the_counters_are_still_taken() -> None:
    assert answer(RAN, SET_PMU, A, vcpu=1) == "EBUSY"
    assert answer(RAN, FILTER, CYCLES, vcpu=1) == "EBUSY"
    assert answer(RAN, SET_NR_COUNTERS, 2, vcpu=1) == "OK"


def test_what_is_wrong_with_the_value_is_found_before_the_run() -> None:
    assert answer(RAN, SET_PMU, 9999, vcpu=1) == "ENXIO"
    assert answer(RAN, FILTER, FilterRange(0xFFFF, 2, Action.DENY), vcpu=1) == "EINVAL"


def test_a_filter_pins_the_pmu() -> None:
    vm = after(FRESH, (0, SET_PMU, B), (0, FILTER, CYCLES))
    assert answer(vm, SET_PMU, B) == "OK"
    assert answer(vm, SET_PMU, A) == "EBUSY"


@pytest.mark.parametrize("pmu", [9999, -1, 1, 4])
def test_what_is_no_cpu_pmu_is_enxio(pmu: int) -> None:
    assert answer(FRESH, SET_PMU, pmu) == "ENXIO"


def test_an_address_that_cannot_be_read_is_efault() -> None:
    for attr in (SET_PMU, FILTER, SET_NR_COUNTERS, IRQ):
        assert answer(FRESH, attr, None) == "EFAULT"


def test_every_set_pmu_resets_the_counters() -> None:
    vm = after(FRESH, (0, SET_PMU, A), (0, SET_NR_COUNTERS, 2))
    assert vm.vpmu.counters == 2
    assert after(vm, (1, SET_PMU, A)).vpmu.counters is None


def test_counters_end_at_what_the_pmu_has() -> None:
    vm = after(FRESH, (0, SET_PMU, B))
    assert answer(vm, SET_NR_COUNTERS, 4) == "OK"
    assert answer(vm, SET_NR_COUNTERS, 0) == "OK"
    assert answer(vm, SET_NR_COUNTERS, 5) == "EINVAL"
    assert answer(fresh(OLD), SET_NR_COUNTERS, 2) == "ENXIO"


def test_interrupts() -> None:
    assert answer(replace(FRESH, irqchip=Irqchip.NONE), IRQ, 23) == "EINVAL"
    assert [answer(FRESH, IRQ, irq) for irq in (5, 16, 1019, 1020)] == [
        "EINVAL",
        "OK",
        "OK",
        "EINVAL",
    ]
    one = after(FRESH, (0, IRQ, 23))
    assert answer(one, IRQ, 23) == "EBUSY"
    assert answer(one, IRQ, 22, vcpu=1) == "EINVAL"
    assert answer(one, IRQ, 23, vcpu=1) == "OK"
    assert answer(after(FRESH, (0, IRQ, 40)), IRQ, 40, vcpu=1) == "EINVAL"


def test_init_wants_the_gic_first_then_the_interrupt() -> None:
    made = replace(FRESH, irqchip=Irqchip.CREATED)
    assert answer(made, INIT) == "ENODEV"
    assert answer(FRESH, INIT) == "ENXIO"
    assert answer(replace(FRESH, irqchip=Irqchip.NONE), INIT) == "OK"


def test_a_vcpu_with_a_pmu_runs_only_once_it_is_initialised() -> None:
    assert run(FRESH, 0)[0] == errno.EINVAL
    assert run(INITED, 0)[0] == 0
    assert run(PLAIN, 0)[0] == 0


def test_sealed_is_any_run_or_every_vcpu_initialised() -> None:
    assert not is_sealed(FRESH.vpmu)
    assert not is_sealed(INITED.vpmu)
    assert is_sealed(RAN.vpmu)
    assert is_sealed(after(INITED, (1, IRQ, 23), (1, INIT, None)).vpmu)


def test_the_first_filter_decides_the_default() -> None:
    vm = after(FRESH, (0, FILTER, FilterRange(0x11, 1, Action.ALLOW)))
    assert vm.vpmu.allowed == EventSet.of_ranges([(0x11, 1)])
    assert after(vm, (0, FILTER, CYCLES)).vpmu.allowed == EventSet()


ON_A, ON_B, BARE = 0, 2, 4
CPUS = {A: CpuSet.parse("0-1"), B: CpuSet.parse("2-3")}
AT_INIT = replace(KERNEL, default=DefaultPmu.AT_VCPU_INIT, cpus=CPUS)
AT_ATTRIBUTE = replace(AT_INIT, default=DefaultPmu.AT_ATTRIBUTE)
ALWAYS_A = replace(AT_INIT, default=DefaultPmu.ONE, default_pmu=A)


def made(kernel: KvmCaps, *, cpu: int | None = None, strict: bool = False) -> KvmVm:
    """A VM of two vCPUs, both INITed on this CPU."""
    vm = empty(kernel, strict=strict)
    for _ in range(2):
        error, vm = init_vcpu(vm, cpu=cpu)
        assert error == 0
    return vm


def filtered(vm: KvmVm, *, cpu: int) -> KvmVm:
    error, vm = set_attr(vm, 0, FILTER, CYCLES, cpu=cpu)
    assert error == 0
    return vm


@pytest.mark.parametrize(
    ("kernel", "chosen"),
    [(AT_INIT, A), (AT_ATTRIBUTE, B), (ALWAYS_A, A)],
    ids=["init", "attr", "one"],
)
def test_the_default_pmu_is_what_a_filter_pins(kernel: KvmCaps, chosen: int) -> None:
    """The vCPU was INITed on A's CPU, the filter is set on B's."""
    vm = filtered(made(kernel, cpu=ON_A), cpu=ON_B)
    assert vm.vpmu.pmu == chosen
    assert answer(vm, SET_PMU, chosen) == "OK"
    assert answer(vm, SET_PMU, A + B - chosen) == "EBUSY"
    assert answer(vm, SET_PMU, 9999) == "ENXIO"


def test_the_first_vcpu_decides_the_default() -> None:
    vm = empty(AT_INIT)
    for cpu in (ON_B, ON_A, BARE):
        error, vm = init_vcpu(vm, cpu=cpu)
        assert (error, vm.vpmu.pmu) == (0, B)


def test_even_an_attribute_that_is_refused_decides_the_default() -> None:
    error, vm = set_attr(made(AT_ATTRIBUTE, cpu=ON_A), 0, 99, cpu=ON_B)
    assert (error, vm.vpmu.pmu) == (errno.ENXIO, B)


def test_a_cpu_without_pmu_has_no_default() -> None:
    assert init_vcpu(empty(AT_INIT), cpu=BARE)[0] == errno.ENODEV
    assert init_vcpu(empty(AT_INIT), has_pmu=False, cpu=BARE)[0] == 0
    assert set_attr(made(AT_ATTRIBUTE, cpu=BARE), 0, IRQ, 23, cpu=BARE)[0] == errno.ENODEV
    assert set_attr(made(ALWAYS_A, cpu=BARE), 0, IRQ, 23, cpu=BARE)[0] == 0


def test_where_the_rule_or_the_cpu_is_not_known_no_default_is() -> None:
    assert made(KERNEL, cpu=ON_A).vpmu.pmu is None
    assert made(AT_INIT).vpmu.pmu is None
    assert answer(filtered(made(AT_INIT), cpu=ON_A), SET_PMU, A) == "EBUSY"


def test_a_host_without_vpmu_makes_no_vcpu_with_one() -> None:
    vm = empty(KvmCaps(has_vpmu=True, counters={}))
    assert init_vcpu(vm)[0] == errno.EINVAL
    assert init_vcpu(vm, has_pmu=False)[0] == 0


def test_a_vcpu_enters_on_other_cpus_only_with_the_default_pmu() -> None:
    default = made(AT_INIT, cpu=ON_A)
    assert [enter(default, cpu) for cpu in (ON_A, ON_B)] == [Entry.COUNTS, Entry.STANDS_STILL]
    chosen = after(default, (0, SET_PMU, A))
    assert [enter(chosen, cpu) for cpu in (ON_A, ON_B)] == [Entry.COUNTS, Entry.REFUSED]
    assert enter(FRESH, ON_A) is None


def test_only_the_interrupt_can_be_read_back() -> None:
    one = after(FRESH, (0, IRQ, 23))
    assert get_attr(one, 0, IRQ) == (0, 23)
    assert get_attr(one, 0, IRQ, writable=False) == (errno.EFAULT, None)
    assert get_attr(one, 1, IRQ) == (errno.ENXIO, None)
    assert get_attr(INITED, 0, IRQ) == (0, 23)
    assert get_attr(replace(FRESH, irqchip=Irqchip.NONE), 0, IRQ)[0] == errno.EINVAL
    assert get_attr(PLAIN, 0, IRQ)[0] == errno.ENODEV
    for attr in (INIT, FILTER, SET_PMU, SET_NR_COUNTERS, 99):
        assert get_attr(one, 0, attr)[0] == errno.ENXIO


def test_the_event_space_is_the_hosts_or_the_pmus() -> None:
    narrow = FilterRange(0x3FF, 2, Action.DENY)
    assert answer(fresh(replace(KERNEL, event_bits=10)), FILTER, narrow) == "EINVAL"
    mixed = fresh(replace(KERNEL, event_bits_of={B: 10}))
    assert answer(mixed, FILTER, narrow) == "OK"
    on_b = after(mixed, (0, SET_PMU, B))
    assert on_b.vpmu.caps.event_bits_for(on_b.vpmu.pmu) == 10
    assert answer(on_b, FILTER, narrow) == "EINVAL"
    assert after(on_b, (0, FILTER, CYCLES)).vpmu.allowed == EventSet.space(10) - EventSet(
        1 << 0x11
    )


def test_an_action_that_is_none_is_einval_even_after_the_run() -> None:
    assert answer(FRESH, FILTER, BadAction()) == "EINVAL"
    assert answer(RAN, FILTER, BadAction(), vcpu=1) == "EINVAL"


def test_the_guest_sees_the_counters_that_were_set_or_all() -> None:
    assert guest_counters(FRESH) is None
    vm = after(FRESH, (0, SET_PMU, B))
    assert guest_counters(vm) == 4
    assert guest_counters(after(vm, (0, SET_NR_COUNTERS, 0))) == 0


def test_an_interrupt_the_gic_has_not_got_is_found_at_init() -> None:
    vm = after(replace(FRESH, nr_irqs=64), (0, IRQ, 64))
    assert answer(vm, INIT) == "EINVAL"
    assert answer(replace(vm, nr_irqs=96), INIT) == "OK"


def test_an_interrupt_of_a_timer_is_whose_took_it_first() -> None:
    vm = after(FRESH, (0, IRQ, 27), (1, IRQ, 27), (1, INIT, None))
    assert run(vm, 1) == (errno.EINVAL, vm)
    error, vm = run(vm, 0)
    assert error == errno.EINVAL
    assert answer(vm, INIT) == "EEXIST"


def test_a_gic_that_is_not_ready_lets_nothing_run() -> None:
    assert run(replace(FRESH, irqchip=Irqchip.CREATED), 0)[0] == errno.EBUSY


def test_init_without_a_gic_is_no_use_once_there_is_one() -> None:
    vm = after(replace(FRESH, irqchip=Irqchip.NONE), (0, INIT, None))
    assert run(vm, 0)[0] == 0
    assert run(replace(vm, irqchip=Irqchip.READY), 0)[0] == errno.EINVAL


def test_a_strict_vm_has_no_pmu_until_set_pmu() -> None:
    vm = made(replace(AT_INIT, has_strict=True), cpu=BARE, strict=True)
    assert vm.vpmu.pmu is None
    assert [answer(vm, IRQ, 23), answer(vm, SET_NR_COUNTERS, 2)] == ["OK", "EINVAL"]
    assert answer(after(vm, (0, IRQ, 23)), INIT) == "ENXIO"
    assert answer(vm, FILTER, CYCLES) == "ENXIO"
    assert answer(vm, FILTER, BadAction()) == "EINVAL"
    vm = after(vm, (0, SET_PMU, B), (0, SET_NR_COUNTERS, 2), (0, FILTER, CYCLES), (0, IRQ, 23))
    assert answer(vm, INIT) == "OK"


def test_an_older_kernel_makes_no_strict_vm() -> None:
    assert init_vcpu(empty(AT_INIT, strict=True))[0] == errno.ENOENT
