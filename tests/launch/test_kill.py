# SPDX-License-Identifier: Apache-2.0
"""VMM or supervisor killed at any moment: nobody is left behind, nothing hangs."""

import os
import random
import signal
import time
from errno import ENOSYS

import pytest

from tests.launch.conftest import Start
from tests.launch.native import HERE, python, tracers, vmm, wait_for

TIMES = 30
SEED = int(os.environ.get("FUZZ_SEED", "1"))
KILLED = -signal.SIGKILL


def test_without_a_supervisor_no_vcpu_can_be_made(kvm: Start) -> None:
    its = kvm(*vmm("--vcpus", "2", "--pause", "before"))
    its.hear("at", "before")
    os.kill(its.supervisor, signal.SIGKILL)
    its.is_left_alone()
    its.go_on()
    assert [vcpu["result"] for vcpu in its.all_said("vcpu")] == [-ENOSYS] * 2
    assert its.status() == 0


def test_a_vm_goes_on_without_its_supervisor(kvm: Start) -> None:
    its = kvm(*vmm("--vcpus", "2", "--run", "--pause", "made"))
    its.hear("at", "made")
    wait_for(lambda: set(tracers(its.pid).values()) == {"0"}, "nobody traces it")
    os.kill(its.supervisor, signal.SIGKILL)
    its.is_left_alone()
    its.go_on()
    assert [ran["result"] for ran in its.all_said("ran")] == [0, 0]
    assert its.status() == 0
    assert its.complaint() == ""


@pytest.mark.parametrize("point", ["before", "made", "ran", "last"])
def test_a_supervisor_leaves_with_its_vmm(kvm: Start, point: str) -> None:
    its = kvm(*vmm("--vcpus", "2", "--spin", "--pause", point))
    its.hear("at", point)
    its.process.kill()
    assert its.status() == KILLED
    its.is_left_alone()
    assert its.events("failed") == []
    assert its.events("ended")


@pytest.mark.parametrize("its_signal", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_supervisor_outlives_what_ends_others(kvm: Start, its_signal: int) -> None:
    its = kvm(*vmm("--run", "--pause", "before"))
    its.hear("at", "before")
    os.kill(its.supervisor, its_signal)
    its.go_on()
    assert [vcpu["result"] >= 0 for vcpu in its.all_said("vcpu")] == [True]
    its.is_left_alone()
    assert its.events("applied")


@pytest.mark.parametrize("part", range(3))
def test_a_vmm_killed_at_any_moment_leaves_nothing(kvm: Start, part: int) -> None:
    chance = random.Random(SEED * 100 + part)
    for _ in range(TIMES // 3):
        its = kvm(*vmm("--vcpus", "4", "--threads", "--spin", "--pause", "last"), announce=True)
        assert its.line() == b""
        seconds = chance.uniform(0, 0.06)
        time.sleep(seconds)
        its.process.kill()
        assert its.status() in (KILLED, 0), f"killed after {seconds} s, seed {SEED}"
        its.is_left_alone()
        assert its.events("failed") == [], f"killed after {seconds} s, seed {SEED}"
        its.close()


@pytest.mark.parametrize("part", range(2))
def test_a_supervisor_killed_at_any_moment_hangs_nobody(kvm: Start, part: int) -> None:
    chance = random.Random(SEED * 100 + 50 + part)
    for _ in range(TIMES // 6):
        its = kvm(*vmm("--vcpus", "4", "--threads", "--run", "--pause", "before"))
        its.hear("at", "before")
        its.go_on()
        seconds = chance.uniform(0, 0.01)
        time.sleep(seconds)
        os.kill(its.supervisor, signal.SIGKILL)
        made = [vcpu["result"] for vcpu in its.all_said("vcpu")]
        told = f"killed after {seconds} s, seed {SEED}: {made}"
        assert its.status() in (KILLED, 0), told
        assert all(result >= 0 or result == -ENOSYS for result in made), told
        if its.status() == 0:
            assert len(made) == 4, told
        its.is_left_alone()
        its.close()


def test_a_supervisor_that_cannot_stay_is_told_of(gate: Start) -> None:
    its = gate("true", supervisor=HERE / "no-such-file.py")
    assert its.status() == 9
    assert "the supervisor ended before the VMM was started" in its.complaint()


def test_what_cannot_be_executed_leaves_no_supervisor(gate: Start) -> None:
    its = gate(str(HERE))
    assert its.status() == 1
    assert "PermissionError" in its.complaint()
    its.is_left_alone()


def test_a_command_that_makes_no_vm(gate: Start) -> None:
    its = gate(*python(HERE / "native.py"))
    its.status()
    its.is_left_alone()
    assert its.events("failed") == its.events("began") == []
