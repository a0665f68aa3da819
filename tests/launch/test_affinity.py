# SPDX-License-Identifier: Apache-2.0
"""The masks of a true VMM's threads: narrowed until its vCPUs run, then given back."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from pmuctl.host.procfs import Procfs
from pmuctl.model.cpuset import CpuSet
from tests.launch.conftest import Start
from tests.launch.native import Gated, vmm, wait_for


def masks(its: Gated) -> dict[int, set[int]]:
    """Where each of its threads may run, but for those that KVM itself has made.

    Those look as if they were in the call of the thread that KVM made them in: KVM_RUN.
    """
    procs, found = Procfs(), {}
    for tid in procs.threads(its.pid):
        if not procs.comm(its.pid, tid).startswith("kvm-"):
            with suppress(ProcessLookupError):
                found[tid] = os.sched_getaffinity(tid)
    return found


def test_vcpus_stay_where_they_belong_and_others_get_their_masks_back(
    kvm: Start, two_cpus: tuple[int, int]
) -> None:
    first, second = two_cpus
    both = {first, second}
    its = kvm(
        *vmm("--vcpus", "2", "--idle", "2", "--sleep", "--pause", "made,last"),
        orders={"affinity": CpuSet.of([second])},
        preexec=lambda: os.sched_setaffinity(0, both),
    )
    idle = [its.hear("idle")["idle"] for _ in range(2)]
    its.hear("at", "made")
    assert set(map(frozenset, masks(its).values())) == {frozenset({second})}
    os.sched_setaffinity(idle[0], {first})  # somebody's own wish: it stays
    its.go_on()
    running = [its.hear("running") for _ in range(2)]
    assert [said["mask"] for said in running] == [[second]] * 2
    vcpus = {said["tid"] for said in running}
    wanted = {tid: both for tid in masks(its)} | {tid: {second} for tid in vcpus}
    wanted[idle[0]] = {first}
    wait_for(lambda: masks(its) == wanted, f"{wanted} but {masks(its)}")
    last = wait_for(
        lambda: [has["vcpus"] for has in its.events("has") if all(v[2] for v in has["vcpus"])],
        "both vCPUs are seen to run",
    )[-1]
    assert [index for index, _, _ in last] == [0, 1]


@pytest.mark.parametrize("is_widened", [True, False], ids=["widened", "pinned elsewhere"])
def test_what_a_vmm_does_to_its_vcpu_soon_after_is_undone_or_told(
    kvm: Start, two_cpus: tuple[int, int], *, is_widened: bool
) -> None:
    """As `lkvm --vcpu-affinity`, or libvirt's vcpupin: a wider mask is narrowed again."""
    first, second = two_cpus
    its = kvm(
        *vmm("--vcpus", "1", "--sleep", "--pause", "last"),
        orders={"affinity": CpuSet.of([second])},
        preexec=lambda: os.sched_setaffinity(0, {first, second}),
    )
    vcpu = its.hear("running")["tid"]
    wait_for(lambda: any(v[2] for has in its.events("has") for v in has["vcpus"]), "it is seen")
    os.sched_setaffinity(vcpu, {first, second} if is_widened else {first})
    assert its.process.stderr is not None
    told = b"".join(its.process.stderr.readline() for _ in range(4)).decode().splitlines()
    mask = CpuSet.of([first, second] if is_widened else [first])
    assert told == [
        f"warning: {its.name}: thread {vcpu} of a vCPU may run outside the CPUs {second}",
        f"  why: its VMM, or somebody else, has set its affinity to {mask}",
        f"  now: {f'it was put back on {second}' if is_widened else 'it stays there'}",
        f"  fix: let nobody else set it, or let it be set within {second}"
        if is_widened
        else f"  fix: taskset -p -c {second} {vcpu}",
    ]
    assert os.sched_getaffinity(vcpu) == ({second} if is_widened else {first})


def test_threads_that_make_their_own_vcpus_are_narrowed_as_well(
    kvm: Start, two_cpus: tuple[int, int]
) -> None:
    its = kvm(
        *vmm("--vcpus", "4", "--threads", "--run"), orders={"affinity": CpuSet.of([two_cpus[1]])}
    )
    assert [said["mask"] for said in its.all_said("running")] == [[two_cpus[1]]] * 4
    assert its.status() == 0


def test_a_second_vm_is_placed_as_well(kvm: Start, two_cpus: tuple[int, int]) -> None:
    its = kvm(
        *vmm("--vms", "2", "--sleep", "--pause", "ran"),
        orders={"affinity": CpuSet.of([two_cpus[1]])},
        preexec=lambda: os.sched_setaffinity(0, set(two_cpus)),
    )
    for _ in range(2):
        assert its.hear("running")["mask"] == [two_cpus[1]]
        wait_for(lambda: masks(its)[its.pid] == set(two_cpus), "the main thread is free again")
        its.go_on()


def test_a_mask_without_any_of_the_cpus_ends_the_vmm(
    kvm: Start, two_cpus: tuple[int, int]
) -> None:
    first, second = two_cpus
    its = kvm(
        *vmm("--run"),
        orders={"affinity": CpuSet.of([second])},
        preexec=lambda: os.sched_setaffinity(0, {first}),
    )
    assert its.status() == 125
    assert its.complaint() == (
        f"error: {its.name}: thread {its.pid} may not run on any of the CPUs {second}\n"
        f"  why: it is pinned to {first}, and a mask is never widened\n"
        "  now: the VM was not started\n"
    )
    assert its.all_said("ran") == []
    its.is_left_alone()


def test_that_vmm_starts_at_best_effort(kvm: Start, two_cpus: tuple[int, int]) -> None:
    first, second = two_cpus
    its = kvm(
        *vmm("--run"),
        orders={"affinity": CpuSet.of([second]), "best_effort": True},
        preexec=lambda: os.sched_setaffinity(0, {first}),
    )
    assert [said["mask"] for said in its.all_said("running")] == [[first]]
    assert its.status() == 0
    assert "warning: " in its.complaint()


def test_cpus_that_are_not_there_end_the_vmm(kvm: Start) -> None:
    none = max(CpuSet.parse(Path("/sys/devices/system/cpu/possible").read_text().strip())) + 1
    its = kvm(*vmm("--run"), orders={"affinity": CpuSet.of([none])})
    assert its.status() == 125
    assert f"may not run on any of the CPUs {none}" in its.complaint()
