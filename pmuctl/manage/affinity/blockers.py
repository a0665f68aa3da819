# SPDX-License-Identifier: Apache-2.0
"""What keeps a thread off the CPUs it is wanted on, which the kernel calls EINVAL."""

import shlex

from pmuctl.host.cpuset_cgroup import Cpuset
from pmuctl.host.sysfs import PATH_CPU
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.hints import cpus_words
from pmuctl.model.alignment import Obstacle, find_obstacle
from pmuctl.model.cpuset import CpuSet
from pmuctl.value import value


@value
class Blocker:
    """What keeps a thread off some CPUs, in words, and what to do about it."""

    words: str
    fix: str


def find_blocker(pid: int, tid: int, wanted: CpuSet, host_state: HostState) -> Blocker | None:
    """What on this machine keeps a thread off all of these CPUs, None where nothing is known."""
    its = host_state.cpusets.read(pid, tid)
    allowed = None if its is None else its.cpus
    match find_obstacle(wanted, online=host_state.online, allowed=allowed):
        case Obstacle.OFFLINE:
            first = next(iter(wanted), 0)
            return Blocker(
                f"{cpus_words(wanted)} offline (online are {host_state.online})",
                f"echo 1 >/{PATH_CPU}/cpu{first}/online",
            )
        case Obstacle.CPUSET if its is not None:
            return Blocker(
                f"{cpuset_words(its)} allows only {its.cpus or 'no CPU'}",
                f"echo {its.cpus | wanted} >{shlex.quote(its.file)}",
            )
    return None


def cpuset_words(cpuset: Cpuset) -> str:
    """The name of a cpuset cgroup: its version and its directory."""
    return f"the cpuset cgroup (v{cpuset.version}) {cpuset.path}"
