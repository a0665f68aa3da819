# SPDX-License-Identifier: Apache-2.0
"""The plan: what is sent, in which order, and what is refused before anything is."""

import pytest

from pmuctl.errors import (
    NotFoundError,
    PinnedError,
    SealedError,
    UnsupportedError,
    UsageError,
)
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import EventSet
from pmuctl.model.event_filter import Action, EventFilter
from pmuctl.model.kvm_caps import ATTR_NAMES, KvmCaps
from pmuctl.model.plan import CurrentState, SetAffinity, SetAttr, TargetSettings, VcpuThread, plan
from pmuctl.model.vpmu import Vcpu, Vpmu
from pmuctl.value import replace

A, B = 10, 11
ALL = CpuSet.parse("0-3")
FRESH = Vpmu(
    caps=KvmCaps(has_vpmu=True, attributes=frozenset(ATTR_NAMES), counters={A: 6, B: 4}),
    vcpus=(Vcpu(), Vcpu()),
)
CYCLES = EventSet.of_ranges([(0x11, 1)])
ONLY_CYCLES = EventFilter(Action.DENY, CYCLES)


def current(vpmu: Vpmu = FRESH, *, mask: str = "0-3", **more: object) -> CurrentState:
    threads = {
        n: VcpuThread(tid=100 + n, now=CpuSet.parse(mask), may=CpuSet.parse(mask)) for n in (0, 1)
    }
    return replace(CurrentState(vpmu=vpmu, threads=threads), **more)  # type: ignore[arg-type]


def wanted(**more: object) -> TargetSettings:
    return replace(TargetSettings(type=B, name="b"), **more)  # type: ignore[arg-type]


def words(its: CurrentState, what: TargetSettings) -> list[str]:
    return [step.describe() for step in plan(its, what)]


def test_affinity_first_then_pmu_counters_filter() -> None:
    what = wanted(counters=2, filter=ONLY_CYCLES, cpus=CpuSet.parse("2-3"))
    assert words(current(), what) == [
        "sched_setaffinity(100, 2-3)  vCPU 0, was 0-3",
        "sched_setaffinity(101, 2-3)  vCPU 1, was 0-3",
        "KVM_SET_DEVICE_ATTR(vcpu 0, KVM_ARM_VCPU_PMU_V3_SET_PMU, 11)  b",
        "KVM_SET_DEVICE_ATTR(vcpu 0, KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS, 2)",
        "KVM_SET_DEVICE_ATTR(vcpu 0, KVM_ARM_VCPU_PMU_V3_FILTER, {0x0011, 1, ALLOW})",
    ]


def test_what_holds_already_needs_no_step() -> None:
    vpmu = replace(FRESH, pmu=B, pmu_is_set=True, counters=2, allowed=CYCLES)
    what = wanted(counters=2, filter=ONLY_CYCLES, cpus=CpuSet.parse("2-3"))
    its = current(vpmu, mask="2-3")
    assert plan(its, what) == ()
    assert plan(replace(its, sealed_by="it ran"), what) == ()


def test_the_default_pmu_of_kvm_is_set_all_the_same() -> None:
    """SET_PMU of the PMU that KVM chose is no no-op: it turns the silent mode into the strict."""
    its = current(replace(FRESH, pmu=B))
    assert [step.attribute for step in plan(its, wanted()) if isinstance(step, SetAttr)] == [
        "SET_PMU"
    ]


def test_the_first_vcpu_that_is_not_initialised_is_asked() -> None:
    vpmu = replace(FRESH, vcpus=(Vcpu(initialised=True), Vcpu()))
    assert [step.vcpu for step in plan(current(vpmu), wanted()) if isinstance(step, SetAttr)] == [
        1
    ]


def test_a_mask_is_cut_down_never_widened() -> None:
    its = current(mask="1-2")
    places = [step for step in plan(its, wanted(cpus=CpuSet.parse("2-3")))]
    assert [step.cpus for step in places if isinstance(step, SetAffinity)] == [
        CpuSet.parse("2")
    ] * 2
    with pytest.raises(PinnedError):
        plan(current(mask="0-1"), wanted(cpus=CpuSet.parse("2-3")))


@pytest.mark.parametrize(
    ("vpmu", "what", "error", "errno"),
    [
        (replace(FRESH, vcpus=(Vcpu(has_pmu=False),)), wanted(), UnsupportedError, "ENODEV"),
        (FRESH, wanted(type=9999), NotFoundError, "ENXIO"),
        (FRESH, wanted(counters=5), UsageError, "EINVAL"),
        (
            replace(FRESH, caps=replace(FRESH.caps, attributes=frozenset(range(4)))),
            wanted(counters=2),
            UnsupportedError,
            "ENXIO",
        ),
        (
            replace(FRESH, caps=replace(FRESH.caps, event_bits=10)),
            wanted(filter=EventFilter(Action.ALLOW, EventSet.of_ranges([(0x400, 1)]))),
            UsageError,
            "EINVAL",
        ),
        (replace(FRESH, has_run=True), wanted(), SealedError, "EBUSY"),
        (replace(FRESH, has_run=True), wanted(counters=2), SealedError, "EBUSY"),
        (replace(FRESH, pmu=A, allowed=CYCLES), wanted(), SealedError, "EBUSY"),
    ],
)
def test_refusals_carry_the_errno_of_the_kernel(
    vpmu: Vpmu, what: TargetSettings, error: type[Exception], errno: str
) -> None:
    with pytest.raises(error) as raised:
        plan(current(vpmu), what)
    assert getattr(raised.value, "errno", None) == errno
    assert errno in str(getattr(raised.value, "why", ""))


def test_sealed_is_told_before_a_pin() -> None:
    its = current(mask="0-1", sealed_by="it was released")
    with pytest.raises(SealedError) as error:
        plan(its, wanted(cpus=CpuSet.parse("2-3")))
    assert "it was released" in (error.value.why or "")


def test_an_empty_filter_on_a_vm_without_one_sends_nothing() -> None:
    steps = plan(current(), wanted(filter=EventFilter(Action.ALLOW)))
    assert [step.attribute for step in steps if isinstance(step, SetAttr)] == ["SET_PMU"]


def test_counters_are_set_again_after_another_pmu() -> None:
    its = current(replace(FRESH, pmu=A, pmu_is_set=True, counters=3))
    values = [(s.attribute, s.value) for s in plan(its, wanted()) if isinstance(s, SetAttr)]
    assert values == [("SET_PMU", B), ("SET_NR_COUNTERS", 3)]


def test_a_filter_has_the_event_space_of_the_pmu_that_is_set_and_not_of_kvms_choice() -> None:
    vpmu = replace(FRESH, caps=replace(FRESH.caps, event_bits=10, event_bits_of={B: 16}))
    events = EventFilter(Action.ALLOW, EventSet.of_ranges([(0x4004, 1)]))
    state = replace(current(), vpmu=vpmu)
    steps = plan(state, wanted(type=B, filter=events))
    assert [step.attribute for step in steps if isinstance(step, SetAttr)] == ["SET_PMU", "FILTER"]
    with pytest.raises(UsageError):
        plan(state, wanted(type=A, filter=events))
