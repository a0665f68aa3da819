# SPDX-License-Identifier: Apache-2.0
"""include/uapi/linux/kvm.h, as far as it is used here; numbers as arm64 has them."""

import ctypes

from pmuctl.uapi.ioctl import _IO, _IOR, _IOW, _IOWR
from pmuctl.uapi.kvm_arm64 import kvm_vcpu_init


class kvm_userspace_memory_region(ctypes.Structure):
    _fields_ = (
        ("slot", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("guest_phys_addr", ctypes.c_uint64),
        ("memory_size", ctypes.c_uint64),
        ("userspace_addr", ctypes.c_uint64),
    )


KVM_EXIT_MMIO = 6
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10


class _fail_entry(ctypes.Structure):
    _fields_ = (
        ("hardware_entry_failure_reason", ctypes.c_uint64),
        ("cpu", ctypes.c_uint32),
    )


class _mmio(ctypes.Structure):
    _fields_ = (
        ("phys_addr", ctypes.c_uint64),
        ("data", ctypes.c_uint8 * 8),
        ("len", ctypes.c_uint32),
        ("is_write", ctypes.c_uint8),
    )


class _exit(ctypes.Union):
    _fields_ = (
        ("fail_entry", _fail_entry),
        ("mmio", _mmio),
        ("padding", ctypes.c_char * 256),
    )


class kvm_run(ctypes.Structure):
    """The head of the page shared with KVM (mmap of the vCPU fd); the union is the exit's."""

    _anonymous_ = ("_exit",)
    _fields_ = (
        # in
        ("request_interrupt_window", ctypes.c_uint8),
        ("immediate_exit", ctypes.c_uint8),
        ("padding1", ctypes.c_uint8 * 6),
        # out
        ("exit_reason", ctypes.c_uint32),
        ("ready_for_interrupt_injection", ctypes.c_uint8),
        ("if_flag", ctypes.c_uint8),
        ("flags", ctypes.c_uint16),
        # in (pre_kvm_run), out (post_kvm_run)
        ("cr8", ctypes.c_uint64),
        ("apic_base", ctypes.c_uint64),
        ("_exit", _exit),
    )


KVM_CAP_DEVICE_CTRL = 89
KVM_CAP_ARM_PMU_V3 = 126
KVM_CAP_VCPU_ATTRIBUTES = 127
KVM_CAP_ARM_VM_IPA_SIZE = 165

# Machine type of KVM_CREATE_VM on arm64: KVM_VM_TYPE_ARM_IPA_SIZE(bits), 0 for 40 bits
KVM_VM_TYPE_ARM_IPA_SIZE_MASK = 0xFF


class kvm_one_reg(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_uint64),
        ("addr", ctypes.c_uint64),
    )


class kvm_create_device(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("fd", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


class kvm_device_attr(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint32),
        ("group", ctypes.c_uint32),
        ("attr", ctypes.c_uint64),
        ("addr", ctypes.c_uint64),
    )


KVM_DEV_TYPE_ARM_VGIC_V3 = 7

KVMIO = 0xAE

# of /dev/kvm
KVM_GET_API_VERSION = _IO(KVMIO, 0x00)
KVM_CREATE_VM = _IO(KVMIO, 0x01)
KVM_CHECK_EXTENSION = _IO(KVMIO, 0x03)
KVM_GET_VCPU_MMAP_SIZE = _IO(KVMIO, 0x04)

# of a VM
KVM_CREATE_VCPU = _IO(KVMIO, 0x41)
KVM_SET_USER_MEMORY_REGION = _IOW(KVMIO, 0x46, kvm_userspace_memory_region)
KVM_CREATE_DEVICE = _IOWR(KVMIO, 0xE0, kvm_create_device)
KVM_ARM_PREFERRED_TARGET = _IOR(KVMIO, 0xAF, kvm_vcpu_init)

# of a vCPU; the DEVICE_ATTR ones of devices and VMs too
KVM_RUN = _IO(KVMIO, 0x80)
KVM_GET_ONE_REG = _IOW(KVMIO, 0xAB, kvm_one_reg)
KVM_SET_ONE_REG = _IOW(KVMIO, 0xAC, kvm_one_reg)
KVM_ARM_VCPU_INIT = _IOW(KVMIO, 0xAE, kvm_vcpu_init)
KVM_SET_DEVICE_ATTR = _IOW(KVMIO, 0xE1, kvm_device_attr)
KVM_GET_DEVICE_ATTR = _IOW(KVMIO, 0xE2, kvm_device_attr)
KVM_HAS_DEVICE_ATTR = _IOW(KVMIO, 0xE3, kvm_device_attr)
