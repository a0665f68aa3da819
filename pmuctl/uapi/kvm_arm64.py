# SPDX-License-Identifier: Apache-2.0
"""arch/arm64/include/uapi/asm/kvm.h, as far as it is used here."""

import struct

# enum of KVM_ARM_TARGET_*: the one left, given by KVM_ARM_PREFERRED_TARGET
KVM_ARM_TARGET_GENERIC_V8 = 5

# bit numbers in kvm_vcpu_init.features
KVM_ARM_VCPU_POWER_OFF = 0
KVM_ARM_VCPU_PSCI_0_2 = 2
KVM_ARM_VCPU_PMU_V3 = 3
KVM_ARM_VCPU_PMU_V3_STRICT = 9  # since v7.3, commit ad220e275c39

# Device attributes of a vCPU, Documentation/virt/kvm/devices/vcpu.rst section 1
KVM_ARM_VCPU_PMU_V3_CTRL = 0
KVM_ARM_VCPU_PMU_V3_IRQ = 0
KVM_ARM_VCPU_PMU_V3_INIT = 1
KVM_ARM_VCPU_PMU_V3_FILTER = 2
KVM_ARM_VCPU_PMU_V3_SET_PMU = 3
KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS = 4

KVM_PMU_EVENT_ALLOW = 0
KVM_PMU_EVENT_DENY = 1


def pack_pmu(pmu_type: int) -> bytes:
    """Return the payload of SET_PMU: the PMU's perf `type` as an int (vcpu.rst section 1.4).

    Raise struct.error if it does not fit.
    """
    return struct.pack("=i", pmu_type)


def pack_nr_counters(counters: int) -> bytes:
    """Return the payload of SET_NR_COUNTERS: an unsigned int (vcpu.rst section 1.5).

    Raise struct.error if it does not fit.
    """
    return struct.pack("=I", counters)


def pack_filter(base: int, nevents: int, action: int) -> bytes:
    """Return the payload of FILTER: struct kvm_pmu_event_filter for [base, base + nevents).

    65536 events need two ranges, as both numbers are 16 bits wide (vcpu.rst section 1.3). Raise
    struct.error if a number does not fit.
    """
    return struct.pack("=HHB3x", base, nevents, action)


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
