# SPDX-License-Identifier: Apache-2.0
"""The model of the vPMU, rule by rule; that the kernel agrees is shown in tests/lab."""

import errno
from dataclasses import replace

import pytest

from pmuctl.model.event import EventSet
from pmuctl.model.filter import Action, FilterRange
from pmuctl.model.vpmu import (
    Irqchip,
    Kernel,
    Value,
    Vcpu,
    Vpmu,
    has_attr,
    is_sealed,
    run,
    set_attr,
)
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

A, B = 10, 11
KERNEL = Kernel(counters={A: 6, B: 4})
OLD = Kernel(counters={A: 6, B: 4}, attributes=frozenset({IRQ, INIT, FILTER, SET_PMU}))
FRESH = Vpmu(kernel=KERNEL, vcpus=(Vcpu(), Vcpu()))
CYCLES = FilterRange(0x11, 1, Action.DENY)


def after(vm: Vpmu, *calls: tuple[int, int, Value]) -> Vpmu:
    for vcpu, attr, value in calls:
        error, vm = set_attr(vm, vcpu, attr, value)
        assert error == 0, (attr, value, errno.errorcode[error])
    return vm


def answer(vm: Vpmu, attr: int, value: Value = None, vcpu: int = 0) -> str:
    error, after_it = set_attr(vm, vcpu, attr, value)
    assert not error or after_it is vm, "a refusal changes nothing"
    return errno.errorcode[error] if error else "OK"


INITED = after(FRESH, (0, IRQ, 23), (0, INIT, None))
RAN = run(INITED, 0)[1]


def test_without_the_feature_every_attribute_is_enodev_and_unknown() -> None:
    vm = replace(FRESH, vcpus=(Vcpu(has_pmu=False),))
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
    assert vm.counters == 2
    assert after(vm, (1, SET_PMU, A)).counters is None


def test_counters_end_at_what_the_pmu_has() -> None:
    vm = after(FRESH, (0, SET_PMU, B))
    assert answer(vm, SET_NR_COUNTERS, 4) == "OK"
    assert answer(vm, SET_NR_COUNTERS, 0) == "OK"
    assert answer(vm, SET_NR_COUNTERS, 5) == "EINVAL"
    assert answer(replace(FRESH, kernel=OLD), SET_NR_COUNTERS, 2) == "ENXIO"


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
    assert run(replace(FRESH, vcpus=(Vcpu(has_pmu=False),)), 0)[0] == 0


def test_sealed_is_any_run_or_every_vcpu_initialised() -> None:
    assert not is_sealed(FRESH)
    assert not is_sealed(INITED)
    assert is_sealed(RAN)
    assert is_sealed(after(INITED, (1, IRQ, 23), (1, INIT, None)))


def test_the_first_filter_decides_the_default() -> None:
    vm = after(FRESH, (0, FILTER, FilterRange(0x11, 1, Action.ALLOW)))
    assert vm.allowed == EventSet.of_ranges([(0x11, 1)])
    assert after(vm, (0, FILTER, CYCLES)).allowed == EventSet()
