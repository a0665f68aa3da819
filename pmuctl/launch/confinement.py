# SPDX-License-Identifier: Apache-2.0
"""Confinement of a VMM's threads to the CPUs of its PMU, before its vCPU threads are known.

From the moment a vCPU is made every thread is confined to those CPUs, and threads made later
inherit that: no vCPU can be initialised, or run first, elsewhere. Once the vCPUs run, all other
threads get their masks back.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from pmuctl.errors import PinnedError
from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.host.thread_affinity import NO_USABLE_CPU, ThreadAffinity
from pmuctl.launch.trace.arch import Arch
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vmm.identity import vcpu_of_thread
from pmuctl.uapi.kvm import KVM_RUN
from pmuctl.value import field, value

BACKOFF_SECONDS = 0.2
"""How long after its window a VMM is first checked for vCPUs that run (seconds)."""
BACKOFF_SECONDS_MAX = 2.0
"""The longest time between two of these checks (seconds)."""


@value
class Backoff:
    """When to check for vCPUs that run (time.monotonic()), and the delay after that (seconds)."""

    due: float = field(default_factory=lambda: time.monotonic() + BACKOFF_SECONDS)
    delay: float = BACKOFF_SECONDS

    def next_backoff(self) -> "Backoff":
        """Return the next backoff, with twice the delay: a VM may be paused for long."""
        return Backoff(time.monotonic() + self.delay, min(2 * self.delay, BACKOFF_SECONDS_MAX))


class Confinement:
    """The threads of one process and the CPUs they are confined to; None confines none.

    Once the process has ended nothing is done any more: its id may be another one's.
    """

    def __init__(self, pid: int, arch: Arch, procs: Procfs, threads: ThreadAffinity) -> None:
        self.cpus: CpuSet | None = None
        self.running: dict[int, int | None] = {}
        """vCPU number to thread, of the vCPUs that have run; None for a thread not known.

        A thread stays when it has ended: its vCPU is dead.
        """
        self._has_run = self._is_released = False
        self._pid = pid
        self._started = procs.start_time(pid)
        self._arch = arch
        self._procs = procs
        self._threads = threads
        self._index_by_fd: dict[int, int] = {}
        self._creators: dict[int, int] = {}
        self._old_masks: dict[int, CpuSet] = {}
        self._new_masks: dict[int, CpuSet] = {}
        self._reported: set[tuple[int, CpuSet]] = set()
        """The threads that were found outside the CPUs, with their masks, until they end."""

    def is_there(self) -> bool:
        """Return whether the process still exists: its pid has not gone to another one."""
        return self._procs.start_time(self._pid) == self._started

    def _list_threads(self) -> frozenset[int]:
        """Return the thread ids of the process, an empty set if it is gone."""
        return self._procs.threads(self._pid) if self.is_there() else frozenset()

    def add(self, fd: int, index: int, creator: int) -> None:
        """Add a vCPU that was made: its descriptor, its number, and the thread that made it."""
        self._index_by_fd[fd] = index
        self._creators[index] = creator

    def confine(self) -> None:
        """Narrow the mask of every thread of the process to the CPUs.

        A mask that was narrowed to other CPUs here counts as it was before. Raise PinnedError if
        a thread may run on none of the CPUs: a mask is never widened.
        """
        self.running, self._is_released = {}, False
        if self.cpus is None:
            return
        seen: set[int] = set()
        is_complete = False
        more: frozenset[int] = frozenset()
        # a thread may have made others before it was confined
        while more or not is_complete:
            for tid in more:
                with suppress(ProcessLookupError):
                    self._confine_thread(tid, self.cpus)
            seen |= more
            tids, is_complete = self._procs.list_threads(self._pid)
            more = tids - seen

    def check(self, cpus: CpuSet) -> None:
        """Raise PinnedError if a thread could not be confined to these CPUs."""
        for tid in self._list_threads():
            with suppress(ProcessLookupError):
                if not self._find_allowed_cpus(tid) & cpus:
                    raise _make_pinned_error(tid, self._find_allowed_cpus(tid), cpus)

    def _find_allowed_cpus(self, tid: int) -> CpuSet:
        """Return the CPUs a thread may run on, leaving out what was narrowed here."""
        now = self._threads.get(tid)
        known = self._find_known_thread(tid)
        return self._old_masks[known] if now == self._new_masks.get(known) else now

    def _find_known_thread(self, tid: int) -> int:
        """Return the thread whose mask before is that of this one, too: itself, or the leader.

        A thread made since the others were narrowed has inherited the mask of its maker.
        """
        return tid if tid in self._old_masks else self._pid

    def _confine_thread(self, tid: int, cpus: CpuSet) -> None:
        """Narrow the mask of one thread; raise PinnedError, ProcessLookupError if it is gone."""
        allowed = self._find_allowed_cpus(tid)
        if not allowed & cpus:
            raise _make_pinned_error(tid, allowed, cpus)
        try:
            if self._threads.get(tid) != allowed & cpus:
                self._threads.set(tid, allowed & cpus)
        except ProcessLookupError:
            raise
        except OSError as error:
            why = f"{NO_USABLE_CPU} (EINVAL)"
            if isinstance(error, PermissionError):
                why = "its mask may not be changed by this user (EPERM)"
            raise PinnedError(f"thread {tid} could not be put on {cpus}", why=why) from None
        # read back: a kernel may leave out CPUs that are offline
        self._old_masks[tid], self._new_masks[tid] = allowed, self._threads.get(tid)

    def restore_masks(self) -> bool:
        """Give all other threads their masks back once all vCPUs run; return True if that is done.

        A mask that somebody changed meanwhile stays.
        """
        found: dict[int, int] = {}
        with suppress(PermissionError):
            found = self._procs.vcpu_fds(self._pid)
            for tid in set(self._creators.values()):  # one may have descriptors of its own
                found |= self._procs.vcpu_fds(self._pid, tid)
        # a duplicate of a descriptor is not another vCPU
        fds = {fd: index for fd, index in found.items() if self._index_by_fd.get(fd) == index}
        tids = self._list_threads()
        if not tids:
            return True
        running = {
            tid: call for tid in tids if (call := self._detect_vcpu_thread(tid)) is not None
        }
        matched = self._match_vcpus(running, fds)
        # one that has run has run, though it may have ended, even since the threads were listed
        earlier: dict[int, int | None] = {
            index: tid
            for index, tid in self.running.items()
            if tid is not None and tid not in running and matched.get(index) is None
        }
        self.running = matched | earlier
        self._has_run |= bool(running)
        if not fds or len(running) + len(earlier) < len(fds):
            return False
        for tid in tids - running.keys() - set(earlier.values()):
            self._restore_mask(tid)
        self._old_masks, self._new_masks = {}, {}
        return True

    def release(self) -> None:
        """Give all threads their masks back, those of vCPUs, too; a changed mask stays."""
        self._is_released = True
        seen: set[int] = set()
        # a thread may have made others before it got its mask back
        while more := self._list_threads() - seen:
            for tid in more:
                self._restore_mask(tid)
            seen |= more
        self._old_masks, self._new_masks = {}, {}

    def _restore_mask(self, tid: int) -> None:
        """Give a thread the mask from before it was narrowed, unless somebody changed it."""
        known = self._find_known_thread(tid)
        before = self._old_masks.get(known)
        with suppress(OSError):
            if before and self._threads.get(tid) == self._new_masks[known]:
                self._threads.set(tid, before)

    def repair(
        self, is_chosen: Callable[[int, CpuSet], bool] = lambda tid, mask: False
    ) -> list[tuple[int, CpuSet, bool]]:
        """Narrow the masks of vCPU threads that can leave the CPUs, but for those `is_chosen`.

        Return these threads with the masks they had, each mask of a thread once, and whether they
        were narrowed: a mask that has none of the CPUs is not.
        """
        if self._is_released or not self.cpus:
            return []
        found: list[tuple[int, CpuSet, bool]] = []
        tids = self._list_threads()
        self._reported = {(tid, mask) for tid, mask in self._reported if tid in tids}
        for tid in sorted(self._find_vcpu_threads(tids)):
            with suppress(OSError):
                mask = self._threads.get(tid)
                if mask - self.cpus and not is_chosen(tid, mask):
                    if wanted := mask & self.cpus:
                        self._threads.set(tid, wanted)
                    if (tid, mask) not in self._reported:
                        found.append((tid, mask, bool(wanted)))
                        self._reported.add((tid, mask))
        return found

    def _find_vcpu_threads(self, tids: frozenset[int]) -> frozenset[int]:
        """Return which of these threads run vCPUs, or will: seen to run, named so, or makers."""
        creators = [tid for tid in self._creators.values() if tid != self._pid]
        # one that made several vCPUs runs none of them for that
        made_one = {tid for tid in creators if creators.count(tid) == 1}
        named = {
            tid for tid in tids if vcpu_of_thread(self._procs.comm(self._pid, tid)) is not None
        }
        running = {tid for tid in tids if self._detect_vcpu_thread(tid) is not None}
        return tids & (named | made_one | running)

    def has_run(self) -> bool:
        """Return whether a vCPU of this process was seen to run, now or before."""
        with suppress(ResourceExhaustedError):
            tids = self._list_threads()
            self._has_run |= any(self._detect_vcpu_thread(tid) is not None for tid in tids)
        return self._has_run

    def _detect_vcpu_thread(self, tid: int) -> tuple[int, ...] | None:
        """Return a tuple if this is a vCPU's thread, None if it is not known to be one.

        It is the system call if the thread is in KVM_RUN right now, empty if it has run guest
        code.
        """
        call = self._procs.syscall(self._pid, tid)
        is_run = len(call) > 2 and call[0] == self._arch.nr_ioctl and call[2] == KVM_RUN
        if is_run or self._procs.guest_time(self._pid, tid):
            return call if is_run else ()
        return None

    def _match_vcpus(
        self,
        running: Mapping[int, tuple[int, ...]],
        fds: Mapping[int, int],
    ) -> dict[int, int | None]:
        """Return which vCPU each of these threads runs, by the best evidence there is.

        That is the file descriptor in its KVM_RUN, else that the thread made the vCPU, else its
        name.
        """
        found: dict[int, int | None] = {}
        for tid, call in running.items():
            made = [index for index, creator in self._creators.items() if creator == tid]
            named = vcpu_of_thread(self._procs.comm(self._pid, tid))
            if call and call[1] in fds:
                found[fds[call[1]]] = tid
            elif len(made) == 1:
                found.setdefault(made[0], tid)
            elif named is not None and named in fds.values():
                found.setdefault(named, tid)
        if len(running) >= len(fds):
            for index in fds.values():
                found.setdefault(index, None)
        return found


def _make_pinned_error(tid: int, allowed: CpuSet, cpus: CpuSet) -> PinnedError:
    """Return the error for a thread whose mask has none of the CPUs."""
    return PinnedError(
        f"thread {tid} may not run on any of the CPUs {cpus}",
        why=f"it is pinned to {allowed}, and a mask is never widened",
    )
