# SPDX-License-Identifier: Apache-2.0
"""Whether vCPUs can leave their PMU, and what that means in words."""

import pytest

from pmuctl.model.alignment import (
    Alignment,
    AlignmentState,
    VmAlignment,
    align_mask_state,
    align_vm_state,
)
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import Consequence, EffectivePmu
from pmuctl.model.vm import Vm, VmPmu, VmState, VmVcpu
from pmuctl.model.vmm.identity import VmmIdentity, VmmKind
from pmuctl.value import replace

STAYS, LEAVES, STRANDED, DEAD, UNKNOWN = AlignmentState
ONLINE = CpuSet.parse("0-3")
A53, A72 = CpuSet.parse("0-1"), CpuSet.parse("2-3")
SET = EffectivePmu(
    pmu=VmPmu(name="a72", type=11, origin="applied"), cpus={"a72": A72}, is_explicit=True
)
DEFAULT = replace(SET, is_explicit=False)
EITHER = EffectivePmu(cpus={"a53": A53, "a72": A72})
OVERLAP = EffectivePmu(cpus={"a53": A53, "all": ONLINE})
GONE = replace(SET, cpus={"a72": None})


def cpus(text: str | None) -> CpuSet | None:
    return None if text is None else CpuSet.parse(text)


@pytest.mark.parametrize(
    ("chosen", "mask", "verdict"),
    [
        (SET, "2-3", STAYS),
        (DEFAULT, "2", STAYS),
        (SET, "1-2", LEAVES),
        (DEFAULT, "0-1", LEAVES),
        (SET, "2-9", STAYS),  # CPUs 4-9 are offline
        (EITHER, "0-3", LEAVES),
        (EITHER, "2-3", UNKNOWN),
        (OVERLAP, "1", STAYS),
        (OVERLAP, "2", UNKNOWN),
        (SET, "", STRANDED),
        (DEFAULT, "9", STRANDED),
        (EITHER, "9", STRANDED),
        (SET, None, UNKNOWN),
        (GONE, "0-3", UNKNOWN),
        (replace(EITHER, cpus={"a53": A53, "a72": None}), "9", UNKNOWN),
        (EffectivePmu(), "0-3", UNKNOWN),
    ],
)
def test_a_vcpu_stays_if_it_does_so_for_every_pmu_it_can_have(
    chosen: EffectivePmu, mask: str | None, verdict: AlignmentState
) -> None:
    assert align_mask_state(cpus(mask), chosen, ONLINE).state is verdict
    # a VM of one vCPU is as that
    assert align_vm_state([cpus(mask)], chosen, ONLINE).state is verdict


def test_aligned_is_yes_no_or_not_known() -> None:
    assert [its.aligned for its in AlignmentState] == [True, False, False, False, None]


def test_outside_is_told_for_each_pmu_that_it_can_be() -> None:
    its = align_mask_state(cpus("0-2"), SET, ONLINE)
    assert its == Alignment(state=LEAVES, outside={"a72": A53}, consequence=Consequence.FAIL_ENTRY)
    assert its.only_outside == A53
    its = align_mask_state(cpus("1-2"), EITHER, ONLINE)
    assert its.outside == {"a53": CpuSet.parse("2"), "a72": CpuSet.parse("1")}
    assert (its.only_outside, its.consequence) == (None, Consequence.COUNTERS_STOP)


def test_only_what_leaves_is_outside() -> None:
    for verdict in (STAYS, STRANDED, UNKNOWN):
        with pytest.raises(ValueError, match="outside"):
            Alignment(state=verdict, outside={"a72": A53})
    with pytest.raises(ValueError, match="outside"):
        Alignment(state=LEAVES)


def test_where_it_is_not_known_what_is_online_all_counts() -> None:
    assert align_mask_state(cpus("2-9"), SET, None).state is LEAVES


def verdict_of(chosen: EffectivePmu, *masks: str | None) -> AlignmentState:
    return align_vm_state([cpus(mask) for mask in masks], chosen, ONLINE).state


def test_a_vm_stays_if_all_its_vcpus_do() -> None:
    assert verdict_of(SET, "2", "2-3") is STAYS
    assert verdict_of(SET, "2", None, "1") is LEAVES
    assert verdict_of(SET, "2", None) is UNKNOWN
    assert verdict_of(SET) is UNKNOWN
    for chosen in (SET, DEFAULT, EITHER):
        assert verdict_of(chosen, "2-3", "9") is STRANDED
        assert verdict_of(chosen, "2-3", "9", None) is STRANDED
    assert verdict_of(SET, "1", "9") is LEAVES


def test_vcpus_on_both_sides_leave_whichever_pmu_it_is() -> None:
    assert verdict_of(EITHER, "0-1", "2-3") is LEAVES
    assert verdict_of(EITHER, "2", "3") is UNKNOWN
    assert verdict_of(OVERLAP, "0", "1") is STAYS
    assert verdict_of(OVERLAP, "0", "2") is UNKNOWN


def held(chosen: EffectivePmu, *masks: str | None, kind: VmmKind | None = None) -> VmAlignment:
    """A VM whose vCPUs 0, 1, ... are threads 100, 101, ... with these masks."""
    vcpus = tuple(
        VmVcpu(index=index, tid=100 + index, initialised=None, has_run=True)
        for index in range(len(masks))
    )
    vm = Vm(
        name="web1",
        socket=None,
        state=VmState.RUNNING,
        vcpus=vcpus,
        identity=VmmIdentity(kind=kind),
    )
    known = {
        100 + index: CpuSet.parse(mask) for index, mask in enumerate(masks) if mask is not None
    }
    return VmAlignment.of(vm, chosen, known, ONLINE)


def numbers(its: VmAlignment) -> tuple[list[int], list[int], bool]:
    return [one.index for one in its.misplaced], [one.index for one in its.offenders], its.is_split


def test_which_vcpus_a_vms_judgement_is_about() -> None:
    assert numbers(held(SET, "2", "0-3", None)) == ([1], [1], False)
    assert numbers(held(SET, "2", "2-3")) == ([], [], False)
    # each may be on the right one, both cannot
    assert numbers(held(EITHER, "0-1", "2-3")) == ([], [0, 1], True)
    assert numbers(held(EITHER, "1-2", "3")) == ([0], [0, 1], False)
    assert numbers(held(EITHER, "2", "3")) == ([], [], False)
    assert numbers(held(SET, "2", "9")) == ([1], [1], False)
    assert numbers(held(SET, "0", "9")) == ([0, 1], [0], False)


FAILS = "KVM_RUN fails there with KVM_EXIT_FAIL_ENTRY"
STOP = "the guest's counters stop there silently"


@pytest.mark.parametrize(
    ("its", "words"),
    [
        (held(SET, "2-3", "2"), "no vCPU can leave a72 (2-3)"),
        (
            held(SET, "0-3", "2", kind=VmmKind.QEMU),
            f"vCPU 0 may run on CPUs 0-1, outside a72 (2-3): {FAILS}: QEMU spins at 100 %",
        ),
        (
            held(SET, "1-3", kind=VmmKind.KVMTOOL),
            f"vCPU 0 may run on CPU 1, outside a72 (2-3): {FAILS}: kvmtool ends that vCPU's "
            "thread, and with vCPU 0 the VM",
        ),
        (
            held(SET, "2", "1"),
            f"vCPU 1 may run on CPU 1, outside a72 (2-3): {FAILS}: most VMMs end the VM, and QEMU "
            "spins at 100 %",
        ),
        (
            held(DEFAULT, "0-3", kind=VmmKind.QEMU),
            f"vCPU 0 may run on CPUs 0-1, outside a72 (2-3): {STOP}",
        ),
        (
            held(EITHER, "0-1", "2-3"),
            "vCPUs 0-1 may run outside its PMU, on CPUs 2-3 if that is a53 or CPUs 0-1 if that is "
            f"a72: {STOP}",
        ),
        (
            held(EITHER, "2-3"),
            "not known whether its vCPUs stay on a53 (0-1) or a72 (2-3); where they do not, "
            f"{STOP}",
        ),
        (
            held(GONE, "2-3", kind=VmmKind.CROSVM),
            f"not known whether its vCPUs stay on a72 (?); where they do not, {FAILS}: crosvm "
            "ends the VM",
        ),
        (
            held(DEFAULT, "2", "9"),
            "vCPU 1 may run anywhere, for all its CPUs are offline, also outside a72 (2-3): "
            f"{STOP}",
        ),
        (held(EffectivePmu(), "0-3"), None),
    ],
)
def test_what_it_means(its: VmAlignment, words: str | None) -> None:
    assert its.explanation == words
