# SPDX-License-Identifier: Apache-2.0
"""How commands reach VMs: what a VM is called, and where this run of pmuctl looks for them."""

from pmuctl.cli.context import Context
from pmuctl.control.runtime.sockets import SOCKETS_MAX
from pmuctl.errors import UsageError
from pmuctl.manage.affinity.host_state import HostState, read_host_state
from pmuctl.manage.inventory.inventory import VmList
from pmuctl.manage.inventory.query import Session
from pmuctl.manage.inventory.unbacked_sockets import hide_unbacked
from pmuctl.render.formats import Format

VM_HELP = "A name, uuid/UUID or pid/PID."


def reach_of(context: Context) -> Session:
    """The VMs of this environment's user, under the options of the command."""
    return Session(
        environ=context.environ,
        uid=context.uid,
        deadline=context.options.deadline,
        socket=context.options.socket,
        procs=context.procs,
        sysfs=context.sysfs,
        is_live=context.options.sysroot is None,
        trace=context.trace,
    )


def site_of(context: Context) -> HostState:
    """The machine that VMs are judged and placed on, as it is now."""
    return read_host_state(reach_of(context), context.threads)


def check_place(context: Context) -> None:
    """Raise UsageError where two machines are named."""
    if context.options.sysroot is not None and context.options.socket is not None:
        raise UsageError(
            "--socket is a control socket of this machine, --sysroot is another one",
            fix="leave one of them out",
        )


def sifted(context: Context, seen: VmList) -> VmList:
    """VMs as a table lists them: sockets of other users with no VM do not bury the rest.

    Every other format has them all.
    """
    return hide_unbacked(seen, reach_of(context)) if context.format is Format.TABLE else seen


def tell_missing(context: Context, seen: VmList) -> None:
    """What this user cannot see: that there are no other VMs is not said."""
    if seen.unreadable:
        which = "process" if seen.unreadable == 1 else "processes"
        context.note(f"{seen.unreadable} {which} may not be read: VMs of theirs are not listed")
    if seen.left_out:
        which = "control socket" if seen.left_out == 1 else "control sockets"
        context.note(
            f"{seen.left_out} {which} of other users left out: "
            f"of each no more than {SOCKETS_MAX} are asked"
        )
    tell_hollow(context, seen)
    if seen.scratch:
        what = "1 scratch VM" if seen.scratch == 1 else f"{seen.scratch} scratch VMs"
        context.note(f"{what} of pmuctl's own probes, not listed")
    if seen.is_partial:
        context.note(
            "processes are hidden here (hidepid, or a container): VMs of theirs are not listed"
        )


def tell_hollow(context: Context, seen: VmList) -> None:
    """How many sockets of other users were sifted out."""
    for uid, count in sorted(seen.unbacked.items()):
        context.note(
            f"{count} control sockets of uid {uid} tell of no VM, and there is none behind them: "
            "pmuctl vm list -J has them all"
        )
