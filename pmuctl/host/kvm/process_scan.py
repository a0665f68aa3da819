# SPDX-License-Identifier: Apache-2.0
"""The scan of all processes for KVM VMs, whose time no user's descriptors can lengthen.

Any user can have thousands of processes, a million descriptors in each, or one table of them in
all. What most hosts have is read at once. Larger tables, and what is left after a while, are
read by users in turn, and no user's take more than a share of the time.
"""

import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence

from pmuctl.host.kvm.descriptor_tables import DescriptorTables, Links, OutOfTimeError
from pmuctl.host.kvm.fds import KvmProcess, KvmScan, has_kvm, make_kvm_process
from pmuctl.host.proc_files import TooManyLinksError
from pmuctl.host.procfs import Procfs
from pmuctl.model.vm_ref import ProcessId
from pmuctl.value import value

CLOCK_STEPS = 16
"""Processes that are looked at between two looks at the clock."""
SMALL = 512
"""Descriptors of a table that is read at once, at most."""
PROMPT_CPU_SECONDS = 1.0
"""CPU time for small tables, before it is asked whose they are: 10,000 processes take half of it,
however busy the machine is."""
PROMPT_SHARE = 0.5
"""The part of all time for them, at most."""
SHARE = 0.5
"""The part of all time that the processes of one user may take, other than root and the caller."""


@value(kw_only=True)
class ScanLimits:
    """The `seconds` that a scan may take, and the processes (pids) it begins with.

    `uid` is the user whose processes go before those of others, as root's do.
    """

    seconds: float = 30.0
    first: Collection[int] = ()
    uid: int = 0


class KvmScanner:
    """One scan of the processes of a host, which begins now."""

    def __init__(self, procs: Procfs, limits: ScanLimits | None = None) -> None:
        self._procs = procs
        self._limits = limits or ScanLimits()
        self._end = time.monotonic() + self._limits.seconds
        self._tables = DescriptorTables(procs)
        self._spent: Counter[int | None] = Counter()
        self._holders: list[KvmProcess] = []
        self._unreadable = 0
        self.left_out: Counter[int | None] = Counter()
        """How many tasks were not looked at for want of time, by user."""

    def scan(self) -> KvmScan:
        """Return the processes that have KVM VMs open.

        Of other processes only the lists of descriptors are read; of those whose list may not be
        read, also the flags, because kernel threads do not count as unreadable.
        """
        pids = self._procs.pids()
        hidden, is_partial = self._procs.count_hidden(pids)
        there = set(pids) if self._limits.first else set()
        first = [pid for pid in self._limits.first if pid in there]
        later = [pid for pid in first if not self._scan_small(pid)]
        asked = len(later)
        cpu_until = time.process_time() + PROMPT_CPU_SECONDS
        until = time.monotonic() + self._limits.seconds * PROMPT_SHARE
        is_prompt = True
        for count, pid in enumerate(pid for pid in pids if pid not in first):
            if count % CLOCK_STEPS == 0:
                is_prompt = time.monotonic() < until and time.process_time() < cpu_until
            if not is_prompt or not self._scan_small(pid):
                later.append(pid)
        self._scan_in_turns(later[:asked], later[asked:])
        return KvmScan(
            processes=tuple(sorted(self._holders, key=lambda process: process.pid)),
            unreadable=self._unreadable + hidden,
            is_partial=is_partial,
        )

    def read_thread(self, tid: int) -> KvmProcess | None:
        """Return the process of a thread with the KVM VMs and vCPUs that this thread has open.

        The thread may have left the descriptor table of the others (unshare(2)). Return None if
        it has no VM or vCPU open, or there is no time left to look.
        """
        pid = self._procs.tgid(tid)
        return self._read_in_time(pid, (tid,), self._procs.uid(pid)) if pid else None

    def _scan_small(self, pid: int) -> bool:
        """Look at a process; return False if that has to wait."""
        try:
            links = self._read_small(pid)
            if links is None:
                return False
            if not has_kvm(links):
                return True
            # equal start times before and after show that it was one process throughout
            start = self._procs.start_time(pid)
            links = self._read_small(pid)
        except PermissionError:
            self._unreadable += not self._procs.is_kernel_thread(pid)
            return True
        except OSError:
            return True
        if links is None:
            return False
        if start is not None and self._procs.start_time(pid) == start and has_kvm(links):
            self._holders.append(make_kvm_process(ProcessId(pid, start), links))
        return True

    def _read_small(self, pid: int) -> Links | None:
        """Return the descriptors of a process; raise OSError.

        Return None if it has too many descriptors, or none and several threads.
        """
        try:
            links = dict(self._procs.iter_links(f"{pid}/fd", most=SMALL))
        except TooManyLinksError:
            return None
        return None if not links and self._list_other_threads(pid) else links

    def _list_other_threads(self, pid: int) -> Sequence[int]:
        return [tid for tid in self._procs.list_threads(pid)[0] if tid != pid]

    def _scan_in_turns(self, first: Iterable[int], pids: Iterable[int]) -> None:
        """Look at processes: first at these, then at the one whose user took the least time."""
        for pid in first:
            self._add(self._read_in_time(pid, (pid,), self._limits.uid))
        queues: dict[int | None, deque[int]] = {}
        for pid in pids:
            queues.setdefault(self._procs.uid(pid), deque()).append(pid)
        while queues:
            user = min(queues, key=lambda user: (not self._is_own(user), self._spent[user]))
            queue = queues[user]
            if time.monotonic() >= self._get_end(user):
                self.left_out[user] += len(queue)
                queue.clear()
            else:
                pid = queue.popleft()
                self._add(self._read_in_time(pid, (pid,), user))
            if not queue:
                del queues[user]

    def _add(self, process: KvmProcess | None) -> None:
        if process is not None:
            self._holders.append(process)

    def _is_own(self, user: int | None) -> bool:
        return user in (0, self._limits.uid)

    def _get_end(self, user: int | None) -> float:
        """Return when the time of a user's processes is over (time.monotonic())."""
        if self._is_own(user):
            return self._end
        left = self._limits.seconds * SHARE - self._spent[user]
        return min(self._end, time.monotonic() + left)

    def _read_in_time(self, pid: int, tids: Sequence[int], user: int | None) -> KvmProcess | None:
        """Return a process with KVM's descriptors of these threads; None if there are none."""
        began = time.monotonic()
        try:
            start = self._procs.start_time(pid)
            links = self._read_tables(pid, tids, self._get_end(user))
        except OutOfTimeError:
            self.left_out[user] += 1
            return None
        except PermissionError:
            self._unreadable += not self._procs.is_kernel_thread(pid)
            return None
        except OSError:
            return None
        finally:
            self._spent[user] += time.monotonic() - began  # type: ignore[assignment]
        if start is None or self._procs.start_time(pid) != start or not has_kvm(links):
            return None
        return make_kvm_process(ProcessId(pid, start), links)

    def _read_tables(self, pid: int, tids: Sequence[int], until: float) -> Links:
        """Return KVM's descriptors of the first of these threads that has some.

        If the first thread of a process has no descriptors, because it has ended, look at the
        others.
        """
        links: Links = {}
        for tid in tids:
            links = self._tables.read(pid, tid, until)
            if has_kvm(links):
                return links
        if tuple(tids) == (pid,) and next(self._procs.iter_links(f"{pid}/fd"), None) is None:
            return self._read_tables(pid, self._list_other_threads(pid), until)
        return links
