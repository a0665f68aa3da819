# SPDX-License-Identifier: Apache-2.0
"""Processes and threads as /proc shows them: KVM descriptors, owners, masks, signals, times."""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from pmuctl.host.kvm.fds import KVM_LINK, has_kvm, vcpus_of
from pmuctl.host.proc_files import parse_stat_number
from pmuctl.host.task_files import TaskFiles
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm_ref import ProcessId
from pmuctl.value import value

TICKS = 100
"""Clock ticks per second in /proc: USER_HZ (include/uapi/asm-generic/param.h)."""
FIRST_NAMESPACE = 0xEFFFFFFC
"""The inode of the first pid namespace: PROC_PID_INIT_INO (include/linux/proc_ns.h)."""
PF_EXITING = 0x00000004
"""The flag of threads that are ending (include/linux/sched.h); do_exit() sets it first."""
PF_USER_WORKER = 0x00000010 | 0x00004000
"""The flags of threads that the kernel runs in a process, PF_IO_WORKER of io_uring alone before
Linux 6.4 (include/linux/sched.h)."""
PF_KTHREAD = 0x00200000
"""The flag of kernel threads (proc_pid_stat(5), field 9; include/linux/sched.h)."""
LISTINGS_MAX = 16
"""Listings of a process's threads at most: some of them always end while it is listed."""
FDS_MAX = 1 << 13
"""Descriptors of a process in which a VM is looked for, at most: a VMM makes it early."""
WORDS_MAX = 1 << 12
"""Words of a command line: a QEMU of 100 devices has some 500, and one of 1 MB up to a million."""
ID = re.compile(r"[1-9][0-9]{0,9}")
"""The directory name of a process or thread."""

_UIDS = re.compile(rb"^Uid:\t([0-9]{1,10})\t\1\t\1\t", re.MULTILINE)
_NAMESPACE_PIDS = re.compile(rb"^NSpid:(?:\t[0-9]{1,10}){0,31}\t([0-9]{1,10})$", re.MULTILINE)
_BOOT = re.compile(rb"^btime ([0-9]{1,12})$", re.MULTILINE)
_SIGNALS = re.compile(rb"^(SigPnd|ShdPnd|SigBlk|SigIgn|SigCgt):\t([0-9a-f]{1,16})$", re.MULTILINE)
_CPUS = re.compile(rb"^Cpus_allowed_list:\t([0-9,-]{0,65536})$", re.MULTILINE)


@value
class ThreadStat:
    """Some of proc_pid_stat(5): the state letter, clock ticks in guest code, the last CPU."""

    state: str
    guest_time: int
    last_cpu: int | None


@value
class ThreadTimes:
    """The clock ticks a thread has run on a CPU (`busy`), and those of them in a guest.

    `start` is its start time in clock ticks since boot, which with the thread id is unique.
    """

    start: int
    busy: int
    guest: int


@value(kw_only=True)
class ProcessFacts:
    """What /proc tells of one process, read at once.

    `started` is when it started (clock ticks since boot), None if it is gone or may not be read;
    `uid` is as `Procfs.uid()` has it, `has_vm` as `Procfs.holds_kvm()`, `threads` are its ids.
    """

    pid: int
    started: int | None = None
    uid: int | None = None
    has_vm: bool | None = False
    threads: frozenset[int] = frozenset()


@value
class Procfs(TaskFiles):
    """The processes of a machine. What has vanished, or may not be read, is None or empty.

    If descriptors or memory run out, the readers raise ResourceExhaustedError.
    """

    def count_hidden(self, pids: Collection[int]) -> tuple[int, bool]:
        """Return how many processes beside these may not be read, and if others are hidden.

        Only a capture knows the former of processes that it does not have.
        """
        # a mount with hidepid also hides process 1 from other users
        is_live = self.root == Path("/proc")
        return 0, is_live and (1 not in pids or not _is_outermost_pid_ns())

    def holds_kvm(self, pid: int) -> bool | None:
        """Return whether a process has a KVM VM, or a vCPU of one, open.

        Return None if this user may not look, or it has too many descriptors to look at; False if
        the process does not exist (any more).
        """
        try:
            for count, (fd, link) in enumerate(self._iter_fds(pid)):
                if has_kvm({fd: link}):
                    return True
                if count >= FDS_MAX:
                    return None
        except PermissionError:
            return None
        except OSError:
            pass
        return False

    def namespace_pid(self, pid: int) -> int:
        """Return the pid that a process has in its own pid namespace (proc_pid_status(5), NSpid).

        Return `pid` if that cannot be read.
        """
        try:
            pids = _NAMESPACE_PIDS.search(self._read_file(f"{pid}/status"))
        except OSError:
            pids = None
        return int(pids[1]) if pids else pid

    def parent(self, pid: int) -> int | None:
        """Return the parent of a process, None if it is gone."""
        return self._read_status_number(pid, b"PPid")

    def command_line(self, pid: int) -> tuple[str, ...]:
        """Return the command line of a process as it is now, empty if it is gone.

        It has WORDS_MAX words at most.
        """
        try:
            raw = self._read_file(f"{pid}/cmdline")
        except OSError:
            return ()
        words = raw.removesuffix(b"\0").split(b"\0", WORDS_MAX) if raw else []
        return tuple(word.decode(errors="surrogateescape") for word in words[:WORDS_MAX])

    def working_directory(self, pid: int) -> str | None:
        """Return the working directory of a process, None if it is gone or may not be read."""
        try:
            return os.readlink(self.root / f"{pid}/cwd")
        except OSError:
            return None

    def read_own_id(self) -> int | None:
        """Return the process that `self` leads to, which is this one; None if it leads nowhere.

        In the procfs of another pid namespace it is another number, or nothing (proc(5)).
        """
        try:
            target = os.readlink(self.root / "self")
        except OSError:
            return None
        return int(target) if ID.fullmatch(target) else None

    def pids(self) -> list[int]:
        """Return the process ids; an empty list if they cannot be read."""
        try:
            return [int(name) for name in self._list_names("") if ID.fullmatch(name)]
        except OSError:
            return []

    def vcpu_fds(self, pid: int, tid: int | None = None) -> dict[int, int]:
        """Return the vCPUs a process has open: file descriptor → number given to KVM_CREATE_VCPU.

        A thread may have descriptors of its own: with `tid` they are that thread's. Return an
        empty dict if it is gone; raise PermissionError if this user may not look.
        """
        try:
            return vcpus_of(self._read_links(f"{pid}/task/{tid}/fd" if tid else f"{pid}/fd"))
        except (FileNotFoundError, ProcessLookupError):
            return {}

    def uid(self, pid: int) -> int | None:
        """Return the uid of a process if real, effective and saved uid agree (proc_pid_status(5)).

        Return None if they differ, because whoever starts a setuid program controls its command
        line and descriptors; also if they cannot be read.
        """
        try:
            status = self._read_file(f"{pid}/status")
        except OSError:
            return None
        uids = _UIDS.search(status)
        return int(uids[1]) if uids else None

    def read_facts(self, pid: int) -> ProcessFacts:
        """Read the facts about a process, all of them between two looks at its start time.

        If another process has its pid by the second look, it is gone.
        """
        started = self.start_time(pid)
        facts = ProcessFacts(
            pid=pid,
            started=started,
            uid=self.uid(pid),
            has_vm=self.holds_kvm(pid),
            threads=self.threads(pid),
        )
        return facts if self.start_time(pid) == started else ProcessFacts(pid=pid)

    def start_time(self, pid: int) -> int | None:
        """Return when a process started, in clock ticks since boot (proc_pid_stat(5), field 22).

        Return None if there is no such process. The pid and the start time together are unique.
        """
        return parse_stat_number(self._read_stat(f"{pid}/stat"), 19)

    def is_there(self, process: ProcessId) -> bool:
        """Return whether a process still exists: its pid has not gone to another one."""
        return self.start_time(process.pid) == process.started

    def is_ending(self, process: ProcessId) -> bool:
        """Return whether a process has ended, or is about to: its files are closed before."""
        fields = self._read_stat(f"{process.pid}/stat")
        if parse_stat_number(fields, 19) != process.started:
            return True
        return bool((parse_stat_number(fields, 6) or 0) & PF_EXITING)

    def wall_time(self, ticks: int) -> float | None:
        """Convert clock ticks since boot to seconds since the epoch, None if that is not possible.

        The time of boot is that of proc_stat(5), which moves when the clock is set.
        """
        try:
            boot = _BOOT.search(self._read_file("stat"))
        except OSError:
            return None
        return int(boot[1]) + ticks / TICKS if boot else None

    def links(self, pid: int) -> dict[int, str]:
        """Return the KVM file descriptors of a process and their targets.

        Return an empty dict if the process is gone or may not be read.
        """
        try:
            return {fd: link for fd, link in self._iter_fds(pid) if link.startswith(KVM_LINK)}
        except OSError:
            return {}

    def threads(self, pid: int) -> frozenset[int]:
        """Return the thread ids of a process, an empty set if it is gone."""
        found: frozenset[int] = frozenset()
        for _ in range(LISTINGS_MAX):
            tids, is_complete = self.list_threads(pid)
            found |= tids
            if is_complete:
                break
        return found

    def list_threads(self, pid: int) -> tuple[frozenset[int], bool]:
        """Return thread ids of a process, and whether all that it had before are among them.

        The kernel ends a listing early at a thread that ends at that moment (next_tid() in
        fs/proc/base.c).
        """
        try:
            count = self._count_directories(f"{pid}/task")
            names = self._list_names(f"{pid}/task")
        except OSError:
            return frozenset(), True
        tids = frozenset(int(name) for name in names if ID.fullmatch(name))
        return tids, len(tids) >= count

    def tgid(self, tid: int) -> int | None:
        """Return the process a thread belongs to, None if it is gone."""
        return self._read_status_number(tid, b"Tgid")

    def tracer(self, tid: int) -> int | None:
        """Return the thread id of a thread's tracer, 0 if it has none, None if it is gone."""
        return self._read_status_number(tid, b"TracerPid")

    def is_zombie(self, pid: int, tid: int) -> bool:
        """Return whether a thread has ended, whether or not it has been reaped."""
        fields = self._read_stat(f"{pid}/task/{tid}/stat")
        return not fields or fields[0] in (b"Z", b"X")

    def thread_stat(self, pid: int, tid: int) -> ThreadStat | None:
        """Return the state of a thread, None if it is gone."""
        fields = self._read_stat(f"{pid}/task/{tid}/stat")
        if not fields:
            return None
        state = fields[0].decode("ascii", "replace")
        return ThreadStat(state, parse_stat_number(fields, 40) or 0, parse_stat_number(fields, 36))

    def guest_time(self, pid: int, tid: int) -> int:
        """Return clock ticks a thread ran guest code (proc_pid_stat(5), field 43), 0 if gone."""
        return parse_stat_number(self._read_stat(f"{pid}/task/{tid}/stat"), 40) or 0

    def process_guest_time(self, pid: int) -> int:
        """Return clock ticks that all threads of a process ran guest code, 0 if it is gone.

        It is added up before it is rounded: each thread may have run for less than one tick
        (thread_group_cputime_adjusted(), kernel/sched/). It counts threads that have ended, too,
        and what ran before an execve(2): it may be that of a VM before.
        """
        return parse_stat_number(self._read_stat(f"{pid}/stat"), 40) or 0

    def thread_times(self, pid: int, tid: int) -> ThreadTimes | None:
        """Return the CPU times of a thread (proc_pid_stat(5)), None if it is gone.

        They come from utime (14), which includes guest time, stime (15), starttime (22) and
        guest_time (43).
        """
        fields = self._read_stat(f"{pid}/task/{tid}/stat")
        user, system, start, guest = (parse_stat_number(fields, n) for n in (11, 12, 19, 40))
        if user is None or system is None or start is None or guest is None:
            return None
        return ThreadTimes(start=start, busy=user + system, guest=guest)

    def last_cpu(self, pid: int, tid: int) -> int | None:
        """Return the CPU a thread last ran on (proc_pid_stat(5), field 39), None if it is gone."""
        return parse_stat_number(self._read_stat(f"{pid}/task/{tid}/stat"), 36)

    def syscall(self, pid: int, tid: int) -> tuple[int, ...]:
        """Return number and arguments of the system call a thread sleeps in (proc_pid_syscall(5)).

        Return an empty tuple if it runs or is gone, or this user may not look; also for a worker
        of the kernel, which shows the call in which it was made: KVM makes one in KVM_RUN.
        """
        try:
            words = self._read_file(f"{pid}/task/{tid}/syscall").split()
            if max(map(len, words[:7]), default=0) > 20:
                return ()
            call = (int(words[0]), *(int(word, 16) for word in words[1:7]))
        except (OSError, ValueError, IndexError):
            return ()
        flags = parse_stat_number(self._read_stat(f"{pid}/task/{tid}/stat"), 6)
        return () if (flags or 0) & PF_USER_WORKER else call

    def comm(self, pid: int, tid: int) -> str:
        """Return the name of a thread, an empty string if it is gone."""
        try:
            raw = self._read_file(f"{pid}/task/{tid}/comm")
        except OSError:
            return ""
        return raw.rstrip(b"\n").decode(errors="replace")

    def affinity(self, pid: int, tid: int) -> CpuSet | None:
        """Return the CPUs a thread may run on, offline ones included (proc_pid_status(5)).

        Return None if it is gone.
        """
        try:
            cpus = _CPUS.search(self._read_file(f"{pid}/task/{tid}/status"))
            return CpuSet.parse(cpus[1].decode("ascii")) if cpus else None
        except (OSError, ValueError):
            return None

    def signals(self, pid: int, tid: int) -> dict[str, frozenset[int]]:
        """Return the signals a thread has pending, blocks, ignores, catches (proc_pid_status(5)).

        The keys are SigPnd, ShdPnd (pending for the whole process), SigBlk, SigIgn and SigCgt;
        all sets are empty if the thread is gone.
        """
        try:
            status = self._read_file(f"{pid}/task/{tid}/status")
        except OSError:
            status = b""
        names = ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")
        signals = dict.fromkeys(names, frozenset[int]())
        for name, mask in _SIGNALS.findall(status):
            bits = int(mask, 16)
            signals[name.decode()] = frozenset(n + 1 for n in range(64) if bits >> n & 1)
        return signals

    def is_kernel_thread(self, pid: int) -> bool:
        """Return whether a process is a thread of the kernel, which has no descriptors."""
        return bool((parse_stat_number(self._read_stat(f"{pid}/stat"), 6) or 0) & PF_KTHREAD)

    def _iter_fds(self, pid: int) -> Iterator[tuple[int, str]]:
        """Yield the file descriptors of a process and their targets; raise OSError.

        If its first thread has none, because it has ended, yield those of each other thread.
        """
        has_fds = False
        for link in self.iter_links(f"{pid}/fd"):
            has_fds = True
            yield link
        for name in () if has_fds else self._list_names(f"{pid}/task"):
            if ID.fullmatch(name) and name != str(pid):
                with suppress(OSError):
                    yield from self.iter_links(f"{pid}/task/{name}/fd")


def _is_outermost_pid_ns() -> bool:
    """Return whether this is the first pid namespace, which has all processes; True if unknown."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == FIRST_NAMESPACE
    except OSError:
        return True
