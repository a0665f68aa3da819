# SPDX-License-Identifier: Apache-2.0
"""What names a process, and a VM, for good: pids and descriptors are given anew, and names are
for show."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process: its pid, and when it `started`, in clock ticks since boot (Procfs.start_time)."""

    pid: int
    started: int
