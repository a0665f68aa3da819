# SPDX-License-Identifier: Apache-2.0
"""include/uapi/linux/kvm.h, as far as it is used here; numbers as arm64 has them."""

import struct

from pmuctl.uapi.ioctl import _IO, _IOR, _IOW, _IOWR

KVM_EXIT_MMIO = 6
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10

KVM_CAP_DEVICE_CTRL = 89
KVM_CAP_ARM_PMU_V3 = 126
KVM_CAP_VCPU_ATTRIBUTES = 127
KVM_CAP_ARM_VM_IPA_SIZE = 165

# Machine type of KVM_CREATE_VM on arm64: KVM_VM_TYPE_ARM_IPA_SIZE(bits), 0 for 40 bits
KVM_VM_TYPE_ARM_IPA_SIZE_MASK = 0xFF

KVM_DEV_TYPE_ARM_VGIC_V3 = 7

KVMIO = 0xAE

# of /dev/kvm
KVM_GET_API_VERSION = _IO(KVMIO, 0x00)
KVM_CREATE_VM = _IO(KVMIO, 0x01)
KVM_CHECK_EXTENSION = _IO(KVMIO, 0x03)
KVM_GET_VCPU_MMAP_SIZE = _IO(KVMIO, 0x04)

# of a VM
KVM_CREATE_VCPU = _IO(KVMIO, 0x41)
KVM_SET_USER_MEMORY_REGION = _IOW(KVMIO, 0x46, 32)  # struct kvm_userspace_memory_region
KVM_CREATE_DEVICE = _IOWR(KVMIO, 0xE0, 12)  # struct kvm_create_device
KVM_ARM_PREFERRED_TARGET = _IOR(KVMIO, 0xAF, 32)  # struct kvm_vcpu_init

# of a vCPU; the DEVICE_ATTR ones of devices and VMs too
KVM_RUN = _IO(KVMIO, 0x80)
KVM_GET_ONE_REG = _IOW(KVMIO, 0xAB, 16)  # struct kvm_one_reg
KVM_SET_ONE_REG = _IOW(KVMIO, 0xAC, 16)  # struct kvm_one_reg
KVM_ARM_VCPU_INIT = _IOW(KVMIO, 0xAE, 32)  # struct kvm_vcpu_init
KVM_SET_DEVICE_ATTR = _IOW(KVMIO, 0xE1, 24)  # struct kvm_device_attr
KVM_GET_DEVICE_ATTR = _IOW(KVMIO, 0xE2, 24)  # struct kvm_device_attr
KVM_HAS_DEVICE_ATTR = _IOW(KVMIO, 0xE3, 24)  # struct kvm_device_attr

DEVICE_ATTR_ADDR = 16
"""The offset of `addr` in struct kvm_device_attr."""


def pack_device_attr(group: int, attr: int) -> bytes:
    """Return struct kvm_device_attr with no flags and a null `addr`."""
    return struct.pack("=IIQQ", 0, group, attr, 0)
