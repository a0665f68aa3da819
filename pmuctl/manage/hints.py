# SPDX-License-Identifier: Apache-2.0
"""Shell commands for the `fix` line of an error, and phrases that several messages share."""

from collections.abc import Iterable
from shlex import quote

from pmuctl.errors import command
from pmuctl.host.sysfs import PATH_CPU
from pmuctl.model.cpuset import CpuSet

MOUNT_DEBUGFS = "mount -t debugfs none /sys/kernel/debug"
FIND_OUT_PMU = (
    "in the guest: perf stat -e cycles true; 0 or <not counted> means that the CPUs it is on are "
    "not those of its PMU"
)
"""How to find out which PMU KVM chose for a VM: its counters stop on the CPUs of any other."""


def pin_command(vm: str, choices: Iterable[CpuSet | None], online: CpuSet | None) -> str | None:
    """Return the command that pins a VM to the CPUs of one of several PMUs, the likeliest first.

    No thread can be put on CPUs that are all offline, so such PMUs are passed over, and so are
    those whose CPUs are not known (None). Return None if no PMU is left.
    """
    usable = (cpus for cpus in choices if cpus and (online is None or cpus & online))
    return next((command("affinity", "set", vm, cpus) for cpus in usable), None)


def bring_online(cpus: CpuSet) -> str:
    """Return the command that brings the first of these CPUs online."""
    return f"echo 1 >/{PATH_CPU}/cpu{next(iter(cpus), 0)}/online"


def grant_kvm_access(group: str | None) -> str:
    """Return the command that lets USER open /dev/kvm; `group` is the group that may, if any."""
    return f"usermod -aG {quote(group)} USER" if group else "setfacl -m u:USER:rw /dev/kvm"


def describe_cpus(cpus: CpuSet) -> str:
    """Return "CPU 3 is" or "CPUs 2-3 are"."""
    return f"CPU {cpus} is" if len(cpus) == 1 else f"CPUs {cpus} are"


def describe_count(count: int, noun: str) -> str:
    """Return "1 VM" or "2 VMs" for the noun "VM"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
