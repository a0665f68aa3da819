# SPDX-License-Identifier: Apache-2.0
"""The processes behind a gate, each of which may make VMs, and those that share their memory."""

from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.launch.confined_processes import ConfinedProcesses
from pmuctl.launch.failures import not_stopped, not_traceable
from pmuctl.launch.trace.address_space import AddressSpaces
from pmuctl.launch.trace.tracer import Tracer
from pmuctl.value import value


@value
class VmmProcesses:
    """What a supervisor reads and changes of these processes.

    `tracer` has their threads, `spaces` who shares whose memory, `confined` the CPUs they are
    confined to.
    """

    procs: Procfs
    tracer: Tracer
    spaces: AddressSpaces
    confined: ConfinedProcesses

    def find_sharing(self, pid: int) -> set[int]:
        """Return the processes that share the memory of one, or those known where all are not."""
        try:
            return self.spaces.scan_sharing_processes(pid)
        except ResourceExhaustedError:
            return self.spaces.sharing_processes(pid)

    def follow_sharing(self, pid: int) -> None:
        """Follow all tasks with the memory of a process.

        Raise PmuctlError if one may not be traced or does not stop, ResourceExhaustedError if
        they cannot be listed.
        """
        followed: set[int] = set()
        try:
            # they may have made others meanwhile
            while new := self.spaces.scan_sharing_processes(pid) - followed:
                for tgid in new:
                    self.tracer.follow_all(tgid)
                followed |= new
        except PermissionError:
            raise not_traceable(self.procs, pid) from None
        except TimeoutError as error:
            raise not_stopped(error) from None
