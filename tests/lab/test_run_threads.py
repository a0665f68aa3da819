# SPDX-License-Identifier: Apache-2.0
"""`pmuctl run` misses no vCPU, whichever thread makes it and whichever initialises it."""

import time

import pytest

from tests.lab.machine import Lab
from tests.lab.standins.moving import HELPERS, WAYS, WITHOUT_VPMU
from tests.lab.vmms import lines, runs

RUN = ("pmuctl", "run", "--pmu", "armv8_cortex_a72", "--filter", "default deny allow cpu_cycles")


def test_a_thread_that_is_not_followed_initialises_the_vcpu(lab: Lab) -> None:
    """Before its maker goes on: the settings are made all the same, and nobody stays traced."""
    ran = lab.run([*RUN, "--", "python3", "-m", "tests.lab.standins.hasty"], timeout=60)
    assert ran.status == 0, ran
    (run,) = runs(ran.stdout)
    assert (run["exit"], run["pmceid0"], run["mask"]) == ("KVM_EXIT_MMIO", "0x20000", [2, 3])
    assert run["cycles"] > 0
    (status,) = [its for its in lines(ran.stdout) if its.get("event") == "status"]
    assert {its["TracerPid"] for its in status["threads"].values()} == {0}


def test_a_vcpu_that_runs_while_its_maker_makes_no_call_is_found(lab: Lab) -> None:
    """Its VMM is ended, and it is not told that nothing ran."""
    began = time.monotonic()
    ran = lab.run([*RUN, "--", "python3", "-m", "tests.lab.standins.hasty", "silent"], timeout=60)
    assert ran.status == 125, ran
    assert "\n  now: the VMM was ended; its guest may have run for a moment\n" in ran.stderr
    assert time.monotonic() - began < 30, "it ran on"


@pytest.mark.parametrize("way", [*WAYS, *HELPERS])
def test_no_vcpu_is_forgotten_whose_descriptor_is_moved_or_shared(lab: Lab, way: str) -> None:
    """Both VMs have their settings, and nobody stays traced."""
    vmm = ("python3", "-m", "tests.lab.standins.moving", way)
    ran = lab.run([*RUN, "--", *vmm], timeout=60)
    assert ran.status == 0, ran
    seen = [(run["exit"], run["pmceid0"], run["mask"]) for run in runs(ran.stdout)]
    assert seen == [("KVM_EXIT_MMIO", "0x20000", [2, 3])] * 2
    (status,) = [its for its in lines(ran.stdout) if its.get("event") == "status"]
    assert {its["TracerPid"] for its in status["threads"].values()} == {0}


def test_a_vcpu_that_comes_back_cannot_be_initialised_without_a_vpmu(lab: Lab) -> None:
    """It was initialised with one before its VMM closed it: KVM takes no other features then."""
    vmm = ("python3", "-m", "tests.lab.standins.moving", WITHOUT_VPMU)
    ran = lab.run([*RUN, "--", *vmm], timeout=60)
    (init,) = [its for its in lines(ran.stdout) if its.get("call") == "KVM_ARM_VCPU_INIT"]
    assert init["result"] == "EINVAL", ran
    assert runs(ran.stdout) == []
