# SPDX-License-Identifier: Apache-2.0
"""pmuctl or the VMM killed at any moment of an exchange: what `vm show` tells is true."""

import json
import time

import pytest

from tests.lab.machine import Lab
from tests.lab.vms import ReferenceVm, pmuctl, reference_vm, start_pmuctl

pytestmark = pytest.mark.one_kernel

A72 = "armv8_cortex_a72"
CYCLES = 0x11
MOMENTS = 10
ONLY = ("filter", "default", "deny", "allow", "cpu_cycles")
BUT = ("filter", "default", "allow", "deny", "cpu_cycles")


def seconds_of_a_set(vm: ReferenceVm) -> float:
    """How long `vm set` takes here: the moments to kill it at are spread over that."""
    begun = time.monotonic()
    vm.set("pmu", A72, *ONLY)
    return time.monotonic() - begun


def allows_cycles(vm: ReferenceVm) -> bool:
    """Whether the filter that `vm show` tells lets the guest count cycles."""
    its = json.loads(vm.pmuctl("show", "-J").stdout)["vm"]["filter"]
    listed = any(r["code"] <= CYCLES < r["code"] + r["nevents"] for r in its["except"])
    return bool((its["default"] == "allow") is not listed)


def test_a_killed_pmuctl_leaves_a_vm_whose_state_is_told_truly(lab: Lab) -> None:
    with reference_vm(lab, "--create-cpus", "0-1") as vm:
        assert vm.pmuctl("show").status == 0  # the first command of a lab takes longer
        whole = seconds_of_a_set(vm)
        statuses = []
        for number in range(MOMENTS):
            words = BUT if number % 2 else ONLY
            job = start_pmuctl(lab, "vm", "set", vm.name, *words)
            time.sleep(whole * 1.1 * number / MOMENTS)
            if job.status is None:
                job.kill(9)
            statuses.append(job.wait().status)
            assert vm.pmuctl("show").status == 0
        assert -9 in statuses[1:]  # the first is killed before it can have begun
        told = allows_cycles(vm)
        reports = vm.finish()
    for report in reports:
        assert (report["cycles"] > 0) is told
        assert bool(int(report["pmceid0"], 16) >> CYCLES & 1) is told


def test_a_killed_vmm_is_never_told_as_set(lab: Lab) -> None:
    for fraction in (0.1, 0.4, 0.7, 1.0):
        with reference_vm(lab, "--create-cpus", "0-1") as vm:
            assert vm.pmuctl("show").status == 0
            begun = time.monotonic()
            assert vm.pmuctl("show").status == 0
            whole = time.monotonic() - begun
            job = start_pmuctl(lab, "vm", "set", vm.name, "pmu", A72, *ONLY)
            time.sleep(whole * fraction)
            vm.job.kill(9)
            vm.job.wait()
            ran = job.wait()
            # set before it died, dead or gone when it was asked, or nobody knows
            assert ran.status in (0, 3, 4, 9, 10), ran
            assert (ran.status == 0) == bool(ran.stdout)
            assert "Traceback" not in ran.stderr
            assert vm.pmuctl("show").status in (3, 4)
            rows = json.loads(pmuctl(lab, "vm", "list", "-J").stdout)["vms"]
            assert [row["state"] for row in rows if row["name"] == vm.name] in ([], ["dead"])


def test_two_that_apply_at_once_are_told_the_truth(lab: Lab) -> None:
    """One after the other, whole: the VM has what the later one asked for."""
    with reference_vm(lab, "--create-cpus", "0-1") as vm:
        jobs = [
            start_pmuctl(lab, "vm", "set", vm.name, "pmu", A72, *words) for words in (ONLY, BUT)
        ]
        ran = [job.wait() for job in jobs]
        assert [its.status for its in ran] == [0, 0]
        told = allows_cycles(vm)
        for report in vm.finish():
            assert (report["cycles"] > 0) is told


def test_two_pmus_at_once_one_wins_and_the_other_is_told(lab: Lab) -> None:
    with reference_vm(lab, "--create-cpus", "0-1") as vm:
        pmus = ("armv8_cortex_a53", A72)
        jobs = [start_pmuctl(lab, "vm", "set", vm.name, "pmu", p, *ONLY) for p in pmus]
        ran = [job.wait() for job in jobs]
        assert sorted(its.status for its in ran) == [0, 5]
        lost = next(its for its in ran if its.status == 5)
        assert "EBUSY" in lost.stderr
        assert "nothing was changed" in lost.stderr
        won = pmus[[its.status for its in ran].index(0)]
        shown = json.loads(vm.pmuctl("show", "-J").stdout)["vm"]
        assert (shown["pmu"], shown["filter"]["default"]) == (won, "deny")
