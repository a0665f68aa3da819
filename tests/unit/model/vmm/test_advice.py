# SPDX-License-Identifier: Apache-2.0
"""What to change in a VMM's command line, in its own words."""

import pytest

from pmuctl.model.vmm.advice import ask_for_kvm, ask_for_vpmu
from pmuctl.model.vmm.identity import identify

QEMU = "qemu-system-aarch64"


@pytest.mark.parametrize(
    ("command", "fix"),
    [
        (QEMU, "give QEMU -cpu host,pmu=on"),
        ("stratovirt", "give StratoVirt -cpu host,pmu=on"),
        ("lkvm run", "give kvmtool --pmu"),
        ("crosvm run --no-pmu", "start crosvm without --no-pmu"),
        ("firecracker", "use QEMU, kvmtool or crosvm: firecracker gives no VM a PMU"),
        ("vmm", "give the VM a PMU by the VMM's own option (QEMU: -cpu host,pmu=on)"),
    ],
)
def test_how_a_vm_gets_a_vpmu(command: str, fix: str) -> None:
    assert ask_for_vpmu(identify(command.split(), "")) == fix


@pytest.mark.parametrize(
    ("command", "start"),
    [
        (f"{QEMU} -accel tcg", "give QEMU -accel kvm"),
        (f"{QEMU} -M virt", "give QEMU -accel kvm"),
        (f"{QEMU} -M virt,accel=tcg", "give QEMU -accel kvm"),
        (f"{QEMU} -M virt,accel=kvm:tcg", "give QEMU -accel kvm"),
        (f"{QEMU} -accel kvm -accel tcg", "give QEMU -accel kvm"),
        (f"{QEMU} -accel kvm -kernel missing", "see what qemu itself says"),
        (f"{QEMU} -enable-kvm", "see what qemu itself says"),
        (f"{QEMU} -machine virt,accel=kvm", "see what qemu itself says"),
        ("lkvm run", "see what kvmtool itself says"),
        ("sh -c true", "give the command line of the VMM itself after --"),
    ],
)
def test_how_a_command_makes_a_kvm_vm(command: str, start: str) -> None:
    words = command.split()
    assert ask_for_kvm(identify(words, ""), words).startswith(start)
