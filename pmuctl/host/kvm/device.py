# SPDX-License-Identifier: Apache-2.0
"""Calls to /dev/kvm: PMU attributes of a vCPU, and a scratch VM to try them on."""

import ctypes
import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pmuctl.host.kvm.access import PATH_DEV_KVM
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
)
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3,
    KVM_ARM_VCPU_PMU_V3_CTRL,
    KVM_ARM_VCPU_PMU_V3_STRICT,
)
from pmuctl.uapi.kvm_structs import kvm_device_attr, kvm_one_reg, kvm_vcpu_init

DEFAULT_IPA_BITS = 40
"""Bits of guest physical address that machine type 0 of KVM_CREATE_VM means (api.rst 4.2)."""


def set_pmu_attr(vcpu_fd: int, attr: int, payload: bytes = b"") -> None:
    """Set a KVM_ARM_VCPU_PMU_V3_* attribute (KVM_SET_DEVICE_ATTR); no payload is a null pointer.

    Raise OSError with KVM's errno (vcpu.rst section 1): EIO in a process that is not the VMM,
    ENODEV for a vCPU without a PMU, EBUSY if it is too late to set it.
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
    """Return whether the kernel knows the attribute and the vCPU has a PMU.

    KVM fails with ENXIO if either is missing; whether the attribute may be set, it does not say.
    Raise OSError for any other errno, such as EIO in a process that is not the VMM.
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
    """Return a 64-bit system register of a vCPU by the register's id (KVM_GET_ONE_REG).

    Raise OSError: ENOENT if the vCPU does not have the register.
    """
    content = ctypes.c_uint64()
    request = kvm_one_reg(id=reg, addr=ctypes.addressof(content))
    ioctl(vcpu_fd, KVM_GET_ONE_REG, request, what=f"KVM_GET_ONE_REG of {reg:#x}")
    return content.value


def vm_type(kvm_fd: int) -> int:
    """Return the machine type for KVM_CREATE_VM: 40 bits of guest address space, or all there are.

    Type 0 (40 bits) fails with EINVAL on CPUs that have fewer, such as Apple's (api.rst section
    4.2, KVM_CAP_ARM_VM_IPA_SIZE).
    """
    bits = ioctl(
        kvm_fd,
        KVM_CHECK_EXTENSION,
        KVM_CAP_ARM_VM_IPA_SIZE,
        what="KVM_CHECK_EXTENSION of KVM_CAP_ARM_VM_IPA_SIZE",
    )
    return bits & KVM_VM_TYPE_ARM_IPA_SIZE_MASK if 0 < bits < DEFAULT_IPA_BITS else 0


def init_vcpu(vm_fd: int, vcpu_fd: int, *, vpmu: bool, strict: bool = False) -> None:
    """Initialize a vCPU (KVM_ARM_VCPU_INIT) for the host's preferred target.

    `vpmu` adds the PMUv3 feature; `strict` adds KVM_ARM_VCPU_PMU_V3_STRICT: no default PMU (since
    v7.3, ad220e275c39).

    Since v6.7 the first KVM_ARM_VCPU_INIT of a VM also picks the VM's default PMU: that of the
    CPU this thread is on (commit 427733579744). Raise OSError: EINVAL if the host has no vPMU,
    ENODEV (since v6.7) on a CPU without a PMU, ENOENT for a feature the kernel does not know.
    """
    init = kvm_vcpu_init()
    ioctl(vm_fd, KVM_ARM_PREFERRED_TARGET, init, what="KVM_ARM_PREFERRED_TARGET")
    if vpmu:
        init.features[0] |= 1 << KVM_ARM_VCPU_PMU_V3
    if strict:
        init.features[0] |= 1 << KVM_ARM_VCPU_PMU_V3_STRICT
    ioctl(vcpu_fd, KVM_ARM_VCPU_INIT, init, what="KVM_ARM_VCPU_INIT")


def pin(tid: int, cpus: Iterable[int]) -> None:
    """Set the affinity of a thread (0: the calling one); raise OSError that names both."""
    try:
        os.sched_setaffinity(tid, cpus)
    except OSError as error:
        what = f"sched_setaffinity of thread {tid} to CPUs {','.join(map(str, cpus))}"
        raise OSError(error.errno, os.strerror(error.errno or 0), what) from None


@contextmanager
def on_cpus(cpus: Iterable[int] | None) -> Iterator[None]:
    """Keep the calling thread on these CPUs inside the context, and restore its mask at the end.

    If `cpus` is None, change nothing. Raise OSError (EINVAL) if none of the CPUs is online or
    allowed.
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
    """Create a VM of one vCPU with a PMU for the life of the context, which gives the vCPU's fd.

    `strict` is as for `init_vcpu`. Raise OSError: ENODEV if KVM has no vPMU (also on other
    architectures).
    """
    with (
        _closing_fd(os.open(PATH_DEV_KVM, os.O_RDWR | os.O_CLOEXEC)) as kvm,
        _closing_fd(_create_vm(kvm)) as vm,
        _closing_fd(ioctl(vm, KVM_CREATE_VCPU, 0, what="KVM_CREATE_VCPU of a scratch VM")) as vcpu,
    ):
        init_vcpu(vm, vcpu, vpmu=True, strict=strict)
        yield vcpu


def _create_vm(kvm_fd: int) -> int:
    what = "KVM_CHECK_EXTENSION of KVM_CAP_ARM_PMU_V3"
    if not ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_ARM_PMU_V3, what=what):
        raise OSError(errno.ENODEV, "no vPMU on this host", PATH_DEV_KVM)
    return ioctl(kvm_fd, KVM_CREATE_VM, vm_type(kvm_fd), what="KVM_CREATE_VM")


@contextmanager
def _closing_fd(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
