# SPDX-License-Identifier: Apache-2.0
"""Processes as /proc shows them: who holds KVM file descriptors, which threads are whose."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

KVM_VM_LINK = "anon_inode:kvm-vm"
"""What /proc/PID/fd/N of a VM's file descriptor points to (virt/kvm/kvm_main.c)."""

_VCPU_LINK = re.compile(r"anon_inode:kvm-vcpu:([0-9]{1,9})")
_SIGNALS = re.compile(rb"^(SigPnd|ShdPnd|SigBlk|SigIgn|SigCgt):\t([0-9a-f]{1,16})$", re.MULTILINE)
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

    def tgid(self, tid: int) -> int | None:
        """The process a thread belongs to; None where it is gone."""
        return self._status_number(tid, b"Tgid")

    def tracer(self, tid: int) -> int | None:
        """Who traces a thread, 0 for nobody; None where it is gone."""
        return self._status_number(tid, b"TracerPid")

    def is_zombie(self, pid: int, tid: int) -> bool:
        """Whether a thread has ended, though it is still there."""
        fields = self._stat(self.root / str(pid) / "task" / str(tid) / "stat")
        return not fields or fields[0] in (b"Z", b"X")

    def guest_time(self, pid: int, tid: int) -> int:
        """Clock ticks a thread ran guest code (proc_pid_stat(5), field 43); 0 where it is gone."""
        fields = self._stat(self.root / str(pid) / "task" / str(tid) / "stat")
        return int(fields[40]) if len(fields) > 40 and fields[40].isdigit() else 0

    def syscall(self, pid: int, tid: int) -> tuple[int, ...]:
        """The system call a thread sleeps in: its number and arguments (proc_pid_syscall(5)).

        Empty where it runs, is gone, or this user may not look.
        """
        try:
            words = (self.root / str(pid) / "task" / str(tid) / "syscall").read_bytes().split()
            return (int(words[0]), *(int(word, 16) for word in words[1:7]))
        except (OSError, ValueError, IndexError):
            return ()

    def comm(self, pid: int, tid: int) -> str:
        """The name of a thread, empty where it is gone."""
        try:
            raw = (self.root / str(pid) / "task" / str(tid) / "comm").read_bytes()
        except OSError:
            return ""
        return raw.rstrip(b"\n").decode(errors="replace")

    def vcpu_fds(self, pid: int) -> dict[int, int]:
        """The vCPUs a process has open: file descriptor to the number KVM_CREATE_VCPU was given.

        Raises PermissionError where this user may not look; empty where it is gone.
        """
        found: dict[int, int] = {}
        folder = self.root / str(pid) / "fd"
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, ProcessLookupError):
            return found
        for name in names:
            if match := _VCPU_LINK.fullmatch(self._link(str(folder / name))):
                found[int(name)] = int(match[1])
        return found

    def signals(self, pid: int, tid: int) -> dict[str, frozenset[int]]:
        """The signals a thread has pending, blocks, ignores and catches (proc_pid_status(5)).

        Under SigPnd, ShdPnd (of its whole process), SigBlk, SigIgn and SigCgt; empty sets where
        it is gone.
        """
        try:
            status = (self.root / str(pid) / "task" / str(tid) / "status").read_bytes()
        except OSError:
            status = b""
        found = dict.fromkeys(("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"), frozenset[int]())
        for name, mask in _SIGNALS.findall(status):
            bits = int(mask, 16)
            found[name.decode()] = frozenset(n + 1 for n in range(64) if bits >> n & 1)
        return found

    def _status_number(self, tid: int, name: bytes) -> int | None:
        try:
            status = (self.root / str(tid) / "status").read_bytes()
        except OSError:
            return None
        # a thread's name, the one line that anybody may write, has its line ends escaped
        value = status.partition(b"\n" + name + b":\t")[2].partition(b"\n")[0]
        return int(value) if value.isdigit() else None

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
