# SPDX-License-Identifier: Apache-2.0
"""What names a process, and a VM, for good: pids and descriptors are given anew, and names are
for show."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process: its pid, and when it `started`, in clock ticks since boot (Procfs.start_time)."""

    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class VmId:
    """A VM: its process, and the lowest descriptor that has it there.

    `fd` is None where it is not known which of the process's VMs it is, or has not been made yet.
    """

    process: ProcessId
    fd: int | None = None

    def may_be(self, other: "VmId") -> bool:
        """Whether both can be the same VM, for all that is known."""
        return self.process == other.process and (
            self.fd == other.fd or self.fd is None or other.fd is None
        )
