# SPDX-License-Identifier: Apache-2.0
"""What the stand-ins share: a VM whose vCPUs are made by one thread and run each by another."""

import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from pmuctl.host.kvm.access import PATH_DEV_KVM
from pmuctl.host.kvm.device import (
    has_pmu_attr,
    init_vcpu,
    set_pmu_attr,
    vm_type,
)
from pmuctl.uapi.ioctl import ioctl
from pmuctl.uapi.kvm import KVM_CREATE_VCPU, KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_INIT,
    KVM_ARM_VCPU_PMU_V3_IRQ,
    KVM_ARM_VCPU_PMU_V3_SET_PMU,
    pack_pmu,
)
from tests.lab.standins.talk import Waits, call, current_cpu, say, start_thread
from tests.lab.vmm.guest import Guest, Report, program
from tests.lab.vmm.machine import MMIO, RAM, Memory, create_gic, init_gic
from tests.lab.vmm.vcpu import PMU_IRQ, FailEntry, Vcpu

NAMES = {
    KVM_ARM_VCPU_PMU_V3_IRQ: "IRQ",
    KVM_ARM_VCPU_PMU_V3_INIT: "INIT",
    KVM_ARM_VCPU_PMU_V3_SET_PMU: "SET_PMU",
}
IRQ = struct.pack("=i", PMU_IRQ)

FailedEntry = Callable[[int, FailEntry], None]
"""What a VMM does, in the vCPU's thread, about a vCPU that could not enter the guest."""


class Plan(NamedTuple):
    """How the VM is to be and to run: the options all stand-ins have."""

    vcpus: int = 2
    vpmu: bool = True
    rounds: int = 1
    pause: float = 0.2
    affinity: frozenset[int] | None = None
    move: Mapping[int, frozenset[int]] = MappingProxyType({})
    waits: Waits = Waits()


class StandinVcpu(Vcpu):
    """A vCPU made by whoever makes the object; its thread comes later, to run it."""

    def __init__(self, kvm_fd: int, vm_fd: int, index: int, vm: int) -> None:
        """KVM_CREATE_VCPU only."""
        self.index = index
        self.initialised = False
        self.has_run = False
        self.vm = vm
        with ExitStack() as undo:
            self._vm_fd = vm_fd
            self.fd = self._call(
                "KVM_CREATE_VCPU",
                lambda: ioctl(vm_fd, KVM_CREATE_VCPU, index, what="KVM_CREATE_VCPU"),
            )
            undo.callback(os.close, self.fd)
            size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, what="KVM_GET_VCPU_MMAP_SIZE")
            self._page = undo.enter_context(mmap.mmap(self.fd, size))
            self._undo = undo.pop_all()

    def init(self, *, vpmu: bool) -> None:
        """KVM_ARM_VCPU_INIT."""
        self._call("KVM_ARM_VCPU_INIT", lambda: init_vcpu(self._vm_fd, self.fd, vpmu=vpmu))

    def has_attr(self, attr: int) -> bool:
        """KVM_HAS_DEVICE_ATTR, in the calling thread."""
        has = has_pmu_attr(self.fd, attr)
        say(
            call=f"HAS {NAMES[attr]}", vm=self.vm, vcpu=self.index, result="OK" if has else "ENXIO"
        )
        return has

    def set_attr(self, attr: int, payload: bytes = b"") -> None:
        """KVM_SET_DEVICE_ATTR, in the calling thread; raises OSError as KVM says."""
        self._call(NAMES[attr], lambda: set_pmu_attr(self.fd, attr, payload))

    def set_pmu(self, pmu_type: int) -> None:
        """SET_PMU."""
        self.set_attr(KVM_ARM_VCPU_PMU_V3_SET_PMU, pack_pmu(pmu_type))

    def _call(self, name: str, job: Callable[[], int | None]) -> int:
        return call(name, job, vm=self.vm, vcpu=self.index) or 0


class StandinVm:
    """One VM: its parts are made by the calls a VMM makes, in the VMM's order."""

    def __init__(self, plan: Plan, number: int = 0) -> None:
        """KVM_CREATE_VM and memory."""
        self.plan = plan
        self.number = number
        self.vcpus: list[StandinVcpu] = []
        self._threads: list[threading.Thread] = []
        with ExitStack() as undo:
            self._kvm = os.open(PATH_DEV_KVM, os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, self._kvm)
            self._fd = call("KVM_CREATE_VM", self._create, vm=number)
            undo.callback(os.close, self._fd)
            self._memory = undo.enter_context(Memory(self._fd))
            self._undo = undo.pop_all()

    @property
    def fd(self) -> int:
        """The VM's file descriptor."""
        return self._fd

    def _create(self) -> int:
        while True:
            try:
                return ioctl(self._kvm, KVM_CREATE_VM, vm_type(self._kvm), what="KVM_CREATE_VM")
            except InterruptedError:
                continue  # by any signal, whatever its handler wants; QEMU does the same

    def create_vcpu(self) -> StandinVcpu:
        """The next vCPU, not yet KVM_ARM_VCPU_INITed."""
        vcpu = StandinVcpu(self._kvm, self._fd, len(self.vcpus), self.number)
        self._undo.push(vcpu)
        self.vcpus.append(vcpu)
        self.plan.waits.at("init")
        return vcpu

    def create_gic(self) -> None:
        """The in-kernel GICv3, initialised: after the vCPUs."""
        gic = create_gic(self._fd)
        self._undo.callback(os.close, gic)
        init_gic(gic)

    def start(self, thread_name: str, failed: FailedEntry) -> None:
        """Load the guest, and start the vCPU threads: "%d" in the name is the vCPU's number."""
        code = program()
        self._memory.load(code)
        for vcpu in self.vcpus:
            vcpu.set_start(RAM, x0=MMIO)
            name = thread_name % vcpu.index
            self._threads.append(start_thread(name, partial(self._run, vcpu, failed)))

    def wait(self) -> None:
        """Until all vCPU threads have ended."""
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """Close all files of the VM."""
        self._undo.close()

    def _run(self, vcpu: StandinVcpu, failed: FailedEntry) -> None:
        if self.plan.affinity:
            os.sched_setaffinity(0, self.plan.affinity)
        guest = Guest(vcpu)
        for number in range(self.plan.rounds):
            if number == 1 and vcpu.index in self.plan.move:
                os.sched_setaffinity(0, self.plan.move[vcpu.index])
            if number:
                self.plan.waits.at("round")
                time.sleep(self.plan.pause)
            about: dict[str, object] = {"vm": self.number, "vcpu": vcpu.index, "round": number}
            about |= {"tid": threading.get_native_id(), "mask": sorted(os.sched_getaffinity(0))}
            about |= {"cpu": current_cpu()}
            try:
                outcome = guest.round()
            except OSError as error:
                say(event="run", exit=f"errno {error.errno}", **about)
                return
            match outcome:
                case Report():
                    say(event="run", exit="KVM_EXIT_MMIO", **about, **outcome.as_json())
                case FailEntry():
                    how = {"reason": outcome.reason, "fail_cpu": outcome.cpu}
                    say(event="run", exit="KVM_EXIT_FAIL_ENTRY", **about, **how)
                    failed(vcpu.index, outcome)
                    return
                case _:
                    say(event="run", exit=repr(outcome), **about)
                    return
