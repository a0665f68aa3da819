# SPDX-License-Identifier: Apache-2.0
"""A vCPU that leaves its PMU, and a PMU that loses its CPUs: told as it happens, and why."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest

from tests.lab.job import Job
from tests.lab.machine import Lab
from tests.lab.vmms import put_bare_metal, qemu
from tests.lab.vms import ReferenceVm, pmuctl, reference_vm
from tests.lab.waiting import until
from tests.lab.workloads.bare import End

pytestmark = pytest.mark.one_kernel

A72 = "armv8_cortex_a72"
ERRORS = "/tmp/monitor.err"
START = 30.0
"""Seconds for monitor to begin, or to tell something."""
INTERVAL = 2.0
LONG_INTERVAL, LOOK = 10.0, 5.0
"""Seconds: one interval is told from two where looking, under emulation, takes much less."""


class Monitor:
    """A monitor in the lab, and what it has told."""

    def __init__(self, lab: Lab, job: Job) -> None:
        self.lab, self.job = lab, job

    def wait_for(self, event: str, seconds: float = START) -> dict[str, Any]:
        """The first of these events."""
        match = self.job.wait_for(rf'(?m)^(\{{.*"event": "{event}".*\}})$', seconds)
        its: dict[str, Any] = json.loads(match[1])
        return its

    def told(self) -> list[str]:
        """The events so far."""
        whole = self.job.raw("stdout").decode().rpartition("\n")[0]
        return [json.loads(line)["event"] for line in whole.splitlines()]


@contextmanager
def monitor(lab: Lab, *words: str) -> Iterator[Monitor]:
    """A monitor that has begun to watch."""
    command = ["pmuctl", "monitor", "--format", "jsonl", "--interval", str(INTERVAL), *words]
    job = lab.start(["sh", "-c", f'exec "$@" 2>{ERRORS}', "-", *command])

    def has_begun() -> bool:
        return "watching" in lab.read_files(ERRORS).get(ERRORS, "")

    try:
        until(has_begun, "it watches", START)
        yield Monitor(lab, job)
    finally:
        lab.run(["rm", "-f", ERRORS])
        if job.status is None:
            job.kill()
            job.wait(START)


@pytest.fixture
def vm(qemu_lab: Lab) -> Iterator[ReferenceVm]:
    """A VM that was given the PMU of CPUs 2-3, by which its vCPU threads were put there."""
    with reference_vm(qemu_lab, "--create-cpus", "0-1") as its:
        its.set("pmu", A72)
        yield its


def put(lab: Lab, tid: int, mask: str) -> None:
    """What an admin's taskset does; the mask is hexadecimal."""
    lab.run(["taskset", "-p", mask, str(tid)], check=True)


def wait_for_cpu(lab: Lab, name: str, cpus: set[int]) -> None:
    """Until a VM's first vCPU has been on one of these CPUs: one that sleeps is moved later."""

    def is_there() -> bool:
        rows = json.loads(pmuctl(lab, "vm", "vcpus", name, "-J").stdout)["vcpus"]
        return rows[0]["cpu"] in cpus

    until(is_there, f"vCPU 0 of {name} is on one of the CPUs {cpus}", START, poll=0.2)


def test_a_thread_that_leaves_is_told_within_one_interval(vm: ReferenceVm) -> None:
    with monitor(vm.lab, "--interval", str(LONG_INTERVAL)) as its:
        before = int(vm.lab.run(["date", "+%s"], check=True).stdout)
        put(vm.lab, vm.tids[0], "f")
        left = its.wait_for("vcpu-left")
        seen = datetime.fromisoformat(left["time"]).timestamp()
        assert seen - before < LONG_INTERVAL + LOOK
        assert (left["vm"], left["vcpu"], left["tid"]) == (vm.name, 0, vm.tids[0])
        assert (left["pmu"], left["cpus"]) == (A72, [0, 1])
        assert "KVM_EXIT_FAIL_ENTRY" in left["what"]
        put(vm.lab, vm.tids[0], "c")
        assert its.wait_for("vcpu-returned")["vcpu"] == 0
        assert "repaired" not in its.told()


def test_repair_puts_it_back(vm: ReferenceVm) -> None:
    with monitor(vm.lab, "--repair") as its:
        put(vm.lab, vm.tids[1], "f")
        repaired = its.wait_for("repaired")
        assert (repaired["vcpu"], repaired["cpus"]) == (1, [2, 3])
        its.wait_for("vcpu-returned")
    status = vm.lab.read_file(f"/proc/{vm.tids[1]}/status").decode()
    assert "Cpus_allowed_list:\t2-3\n" in status
    assert its.told()[:3] == ["vcpu-left", "repaired", "vcpu-returned"]


def test_the_kernel_wakes_it(qemu_lab: Lab) -> None:
    """With an hour between two looks: by netlink, of a CPU and of a VM."""
    with monitor(qemu_lab, "--interval", "3600", "-v") as its:
        try:
            online(qemu_lab, 1, "0")
            assert its.wait_for("cpu-offline")["cpus"] == [1]
        finally:
            online(qemu_lab, 1, "1")
        assert its.wait_for("cpu-online")["cpus"] == [1]
        with reference_vm(qemu_lab):
            # it is there a moment after the kernel tells of it
            told = qemu_lab.read_file(ERRORS).decode()
            assert "the kernel: kvm create, thread " in told


def online(lab: Lab, cpu: int, value: str) -> None:
    path = f"/sys/devices/system/cpu/cpu{cpu}/online"
    lab.run(["sh", "-c", f"echo {value} >{path}"], check=True)


def findings(lab: Lab, name: str) -> dict[str, dict[str, Any]]:
    ran = pmuctl(lab, "doctor", name, "-J")
    assert ran.status in (0, 1), ran
    rows = json.loads(ran.stdout)["findings"]
    assert ran.status == any(its["result"] == "FAIL" for its in rows)
    return {its["id"]: its for its in rows}


def test_the_last_cpu_of_a_pmu_is_told(vm: ReferenceVm) -> None:
    lab = vm.lab
    with monitor(lab) as its:
        try:
            for cpu in (2, 3):
                online(lab, cpu, "0")
            gone = its.wait_for("pmu-offline")
            assert gone["pmu"] == A72
            assert vm.name in gone["what"]
            found = findings(lab, vm.name)
            assert found["vm.pmu-online"]["result"] == "FAIL"
            assert found["vm.pmu-online"]["fix"].startswith("echo 1 >/sys/devices/system/cpu/cpu2")
        finally:
            for cpu in (2, 3):
                online(lab, cpu, "1")
        its.wait_for("cpu-online")


def test_a_supervised_qemu_whose_mask_is_widened_fails_and_spins(qemu_lab: Lab) -> None:
    lab = qemu_lab
    guest = put_bare_metal(lab, End.REPEAT)
    command = ["pmuctl", "run", "--name", "q1", "--pmu", A72, "--", *qemu("7.2", *guest)]
    job = lab.start(command, preloaded=True)
    try:
        job.wait_for(r"(?s)(GUEST.*\n){2}")
        found = findings(lab, "q1")
        assert found["vm.aligned"]["result"] == found["vm.supervisor"]["result"] == "PASS"
        rows = json.loads(pmuctl(lab, "vm", "vcpus", "q1", "-J").stdout)["vcpus"]
        put(lab, rows[0]["tid"], "3")
        wait_for_cpu(lab, "q1", {0, 1})
        found = findings(lab, "q1")
        aligned, spinning = found["vm.aligned"], found["vm.spinning"]
        assert aligned["result"] == "FAIL"
        assert "KVM_EXIT_FAIL_ENTRY" in aligned["why"]
        assert "QEMU spins at 100 %" in aligned["why"]
        assert spinning["result"] == "FAIL", spinning
        assert "runs no guest" in spinning["why"]
        lab.run(["sh", "-c", aligned["fix"]], check=True)
        assert findings(lab, "q1")["vm.aligned"]["result"] == "PASS"
    finally:
        if job.status is None:
            job.kill(9)
            job.wait(START)
