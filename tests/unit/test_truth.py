# SPDX-License-Identifier: Apache-2.0
"""Which PMU a VM has where nobody chose one, and what follows from where its vCPUs may be."""

from dataclasses import replace

import pytest

from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kernel import DefaultPmu, Probed
from pmuctl.model.pmu import Pmu
from pmuctl.model.truth import (
    Chosen,
    Ground,
    chosen_pmu,
    default_by_cpu,
    judge_mask,
    judge_vm,
    meaning,
)
from pmuctl.model.vm import DERIVED, Vm, VmPmu, VmState, VmVcpu, Window
from pmuctl.model.vmm import Identity, VmmKind


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
TWO = Ground(pmus=(A53, A72), online=ALL)
ONE = Ground(pmus=(pmu("one", 8, "0-3"),), online=ALL)
OLD = replace(
    TWO,
    probed=Probed(has_vpmu=True, counters={10: 6, 11: 6}, default=DefaultPmu.ONE, default_pmu=10),
)
VM = Vm(
    name="web1",
    socket=None,
    state=VmState.RUNNING,
    window=Window.SEALED,
    vcpus=(VmVcpu(index=0, tid=1, initialised=None, has_run=True),),
)


def derived(its: Chosen) -> tuple[str, str, bool]:
    assert its.pmu is not None
    assert its.candidates == ()
    return its.pmu.name, its.pmu.origin, its.is_explicit


def test_what_was_set_is_a_fact_and_strict() -> None:
    for origin in ("applied", "vmm", "unknown", "recorded"):
        its = replace(VM, pmu=VmPmu(name="a53", type=10, origin=origin))
        assert derived(chosen_pmu(its, TWO)) == ("a53", origin, True)


def test_what_the_door_has_derived_is_a_fact_and_silent() -> None:
    its = replace(VM, pmu=VmPmu(name="a53", type=10, origin=DERIVED))
    assert derived(chosen_pmu(its, TWO)) == ("a53", DERIVED, False)


def test_the_only_pmu_of_a_host_is_the_vms() -> None:
    assert derived(chosen_pmu(VM, ONE)) == ("one", DERIVED, False)
    assert derived(chosen_pmu(replace(VM, identity=Identity(sets_pmu=True)), ONE)) == (
        "one",
        DERIVED,
        True,
    )


def test_the_only_pmu_is_no_fact_where_it_does_not_cover_all_cpus() -> None:
    gap = Ground(pmus=(A53,), online=ALL)
    assert chosen_pmu(VM, gap) == Chosen(candidates=("a53",))
    assert chosen_pmu(VM, replace(gap, online=None)) == Chosen(candidates=("a53",))
    assert derived(chosen_pmu(VM, replace(gap, online=CpuSet.parse("0-1"))))[0] == "a53"


def test_where_kvm_gives_all_vms_the_same_that_is_a_fact() -> None:
    assert derived(chosen_pmu(VM, OLD)) == ("a53", DERIVED, False)


def test_a_vmm_that_sets_a_pmu_by_itself_can_have_taken_any() -> None:
    its = replace(VM, identity=Identity(sets_pmu=True))
    for ground in (TWO, OLD):
        assert chosen_pmu(its, ground) == Chosen(candidates=("a53", "a72"), is_explicit=True)


@pytest.mark.parametrize("default", [DefaultPmu.AT_ATTRIBUTE, DefaultPmu.AT_VCPU_INIT, None])
def test_otherwise_it_can_be_any_that_kvm_knows(default: DefaultPmu | None) -> None:
    probed = Probed(has_vpmu=True, counters={11: 6}, default=default)
    assert chosen_pmu(VM, TWO) == Chosen(candidates=("a53", "a72"))
    assert chosen_pmu(VM, replace(TWO, probed=probed)) == Chosen(candidates=("a72",))


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
        replace(VM, identity=Identity(has_vpmu=False)),
        replace(VM, state=VmState.DEAD, vcpus=None),
        replace(VM, state=VmState.STARTING, vcpus=()),
    ],
)
def test_without_a_vpmu_or_before_its_time_there_is_none(vm: Vm) -> None:
    for ground in (ONE, TWO, OLD):
        assert chosen_pmu(vm, ground) == Chosen()
    assert chosen_pmu(VM, replace(TWO, pmus=())) == Chosen()


SET = Chosen(pmu=VmPmu(name="a72", type=11, origin="applied"), is_explicit=True)
DEFAULT = Chosen(pmu=VmPmu(name="a72", type=11, origin=DERIVED))
EITHER = Chosen(candidates=("a53", "a72"))


def aligned(chosen: Chosen, *masks: str | None, ground: Ground = TWO) -> bool | None:
    its = [None if mask is None else CpuSet.parse(mask) for mask in masks]
    return judge_vm(its, chosen, ground).aligned


def test_a_vcpu_is_aligned_if_it_is_so_for_every_pmu_it_can_have() -> None:
    gone = Chosen(pmu=VmPmu(name="gone", type=9, origin="applied"))
    for chosen, mask, wanted in (
        (SET, "2-3", True),
        (DEFAULT, "2", True),
        (SET, "1-2", False),
        (DEFAULT, "0-1", False),
        (SET, "2-9", True),  # CPUs 4-9 are offline
        (EITHER, "0-3", False),
        (EITHER, "2-3", None),
        (SET, None, None),
        (gone, "0-3", None),
    ):
        cpus = None if mask is None else CpuSet.parse(mask)
        assert judge_mask(cpus, chosen, TWO).aligned is wanted, (chosen, mask)
        assert aligned(chosen, mask) is wanted


def test_a_vm_is_aligned_if_all_its_vcpus_are() -> None:
    assert aligned(SET, "2", "2-3") is True
    assert aligned(SET, "2", None, "1") is False
    assert aligned(SET, "2", None) is None
    assert aligned(SET) is None


def test_a_vcpu_whose_cpus_are_all_offline_can_be_anywhere_next() -> None:
    for chosen in (SET, DEFAULT, EITHER):
        assert aligned(chosen, "2-3", "9") is False
        assert aligned(chosen, "") is False
    judged = judge_vm([CpuSet.parse("9"), CpuSet.parse("2")], SET, TWO)
    words = meaning(judged, SET, TWO, None)
    assert words is not None
    assert "no CPU that a vCPU may be on is online" in words


def test_vcpus_on_both_sides_are_not_aligned_whichever_pmu_it_is() -> None:
    assert aligned(EITHER, "0-1", "2-3") is False
    assert aligned(EITHER, "2", "3") is None
    overlapping = replace(TWO, pmus=(A53, replace(A72, cpus=CpuSet.parse("0-3"))))
    assert aligned(EITHER, "0", "1", ground=overlapping) is True
    assert aligned(EITHER, "0", "2", ground=overlapping) is None


@pytest.mark.parametrize(
    ("chosen", "masks", "kind", "words"),
    [
        (SET, ["2-3", "2"], None, "no vCPU can leave its PMU"),
        (
            SET,
            ["0-3", "2"],
            VmmKind.QEMU,
            "KVM_RUN fails on CPUs 0-1 (KVM_EXIT_FAIL_ENTRY); "
            "QEMU goes on trying, and spins at 100 %",
        ),
        (SET, ["1-3"], None, "KVM_RUN fails on CPU 1 (KVM_EXIT_FAIL_ENTRY)"),
        (DEFAULT, ["0-3"], VmmKind.QEMU, "counters stop silently on CPUs 0-1"),
        (
            EITHER,
            ["0-3"],
            None,
            "counters stop silently on the CPUs outside its PMU: 2-3 (a53) or 0-1 (a72)",
        ),
        (
            EITHER,
            ["2-3"],
            None,
            "counters stop silently outside its PMU, unless it is kept to the right one",
        ),
        (SET, [None], None, "it is not known where its vCPUs may run, or where its PMU is"),
        (SET, [], None, "it is not known where its vCPUs may run, or where its PMU is"),
        (Chosen(), ["0-3"], None, None),
    ],
)
def test_what_it_means(
    chosen: Chosen, masks: list[str | None], kind: VmmKind | None, words: str | None
) -> None:
    its = [None if mask is None else CpuSet.parse(mask) for mask in masks]
    assert meaning(judge_vm(its, chosen, TWO), chosen, TWO, kind) == words
