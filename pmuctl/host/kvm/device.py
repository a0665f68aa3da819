# SPDX-License-Identifier: Apache-2.0
"""What pmuctl asks of /dev/kvm: PMU attributes of a vCPU, and a scratch VM to try them on."""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pmuctl.uapi.ioctl import ioctl
from pmuctl.uapi.kvm import (
    KVM_ARM_PREFERRED_TARGET,
    KVM_ARM_VCPU_INIT,
    KVM_CAP_ARM_PMU_V3,
    KVM_CAP_ARM_VM_IPA_SIZE,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VCPU,
    KVM_CREATE_VM,
    KVM_GET_ONE_REG,
    KVM_HAS_DEVICE_ATTR,
    KVM_SET_DEVICE_ATTR,
    KVM_VM_TYPE_ARM_IPA_SIZE_MASK,
    kvm_device_attr,
    kvm_one_reg,
)
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3,
    KVM_ARM_VCPU_PMU_V3_CTRL,
    KVM_ARM_VCPU_PMU_V3_STRICT,
    kvm_vcpu_init,
)

PATH_DEV_KVM = "/dev/kvm"

DEFAULT_IPA_BITS = 40
"""Guest physical address size that machine type 0 of KVM_CREATE_VM stands for (api.rst 4.2)."""


def pack_pmu(pmu_type: int) -> bytes:
    """The payload of SET_PMU: the PMU's perf `type` as an int (vcpu.rst section 1.4).

    Raises struct.error if it does not fit.
    """
    return struct.pack("=i", pmu_type)


def pack_nr_counters(counters: int) -> bytes:
    """The payload of SET_NR_COUNTERS: an unsigned int (vcpu.rst section 1.5).

    Raises struct.error if it does not fit.
    """
    return struct.pack("=I", counters)


def pack_filter(base: int, nevents: int, action: int) -> bytes:
    """The payload of FILTER: struct kvm_pmu_event_filter for [base, base + nevents).

    65536 events need two ranges, as both numbers are 16 bits wide (vcpu.rst section 1.3). Raises
    struct.error if a number does not fit.
    """
    return struct.pack("=HHB3x", base, nevents, action)


def set_pmu_attr(vcpu_fd: int, attr: int, payload: bytes = b"") -> None:
    """KVM_SET_DEVICE_ATTR of a KVM_ARM_VCPU_PMU_V3_* attribute; no payload means a null pointer.

    Raises OSError with KVM's errno (vcpu.rst section 1): EIO in a process that is not the VMM,
    ENODEV for a vCPU without a PMU, EBUSY once it is too late.
    """
    data = ctypes.create_string_buffer(payload, len(payload)) if payload else None
    request = kvm_device_attr(
        group=KVM_ARM_VCPU_PMU_V3_CTRL,
        attr=attr,
        addr=ctypes.addressof(data) if data is not None else 0,
    )
    ioctl(
        vcpu_fd, KVM_SET_DEVICE_ATTR, request, what=f"KVM_SET_DEVICE_ATTR of PMU attribute {attr}"
    )


def has_pmu_attr(vcpu_fd: int, attr: int) -> bool:
    """Whether this kernel knows the attribute and the vCPU has a PMU; not whether it may be set.

    KVM answers ENXIO for both lacks. Raises OSError for any other errno, as EIO in a process that
    is not the VMM.
    """
    request = kvm_device_attr(group=KVM_ARM_VCPU_PMU_V3_CTRL, attr=attr)
    try:
        ioctl(
            vcpu_fd,
            KVM_HAS_DEVICE_ATTR,
            request,
            what=f"KVM_HAS_DEVICE_ATTR of PMU attribute {attr}",
        )
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False
        raise
    return True


def get_sys_reg(vcpu_fd: int, reg: int) -> int:
    """KVM_GET_ONE_REG of a 64-bit system register, by its id.

    Raises OSError: ENOENT for one the vCPU does not have.
    """
    value = ctypes.c_uint64()
    request = kvm_one_reg(id=reg, addr=ctypes.addressof(value))
    ioctl(vcpu_fd, KVM_GET_ONE_REG, request, what=f"KVM_GET_ONE_REG of {reg:#x}")
    return value.value


def vm_type(kvm_fd: int) -> int:
    """The machine type for KVM_CREATE_VM: the usual 40-bit guest address space, or what there is.

    Type 0 is refused with EINVAL by CPUs that have less, such as Apple's (api.rst section 4.2,
    KVM_CAP_ARM_VM_IPA_SIZE).
    """
    bits = ioctl(
        kvm_fd,
        KVM_CHECK_EXTENSION,
        KVM_CAP_ARM_VM_IPA_SIZE,
        what="KVM_CHECK_EXTENSION of KVM_CAP_ARM_VM_IPA_SIZE",
    )
    return bits & KVM_VM_TYPE_ARM_IPA_SIZE_MASK if 0 < bits < DEFAULT_IPA_BITS else 0


def init_vcpu(vm_fd: int, vcpu_fd: int, *, vpmu: bool, strict: bool = False) -> None:
    """KVM_ARM_VCPU_INIT for the host's preferred target, with the PMUv3 feature if wanted.

    `strict` is KVM_ARM_VCPU_PMU_V3_STRICT besides: no default PMU (since v7.3, ad220e275c39).

    Since v6.7 the first one of a VM also picks the VM's default PMU: that of the CPU this thread
    is on (commit 427733579744). Raises OSError: EINVAL where the host has no vPMU, ENODEV (since
    v6.7) on a CPU without a PMU, ENOENT for a feature the kernel does not know.
    """
    init = kvm_vcpu_init()
    ioctl(vm_fd, KVM_ARM_PREFERRED_TARGET, init, what="KVM_ARM_PREFERRED_TARGET")
    if vpmu:
        init.features[0] |= 1 << KVM_ARM_VCPU_PMU_V3
    if strict:
        init.features[0] |= 1 << KVM_ARM_VCPU_PMU_V3_STRICT
    ioctl(vcpu_fd, KVM_ARM_VCPU_INIT, init, what="KVM_ARM_VCPU_INIT")


def pin(tid: int, cpus: Iterable[int]) -> None:
    """sched_setaffinity of a thread, 0 being the calling one; raises OSError that names both."""
    try:
        os.sched_setaffinity(tid, cpus)
    except OSError as error:
        what = f"sched_setaffinity of thread {tid} to CPUs {','.join(map(str, cpus))}"
        raise OSError(error.errno, os.strerror(error.errno or 0), what) from None


@contextmanager
def on_cpus(cpus: Iterable[int] | None) -> Iterator[None]:
    """Keep the calling thread on these CPUs, and give it its old mask back at the end.

    None leaves it alone. Raises OSError (EINVAL) if none of them is online or allowed.
    """
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    pin(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def scratch_vcpu(*, strict: bool = False) -> Iterator[int]:
    """The fd of the one vCPU, with a PMU, of a VM that lives as long as the context.

    `strict` is as for `init_vcpu`. Raises OSError; ENODEV where KVM has no vPMU (also on other
    architectures).
    """
    with (
        _owned(os.open(PATH_DEV_KVM, os.O_RDWR | os.O_CLOEXEC)) as kvm,
        _owned(_create_vm(kvm)) as vm,
        _owned(ioctl(vm, KVM_CREATE_VCPU, 0, what="KVM_CREATE_VCPU of a scratch VM")) as vcpu,
    ):
        init_vcpu(vm, vcpu, vpmu=True, strict=strict)
        yield vcpu


def _create_vm(kvm_fd: int) -> int:
    what = "KVM_CHECK_EXTENSION of KVM_CAP_ARM_PMU_V3"
    if not ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_ARM_PMU_V3, what=what):
        raise OSError(errno.ENODEV, "no vPMU on this host", PATH_DEV_KVM)
    return ioctl(kvm_fd, KVM_CREATE_VM, vm_type(kvm_fd), what="KVM_CREATE_VM")


@contextmanager
def _owned(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
