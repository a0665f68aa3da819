# SPDX-License-Identifier: Apache-2.0
"""What a guest gets of a vPMU: where it counts, and with how many counters."""

from enum import Enum

from pmuctl.model.vpmu import Vpmu


class Entry(Enum):
    """What becomes of a vCPU on a CPU."""

    COUNTS = "counts"
    STANDS_STILL = "stands still"
    """It runs and its counters do not count: the CPU is none of the default PMU's."""
    REFUSED = "refused"
    """KVM_RUN returns 0 with KVM_EXIT_FAIL_ENTRY: the CPU is none of the set PMU's."""


def entry(vm: Vpmu, cpu: int) -> Entry | None:
    """What becomes of a vCPU that runs on this CPU; None where its PMU or that's CPUs are unknown.

    vcpu.rst section 1.4, and kvm_arch_vcpu_load().
    """
    cpus = vm.caps.cpus.get(vm.pmu) if vm.pmu is not None else None
    if cpus is None:
        return None
    if cpu in cpus:
        return Entry.COUNTS
    return Entry.REFUSED if vm.pmu_is_set else Entry.STANDS_STILL


def guest_counters(vm: Vpmu) -> int | None:
    """How many programmable counters the guest sees (PMCR_EL0.N), None where it is not known."""
    if vm.counters is not None or vm.pmu is None:
        return vm.counters
    return vm.caps.counters.get(vm.pmu)
