# SPDX-License-Identifier: Apache-2.0
"""Processes as /proc shows them: who holds KVM file descriptors, which threads are whose."""

import os
from dataclasses import dataclass
from pathlib import Path

KVM_VM_LINK = "anon_inode:kvm-vm"
"""What /proc/PID/fd/N of a VM's file descriptor points to (virt/kvm/kvm_main.c)."""


@dataclass(frozen=True, slots=True)
class Procfs:
    """Readers of a mounted procfs, or of another machine's captured one."""

    root: Path = Path("/proc")

    def holds_kvm(self, pid: int) -> bool | None:
        """Whether a process has a KVM VM open; None where this user may not look.

        A process that does not exist (any more) holds nothing.
        """
        try:
            with os.scandir(self.root / str(pid) / "fd") as links:
                return any(self._link(link.path) == KVM_VM_LINK for link in links)
        except PermissionError:
            return None
        except OSError:
            return False

    def threads(self, pid: int) -> frozenset[int]:
        """The thread ids of a process; none where it is gone."""
        try:
            return frozenset(
                int(name) for name in os.listdir(self.root / str(pid) / "task") if name.isdigit()
            )
        except OSError:
            return frozenset()

    def start_time(self, pid: int) -> int | None:
        """When a process started, in clock ticks since boot (proc_pid_stat(5), field 22).

        None where there is no such process. Together with the pid it names a process for good.
        """
        try:
            stat = (self.root / str(pid) / "stat").read_bytes()
        except OSError:
            return None
        # the second field is the command in parentheses, which may itself hold anything
        fields = stat.rpartition(b")")[2].split()
        return int(fields[19]) if len(fields) > 19 and fields[19].isdigit() else None

    @staticmethod
    def _link(path: str) -> str:
        try:
            return os.readlink(path)
        except OSError:
            return ""
