# SPDX-License-Identifier: Apache-2.0
"""The stand-ins' own ways: which thread makes which PMU calls, in which order, and how they fail.

After kvmtool (arm/aarch64/pmu.c, arm/kvm-cpu.c), crosvm (aarch64/src/lib.rs) and
cloud-hypervisor (vmm/src/vm.rs).
"""

import os
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_INIT,
    KVM_ARM_VCPU_PMU_V3_IRQ,
    KVM_ARM_VCPU_PMU_V3_SET_PMU,
)
from tests.lab.cpulist import parse_cpus
from tests.lab.standins.talk import current_cpu, start_thread
from tests.lab.standins.vm import IRQ, Plan, StandinVm
from tests.lab.vmm.vcpu import FailEntry

PATH_EVENT_SOURCE = "/sys/bus/event_source/devices"

Started = Callable[[StandinVm], None]
"""Called by a stand-in once the vCPU threads of a VM have been started."""


class Course(NamedTuple):
    """What a stand-in is to do besides what it does for one VM."""

    pmu_type: int | None = None
    reboot: bool = False
    vms: int = 1


def kvmtool(plan: Plan, course: Course, started: Started) -> None:
    """All in the main thread; sets the PMU of the CPU it is on, unless vCPUs have an affinity.

    With an affinity it sets the PMU that covers it, if there is one.
    """

    def make(number: int) -> StandinVm:
        vm = StandinVm(plan, number)
        for _ in range(plan.vcpus):
            vm.create_vcpu().init(vpmu=plan.vpmu)
        vm.create_gic()
        if not plan.vpmu:
            return vm
        pmu_type = course.pmu_type
        if pmu_type is None and vm.vcpus[0].has_attr(KVM_ARM_VCPU_PMU_V3_SET_PMU):
            pmu_type = _kvmtool_pmu(plan.affinity)
        try:
            for vcpu in vm.vcpus:
                vcpu.set_attr(KVM_ARM_VCPU_PMU_V3_IRQ, IRQ)
                if pmu_type is not None:
                    vcpu.set_pmu(pmu_type)
                vcpu.set_attr(KVM_ARM_VCPU_PMU_V3_INIT)
        except OSError as error:
            _die(f"PMU KVM_SET_DEVICE_ATTR: {os.strerror(error.errno or 0)}", 1)
        return vm

    def failed(vcpu: int, _exit: FailEntry) -> None:
        # kvm_cpu_thread() ends that thread; kvm_cmd_run_work() waits for the one of vCPU 0
        text = '  Error: KVM exit reason: 9 ("KVM_EXIT_FAIL_ENTRY")'
        if vcpu == 0:
            _die(text, 0)
        os.write(sys.stderr.fileno(), f"{text}\n".encode())

    for vm in _vms(make, course):
        vm.start("kvm-vcpu-%d", failed)
        started(vm)


def crosvm(plan: Plan, course: Course, started: Started) -> None:
    """All in the main thread: makes every vCPU, then inits every one."""

    def make(number: int) -> StandinVm:
        vm = StandinVm(plan, number)
        for _ in range(plan.vcpus):
            vm.create_vcpu()
        for vcpu in vm.vcpus:
            vcpu.init(vpmu=plan.vpmu)
        vm.create_gic()
        init_pmu(vm)
        return vm

    def failed(vcpu: int, exit_: FailEntry) -> None:
        _die(f"vcpu {vcpu}: unexpected fail entry, reason {exit_.reason:#x}", 1)

    for vm in _vms(make, course):
        vm.start("crosvm_vcpu%d", failed)
        started(vm)


def cloud_hypervisor(plan: Plan, course: Course, started: Started) -> None:
    """All in a thread `vmm`, which makes a second VM when the first is rebooted."""

    def make(number: int) -> StandinVm:
        vm = StandinVm(plan, number)
        for _ in range(plan.vcpus):
            vm.create_vcpu().init(vpmu=plan.vpmu)
        vm.create_gic()
        init_pmu(vm)
        return vm

    def failed(_vcpu: int, exit_: FailEntry) -> None:
        _die(f"Unexpected exit reason on vcpu run: FailEntry({exit_.reason}, {exit_.cpu})", 1)

    failures: list[BaseException] = []

    def vmm() -> None:
        try:
            for vm in _vms(make, course):
                vm.start("vcpu%d", failed)
                started(vm)
        except OSError as error:
            failures.append(error)

    start_thread("vmm", vmm).join()
    if failures:
        raise failures[0]


def init_pmu(vm: StandinVm) -> None:
    for vcpu in vm.vcpus:
        if vm.plan.vpmu and vcpu.has_attr(KVM_ARM_VCPU_PMU_V3_IRQ):
            vcpu.set_attr(KVM_ARM_VCPU_PMU_V3_IRQ, IRQ)
            vcpu.set_attr(KVM_ARM_VCPU_PMU_V3_INIT)


KINDS = {"kvmtool": kvmtool, "crosvm": crosvm, "cloud-hypervisor": cloud_hypervisor}


def _vms(make: Callable[[int], StandinVm], course: Course) -> Iterator[StandinVm]:
    """One VM after the other: each is to be started by who gets it."""
    for number in range(course.vms):
        vm = make(number)
        yield vm
        vm.wait()
        if course.reboot:
            vm.close()


def _kvmtool_pmu(affinity: frozenset[int] | None) -> int | None:
    wanted = affinity or {current_cpu()}
    for name in sorted(os.listdir(PATH_EVENT_SOURCE)):
        try:
            cpus = _read(f"{PATH_EVENT_SOURCE}/{name}/cpus")
        except FileNotFoundError:
            continue
        if wanted <= frozenset(parse_cpus(cpus)):
            return int(_read(f"{PATH_EVENT_SOURCE}/{name}/type"))
    return None


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _die(text: str, status: int) -> NoReturn:
    """End the whole process at once, from whichever thread."""
    os.write(sys.stderr.fileno(), f"{text}\n".encode())
    os._exit(status)
