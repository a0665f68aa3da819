# SPDX-License-Identifier: Apache-2.0
"""A watch over the masks of vCPU threads in the first seconds that they run.

A VMM or its manager may set them itself, as `lkvm --vcpu-affinity` and libvirt's vcpupin do, and
with that undo the confinement to the CPUs of a PMU. Later it is `pmuctl monitor` that sees it.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from pmuctl.errors import PinnedError, PmuctlError
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.launch.confinement import Confinement
from pmuctl.launch.observer import VmObserver
from pmuctl.model.cpuset import CpuSet
from pmuctl.value import value

WATCH_SECONDS = 10.0
"""How long masks are looked at from when a vCPU was first seen to run (seconds)."""
LOOK_SECONDS = 0.5
"""The time between two looks (seconds)."""
RECORD_SECONDS = 0.4
"""How long pmuctl may take from setting a mask to recording it (seconds): less than a look."""


@value
class Watch:
    """A process's confinement, when to look next, and when for the last time (monotonic)."""

    confinement: Confinement
    due: float
    end: float


class AffinityWatch:
    """Brings vCPU threads back onto their CPUs; `warn` is told of each by process, once.

    A mask inside the PMU of the VM is left alone if an admin has set it with pmuctl, which
    `observer` knows.
    """

    def __init__(self, observer: VmObserver, warn: Callable[[int, PmuctlError], None]) -> None:
        self._observer = observer
        self._warn = warn
        self._unrecorded: dict[int, dict[tuple[int, CpuSet], float]] = {}
        """By process, the threads and masks that pmuctl may be about to record, since when."""
        self._watches: dict[int, Watch] = {}

    def start(self, pid: int, confinement: Confinement, now: float) -> None:
        """Watch a process whose first vCPU was just seen to run, unless it is watched already."""
        if pid not in self._watches:
            with suppress(ResourceExhaustedError):  # then those that have ended stay for now
                self._watches = {
                    other: watch
                    for other, watch in self._watches.items()
                    if watch.confinement.is_there()
                }
            self._watches[pid] = Watch(confinement, now + LOOK_SECONDS, now + WATCH_SECONDS)

    def stop(self, pid: int) -> None:
        """Watch a process no more: it has ended, or another VM of it is to be watched anew."""
        self._watches.pop(pid, None)
        self._unrecorded.pop(pid, None)

    def poll(self, now: float) -> float | None:
        """Look at what is due; return the seconds to the next look, None if there is none."""
        for pid, watch in list(self._watches.items()):
            if now >= watch.due and self._is_on(pid, watch):
                self.look(pid, watch.confinement, now)
                self._watches[pid] = Watch(watch.confinement, now + LOOK_SECONDS, watch.end)
        due = [watch.due for pid, watch in self._watches.items() if self._is_on(pid, watch)]
        return max(0.0, min(due) - now) if due else None

    def _is_on(self, pid: int, watch: Watch) -> bool:
        """Return whether it is looked at again: twice more at most if something is undecided."""
        more = 2 * LOOK_SECONDS if pid in self._unrecorded else 0.0
        return watch.due <= watch.end + more

    def look(self, pid: int, confinement: Confinement, now: float) -> None:
        """Narrow the masks of vCPU threads that somebody has widened; a pin elsewhere stays."""
        found: list[tuple[int, CpuSet, bool]] = []
        before = self._unrecorded.pop(pid, {})
        with suppress(ResourceExhaustedError):  # a shortage passes
            found = confinement.repair(partial(self._is_chosen, pid, before, now))
        for tid, mask, is_repaired in found:
            if is_repaired:
                state = f"it was put back on {confinement.cpus}"
                fix = f"let nobody else set it, or let it be set within {confinement.cpus}"
            else:
                state = "it stays there"
                fix = f"taskset -p -c {confinement.cpus} {tid}"
            error = PinnedError(
                f"thread {tid} of a vCPU may run outside the CPUs {confinement.cpus}",
                why=f"its VMM, or somebody else, has set its affinity to {mask}",
                now=state,
                fix=fix,
            )
            self._warn(pid, error)

    def _is_chosen(
        self,
        pid: int,
        before: Mapping[tuple[int, CpuSet], float],
        now: float,
        tid: int,
        mask: CpuSet,
    ) -> bool:
        """Return whether an admin has put a thread on these CPUs of the VM's PMU with pmuctl.

        That is assumed of a mask not seen before: pmuctl sets all masks first, and records them
        then. `before` are those of which it was assumed at the last look, since when.
        """
        since = before.get((tid, mask), now)
        try:
            pmu_cpus = self._observer.pmu_cpus()
            if pmu_cpus is None or mask - pmu_cpus:
                return False
            recorded = self._observer.recorded_cpus(pid).get(tid)
        except ResourceExhaustedError:  # a shortage passes: it is decided at the next look
            self._unrecorded.setdefault(pid, {})[tid, mask] = since
            return True
        if recorded is not None and mask <= recorded:
            return True
        if now - since >= RECORD_SECONDS:
            return False
        self._unrecorded.setdefault(pid, {})[tid, mask] = since
        return True
