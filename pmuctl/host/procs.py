# SPDX-License-Identifier: Apache-2.0
"""Processes as /proc shows them: who holds KVM file descriptors, which threads are whose."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

KVM_VM_LINK = "anon_inode:kvm-vm"
"""What /proc/PID/fd/N of a VM's file descriptor points to (virt/kvm/kvm_main.c)."""

_TID = re.compile(r"[1-9][0-9]{0,9}")
_UIDS = re.compile(rb"^Uid:\t[0-9]+\t([0-9]{1,10})\t", re.MULTILINE)


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
                int(name)
                for name in os.listdir(self.root / str(pid) / "task")
                if _TID.fullmatch(name)
            )
        except OSError:
            return frozenset()

    def uid(self, pid: int) -> int | None:
        """The effective user of a process (proc_pid_status(5)); None where it cannot be told."""
        try:
            status = (self.root / str(pid) / "status").read_bytes()
        except OSError:
            return None
        uids = _UIDS.search(status)
        return int(uids[1]) if uids else None

    def start_time(self, pid: int) -> int | None:
        """When a process started, in clock ticks since boot (proc_pid_stat(5), field 22).

        None where there is no such process. Together with the pid it names a process for good.
        """
        fields = self._stat(self.root / str(pid) / "stat")
        return int(fields[19]) if len(fields) > 19 and fields[19].isdigit() else None

    def last_cpu(self, pid: int, tid: int) -> int | None:
        """The CPU a thread last ran on (proc_pid_stat(5), field 39); None where it is gone."""
        fields = self._stat(self.root / str(pid) / "task" / str(tid) / "stat")
        return int(fields[36]) if len(fields) > 36 and fields[36].isdigit() else None

    @staticmethod
    def _stat(path: Path) -> list[bytes]:
        """The fields from the third on; none where there is no such process."""
        try:
            stat = path.read_bytes()
        except OSError:
            return []
        # the second field is the command in parentheses, which may itself hold anything
        return stat.rpartition(b")")[2].split()

    @staticmethod
    def _link(path: str) -> str:
        try:
            return os.readlink(path)
        except OSError:
            return ""
