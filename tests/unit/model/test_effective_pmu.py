# SPDX-License-Identifier: Apache-2.0
"""Which PMU a VM has where nobody chose one."""

import pytest

from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import EffectivePmu, HostPmus, effective_pmu
from pmuctl.model.kvm_caps import DERIVED, DefaultPmu, KvmCaps, default_by_cpu
from pmuctl.model.pmu import Pmu
from pmuctl.model.vm import Vm, VmPmu, VmState, VmVcpu, Window
from pmuctl.model.vmm.identity import VmmIdentity
from pmuctl.value import replace


def pmu(name: str, number: int, cpus: str | None) -> Pmu:
    its = None if cpus is None else CpuSet.parse(cpus)
    return Pmu(
        name=name,
        path="",
        type=number,
        cpus=its,
        online=its,
        cores=(),
        events={},
        formats={},
        caps={},
    )


A53, A72 = pmu("a53", 10, "0-1"), pmu("a72", 11, "2-3")
ALL = CpuSet.parse("0-3")
TWO = HostPmus(pmus=(A53, A72), online=ALL)
ONE = HostPmus(pmus=(pmu("one", 8, "0-3"),), online=ALL)
OLD = replace(
    TWO,
    probed=KvmCaps(has_vpmu=True, counters={10: 6, 11: 6}, default=DefaultPmu.ONE, default_pmu=10),
)
VM = Vm(
    name="web1",
    socket=None,
    state=VmState.RUNNING,
    window=Window.SEALED,
    vcpus=(VmVcpu(index=0, tid=1, initialised=None, has_run=True),),
)


def derived(its: EffectivePmu) -> tuple[str, str, bool]:
    assert its.pmu is not None
    assert its.candidates == ()
    return its.pmu.name, its.pmu.origin, its.is_explicit


def test_what_was_set_is_a_fact_and_strict() -> None:
    for origin in ("applied", "vmm", "recorded"):
        its = replace(VM, pmu=VmPmu(name="a53", type=10, origin=origin))
        assert derived(effective_pmu(its, TWO)) == ("a53", origin, True)


def test_a_pmu_that_nobody_is_known_to_have_set_is_a_fact_and_silent() -> None:
    vm = replace(VM, pmu=VmPmu(name="a53", type=10, origin="unknown"))
    assert derived(effective_pmu(vm, TWO)) == ("a53", "unknown", False)
    assert vm.explicit_pmu is None


def test_what_the_door_has_derived_is_a_fact_and_silent() -> None:
    its = replace(VM, pmu=VmPmu(name="a53", type=10, origin=DERIVED))
    assert derived(effective_pmu(its, TWO)) == ("a53", DERIVED, False)


def test_the_only_pmu_of_a_host_is_the_vms() -> None:
    assert derived(effective_pmu(VM, ONE)) == ("one", DERIVED, False)
    assert derived(effective_pmu(replace(VM, identity=VmmIdentity(sets_pmu=True)), ONE)) == (
        "one",
        DERIVED,
        True,
    )


def test_the_only_pmu_is_no_fact_where_it_does_not_cover_all_cpus() -> None:
    gap = HostPmus(pmus=(A53,), online=ALL)
    can_be = EffectivePmu(cpus={"a53": A53.cpus})
    assert effective_pmu(VM, gap) == can_be
    assert effective_pmu(VM, replace(gap, online=None)) == can_be
    assert (can_be.candidates, can_be.only, can_be.only_cpus) == (("a53",), "a53", A53.cpus)
    assert derived(effective_pmu(VM, replace(gap, online=CpuSet.parse("0-1"))))[0] == "a53"


def test_what_pmu_a_vm_has_is_not_known_where_pmus_were_not_seen() -> None:
    unseen = HostPmus(pmus=(), online=ALL, is_complete=False)
    its = effective_pmu(VM, unseen)
    assert (its.is_known, its.cpus, its.pmu) == (False, {}, None)
    assert effective_pmu(VM, replace(unseen, is_complete=True)) == EffectivePmu()
    assert not effective_pmu(VM, replace(unseen, pmus=(A53,))).is_known
    # what is certain all the same: its VMM tells, it is the only one, or it can have none
    told = replace(VM, pmu=VmPmu(name="a53", type=10, origin="applied"))
    assert effective_pmu(told, unseen).is_known
    assert derived(effective_pmu(VM, replace(ONE, is_complete=False)))[0] == "one"
    assert effective_pmu(replace(VM, window=Window.NONE), unseen) == EffectivePmu()


def test_where_kvm_gives_all_vms_the_same_that_is_a_fact() -> None:
    assert derived(effective_pmu(VM, OLD)) == ("a53", DERIVED, False)


def test_a_vmm_that_sets_a_pmu_by_itself_can_have_taken_any() -> None:
    its = replace(VM, identity=VmmIdentity(sets_pmu=True))
    for ground in (TWO, OLD):
        either = EffectivePmu(cpus={"a53": A53.cpus, "a72": A72.cpus}, is_explicit=True)
        assert effective_pmu(its, ground) == either
        assert (either.candidates, either.only, either.only_cpus) == (("a53", "a72"), None, None)


@pytest.mark.parametrize("default", [DefaultPmu.AT_ATTRIBUTE, DefaultPmu.AT_VCPU_INIT, None])
def test_otherwise_it_can_be_any_that_kvm_knows(default: DefaultPmu | None) -> None:
    probed = KvmCaps(has_vpmu=True, counters={11: 6}, default=default)
    assert effective_pmu(VM, TWO).candidates == ("a53", "a72")
    assert effective_pmu(VM, replace(TWO, probed=probed)).candidates == ("a72",)


@pytest.mark.parametrize(
    ("masks", "chosen"),
    [
        (["0-1", "0-1"], 10),
        (["2-3", "2-3"], 11),
        (["2", "3"], 11),
        (["3"], 11),
        (["0-3", "0-3"], None),
        (["0-1", "0-3"], None),
        (["0-1", "2-3"], None),
        (["1-2"], None),
        (["4"], None),
        (["3-4"], None),
        (["0-1", ""], None),
        (["0-1", None], None),
        ([None], None),
        ([], None),
    ],
)
def test_the_pmu_of_a_cpu_is_known_where_all_cpus_are_of_one(
    masks: list[str | None], chosen: int | None
) -> None:
    its = [None if mask is None else CpuSet.parse(mask) if mask else CpuSet() for mask in masks]
    places = {10: CpuSet.parse("0-1"), 11: CpuSet.parse("2-3")}
    assert default_by_cpu(its, places) == chosen


@pytest.mark.parametrize(
    "vm",
    [
        replace(VM, window=Window.OPEN, state=VmState.WAITING),
        replace(VM, window=Window.NONE),
        replace(VM, identity=VmmIdentity(has_vpmu=False)),
        replace(VM, state=VmState.DEAD, vcpus=None),
        replace(VM, state=VmState.STARTING, vcpus=()),
    ],
)
def test_without_a_vpmu_or_before_its_time_there_is_none(vm: Vm) -> None:
    for ground in (ONE, TWO, OLD):
        assert effective_pmu(vm, ground) == EffectivePmu()
    assert effective_pmu(VM, replace(TWO, pmus=())) == EffectivePmu()
