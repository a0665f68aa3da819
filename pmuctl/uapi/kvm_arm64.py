# SPDX-License-Identifier: Apache-2.0
"""arch/arm64/include/uapi/asm/kvm.h, as far as it is used here."""

import ctypes

# enum of KVM_ARM_TARGET_*: the one left, given by KVM_ARM_PREFERRED_TARGET
KVM_ARM_TARGET_GENERIC_V8 = 5

# bit numbers in kvm_vcpu_init.features
KVM_ARM_VCPU_POWER_OFF = 0
KVM_ARM_VCPU_PSCI_0_2 = 2
KVM_ARM_VCPU_PMU_V3 = 3
KVM_ARM_VCPU_PMU_V3_STRICT = 9  # since v7.3, commit ad220e275c39


class kvm_vcpu_init(ctypes.Structure):
    _fields_ = (
        ("target", ctypes.c_uint32),
        ("features", ctypes.c_uint32 * 7),
    )


# Device attributes of a vCPU, Documentation/virt/kvm/devices/vcpu.rst section 1
KVM_ARM_VCPU_PMU_V3_CTRL = 0
KVM_ARM_VCPU_PMU_V3_IRQ = 0
KVM_ARM_VCPU_PMU_V3_INIT = 1
KVM_ARM_VCPU_PMU_V3_FILTER = 2
KVM_ARM_VCPU_PMU_V3_SET_PMU = 3
KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS = 4

KVM_PMU_EVENT_ALLOW = 0
KVM_PMU_EVENT_DENY = 1


class kvm_pmu_event_filter(ctypes.Structure):
    _fields_ = (
        ("base_event", ctypes.c_uint16),
        ("nevents", ctypes.c_uint16),
        ("action", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
    )


# kvm_run.fail_entry.hardware_entry_failure_reason
KVM_EXIT_FAIL_ENTRY_CPU_UNSUPPORTED = 1 << 0

# Device attributes of the vGIC, Documentation/virt/kvm/devices/arm-vgic-v3.rst
KVM_DEV_ARM_VGIC_GRP_ADDR = 0
KVM_DEV_ARM_VGIC_GRP_NR_IRQS = 3
KVM_DEV_ARM_VGIC_GRP_CTRL = 4
KVM_DEV_ARM_VGIC_CTRL_INIT = 0
KVM_VGIC_V3_ADDR_TYPE_DIST = 2
KVM_VGIC_V3_ADDR_TYPE_REDIST = 3

# Register ids for KVM_SET_ONE_REG: these two are in include/uapi/linux/kvm.h, the rest here
KVM_REG_ARM64 = 0x6000000000000000
KVM_REG_SIZE_U64 = 0x0030000000000000

KVM_REG_ARM_CORE = 0x0010 << 16


class user_pt_regs(ctypes.Structure):
    """arch/arm64/include/uapi/asm/ptrace.h; the first member of struct kvm_regs."""

    _fields_ = (
        ("regs", ctypes.c_uint64 * 31),
        ("sp", ctypes.c_uint64),
        ("pc", ctypes.c_uint64),
        ("pstate", ctypes.c_uint64),
    )


def kvm_reg_arm_core(offset: int) -> int:
    """Return the id of the 64-bit core register at this offset (bytes) into struct kvm_regs.

    KVM_REG_ARM_CORE_REG() of the header counts in 32-bit units.
    """
    return KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | offset // 4


KVM_REG_ARM64_SYSREG = 0x0013 << 16


def arm64_sys_reg(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """Return the id of a 64-bit system register, as ARM64_SYS_REG() does."""
    register = op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
    return KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG | register
