# SPDX-License-Identifier: Apache-2.0
"""The confinements of all processes behind a gate, and when to look at each again."""

from pmuctl.host.procfs import Procfs
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.launch.confinement import Backoff, Confinement
from pmuctl.launch.trace.address_space import AddressSpaces
from pmuctl.launch.trace.arch import Arch
from pmuctl.model.cpuset import CpuSet


class ConfinedProcesses:
    """The confinement of each process, by process id; a new one is to the CPUs `cpus`."""

    def __init__(
        self,
        cpus: CpuSet | None,
        arch: Arch,
        procs: Procfs,
        threads: ThreadAffinity,
        spaces: AddressSpaces,
    ) -> None:
        self.backoffs: dict[int, Backoff] = {}
        """When to check for vCPUs that run, by process: none after all do."""
        self._cpus = cpus
        self._arch = arch
        self._procs = procs
        self._threads = threads
        self._spaces = spaces
        self._confinements: dict[int, Confinement] = {}

    def find_or_add(self, pid: int) -> Confinement:
        """Return the confinement of a process; those of processes that are gone are dropped."""
        known = self._confinements.get(pid)
        if known is None or not known.is_there():
            for other, confinement in list(self._confinements.items()):
                if other not in self.backoffs and not confinement.is_there():
                    del self._confinements[other]
            known = Confinement(pid, self._arch, self._procs, self._threads)
            known.cpus = self._cpus
            self._confinements[pid] = known
        return known

    def find_watched(self, pid: int) -> Confinement:
        """Return the confinement of a process that has a backoff, also if the process is gone."""
        return self._confinements[pid]

    def confine(self, pid: int) -> None:
        """Confine the threads of a process, and of those that share its memory.

        Raise PinnedError.
        """
        for sharing_pid in sorted(self._spaces.sharing_processes(pid)):
            confinement = self.find_or_add(sharing_pid)
            confinement.cpus = self.find_or_add(pid).cpus
            confinement.confine()

    def has_run(self, pid: int) -> bool:
        """Return whether a vCPU of a process was seen to run; False for a process not known."""
        confinement = self._confinements.get(pid)
        return confinement is not None and confinement.has_run()
