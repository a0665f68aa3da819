# SPDX-License-Identifier: Apache-2.0
"""The numbers and layouts that arm64 kernels have, written out, against what is computed."""

import ctypes
import errno
import os

import pytest

from pmuctl.uapi import kvm, kvm_arm64
from pmuctl.uapi.ioctl import ioctl
from pmuctl.uapi.kvm_structs import (
    kvm_create_device,
    kvm_device_attr,
    kvm_one_reg,
    kvm_pmu_event_filter,
    kvm_run,
    kvm_userspace_memory_region,
    kvm_vcpu_init,
    user_pt_regs,
)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("KVM_GET_API_VERSION", 0xAE00),
        ("KVM_CREATE_VM", 0xAE01),
        ("KVM_CHECK_EXTENSION", 0xAE03),
        ("KVM_GET_VCPU_MMAP_SIZE", 0xAE04),
        ("KVM_CREATE_VCPU", 0xAE41),
        ("KVM_SET_USER_MEMORY_REGION", 0x4020AE46),
        ("KVM_RUN", 0xAE80),
        ("KVM_GET_ONE_REG", 0x4010AEAB),
        ("KVM_SET_ONE_REG", 0x4010AEAC),
        ("KVM_ARM_VCPU_INIT", 0x4020AEAE),
        ("KVM_ARM_PREFERRED_TARGET", 0x8020AEAF),
        ("KVM_CREATE_DEVICE", 0xC00CAEE0),
        ("KVM_SET_DEVICE_ATTR", 0x4018AEE1),
        ("KVM_GET_DEVICE_ATTR", 0x4018AEE2),
        ("KVM_HAS_DEVICE_ATTR", 0x4018AEE3),
        ("KVM_CAP_DEVICE_CTRL", 89),
        ("KVM_CAP_ARM_PMU_V3", 126),
        ("KVM_CAP_VCPU_ATTRIBUTES", 127),
        ("KVM_CAP_ARM_VM_IPA_SIZE", 165),
        ("KVM_DEV_TYPE_ARM_VGIC_V3", 7),
        ("KVM_EXIT_MMIO", 6),
        ("KVM_EXIT_FAIL_ENTRY", 9),
        ("KVM_EXIT_INTR", 10),
    ],
)
def test_kvm_h_has_these_numbers_on_arm64(name: str, number: int) -> None:
    assert getattr(kvm, name) == number


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("KVM_ARM_VCPU_PMU_V3_CTRL", 0),
        ("KVM_ARM_VCPU_PMU_V3_IRQ", 0),
        ("KVM_ARM_VCPU_PMU_V3_INIT", 1),
        ("KVM_ARM_VCPU_PMU_V3_FILTER", 2),
        ("KVM_ARM_VCPU_PMU_V3_SET_PMU", 3),
        ("KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS", 4),
        ("KVM_PMU_EVENT_ALLOW", 0),
        ("KVM_PMU_EVENT_DENY", 1),
        ("KVM_ARM_TARGET_GENERIC_V8", 5),
        ("KVM_ARM_VCPU_POWER_OFF", 0),
        ("KVM_ARM_VCPU_PSCI_0_2", 2),
        ("KVM_ARM_VCPU_PMU_V3", 3),
        ("KVM_ARM_VCPU_PMU_V3_STRICT", 9),
        ("KVM_EXIT_FAIL_ENTRY_CPU_UNSUPPORTED", 1),
    ],
)
def test_asm_kvm_h_has_these_numbers(name: str, number: int) -> None:
    assert getattr(kvm_arm64, name) == number


@pytest.mark.parametrize(
    ("struct", "size", "offsets"),
    [
        (kvm_device_attr, 24, {"flags": 0, "group": 4, "attr": 8, "addr": 16}),
        (kvm_create_device, 12, {"type": 0, "fd": 4, "flags": 8}),
        (kvm_one_reg, 16, {"id": 0, "addr": 8}),
        (
            kvm_userspace_memory_region,
            32,
            {"guest_phys_addr": 8, "userspace_addr": 24},
        ),
        (
            kvm_run,
            288,
            {"immediate_exit": 1, "exit_reason": 8, "mmio": 32, "fail_entry": 32},
        ),
        (kvm_vcpu_init, 32, {"target": 0, "features": 4}),
        (
            kvm_pmu_event_filter,
            8,
            {"base_event": 0, "nevents": 2, "action": 4, "pad": 5},
        ),
    ],
)
def test_structs_lie_as_the_kernel_lays_them(
    struct: type[ctypes.Structure], size: int, offsets: dict[str, int]
) -> None:
    assert ctypes.sizeof(struct) == size
    assert {name: getattr(struct, name).offset for name in offsets} == offsets


def test_a_device_attr_is_packed_as_the_struct_has_it() -> None:
    as_struct = kvm_device_attr(group=0x12345678, attr=2**64 - 2)
    assert kvm.pack_device_attr(0x12345678, 2**64 - 2) == bytes(as_struct)
    assert kvm_device_attr.addr.offset == kvm.DEVICE_ATTR_ADDR
    event_range = kvm_pmu_event_filter(0x1234, 0x5678, 1)
    assert kvm_arm64.pack_filter(0x1234, 0x5678, 1) == bytes(event_range)


def test_exits_lie_as_the_kernel_lays_them() -> None:
    page = bytearray(ctypes.sizeof(kvm_run))
    run = kvm_run.from_buffer(page)
    run.mmio.phys_addr, run.mmio.len, run.mmio.is_write = 0x10, 8, 1
    assert page[32:40] == (0x10).to_bytes(8, "little")
    assert page[48:53] == b"\x08\0\0\0\x01"
    run.fail_entry.cpu = 3
    assert page[40:44] == b"\x03\0\0\0"


def test_core_registers_have_the_ids_kvm_gives_them() -> None:
    assert kvm_arm64.kvm_reg_arm_core(0) == 0x6030000000100000
    assert kvm_arm64.kvm_reg_arm_core(user_pt_regs.pc.offset) == 0x6030000000100040
    assert kvm_arm64.arm64_sys_reg(3, 3, 9, 12, 0) == 0x603000000013DCE0


def test_a_failed_ioctl_names_its_object() -> None:
    with open(os.devnull, "rb") as null, pytest.raises(OSError, match="KVM_RUN of vCPU 1") as e:
        ioctl(null.fileno(), kvm.KVM_RUN, what="KVM_RUN of vCPU 1")
    assert e.value.errno == errno.ENOTTY
