# SPDX-License-Identifier: Apache-2.0
"""How commands reach VMs: what a VM is called, and where this run of pmuctl looks for them."""

from pmuctl.cli.context import Env
from pmuctl.control.runtime.sockets import SOCKETS_MAX
from pmuctl.errors import UsageError
from pmuctl.manage.affinity.host_state import Site, read_site
from pmuctl.manage.inventory.inventory import Listing
from pmuctl.manage.inventory.query import Reach
from pmuctl.manage.inventory.unbacked_sockets import sift
from pmuctl.render.formats import Format

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


def site_of(env: Env) -> Site:
    """The machine that VMs are judged and placed on, as it is now."""
    return read_site(reach_of(env), env.threads)


def check_place(env: Env) -> None:
    """Raise UsageError where two machines are named."""
    if env.options.sysroot is not None and env.options.socket is not None:
        raise UsageError(
            "--socket is a control socket of this machine, --sysroot is another one",
            fix="leave one of them out",
        )


def sifted(env: Env, seen: Listing) -> Listing:
    """VMs as a table lists them: sockets of other users with no VM do not bury the rest.

    Every other format has them all.
    """
    return sift(seen, reach_of(env)) if env.format is Format.TABLE else seen


def tell_missing(env: Env, seen: Listing) -> None:
    """What this user cannot see: that there are no other VMs is not said."""
    if seen.unreadable:
        which = "process" if seen.unreadable == 1 else "processes"
        env.say(f"{seen.unreadable} {which} may not be read: VMs of theirs are not listed")
    if seen.left_out:
        which = "control socket" if seen.left_out == 1 else "control sockets"
        env.say(
            f"{seen.left_out} {which} of other users left out: "
            f"of each no more than {SOCKETS_MAX} are asked"
        )
    tell_hollow(env, seen)
    if seen.scratch:
        what = "1 scratch VM" if seen.scratch == 1 else f"{seen.scratch} scratch VMs"
        env.say(f"{what} of pmuctl's own probes, not listed")
    if seen.is_partial:
        env.say(
            "processes are hidden here (hidepid, or a container): VMs of theirs are not listed"
        )


def tell_hollow(env: Env, seen: Listing) -> None:
    """How many sockets of other users were sifted out."""
    for uid, count in sorted(seen.hollow.items()):
        env.say(
            f"{count} control sockets of uid {uid} tell of no VM, and there is none behind them: "
            "pmuctl vm list -J has them all"
        )
