# SPDX-License-Identifier: Apache-2.0
"""The vCPUs of the VM that was made last, and which run."""

from collections.abc import Mapping, Sequence

from pmuctl.control.server.backend import VcpuStatus
from pmuctl.launch.trace.vcpu_tracker import PendingVcpu


class VcpuTable:
    """One VM's vCPUs, by number; with the first of another VM the former ones are no more."""

    def __init__(self) -> None:
        self.pid: int | None = None
        """The process that made the VM; None before there is one."""
        self._vm_fd = -1
        self._vcpus: dict[int, PendingVcpu] = {}

    def add(self, vcpu: PendingVcpu) -> None:
        """Take in a vCPU that was made."""
        # a number that is there already: the descriptor is that of a VM made since
        if (self.pid, self._vm_fd) != (vcpu.tgid, vcpu.vm_fd) or vcpu.index in self._vcpus:
            self._vcpus = {}
        self.pid, self._vm_fd = vcpu.tgid, vcpu.vm_fd
        self._vcpus[vcpu.index] = vcpu

    def find(self, fd: int) -> PendingVcpu | None:
        """The one with this descriptor."""
        return next((vcpu for vcpu in self._vcpus.values() if vcpu.fd == fd), None)

    def statuses(self, running: Mapping[int, int | None]) -> Sequence[VcpuStatus]:
        """Every vCPU; `running` has the threads of those that have run."""
        return [
            VcpuStatus(
                index=index,
                tid=running.get(index),
                initialised=index in running,
                has_run=index in running,
            )
            for index in sorted(self._vcpus)
        ]
