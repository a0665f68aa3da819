# SPDX-License-Identifier: Apache-2.0
"""VMMs as the real world names them: how their VMs are listed, shown, checked and diagnosed."""

import json
from typing import Any

import pytest

from tests.cli.conftest import Machine
from tests.cli.processes import QEMU, listed, with_vmm

UUID = "5c9db09c-05c4-4072-8d71-23cb32d4e8ee"
WITHOUT_NUMBER = "anon_inode:kvm-vcpu"


@pytest.mark.parametrize(
    ("command", "comm", "thread", "vmm", "name", "uuid"),
    [
        (
            f"/usr/bin/kvm -id 100 -name vm1,debug-threads=on -smbios type=1,uuid={UUID}",
            *("kvm", "CPU {}/KVM", "qemu", "vm1", UUID),
        ),
        ("microvm@vm1 -name vm1", "qemu-system-aar", "CPU {}/KVM", "qemu", "vm1", None),
        ("db -name guest=vm1,process=my-vm", "my-vm", "CPU {}/KVM", "qemu", "vm1", None),
        (
            f"./cloud-hypervisor-static-aarch64 --platform uuid={UUID}",
            *("cloud-hyperviso", "vcpu{}", "cloud-hypervisor", "pid/6000", UUID),
        ),
        (
            f"stratovirt -name vm1 -uuid {UUID} -cpu host,pmu=on",
            *("stratovirt", "CPU {}/KVM", "stratovirt", "vm1", UUID),
        ),
        (
            "containerd-shim-kata-v2 -namespace k8s.io -id 0f3d",
            *("containerd-shim", "db_vcpu{}", "dragonball", "0f3d", None),
        ),
        ("muvm -- steam", "muvm", "fc_vcpu {}", "libkrun", "pid/6000", None),
        ("[libcrun:krun] /bin/sh", "VM:web1", "fc_vcpu {}", "libkrun", "pid/6000", None),
        ("lkvm run -n mode=none", "lkvm", "kvm-vcpu-{}", "kvmtool", "guest-6000", None),
        ("crosvm run --name vm1", "crosvm", "crosvm_vcpu{}", "crosvm", "vm1", None),
        ("firecracker-v1.7.0 --id vm1", "firecracker", "fc_vcpu {}", "firecracker", "vm1", None),
        ("alioth run", "alioth", "vcpu_{}", "alioth", "pid/6000", None),
    ],
)
def test_a_vm_is_listed_with_its_vmm_name_uuid_and_threads(
    machine: Machine,
    command: str,
    comm: str,
    thread: str,
    vmm: str,
    name: str,
    uuid: str | None,
) -> None:
    with_vmm(machine, 6000, *command.split(), comm=comm, thread_name=thread)
    (its,) = listed(machine)
    assert (its["vmm"], its["name"], its["uuid"]) == (vmm, name, uuid)
    assert [(vcpu["tid"], vcpu["evidence"]) for vcpu in its["vcpu_list"]] == [
        *((6001, "name"), (6002, "name"))
    ]


def test_the_uuid_of_smbios_names_the_vm(machine: Machine) -> None:
    with_vmm(machine, 6000, "/usr/bin/kvm", "-smbios", f"type=1,uuid={UUID}")
    assert machine.run("vm", "show", f"uuid/{UUID.upper()}").status == 0


def test_the_name_of_a_process_without_a_vm_makes_no_vm(machine: Machine) -> None:
    with_vmm(machine, 6000, "x", comm="qemu-system-aar")
    for fd in (machine.proc / "6000/fd").iterdir():
        fd.unlink()
    assert listed(machine) == []


def test_threads_that_are_numbered_from_1_are_not_taken_for_their_neighbours(
    machine: Machine,
) -> None:
    with_vmm(machine, 6000, "vmm", thread_name="vcpu-{}")
    for tid in (6001, 6002):
        (machine.proc / f"6000/task/{tid}/comm").write_text(f"vcpu-{tid - 6000}\n")
    (its,) = listed(machine)
    assert [vcpu["tid"] for vcpu in its["vcpu_list"]] == [None, None]


# VMMs that give no VM a PMU


@pytest.mark.parametrize(
    ("argv", "thread", "why"),
    [
        ("/usr/bin/firecracker-v1.7.0-aarch64 --id vm1", "fc_vcpu {}", "firecracker gives no VM"),
        ("microvm@vm1 firecracker", "fc_vcpu {}", "firecracker gives no VM"),
        ("msb sandbox --name vm1", "fc_vcpu {}", "libkrun gives no VM"),
    ],
)
def test_a_vm_whose_vmm_gives_no_pmu_is_told_so_and_not_that_it_may_leave_one(
    machine: Machine, argv: str, thread: str, why: str
) -> None:
    why = f"it has no PMU: {why} a PMU"
    with_vmm(machine, 6000, *argv.split(), comm="firecracker", thread_name=thread)
    (its,) = listed(machine)
    assert (its["name"], its["window"], its["pmu"], its["candidates"], its["aligned"]) == (
        *("vm1", "none", None, [], None),
    )
    assert its["means"] == why
    assert "may run outside" not in machine.run("vm", "show", "vm1").stdout
    assert why in machine.run("doctor", "vm1").stderr
    check = machine.run("affinity", "check", "vm1")
    assert (check.status, f"vm1: {why}" in check.stderr) == (0, True)
    assert machine.run("affinity", "check").status == 0
    align = machine.run("affinity", "align", "vm1")
    assert (align.status, "start it with another VMM" in align.stderr) == (7, True)


def test_a_vm_that_was_made_without_a_pmu_is_told_that(machine: Machine) -> None:
    with_vmm(machine, 6000, "stratovirt", "-name", "vm1")
    (its,) = listed(machine)
    assert (its["window"], its["means"]) == (
        *("none", "it has no PMU: its VMM made it without one"),
    )
    assert "start it with its VMM's option" in machine.run("affinity", "align", "vm1").stderr


# Kernels before Linux 4.16, whose vCPU descriptors have no number


def vcpus(its: dict[str, Any]) -> list[tuple[int, int | None]]:
    return [(vcpu["vcpu"], vcpu["tid"]) for vcpu in its["vcpu_list"]]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["CPU 0/KVM", "CPU 1/KVM"], [(0, 6001), (1, 6002)]),
        (["CPU 1/KVM", "CPU 0/KVM"], [(0, 6002), (1, 6001)]),
        (["CPU 0/KVM", "CPU 4/KVM"], [(0, 6001), (4, 6002)]),
        (["CPU 0/KVM", "x"], [(0, 6001), (1, None)]),
        (["x", "x"], [(0, None), (1, None)]),
        (["vcpu-1", "vcpu-2"], [(0, None), (1, None)]),
    ],
)
def test_vcpus_without_numbers_are_counted_and_numbered_by_their_threads(
    machine: Machine, names: list[str], found: list[tuple[int, int | None]]
) -> None:
    with_vmm(machine, 6000, QEMU, "-name", "old1", vcpu_link=WITHOUT_NUMBER)
    for tid, name in zip((6001, 6002), names, strict=True):
        (machine.proc / f"6000/task/{tid}/comm").write_text(f"{name}\n")
    (its,) = listed(machine)
    assert (its["name"], its["state"], its["vcpus"], its["window"]) == (
        *("old1", "running", 2, "sealed"),
    )
    assert vcpus(its) == found


def test_the_only_vcpu_without_a_number_is_known_by_the_thread_that_sleeps_in_it(
    machine: Machine,
) -> None:
    how: dict[str, Any] = {"vcpus": {0: "0-3"}, "has_names": False, "ran": 0}
    with_vmm(machine, 6000, "vmm", vcpu_link=WITHOUT_NUMBER, **how)
    (machine.proc / "6000/task/6001/syscall").write_text("29 0x14 0xae80 0 0 0 0 0x1 0x1\n")
    (its,) = listed(machine)
    assert (its["state"], vcpus(its)) == ("running", [(0, 6001)])


def test_the_vcpus_of_several_vms_without_numbers_are_not_guessed(machine: Machine) -> None:
    with_vmm(machine, 6000, "vmm", vcpu_link=WITHOUT_NUMBER)
    (machine.proc / "6000/fd/10").symlink_to("anon_inode:kvm-vm")
    (its,) = listed(machine)
    assert (its["state"], its["vcpus"], its["vcpu_list"]) == ("running", None, None)
    unknown = "pid/6000: which threads run its vCPUs is not known"
    check = machine.run("affinity", "check")
    assert (check.status, unknown in check.stderr) == (0, True)
    assert machine.run("vm", "list").lines[1].split()[3] == "?"
    findings = json.loads(machine.run("doctor", "pid/6000", "-J").stdout)["findings"]
    assert [(its["id"], its["result"]) for its in findings] == [("vm.aligned", "WARN")]
    align = machine.run("affinity", "align", "--all")
    assert "pid/6000: left alone, which threads run its vCPUs is not known" in align.stderr
    assert unknown in machine.run("affinity", "set", "pid/6000", "1").stderr
    assert unknown.partition(": ")[2] in machine.run("monitor", "--timeout", "0").stderr


def test_a_snapshot_keeps_vcpus_without_numbers(machine: Machine, tmp_path: Any) -> None:
    with_vmm(machine, 6000, QEMU, "-name", "old1", vcpu_link=WITHOUT_NUMBER)
    assert machine.run("host", "snapshot", str(tmp_path / "x")).status == 0
    ran = machine.run("vm", "list", "--sysroot", str(tmp_path / "x"), "-O", "-J")
    (its,) = json.loads(ran.stdout)["vms"]
    assert (its["name"], its["state"], its["vcpus"]) == ("old1", "running", 2)
