# SPDX-License-Identifier: Apache-2.0
"""The structs of linux/kvm.h and of arm64's asm/kvm.h, as far as they are used here.

They are apart from the numbers in `kvm` and `kvm_arm64`, because only code that calls KVM needs
ctypes.
"""

import ctypes


class kvm_userspace_memory_region(ctypes.Structure):
    _fields_ = (
        ("slot", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("guest_phys_addr", ctypes.c_uint64),
        ("memory_size", ctypes.c_uint64),
        ("userspace_addr", ctypes.c_uint64),
    )


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


class kvm_vcpu_init(ctypes.Structure):
    _fields_ = (
        ("target", ctypes.c_uint32),
        ("features", ctypes.c_uint32 * 7),
    )


class kvm_pmu_event_filter(ctypes.Structure):
    _fields_ = (
        ("base_event", ctypes.c_uint16),
        ("nevents", ctypes.c_uint16),
        ("action", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
    )


class user_pt_regs(ctypes.Structure):
    """arch/arm64/include/uapi/asm/ptrace.h; the first member of struct kvm_regs."""

    _fields_ = (
        ("regs", ctypes.c_uint64 * 31),
        ("sp", ctypes.c_uint64),
        ("pc", ctypes.c_uint64),
        ("pstate", ctypes.c_uint64),
    )
