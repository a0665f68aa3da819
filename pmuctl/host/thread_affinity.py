# SPDX-License-Identifier: Apache-2.0
"""CPU affinity masks of threads: read from /proc, set with sched_setaffinity(2)."""

import errno
import os
from pathlib import Path

from pmuctl.errors import UnsupportedError
from pmuctl.host.procfs import Procfs
from pmuctl.model.cpuset import CpuSet

NO_USABLE_CPU = "none of these CPUs is online and in the thread's cpuset cgroup"
"""What EINVAL of sched_setaffinity(2) means."""


class ThreadAffinity:
    """The affinity masks of this machine's threads, by thread id.

    Thread ids come from /proc. If /proc belongs to another pid namespace, the kernel would take
    them for the ids of other threads (pid_namespaces(7)): every method raises UnsupportedError.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._procfs = Procfs(Path(proc))
        self._is_own_namespace = False

    def get(self, tid: int) -> CpuSet:
        """Return the CPUs a thread may run on, offline ones too; raise OSError (ESRCH) if gone.

        A mask that will be narrowed or restored must be read here: sched_getaffinity(2) leaves
        out offline CPUs, so a CPU that is offline for a moment would be lost for good
        (kernel/sched/syscalls.c: cpumask_and(mask, &p->cpus_mask, cpu_active_mask)).
        """
        if not self._is_own_namespace:  # once is enough where nothing is changed
            self._check_tid(tid)
            self._is_own_namespace = True
        mask = self._procfs.affinity(tid, tid) if tid > 0 else None
        if mask is None:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return mask

    def set(self, tid: int, cpus: CpuSet) -> None:
        """Let a thread run on these CPUs only.

        Raise OSError: EINVAL if none of them is online and in its cpuset cgroup, EPERM for
        another user's thread, ESRCH if it is gone.
        """
        os.sched_setaffinity(self._check_tid(tid), cpus)

    def _check_tid(self, tid: int) -> int:
        """Return the thread id unchanged.

        Raise OSError (ESRCH) for 0, which the kernel takes for the calling thread, and below;
        UnsupportedError if /proc belongs to another pid namespace.
        """
        if tid <= 0:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
        if os.readlink(f"{self._proc}/self") != str(os.getpid()):
            raise UnsupportedError(
                "the CPUs of threads cannot be told or changed here",
                why="/proc is of another pid namespace: its ids are other threads' in this one",
                fix="run pmuctl in that namespace, or mount -t proc proc /proc",
            )
        return tid
