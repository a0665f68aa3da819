# SPDX-License-Identifier: Apache-2.0
"""What a supervisor tells of its VM, and what it is told in return."""

from collections.abc import Sequence
from typing import Protocol

from pmuctl.control.server.backend import VcpuStatus
from pmuctl.errors import PmuctlError
from pmuctl.launch.spec import LaunchSpec


class VmObserver(Protocol):
    """One VM's, as far as the outside is to know it."""

    def on_process(self, pid: int) -> None:
        """This process makes VMs."""

    def on_vcpus(self, vcpus: Sequence[VcpuStatus]) -> None:
        """These are the vCPUs of the VM made last."""

    def on_default_pmu(self, pmu: tuple[int, str] | None) -> None:
        """The PMU that KVM chose for them by itself; None where that is not certain."""

    def on_applied(self, words: Sequence[str]) -> None:
        """The settings were applied to a VM, by these calls."""

    def on_refused(self, error: PmuctlError) -> None:
        """The VM does not start."""

    def on_held(self, words: Sequence[str]) -> None:
        """The window is open, and stays so; what was ordered was applied by these calls."""

    def carry_out(self) -> None:
        """Have the calls made that wait for it."""

    def released(self) -> LaunchSpec | None:
        """Once somebody has released the VM, the orders as they are to go on; None until then."""
