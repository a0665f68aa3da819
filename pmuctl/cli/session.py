# SPDX-License-Identifier: Apache-2.0
"""What the commands about VMs share: the session, what is listed, what could not be seen."""

from pmuctl.cli.context import Context
from pmuctl.control.runtime.sockets import SOCKETS_MAX
from pmuctl.errors import UsageError
from pmuctl.manage.inventory.inventory import VmList
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.inventory.unbacked_sockets import hide_unbacked
from pmuctl.render.formats import Format

VM_HELP = "A name, uuid/UUID or pid/PID."


def open_session(context: Context) -> Session:
    """Return how this command reaches the VMs of its host."""
    return Session(
        host=context.host,
        deadline=context.options.deadline,
        socket=context.options.socket,
        trace=context.trace,
    )


def check_one_host(context: Context) -> None:
    """Raise UsageError if both --socket and --sysroot are given: they are of two machines."""
    if context.options.sysroot is not None and context.options.socket is not None:
        raise UsageError(
            "--socket is a control socket of this machine, --sysroot is another one",
            fix="leave one of them out",
        )


def hide_unbacked_in_table(context: Context, session: Session, vms: VmList) -> VmList:
    """Return the VMs to list: in a table, sockets of other users with no VM behind are hidden.

    Every other format has them all.
    """
    return hide_unbacked(vms, session) if context.format is Format.TABLE else vms


def note_missing(context: Context, vms: VmList) -> None:
    """Note what this user cannot see, so that nobody takes a list for the whole."""
    if vms.unreadable:
        which = "process" if vms.unreadable == 1 else "processes"
        context.note(f"{vms.unreadable} {which} may not be read: VMs of theirs are not listed")
    if vms.left_out:
        which = "control socket" if vms.left_out == 1 else "control sockets"
        context.note(
            f"{vms.left_out} {which} of other users left out: "
            f"of each no more than {SOCKETS_MAX} are asked"
        )
    note_unbacked(context, vms)
    if vms.scratch:
        what = "1 scratch VM" if vms.scratch == 1 else f"{vms.scratch} scratch VMs"
        context.note(f"{what} of pmuctl's own probes, not listed")
    if vms.is_partial:
        context.note(
            "processes are hidden here (hidepid, or a container): VMs of theirs are not listed"
        )


def note_unbacked(context: Context, vms: VmList) -> None:
    """Note how many sockets of other users are hidden."""
    for uid, count in sorted(vms.unbacked.items()):
        context.note(
            f"{count} control sockets of uid {uid} tell of no VM, and there is none behind them: "
            "pmuctl vm list -J has them all"
        )
