# SPDX-License-Identifier: Apache-2.0
"""Threads as /proc shows them: their names, masks, signals, calls and times."""

import re

from pmuctl.host.proc_files import ProcFiles, number
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.spin import ThreadTimes
from pmuctl.value import value

ID = re.compile(r"[1-9][0-9]{0,9}")
"""The name of a process or thread in a directory."""

_SIGNALS = re.compile(rb"^(SigPnd|ShdPnd|SigBlk|SigIgn|SigCgt):\t([0-9a-f]{1,16})$", re.MULTILINE)
_CPUS = re.compile(rb"^Cpus_allowed_list:\t([0-9,-]{0,65536})$", re.MULTILINE)


@value
class ThreadStat:
    """Some of proc_pid_stat(5): the state's letter, clock ticks of guest code, the last CPU."""

    state: str
    guest_time: int
    last_cpu: int | None


@value
class ProcThreads(ProcFiles):
    """What is told of a thread. One that is gone, or may not be looked at, is none or empty."""

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
