# SPDX-License-Identifier: Apache-2.0
"""The CPU masks of threads: sched_getaffinity(2) and sched_setaffinity(2)."""

import errno
import os

from pmuctl.model.cpuset import CpuSet


class Threads:
    """The threads of this machine, by thread id."""

    def affinity(self, tid: int) -> CpuSet:
        """The CPUs a thread may run on; raises OSError (ESRCH) where it is gone."""
        return CpuSet.of(os.sched_getaffinity(_thread(tid)))

    def place(self, tid: int, cpus: CpuSet) -> None:
        """Let a thread run on these CPUs only.

        Raises OSError: EINVAL where none of them is online and in its cpuset cgroup, EPERM for
        another user's thread, ESRCH where it is gone.
        """
        os.sched_setaffinity(_thread(tid), cpus)


def _thread(tid: int) -> int:
    """The thread id as it is, but for 0: to the kernel that is the thread that calls."""
    if tid <= 0:
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
    return tid
