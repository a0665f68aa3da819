# SPDX-License-Identifier: Apache-2.0
"""What a supervisor reports about its VM, and what it asks of whoever listens."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from pmuctl.control.server.backend import VcpuStatus
from pmuctl.errors import PmuctlError
from pmuctl.launch.spec import LaunchSpec
from pmuctl.model.cpuset import CpuSet


class VmObserver(Protocol):
    """The outside view of one VM and of the process that makes it."""

    @property
    def pid(self) -> int:
        """The process that makes VMs, or is expected to."""

    def on_process(self, pid: int) -> None:
        """Take note that this process makes VMs."""

    def on_vcpus(self, vcpus: Sequence[VcpuStatus]) -> None:
        """Take note of all vCPUs of the VM made last."""

    def on_vpmu(self, *, has_vpmu: bool) -> None:
        """Take note whether any of them has a vPMU."""

    def on_default_pmu(self, pmu: tuple[int, str] | None) -> None:
        """Take note of the PMU that KVM chose for them by itself; None if it is not certain."""

    def on_applied(self, descriptions: Sequence[str]) -> None:
        """Take note that these calls applied the settings to a VM."""

    def on_refused(self, error: PmuctlError) -> None:
        """Take note that the VM does not start."""

    def on_no_vm(self, error: PmuctlError) -> None:
        """Take note that the settings have reached no VM so far; `on_process` ends that."""

    def on_held(self, descriptions: Sequence[str]) -> None:
        """Take note that the VM is held in its window, after these calls applied its settings."""

    def pmu_cpus(self) -> CpuSet | None:
        """Return the CPUs of the VM's PMU, None if it has none that is certain."""

    def recorded_cpus(self, pid: int) -> Mapping[int, CpuSet]:
        """Return the CPUs on which pmuctl has put threads of a process since, by thread id."""

    def on_vmm_exit(self) -> None:
        """Take note that the process has ended."""

    def make_pending_calls(self) -> None:
        """Make the calls that clients wait for."""

    def released_spec(self) -> LaunchSpec | None:
        """Return the spec to go on with once the VM was released, None until then."""

    def flush(self) -> None:
        """Write what was postponed: no thread of the VMM is stopped now."""
