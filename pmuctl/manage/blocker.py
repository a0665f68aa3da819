# SPDX-License-Identifier: Apache-2.0
"""What keeps a thread off the CPUs it is wanted on, which the kernel calls EINVAL."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pmuctl.host.cgroup import Cpuset, read_cpuset
from pmuctl.host.procs import Procfs
from pmuctl.host.sysfs import PATH_CPU, Sysfs
from pmuctl.host.threads import Threads
from pmuctl.manage.choice import cpus_words
from pmuctl.model.align import Obstacle, find_obstacle
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kernel import Probed
from pmuctl.model.pmu import Pmu


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The machine that threads are placed on, by this user.

    `online` and `probed`, what probes of KVM found, are None where they are not known.
    """

    sysfs: Sysfs
    procs: Procfs
    threads: Threads
    environ: Mapping[str, str]
    uid: int
    pmus: Sequence[Pmu]
    online: CpuSet | None
    probed: Probed | None = None


@dataclass(frozen=True, slots=True)
class Blocker:
    """What keeps a thread off some CPUs, in words, and what to do about it."""

    words: str
    fix: str


def find_blocker(pid: int, tid: int, wanted: CpuSet, host: Host) -> Blocker | None:
    """What on this machine keeps a thread off all of these CPUs, None where nothing is known."""
    its = read_cpuset(host.sysfs, pid, tid)
    allowed = None if its is None else its.cpus
    match find_obstacle(wanted, online=host.online, allowed=allowed):
        case Obstacle.OFFLINE:
            first = next(iter(wanted), 0)
            return Blocker(
                f"{cpus_words(wanted)} offline (online are {host.online})",
                f"echo 1 >/{PATH_CPU}/cpu{first}/online",
            )
        case Obstacle.CPUSET if its is not None:
            return Blocker(
                f"{cpuset_words(its)} allows only {its.cpus or 'no CPU'}",
                f"echo {its.cpus | wanted} >{shlex.quote(f'{its.path}/cpuset.cpus')}",
            )
    return None


def cpuset_words(cpuset: Cpuset) -> str:
    """The name of a cpuset cgroup: its version and its directory."""
    return f"the cpuset cgroup (v{cpuset.version}) {cpuset.path}"
