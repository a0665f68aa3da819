# SPDX-License-Identifier: Apache-2.0
"""The vCPUs of the VM that was made last, and which of them run."""

from collections.abc import Mapping, Sequence

from pmuctl.control.server.backend import VcpuStatus
from pmuctl.launch.trace.address_space import PendingVcpu


class VcpuTable:
    """The vCPUs of one VM by number; the first vCPU of another VM replaces them all."""

    def __init__(self) -> None:
        self.pid: int | None = None
        """The process that made the VM; None before there is one."""
        self._vm_fd = -1
        self._vcpus: dict[int, PendingVcpu] = {}

    def add(self, vcpu: PendingVcpu) -> None:
        """Add a vCPU that was made."""
        # a number that is known already: vm_fd was reused for a VM made since
        if (self.pid, self._vm_fd) != (vcpu.tgid, vcpu.vm_fd) or vcpu.index in self._vcpus:
            self._vcpus = {}
        self.pid, self._vm_fd = vcpu.tgid, vcpu.vm_fd
        self._vcpus[vcpu.index] = vcpu

    @property
    def has_vpmu(self) -> bool:
        """Return False if all vCPUs were made without a vPMU."""
        return not self._vcpus or len(self._find_without_vpmu()) < len(self._vcpus)

    def is_first_without_vpmu(self, vcpu: PendingVcpu) -> bool:
        """Return whether this is the only vCPU so far that was made without a vPMU."""
        return self._find_without_vpmu() == [vcpu]

    def _find_without_vpmu(self) -> list[PendingVcpu]:
        return [vcpu for vcpu in self._vcpus.values() if vcpu.has_vpmu is False]

    def find(self, fd: int) -> PendingVcpu | None:
        """Return the vCPU with this descriptor, None if there is none."""
        return next((vcpu for vcpu in self._vcpus.values() if vcpu.fd == fd), None)

    def statuses(self, running: Mapping[int, int | None]) -> Sequence[VcpuStatus]:
        """Return the status of every vCPU; `running` maps those that have run to their threads."""
        return [
            VcpuStatus(
                index=index,
                tid=running.get(index),
                initialised=index in running,
                has_run=index in running,
            )
            for index in sorted(self._vcpus)
        ]
