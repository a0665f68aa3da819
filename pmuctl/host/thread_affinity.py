# SPDX-License-Identifier: Apache-2.0
"""The CPU masks of threads: as /proc tells them, and sched_setaffinity(2)."""

import errno
import os
from pathlib import Path

from pmuctl.errors import UnsupportedError
from pmuctl.host.procfs import Procfs
from pmuctl.model.cpuset import CpuSet


class ThreadAffinity:
    """The threads of this machine, by thread id.

    Their ids come from /proc: where that is of another pid namespace, the kernel would take them
    for other threads' (pid_namespaces(7)), and all raises UnsupportedError.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc

    def get(self, tid: int) -> CpuSet:
        """The CPUs a thread may run on, offline ones too; raises OSError (ESRCH) where it is gone.

        It is what a mask that is to be cut down, or given back, has to be taken from:
        sched_getaffinity(2) leaves out what is offline, so a CPU that is so for a moment would be
        lost for good (kernel/sched/syscalls.c: cpumask_and(mask, &p->cpus_mask, cpu_active_mask)).
        """
        mask = Procfs(Path(self._proc)).affinity(self._thread(tid), tid)
        if mask is None:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return mask

    def set(self, tid: int, cpus: CpuSet) -> None:
        """Let a thread run on these CPUs only.

        Raises OSError: EINVAL where none of them is online and in its cpuset cgroup, EPERM for
        another user's thread, ESRCH where it is gone.
        """
        os.sched_setaffinity(self._thread(tid), cpus)

    def _thread(self, tid: int) -> int:
        """The thread id as it is, but for 0: to the kernel that is the thread that calls."""
        if tid <= 0:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
        if os.readlink(f"{self._proc}/self") != str(os.getpid()):
            raise UnsupportedError(
                "the CPUs of threads cannot be told or changed here",
                why="/proc is of another pid namespace: its ids are other threads' in this one",
                fix="run pmuctl in that namespace, or mount -t proc proc /proc",
            )
        return tid
