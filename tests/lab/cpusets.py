# SPDX-License-Identifier: Apache-2.0
"""Cpuset cgroups of both versions in the lab."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.errors import Result
from tests.lab.machine import Lab
from tests.skips import skip

V1, V2 = "/tmp/cpuset", "/sys/fs/cgroup"


def sh(lab: Lab, script: str, *, check: bool = True) -> Result:
    return lab.run(["sh", "-c", script], check=check)


EMPTY = """
while p=$(head -n 1 {root}/vm/cgroup.procs) && [ "$p" ]; do
    echo "$p" 2>/dev/null >{root}/cgroup.procs || sleep 0.1  # it is about to end
done
"""


def empty(lab: Lab, root: str) -> None:
    """Take all processes out of the group, so that it can be removed."""
    sh(lab, EMPTY.format(root=root))


@contextmanager
def cpuset_v2(lab: Lab, cpus: str = "0-1") -> Iterator[str]:
    """A cpuset of these CPUs in the unified hierarchy: its directory."""
    sh(lab, f"mkdir -p {V2}; grep -q ' {V2} ' /proc/mounts || mount -t cgroup2 none {V2}")
    sh(lab, f"echo +cpuset >{V2}/cgroup.subtree_control; mkdir {V2}/vm")
    sh(lab, f"echo {cpus} >{V2}/vm/cpuset.cpus")
    try:
        yield f"{V2}/vm"
    finally:
        empty(lab, V2)
        sh(lab, f"rmdir {V2}/vm; echo -cpuset >{V2}/cgroup.subtree_control")


@contextmanager
def cpuset_v1(lab: Lab) -> Iterator[str]:
    """The same in a hierarchy of version 1, where the kernel has that."""
    mounted = sh(lab, f"mkdir -p {V1}; mount -t cgroup -o cpuset none {V1}", check=False)
    if mounted.status:
        skip(
            f"this kernel has no cpuset of version 1: {mounted.stderr.strip()}",
            runs="on 6.1",
        )
    sh(lab, f"mkdir {V1}/vm; echo 0-1 >{V1}/vm/cpuset.cpus; echo 0 >{V1}/vm/cpuset.mems")
    try:
        yield f"{V1}/vm"
    finally:
        empty(lab, V1)
        sh(lab, f"rmdir {V1}/vm; umount {V1}")
