# SPDX-License-Identifier: Apache-2.0
"""Where the vCPU threads of VMs are and may be, held against the CPUs of their PMU."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pmuctl.host.procs import Procfs
from pmuctl.host.threads import Threads
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.pmu import Pmu
from pmuctl.model.vm import Vm, VmVcpu


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedVcpu:
    """One vCPU of a VM: the CPU its thread was last on, and the CPUs it may be on.

    `pmu_cpus` are those of the PMU the VM was given, None where it was given none. What could
    not be read is None.
    """

    vm: str
    vcpu: VmVcpu
    cpu: int | None
    affinity: CpuSet | None
    pmu_cpus: CpuSet | None

    @property
    def aligned(self) -> bool | None:
        """Whether it cannot leave its PMU; None where that is not known."""
        if self.affinity is None or self.pmu_cpus is None:
            return None
        return self.affinity <= self.pmu_cpus


def scan_vcpus(
    vms: Sequence[Vm], pmus: Sequence[Pmu], procs: Procfs, threads: Threads
) -> Iterator[PlacedVcpu]:
    """The vCPUs of these VMs, in order."""
    by_name = {pmu.name: pmu.cpus for pmu in pmus}
    for vm in vms:
        for vcpu in vm.vcpus or ():
            affinity = None
            if vcpu.tid is not None:
                with suppress(OSError):
                    affinity = threads.affinity(vcpu.tid)
            yield PlacedVcpu(
                vm=vm.name,
                vcpu=vcpu,
                cpu=None
                if vcpu.tid is None or vm.pid is None
                else procs.last_cpu(vm.pid, vcpu.tid),
                affinity=affinity,
                pmu_cpus=by_name.get(vm.pmu.name) if vm.pmu else None,
            )


def is_aligned(vm: Vm, vcpus: Sequence[PlacedVcpu]) -> bool | None:
    """Whether no vCPU of the VM can leave its PMU; None where that is not known."""
    answers = [its.aligned for its in vcpus if its.vm == vm.name]
    if False in answers:
        return False
    return None if None in answers or not answers else True
