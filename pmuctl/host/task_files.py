# SPDX-License-Identifier: Apache-2.0
"""What tasks share: open files, tables of descriptors and memory, as kcmp(2) tells, and pids."""

import re
from pathlib import Path

from pmuctl.host.proc_files import ProcFiles
from pmuctl.value import value

_SEVERAL_PIDS = re.compile(rb"^NSpid:(?:\t[0-9]{1,10}){2}", re.MULTILINE)


@value
class TaskFiles(ProcFiles):
    """Comparisons of tasks. Only the running kernel knows, of those that this user may look at.

    They load ctypes, which few commands need.
    """

    def shares_pids(self, pid: int) -> bool:
        """Return whether a process knows others by the pids that they have in this procfs.

        The kernel lists its pids in each namespace from that of the mount down (NSpid in
        proc_pid_status(5)). Return False if they cannot be read, and True if the kernel has no
        namespaces.
        """
        try:
            return _SEVERAL_PIDS.search(self._read_file(f"{pid}/status")) is None
        except OSError:
            return False

    @property
    def _is_running_kernel(self) -> bool:
        return self.root == Path("/proc")

    def is_same_file(self, pid: int, fd: int, other_pid: int, other_fd: int) -> bool | None:
        """Return whether descriptors of two tasks refer to one open file; None if unknown."""
        if not self._is_running_kernel:
            return None
        from pmuctl.uapi.pidfd import kcmp_file

        return kcmp_file(pid, fd, other_pid, other_fd)

    def shares_memory(self, pid: int, other_pid: int) -> bool | None:
        """Return whether two tasks share their memory; None if that cannot be told."""
        if not self._is_running_kernel:
            return None
        from pmuctl.uapi.pidfd import kcmp_memory

        return kcmp_memory(pid, other_pid)

    def order_tables(self, tid: int, other_tid: int) -> int | None:
        """Return how the kernel orders the descriptor tables of two tasks; None if unknown.

        That is 0 if it is one table, 1 if the first comes before the second, 2 if it comes after.
        """
        if not self._is_running_kernel:
            return None
        from pmuctl.uapi.pidfd import kcmp_descriptors_order

        return kcmp_descriptors_order(tid, other_tid)

    def shares_fds(self, tid: int, other_tid: int) -> bool | None:
        """Return whether two tasks share their descriptors; None if that cannot be told."""
        if not self._is_running_kernel:
            return None
        from pmuctl.uapi.pidfd import kcmp_descriptors

        return kcmp_descriptors(tid, other_tid)
