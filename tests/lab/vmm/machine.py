# SPDX-License-Identifier: Apache-2.0
"""A VM made with the arm64 KVM API: guest memory, an in-kernel GICv3, and vCPUs.

The order is the one that a vPMU needs (Documentation/virt/kvm/devices/vcpu.rst, section 1):
vCPUs created and KVM_ARM_VCPU_INITed, GIC created and initialised; now the window is open, and
SET_PMU, SET_NR_COUNTERS and FILTER are possible; then PMUv3 IRQ and INIT of each vCPU shut it.
"""

import ctypes
import mmap
import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Self

from pmuctl.host.kvm.access import PATH_DEV_KVM
from pmuctl.host.kvm.device import vm_type
from pmuctl.uapi.ioctl import ioctl
from pmuctl.uapi.kvm import (
    KVM_CREATE_DEVICE,
    KVM_CREATE_VM,
    KVM_DEV_TYPE_ARM_VGIC_V3,
    KVM_SET_DEVICE_ATTR,
    KVM_SET_USER_MEMORY_REGION,
)
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_FILTER,
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
    KVM_ARM_VCPU_PMU_V3_SET_PMU,
    KVM_DEV_ARM_VGIC_CTRL_INIT,
    KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST,
    pack_filter,
    pack_nr_counters,
    pack_pmu,
)
from pmuctl.uapi.kvm_structs import kvm_create_device, kvm_device_attr, kvm_userspace_memory_region
from tests.lab.vmm.vcpu import Vcpu

# Where things are in the guest, as in QEMU's virt machine. There is nothing at MMIO: a store
# there makes KVM_RUN return, and that is how the guest reports.
GICD = 0x08000000
GICR = 0x080A0000
MMIO = 0x10000000
RAM = 0x40000000
RAM_SIZE = 0x10000

NR_IRQS = 64


class Machine:
    """One VM, from KVM_CREATE_VM to its end with the context.

    `vpmu` gives each vCPU the PMUv3 feature (KVM wants it of all or none). The vCPU threads are
    on `create_cpus`, if given, while they create and init their vCPUs: since v6.7 that decides
    the VM's default PMU. Raises OSError as KVM says; EINVAL where there is no vPMU.
    """

    def __init__(
        self, *, vcpus: int, vpmu: bool = True, create_cpus: Iterable[int] | None = None
    ) -> None:
        self.has_vpmu = vpmu
        with ExitStack() as undo:
            kvm = os.open(PATH_DEV_KVM, os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, kvm)
            vm = ioctl(kvm, KVM_CREATE_VM, vm_type(kvm), what="KVM_CREATE_VM")
            undo.callback(os.close, vm)
            self._memory = undo.enter_context(Memory(vm))
            self.vcpus = tuple(
                undo.enter_context(Vcpu(kvm, vm, index=index, vpmu=vpmu, cpus=create_cpus))
                for index in range(vcpus)
            )
            # after the vCPUs; without a GIC the PMU has no interrupt
            gic = create_gic(vm)
            undo.callback(os.close, gic)
            init_gic(gic)
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def load(self, code: bytes) -> None:
        """Put a program where RAM begins and let every vCPU start there, X0 pointing to MMIO."""
        self._memory.load(code)
        for vcpu in self.vcpus:
            vcpu.start_at(RAM, x0=MMIO)

    def has_attr(self, attr: int) -> bool:
        """Whether the vCPUs have this KVM_ARM_VCPU_PMU_V3_ attribute."""
        return self.vcpus[0].has_attr(attr)

    # The following are set on one vCPU and hold for the VM; any that was not INITed will do.

    def set_pmu(self, pmu_type: int) -> None:
        """SET_PMU: before the filter, and anew before SET_NR_COUNTERS, which it undoes."""
        self.vcpus[0].set_attr(KVM_ARM_VCPU_PMU_V3_SET_PMU, pack_pmu(pmu_type))

    def set_nr_counters(self, counters: int) -> None:
        """SET_NR_COUNTERS, where the kernel has it."""
        self.vcpus[0].set_attr(KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS, pack_nr_counters(counters))

    def add_filter(self, base: int, nevents: int, action: int) -> None:
        """FILTER: allow or deny [base, base + nevents); the first one decides for the rest."""
        self.vcpus[0].set_attr(KVM_ARM_VCPU_PMU_V3_FILTER, pack_filter(base, nevents, action))

    def init_pmu(self) -> None:
        """PMUv3 IRQ and INIT of each vCPU: shuts the window. Nothing to do without a vPMU."""
        if self.has_vpmu:
            for vcpu in self.vcpus:
                vcpu.init_pmu()


class Memory:
    """The guest's RAM, for as long as the context."""

    def __init__(self, vm_fd: int) -> None:
        self._mmap = mmap.mmap(-1, RAM_SIZE)
        region = kvm_userspace_memory_region(
            guest_phys_addr=RAM,
            memory_size=RAM_SIZE,
            userspace_addr=ctypes.addressof(ctypes.c_char.from_buffer(self._mmap)),
        )
        ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, region, what="KVM_SET_USER_MEMORY_REGION")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._mmap.close()

    def load(self, code: bytes) -> None:
        """Put a program where RAM begins."""
        self._mmap[: len(code)] = code


def create_gic(vm_fd: int) -> int:
    """The fd of an in-kernel GICv3 that knows its place, but is not initialised."""
    device = kvm_create_device(type=KVM_DEV_TYPE_ARM_VGIC_V3)
    ioctl(vm_fd, KVM_CREATE_DEVICE, device, what="KVM_CREATE_DEVICE of the vGICv3")
    with ExitStack() as undo:
        undo.callback(os.close, device.fd)
        for group, attr, data in (
            (KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, ctypes.c_uint32(NR_IRQS)),
            (KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, ctypes.c_uint64(GICD)),
            (KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, ctypes.c_uint64(GICR)),
        ):
            _set_gic_attr(device.fd, group, attr, ctypes.addressof(data))
        undo.pop_all()
    return int(device.fd)


def init_gic(gic_fd: int) -> None:
    """KVM_DEV_ARM_VGIC_CTRL_INIT: from here on there can be no more vCPUs."""
    _set_gic_attr(gic_fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0)


def _set_gic_attr(gic_fd: int, group: int, attr: int, addr: int) -> None:
    request = kvm_device_attr(group=group, attr=attr, addr=addr)
    what = f"KVM_SET_DEVICE_ATTR {group}/{attr} of the vGICv3"
    ioctl(gic_fd, KVM_SET_DEVICE_ATTR, request, what=what)
