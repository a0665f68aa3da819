# SPDX-License-Identifier: Apache-2.0
"""Commands that mend something, for the `fix` line of an error."""

from collections.abc import Iterable
from shlex import quote

from pmuctl.errors import command
from pmuctl.host.sysfs import PATH_CPU
from pmuctl.model.cpuset import CpuSet

MOUNT_DEBUGFS = "mount -t debugfs none /sys/kernel/debug"


def pins(vm: str, choices: Iterable[CpuSet | None]) -> str:
    """The commands of which one keeps a VM on its PMU, where that is one of several; `choices`
    are their CPUs."""
    return " or ".join(command("affinity", "set", vm, cpus) for cpus in choices if cpus)


def cpus_words(cpus: CpuSet) -> str:
    """ "CPU 3 is" or "CPUs 2-3 are"."""
    return f"CPU {cpus} is" if len(cpus) == 1 else f"CPUs {cpus} are"


def bring_online(cpus: CpuSet) -> str:
    """The command that brings the first of these CPUs online."""
    return f"echo 1 >/{PATH_CPU}/cpu{next(iter(cpus))}/online"


def giving_access(group: str | None) -> str:
    """The command that lets USER open /dev/kvm, which this group may, if there is one."""
    return f"usermod -aG {quote(group)} USER" if group else "setfacl -m u:USER:rw /dev/kvm"
