# SPDX-License-Identifier: Apache-2.0
"""`pmuctl vm vcpus`: where vCPU threads are and may be, beside the CPUs of their PMU."""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from pmuctl.control.server.server import VcpuStatus
from pmuctl.manage.affinity.assess import assess
from pmuctl.manage.affinity.host_state import read_host_state
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm import Vm, VmPmu, VmState, VmVcpu
from pmuctl.model.vm_ref import ProcessId, VmId
from pmuctl.value import replace
from tests.cli.conftest import Machine
from tests.fakes.vmm import FakeThreads, FakeVm

A72 = "armv8_cortex_a72"


def rows(machine: Machine, *words: str) -> list[dict[str, Any]]:
    ran = machine.run("vm", "vcpus", *words, "-J")
    assert ran.status == 0, ran
    found: list[dict[str, Any]] = json.loads(ran.stdout)["vcpus"]
    return found


def write_stat(machine: Machine, tid: int, text: str) -> None:
    path = machine.proc / str(os.getpid()) / "task" / str(tid) / "stat"
    path.write_text(text)


def test_a_vm_without_a_pmu_so_far_has_no_cpus_to_be_aligned_to(machine: Machine) -> None:
    machine.start(FakeVm())
    assert rows(machine) == [
        {
            "vm": "web1",
            "vcpu": n,
            "tid": 1001 + n,
            "cpu": None,
            "affinity": [0, 1, 2, 3],
            "pmu_cpus": None,
            "aligned": None,
            "has_pmu": None,
        }
        for n in range(2)
    ]
    assert machine.run("vm", "vcpus").lines[1].split() == [
        *("web1", "0", "1001", "?", "0-3", "-", "-")
    ]


def test_a_vm_has_no_pmu_once_that_is_decided(machine: Machine) -> None:
    machine.start(FakeVm())
    machine.start(FakeVm("web2", has_pmu=False))
    for words in (("vm", "list"), ("vm", "vcpus"), ("affinity", "check")):
        ran = machine.run(*words, "web1", "-n", "-o", "HAS-PMU")
        assert set(ran.stdout.split()) == {"?"}, words
        ran = machine.run(*words, "web2", "-n", "-o", "HAS-PMU")
        assert set(ran.stdout.split()) == {"no"}, words


def test_a_thread_that_can_leave_its_pmu_is_not_aligned(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    assert machine.run("vm", "set", "web1", "pmu", A72).status == 0
    assert [row["aligned"] for row in rows(machine)] == [True, True]
    vm.threads.masks[1002] = CpuSet.parse("1-2")
    assert [row["aligned"] for row in rows(machine)] == [True, False]
    assert [row["pmu_cpus"] for row in rows(machine)] == [[2, 3], [2, 3]]


def test_the_cpu_a_thread_was_last_on(machine: Machine) -> None:
    machine.start(FakeVm())
    write_stat(machine, 1001, f"1001 (a ) S (b) S {'0 ' * 35}3 {'0 ' * 13}\n")
    write_stat(machine, 1002, "1002 (short) S 0 0\n")
    assert [row["cpu"] for row in rows(machine)] == [3, None]


def test_a_thread_that_is_not_the_vmms_is_not_known(machine: Machine) -> None:
    class Liar(FakeVm):
        def vcpus(self) -> Sequence[VcpuStatus]:
            return [replace(its, tid=1) for its in super().vcpus()]

    machine.start(Liar())
    assert [(row["tid"], row["affinity"]) for row in rows(machine)] == [(None, None)] * 2
    assert machine.run("vm", "vcpus").lines[1].split()[2:5] == ["?", "?", "?"]


def test_only_the_vms_that_are_named(machine: Machine) -> None:
    machine.start(FakeVm())
    machine.start(FakeVm("web2"))
    assert {row["vm"] for row in rows(machine)} == {"web1", "web2"}
    assert {row["vm"] for row in rows(machine, "web2")} == {"web2"}
    ran = machine.run("vm", "vcpus", "web2", "web3")
    assert (ran.status, ran.stdout) == (4, "")
    assert "web3" in ran.stderr


def test_a_vm_that_does_not_answer_is_a_warning(machine: Machine) -> None:
    machine.start(FakeVm())
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(machine.runtime / "dead.sock"))
    ran = machine.run("vm", "vcpus", "-J")
    assert ran.status == 0
    assert {row["vm"] for row in json.loads(ran.stdout)["vcpus"]} == {"web1"}
    warning = json.loads(ran.stderr)["warning"]
    assert (warning["object"], warning["exit"]) == ("dead", 3)
    named = machine.run("vm", "vcpus", "dead")
    assert (named.status, named.stdout) == (3, "")


def test_no_vm_is_an_empty_list(machine: Machine) -> None:
    assert rows(machine) == []
    assert machine.run("vm", "vcpus").stderr == "no vCPU found\n"


def vm_with(pmu: str | None, *tids: int | None) -> Vm:
    return Vm(
        name="web1",
        socket="",
        state=VmState.RUNNING,
        id=VmId(ProcessId(1, 1)),
        pmu=VmPmu(name=pmu, type=11, origin="applied") if pmu else None,
        vcpus=tuple(
            VmVcpu(index=n, tid=tid, initialised=True, has_run=True) for n, tid in enumerate(tids)
        ),
    )


def test_a_vm_is_aligned_if_all_its_vcpus_are(machine: Machine) -> None:
    class Threads(FakeThreads):
        def get(self, tid: int) -> CpuSet:
            if tid not in self.masks:
                raise ProcessLookupError
            return super().get(tid)

    def aligned(vm: Vm, masks: Mapping[int, str]) -> bool | None:
        threads = Threads({tid: CpuSet.parse(text) for tid, text in masks.items()})
        return assess(vm, read_host_state(machine.host(threads=threads))).alignment.aligned

    vm, on_it = vm_with(A72, 1, 2), {1: "2-3", 2: "2"}
    assert aligned(vm, on_it) is True
    assert aligned(vm, {1: "2-3", 2: "1"}) is False
    assert aligned(vm, {2: "0"}) is False
    assert aligned(vm, {1: "2-3"}) is None
    assert aligned(vm, {}) is None
    for other in (vm_with(None, 1, 2), vm_with("gone", 1, 2), vm_with(A72), vm_with(A72, None)):
        assert aligned(other, on_it) is None
