# SPDX-License-Identifier: Apache-2.0
"""What the control server gets to see of the VMM: the part that each VMM writes for itself."""

import os
from collections.abc import Sequence

from pmuctl.control.server.backend import VcpuStatus
from pmuctl.host.kvm.probes import probe_counters_limit, probe_default, probe_event_bits
from pmuctl.host.pmus import scan_event_sources, scan_pmus
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.kvm_caps import DefaultPmu, default_by_cpu
from tests.lab.vmm.machine import Machine


class MachineDoor:
    """The server's VmmBackend to a Machine; called from the server's own thread.

    `event_bits` is what pmuctl.host.kvm.probes.probe_event_bits() said of the PMU KVM chooses.
    """

    vmm = "reference-vmm"

    def __init__(
        self, machine: Machine, *, name: str, uuid: str | None, event_bits: int | None
    ) -> None:
        self.name = name
        self.uuid = uuid
        self.pid = os.getpid()
        self._machine = machine
        self._event_bits: dict[int | None, int | None] = {None: event_bits}
        self._default: tuple[int, str] | None = None
        self._is_asked = False

    def vcpus(self) -> Sequence[VcpuStatus]:
        """The vCPUs by index, as they are now."""
        return [
            VcpuStatus(
                index=vcpu.index,
                tid=vcpu.tid,
                initialised=vcpu.initialised,
                has_run=vcpu.has_run,
            )
            for vcpu in self._machine.vcpus
        ]

    def has_vpmu(self) -> bool:
        """Whether the vCPUs have the PMUv3 feature."""
        return self._machine.has_vpmu

    def default_pmu(self) -> tuple[int, str] | None:
        """By where the first vCPU was initialised, if that is how this KVM chooses."""
        if not self._is_asked:
            self._is_asked = True
            pmus = scan_pmus(Sysfs(), scan_event_sources(Sysfs()).names)
            its = {(pmu.type, pmu.name): pmu.cpus for pmu in pmus if pmu.type and pmu.cpus}
            if probe_default({kind: cpus for (kind, _), cpus in its.items()})[0] is (
                DefaultPmu.AT_VCPU_INIT
            ):
                self._default = default_by_cpu(self._machine.vcpus[0].init_masks, its)
        return self._default

    def event_bits(self, pmu_type: int | None) -> int | None:
        """Event numbers have 10 or 16 bits with this PMU: tried out on another VM, once."""
        if pmu_type not in self._event_bits:
            self._event_bits[pmu_type] = probe_event_bits(pmu_type=pmu_type)
        return self._event_bits[pmu_type]

    def has_attr(self, attr: int) -> bool:
        """Whether this kernel has the KVM_ARM_VCPU_PMU_V3_ attribute for these vCPUs."""
        return self._machine.has_attr(attr)

    def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
        """Set it on this vCPU, in its own thread; raises OSError as KVM says."""
        self._machine.vcpus[vcpu].set_attr(attr, payload)

    def counters_limit(self, pmu_type: int) -> int | None:
        """What SET_NR_COUNTERS takes at most with this PMU: tried out on another VM."""
        return probe_counters_limit(pmu_type)
