# SPDX-License-Identifier: Apache-2.0
"""What speaks against CPUs for a vCPU thread: they are offline, of a cpuset or of another PMU."""

import shlex

from pmuctl.errors import NOTHING_CHANGED, RefusedError, command
from pmuctl.host.cpuset_cgroup import Cpuset
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.hints import bring_online, describe_cpus
from pmuctl.model.alignment import Obstacle, find_obstacle
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import Consequence
from pmuctl.model.vm import Vm
from pmuctl.value import value


@value
class Blocker:
    """Why a thread cannot be put on some CPUs, and the command that mends it."""

    why: str
    fix: str


def find_blocker(pid: int, tid: int, wanted: CpuSet, host_state: HostState) -> Blocker | None:
    """Return what keeps a thread off all of these CPUs; None if nothing is known to."""
    cpuset = host_state.cpusets.read(pid, tid)
    allowed = None if cpuset is None else cpuset.cpus
    match find_obstacle(wanted, online=host_state.online, allowed=allowed):
        case Obstacle.OFFLINE:
            return Blocker(
                f"{describe_cpus(wanted)} offline (online are {host_state.online})",
                bring_online(wanted or CpuSet.of([0])),
            )
        case Obstacle.CPUSET if cpuset is not None:
            return Blocker(
                f"{describe_cpuset(cpuset)} allows only {cpuset.cpus or 'no CPU'}",
                f"echo {cpuset.cpus | wanted} >{shlex.quote(cpuset.file)}",
            )
    return None


def describe_cpuset(cpuset: Cpuset) -> str:
    """Return the name of a cpuset cgroup: its version and its directory."""
    return f"the cpuset cgroup (v{cpuset.version}) {cpuset.path}"


def check_inside(cpus: CpuSet, pmu: CpuSet, vm: Vm, name: str) -> None:
    """Raise RefusedError unless all of these CPUs belong to the PMU `name`, which was set."""
    if outside := cpus - pmu:
        raise RefusedError(
            f"{describe_cpus(outside)} not of {name}",
            subject=vm.name,
            why=f"its CPUs are {pmu}; {Consequence.FAIL_ENTRY.explain()}",
            now=NOTHING_CHANGED,
            fix=command("affinity", "set", vm.address, cpus & pmu or pmu),
        )
