# SPDX-License-Identifier: Apache-2.0
"""How commands reach VMs: what a VM is called, and where this run of pmuctl looks for them."""

from pmuctl.cli.env import Env
from pmuctl.manage.vms import Reach

VM_HELP = "A name, uuid/UUID or pid/PID."


def reach_of(env: Env) -> Reach:
    """The VMs of this environment's user, under the options of the command."""
    return Reach(
        environ=env.environ,
        uid=env.uid,
        deadline=env.options.deadline,
        socket=env.options.socket,
        procs=env.procs,
        sysfs=env.sysfs,
        is_live=env.options.sysroot is None,
        trace=env.trace,
    )
