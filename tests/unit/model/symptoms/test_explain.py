# SPDX-License-Identifier: Apache-2.0
"""An answer is in the words of the VMM at hand, with commands that work on this host."""

import re

import pytest

from pmuctl.model.cpuset import CpuSet
from pmuctl.model.symptoms.explain import explain
from pmuctl.model.symptoms.host import SymptomHost

PMUS = (("armv8_cortex_a76", CpuSet.parse("4-7")), ("armv8_cortex_a55", CpuSet.parse("0-3")))
ONLINE = CpuSet.parse("0-7")
NEW = SymptomHost(core_kinds=2, kernel=(6, 12), online=ONLINE, pmus=PMUS)
OLD = SymptomHost(core_kinds=2, kernel=(5, 10), online=ONLINE, pmus=PMUS)
PROBED = SymptomHost(core_kinds=2, kernel=(6, 12), has_set_pmu=False, online=ONLINE, pmus=PMUS)

NAMES = ("qemu", "kvmtool", "lkvm", "crosvm", "cloud-hypervisor", "firecracker", "dragonball")
MESSAGES = (
    *("KVM_EXIT_FAIL_ENTRY", "the guest hangs at boot at 100 % CPU", "vCPU init: EINVAL"),
    *("PMU KVM_SET_DEVICE_ATTR: Device or resource busy", "perf in the guest: <not supported>"),
    *("perf in the guest: <not counted>", "kvm run failed Invalid argument", "no PMU in guest"),
    *("PMU: KVM_SET_DEVICE_ATTR: Invalid argument", "Windows: divide by zero in the HAL"),
    *("no irqs for PMU, sampling events not supported", "vm only sees one cpu"),
    *("psci: failed to boot CPU1 (-22)", "KVM_CREATE_VCPU: Function not implemented"),
    *("exit status 125", "migration fails: registers differ", "'pmu' feature not supported"),
    *("cannot set CPU affinity on process 1: Invalid argument",),
)


@pytest.mark.parametrize("vmm", NAMES)
@pytest.mark.parametrize("message", MESSAGES)
def test_no_vmm_is_named_but_that_of_the_text(message: str, vmm: str) -> None:
    own = {vmm, *({"kvmtool", "lkvm"} if vmm in ("kvmtool", "lkvm") else ())}
    for answer in explain(f"{vmm}: {message}", NEW):
        texts = (answer.id, answer.by, answer.seen, answer.means, answer.check, answer.fix)
        named = {name for name in NAMES if name in " ".join(texts).lower()}
        assert named <= own, answer


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("kvm_init_vcpu failed", "qemu-system-aarch64 ARG..."),
        ("lkvm: KVM_EXIT_FAIL_ENTRY", "lkvm run --pmu ARG..."),
        ("crosvm: KVM_EXIT_FAIL_ENTRY", "crosvm run ARG..."),
        ("Windows: divide by zero", "VMM ARG..."),
    ],
)
def test_a_fix_has_a_pmu_of_this_host_and_the_command_of_the_vmm(text: str, fix: str) -> None:
    assert explain(text, NEW)[0].fix == f"pmuctl run --pmu armv8_cortex_a76 -- {fix}"
    assert explain(text)[0].fix == f"pmuctl run --pmu PMU -- {fix}"


@pytest.mark.parametrize("host", [OLD, PROBED])
def test_where_no_pmu_can_be_set_the_fix_is_taskset(host: SymptomHost) -> None:
    fix = explain("kvm_init_vcpu failed: Invalid argument", host)[0].fix
    assert fix == "taskset -c 4-7 qemu-system-aarch64 ARG..."


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("TASK ERROR: start failed", "qm set VMID --affinity 4-7"),
        ("virsh start web1", "virt-xml DOMAIN --edit --vcpus cpuset=4-7"),
        ("incus start web1", "incus config set VM limits.cpu=4-7"),
    ],
)
def test_what_a_manager_starts_is_confined_by_the_manager(text: str, fix: str) -> None:
    message = f"{text}\nkvm: Failed to put registers after init: Invalid argument"
    assert explain(message, NEW)[0].fix == fix


def test_a_cpuset_above_is_widened_to_the_cpus_of_this_host() -> None:
    (answer,) = explain("cannot set CPU affinity on process 7: Invalid argument", NEW)
    assert answer.fix == "systemctl set-property --runtime machine.slice AllowedCPUs=0-7"
    assert "machine.slice" in answer.means
    text = "TASK ERROR: start failed: taskset: failed to set pid 0's affinity: Invalid argument"
    assert explain(text, NEW)[0].fix.endswith("--runtime qemu.slice AllowedCPUs=0-7")


def test_kvmtool_ends_the_vm_only_with_its_first_vcpu() -> None:
    (answer,) = explain("lkvm: KVM_EXIT_FAIL_ENTRY")
    assert "if it is vCPU 0, the VM ends with it" in answer.means
    assert "the rest of the VM runs on" in answer.means


def test_a_vm_of_cloud_hypervisor_cannot_be_without_a_pmu() -> None:
    """It asks for one wherever KVM has one (Vcpu::init() in vmm/src/cpu.rs)."""
    answers = explain("cloud-hypervisor: failed to restore vcpu register", NEW)
    assert answers
    assert all("with another VMM" in answer.fix for answer in answers)


def test_a_vmm_that_is_not_known_is_not_named() -> None:
    (answer,) = explain("Received KVM_EXIT_FAIL_ENTRY signal", NEW)
    assert "what follows is up to the VMM" in answer.means
    assert "-- VMM ARG..." in answer.fix
    (answer,) = explain("kata: Received KVM_EXIT_FAIL_ENTRY signal", NEW)
    assert "what follows is up to Kata's VMM" in answer.means


@pytest.mark.parametrize("message", MESSAGES)
def test_no_placeholder_is_left(message: str) -> None:
    for answer in explain(message, NEW):
        assert not re.search(r"[{}]|\bPMU --|-c CPUS", answer.fix)
