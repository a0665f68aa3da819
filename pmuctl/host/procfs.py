# SPDX-License-Identifier: Apache-2.0
"""Processes and threads as /proc shows them: KVM descriptors, owners, masks, signals, times."""

import os
import re
from contextlib import suppress
from pathlib import Path

from pmuctl.host.kvm.fds import KvmProcess, KvmScan, has_kvm, holder_of, vcpus_of
from pmuctl.host.proc_files import ProcFiles, number
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm_ref import ProcessId
from pmuctl.uapi.pidfd import kcmp_file
from pmuctl.value import value

TICKS = 100
"""Clock ticks a second in /proc: USER_HZ (include/uapi/asm-generic/param.h)."""
FIRST_NAMESPACE = 0xEFFFFFFC
"""The inode of the first pid namespace: PROC_PID_INIT_INO (include/linux/proc_ns.h)."""
PF_KTHREAD = 0x00200000
"""Among a process's flags (proc_pid_stat(5), field 9; include/linux/sched.h)."""
ID = re.compile(r"[1-9][0-9]{0,9}")
"""The name of a process or thread in a directory."""

_UIDS = re.compile(rb"^Uid:\t([0-9]{1,10})\t\1\t\1\t", re.MULTILINE)
_BOOT = re.compile(rb"^btime ([0-9]{1,12})$", re.MULTILINE)
_SIGNALS = re.compile(rb"^(SigPnd|ShdPnd|SigBlk|SigIgn|SigCgt):\t([0-9a-f]{1,16})$", re.MULTILINE)
_CPUS = re.compile(rb"^Cpus_allowed_list:\t([0-9,-]{0,65536})$", re.MULTILINE)


@value
class ThreadStat:
    """Some of proc_pid_stat(5): the state's letter, clock ticks of guest code, the last CPU."""

    state: str
    guest_time: int
    last_cpu: int | None


@value
class ThreadTimes:
    """The clock ticks that a thread has had of a CPU, and those of them in a guest.

    `start` is when it began, in clock ticks since boot: with its id that names it for good.
    """

    start: int
    busy: int
    guest: int


@value
class Procfs(ProcFiles):
    """The processes of a machine. What has vanished, or may not be read, is none or empty.

    Where this process or the machine runs short, its readers raise ShortageError.
    """

    def scan_kvm(self) -> KvmScan:
        """Who has KVM VMs open: one pass, in which of others only the lists of descriptors are
        read, and of the kernel's own threads, which may not be, what they are.
        """
        try:
            names = self._names("")
        except OSError:
            return KvmScan(holders=(), is_partial=True)
        holders, unreadable = [], 0
        for name in names:
            if not ID.fullmatch(name):
                continue
            try:
                if not has_kvm(self._table(name)):
                    continue
                # between two looks at the start time it is one process
                start = self.start_time(int(name))
                links = self._table(name)
            except PermissionError:
                unreadable += not self._is_of_kernel(int(name))
                continue
            except OSError:
                continue
            if start is not None and self.start_time(int(name)) == start and has_kvm(links):
                holders.append(holder_of(ProcessId(int(name), start), links))
        # whoever mounts it with hidepid keeps the first process from others, too
        is_partial = self.root == Path("/proc") and ("1" not in names or not _is_outermost())
        return KvmScan(
            holders=tuple(sorted(holders, key=lambda its: its.pid)),
            unreadable=unreadable,
            is_partial=is_partial,
        )

    def thread_holder(self, tid: int) -> KvmProcess | None:
        """The process of a thread, and what KVM VMs and vCPUs that thread has open, which may
        have left the descriptors of the others (unshare(2)); None where it has none."""
        pid = self.tgid(tid)
        start = self.start_time(pid) if pid else None
        try:
            links = self._links(f"{pid}/task/{tid}/fd") if start is not None else {}
        except OSError:
            return None
        if pid is None or start is None or self.start_time(pid) != start or not has_kvm(links):
            return None
        return holder_of(ProcessId(pid, start), links)

    def holds_kvm(self, pid: int) -> bool | None:
        """Whether a process has a KVM VM, or a vCPU of one, open.

        None where this user may not look. A process that does not exist (any more) holds nothing.
        """
        try:
            return has_kvm(self._table(str(pid)))
        except PermissionError:
            return None
        except OSError:
            return False

    def is_same_file(self, pid: int, fd: int, other_pid: int, other_fd: int) -> bool | None:
        """Whether descriptors of two processes are of one open file; None where not known.

        Only the running kernel can tell that, of processes that this user may look at.
        """
        return kcmp_file(pid, fd, other_pid, other_fd) if self.root == Path("/proc") else None

    def parent(self, pid: int) -> int | None:
        """The parent of a process; None where it is gone."""
        return self._status_number(pid, b"PPid")

    def command_line(self, pid: int) -> tuple[str, ...]:
        """The words a process was started with, as it has them now; none where it is gone."""
        try:
            raw = self._read(f"{pid}/cmdline")
        except OSError:
            return ()
        words = raw.removesuffix(b"\0").split(b"\0") if raw else []
        return tuple(word.decode(errors="surrogateescape") for word in words)

    def vcpu_fds(self, pid: int) -> dict[int, int]:
        """The vCPUs a process has open: file descriptor to the number KVM_CREATE_VCPU was given.

        Raises PermissionError where this user may not look; empty where it is gone.
        """
        try:
            return vcpus_of(self._links(f"{pid}/fd"))
        except (FileNotFoundError, ProcessLookupError):
            return {}

    def uid(self, pid: int) -> int | None:
        """The real, effective and saved user of a process (proc_pid_status(5)).

        None where they are not the same, for whoever starts a setuid program has its command line
        and its descriptors in his hands; and where it cannot be told.
        """
        try:
            status = self._read(f"{pid}/status")
        except OSError:
            return None
        uids = _UIDS.search(status)
        return int(uids[1]) if uids else None

    def start_time(self, pid: int) -> int | None:
        """When a process started, in clock ticks since boot (proc_pid_stat(5), field 22).

        None where there is no such process. Together with the pid it names a process for good.
        """
        return number(self._stat(f"{pid}/stat"), 19)

    def is_there(self, process: ProcessId) -> bool:
        """Whether a process still is the one that has its pid."""
        return self.start_time(process.pid) == process.started

    def wall_time(self, ticks: int) -> float | None:
        """A moment in clock ticks since boot as seconds since the epoch; None where that cannot be
        told.

        By the time of boot that proc_stat(5) has, which moves as the clock is set.
        """
        try:
            found = _BOOT.search(self._read("stat"))
        except OSError:
            return None
        return int(found[1]) + ticks / TICKS if found else None

    def links(self, pid: int) -> dict[int, str]:
        """The file descriptors of a process that lead to KVM, and where: none where it is gone."""
        try:
            links = self._table(str(pid))
        except OSError:
            return {}
        return {fd: its for fd, its in links.items() if its.startswith("anon_inode:kvm-")}

    def threads(self, pid: int) -> frozenset[int]:
        """The thread ids of a process; none where it is gone."""
        try:
            return frozenset(
                int(name) for name in self._names(f"{pid}/task") if ID.fullmatch(name)
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
        fields = self._stat(f"{pid}/task/{tid}/stat")
        return not fields or fields[0] in (b"Z", b"X")

    def thread_stat(self, pid: int, tid: int) -> ThreadStat | None:
        """How a thread is; None where it is gone."""
        fields = self._stat(f"{pid}/task/{tid}/stat")
        if not fields:
            return None
        state = fields[0].decode("ascii", "replace")
        return ThreadStat(state, number(fields, 40) or 0, number(fields, 36))

    def guest_time(self, pid: int, tid: int) -> int:
        """Clock ticks a thread ran guest code (proc_pid_stat(5), field 43); 0 where it is gone."""
        return number(self._stat(f"{pid}/task/{tid}/stat"), 40) or 0

    def thread_times(self, pid: int, tid: int) -> ThreadTimes | None:
        """What a thread has had of CPUs (proc_pid_stat(5)); None where it is gone.

        From utime (14), which has the guest's in it, stime (15), starttime (22), guest_time (43).
        """
        fields = self._stat(f"{pid}/task/{tid}/stat")
        user, system, start, guest = (number(fields, at) for at in (11, 12, 19, 40))
        if user is None or system is None or start is None or guest is None:
            return None
        return ThreadTimes(start=start, busy=user + system, guest=guest)

    def last_cpu(self, pid: int, tid: int) -> int | None:
        """The CPU a thread last ran on (proc_pid_stat(5), field 39); None where it is gone."""
        return number(self._stat(f"{pid}/task/{tid}/stat"), 36)

    def syscall(self, pid: int, tid: int) -> tuple[int, ...]:
        """The system call a thread sleeps in: its number and arguments (proc_pid_syscall(5)).

        Empty where it runs, is gone, or this user may not look.
        """
        try:
            words = self._read(f"{pid}/task/{tid}/syscall").split()
            if max(map(len, words[:7]), default=0) > 20:
                return ()
            return (int(words[0]), *(int(word, 16) for word in words[1:7]))
        except (OSError, ValueError, IndexError):
            return ()

    def comm(self, pid: int, tid: int) -> str:
        """The name of a thread, empty where it is gone."""
        try:
            raw = self._read(f"{pid}/task/{tid}/comm")
        except OSError:
            return ""
        return raw.rstrip(b"\n").decode(errors="replace")

    def affinity(self, pid: int, tid: int) -> CpuSet | None:
        """The CPUs a thread may run on, offline ones included (proc_pid_status(5)).

        None where it is gone.
        """
        try:
            found = _CPUS.search(self._read(f"{pid}/task/{tid}/status"))
            return CpuSet.parse(found[1].decode("ascii")) if found else None
        except (OSError, ValueError):
            return None

    def signals(self, pid: int, tid: int) -> dict[str, frozenset[int]]:
        """The signals a thread has pending, blocks, ignores and catches (proc_pid_status(5)).

        Under SigPnd, ShdPnd (of its whole process), SigBlk, SigIgn and SigCgt; empty sets where
        it is gone.
        """
        try:
            status = self._read(f"{pid}/task/{tid}/status")
        except OSError:
            status = b""
        found = dict.fromkeys(("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"), frozenset[int]())
        for name, mask in _SIGNALS.findall(status):
            bits = int(mask, 16)
            found[name.decode()] = frozenset(n + 1 for n in range(64) if bits >> n & 1)
        return found

    def _is_of_kernel(self, pid: int) -> bool:
        return bool((number(self._stat(f"{pid}/stat"), 6) or 0) & PF_KTHREAD)

    def _table(self, pid: str) -> dict[int, str]:
        """The descriptors of a process, and where they lead; raises OSError.

        Where its first thread has none, as after its end, those of the others: of the first that
        has some of KVM's.
        """
        links = self._links(f"{pid}/fd")
        for tid in () if links else self._names(f"{pid}/task"):
            if tid != pid and ID.fullmatch(tid):
                with suppress(OSError):
                    its = self._links(f"{pid}/task/{tid}/fd")
                    if has_kvm(its):
                        return its
        return links


def _is_outermost() -> bool:
    """Whether no process is outside of this pid namespace; also where that cannot be told."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == FIRST_NAMESPACE
    except OSError:
        return True
