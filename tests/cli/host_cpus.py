# SPDX-License-Identifier: Apache-2.0
"""CPUs of the captured machine that go offline, and cpusets that its threads are put into."""

import os

from pmuctl.model.cpuset import CpuSet
from tests.cli.conftest import Machine
from tests.fakes.vmm import KernelThreads

MOUNT = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


def write(machine: Machine, path: str, text: str) -> None:
    """A file of the machine, whose every link is its own."""
    (machine.root / path).parent.mkdir(parents=True, exist_ok=True)
    (machine.root / path).write_text(text)


def put_online(machine: Machine, cpus: str) -> None:
    write(machine, "sys/devices/system/cpu/online", f"{cpus}\n")
    threads_of(machine).online = CpuSet.parse(cpus)


def put_cpuset(machine: Machine, cpus: str, *tids: int) -> str:
    """Put threads into a cpuset; its directory."""
    write(machine, "proc/self/mountinfo", MOUNT)
    group = machine.root / "sys/fs/cgroup"
    for name, text in (("", "0-3"), ("vm/", cpus)):
        write(machine, f"sys/fs/cgroup/{name}cpuset.cpus.effective", f"{text}\n")
    write(machine, "sys/fs/cgroup/vm/cpuset.cpus", f"{cpus}\n")
    assert group.is_dir()
    for tid in tids:
        write(machine, f"proc/{os.getpid()}/task/{tid}/cgroup", "0::/vm\n")
        threads_of(machine).cpusets[tid] = CpuSet.parse(cpus)
    return "/sys/fs/cgroup/vm"


def threads_of(machine: Machine) -> KernelThreads:
    assert isinstance(machine.threads, KernelThreads)
    return machine.threads
