# SPDX-License-Identifier: Apache-2.0
"""The PMU that KVM has chosen for the VMs of a process, as far as that was observed."""

from collections.abc import Mapping
from contextlib import suppress

from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import default_by_cpu
from pmuctl.model.vmm.identity import identify


class DefaultPmuTracker:
    """The CPUs on which the threads of each process could be when KVM chose.

    All calls of a process must agree on one PMU, whichever VM they were for: descriptors of VMs
    are reused, and duplicated. `defaults` is as in the launch spec.
    """

    def __init__(
        self, defaults: Mapping[tuple[int, str], CpuSet], procs: Procfs, threads: ThreadAffinity
    ) -> None:
        self._defaults = defaults
        self._procs = procs
        self._threads = threads
        self._cpus: dict[int, CpuSet | None] = {}
        """By process, all CPUs of these masks together; None if one of them is not known."""

    def record(self, tgid: int, tid: int | None) -> None:
        """Record that KVM may choose by where this thread is; None if the thread is not known."""
        if not self._defaults:
            return
        mask = None
        with suppress(OSError):
            mask = None if tid is None else self._threads.get(tid)
        if tgid not in self._cpus:
            self._drop_ended()
        before = self._cpus.get(tgid, CpuSet())
        # KVM may have chosen by any of the masks, so that all have to be of one PMU
        self._cpus[tgid] = before | mask if mask and before is not None else None

    def _drop_ended(self) -> None:
        """Drop the processes that have ended; one with the same id may take the place of one."""
        with suppress(ResourceExhaustedError):  # they are dropped later
            self._cpus = {
                pid: cpus for pid, cpus in self._cpus.items() if self._procs.threads(pid)
            }

    def default_pmu(self, tgid: int) -> tuple[int, str] | None:
        """Return the PMU that KVM has chosen, None if that is not certain.

        It is not certain for a VMM that may set a PMU by itself later, nor for one that is not
        known.
        """
        pmu = default_by_cpu([self._cpus.get(tgid)], self._defaults)
        if pmu is None:
            return None
        vmm = identify(self._procs.command_line(tgid), self._procs.comm(tgid, tgid))
        return pmu if vmm.kind is not None and not vmm.sets_pmu else None
