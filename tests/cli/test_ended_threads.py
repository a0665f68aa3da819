# SPDX-License-Identifier: Apache-2.0
"""Dead vCPUs of VMs that pmuctl run did not start: told only where /proc or debugfs is certain."""

import json
import shutil
from pathlib import Path

import pytest

from pmuctl.model.cpuset import CpuSet
from tests.cli.conftest import Machine
from tests.fakes.vmm import fake_vmm

KVMTOOL = ("lkvm", "run", "--name", "db1")
QEMU = ("qemu-system-aarch64", "-name", "db1")
PID = 5120
FIRST = PID + 1
"""The thread of vCPU 0; the others follow."""


def start(machine: Machine, argv: tuple[str, ...], thread_name: str, count: int = 4) -> Path:
    """A VM of `count` vCPUs, with a worker thread that has a name of its own."""
    vcpus = dict.fromkeys(range(count), "0-1")
    fake_vmm(machine.proc, PID, argv, vcpus=vcpus, comm=argv[0][:15], thread_name=thread_name)
    tasks = machine.proc / str(PID) / "task"
    (tasks / str(FIRST + count) / "comm").write_text("virtio-blk-io\n")
    machine.masks.update(dict.fromkeys(range(FIRST, FIRST + count), CpuSet.parse("0-1")))
    return tasks


def dead_vcpus(machine: Machine) -> list[int]:
    vcpus = json.loads(machine.run("vm", "vcpus", f"pid/{PID}", "-J", "-O").stdout)["vcpus"]
    ran = machine.run("affinity", "check", f"pid/{PID}")
    dead = [row["vcpu"] for row in vcpus if row["tid"] is None and "is dead" in ran.stderr]
    assert not dead or ran.status == 1
    return dead


def test_a_vcpu_of_kvmtool_whose_thread_has_ended_is_dead(machine: Machine) -> None:
    tasks = start(machine, KVMTOOL, "kvm-vcpu-{}")
    assert dead_vcpus(machine) == []
    shutil.rmtree(tasks / str(FIRST + 2))
    assert dead_vcpus(machine) == [2]
    assert "db1: vCPU 2 is dead" in machine.run("vm", "list").stderr
    doctor = machine.run("doctor", "db1")
    assert doctor.status == 1
    assert "vCPU 2 is dead: it has run, and its thread has ended" in doctor.stdout


@pytest.mark.parametrize(
    ("argv", "name", "gone"),
    [
        (QEMU, "CPU {}/KVM", 2),  # it can be unplugged
        (("cloud-hypervisor",), "vcpu{}", 2),
        (KVMTOOL, "kvm-vcpu-{}", 3),  # the last one may not have been started yet
        (KVMTOOL, "kvm-vcpu-{}", 0),  # with it the VM ends
    ],
)
def test_a_thread_that_is_only_not_there_is_not_known(
    machine: Machine, argv: tuple[str, ...], name: str, gone: int
) -> None:
    tasks = start(machine, argv, name)
    shutil.rmtree(tasks / str(FIRST + gone))
    assert "dead" not in machine.run("vm", "list").stderr
    assert "dead" not in machine.run("affinity", "check").stderr


def test_a_thread_that_has_no_name_yet_may_be_a_vcpus(machine: Machine) -> None:
    tasks = start(machine, KVMTOOL, "kvm-vcpu-{}")
    (tasks / str(FIRST + 1) / "comm").write_text("lkvm\n")
    assert dead_vcpus(machine) == []


def test_a_capture_may_lack_threads(machine: Machine, tmp_path: Path) -> None:
    tasks = start(machine, KVMTOOL, "kvm-vcpu-{}")
    shutil.rmtree(tasks / str(FIRST + 2))
    shutil.copytree(machine.root, tmp_path / "tree", symlinks=True)
    shutil.copytree(machine.proc, tmp_path / "tree/proc", symlinks=True, dirs_exist_ok=True)
    ran = machine.run("vm", "list", "--sysroot", str(tmp_path / "tree"))
    assert "dead" not in ran.stderr


@pytest.mark.parametrize(
    ("argv", "name", "dead"),
    [
        (("crosvm", "run"), "crosvm_vcpu{}", [1]),
        (QEMU, "CPU {}/KVM", []),  # it may have unplugged that vCPU
        (("vmm",), "vcpu{}", []),
    ],
)
def test_the_thread_that_ran_a_vcpu_last_by_debugfs_has_ended(
    machine: Machine, argv: tuple[str, ...], name: str, dead: list[int]
) -> None:
    tasks = start(machine, argv, name, 2)
    folder = machine.root / f"sys/kernel/debug/kvm/{PID}-9"
    for vcpu in 0, 1:
        path = folder / f"vcpu{vcpu}/pid"
        path.parent.mkdir(parents=True)
        path.write_text(f"{FIRST + vcpu}\n")
    assert dead_vcpus(machine) == []
    shutil.rmtree(tasks / str(FIRST + 1))
    assert dead_vcpus(machine) == dead
    for vcpu in 0, 1:  # the ids of another pid namespace
        (folder / f"vcpu{vcpu}/pid").write_text(f"{777 + vcpu}\n")
    assert dead_vcpus(machine) == []
