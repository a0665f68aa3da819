# SPDX-License-Identifier: Apache-2.0
"""Helpers of the commands about VMs: the session, and notes about VMs that are not listed."""

from collections.abc import Sequence

from pmuctl.cli.context import Context
from pmuctl.control.runtime.sockets import SOCKETS_MAX
from pmuctl.errors import UsageError
from pmuctl.manage.inventory.inventory import VmList
from pmuctl.manage.inventory.processes import WAIT_LONGER, explain_unscanned
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.inventory.unbacked_sockets import hide_unbacked
from pmuctl.model.alignment import VmAlignment
from pmuctl.model.cpuset import CpuSet
from pmuctl.render.formats import Format

VM_HELP = "VM name, uuid/UUID or pid/PID."
VMS_HELP = "VM name, quoted glob over names, uuid/UUID or pid/PID."
NOTHING_TO_DO = "nothing to do: already as requested"


def open_session(context: Context) -> Session:
    """Return the session by which this command queries the VMs of its host.

    Raise UsageError for a --socket that is a directory by its very name.
    """
    socket = context.options.socket
    if socket is not None and not socket.name:
        raise UsageError(f"{socket}: not a socket", fix="--socket takes a VMM's control socket")
    return Session(
        host=context.host,
        deadline=context.options.deadline,
        socket=socket,
        trace=context.trace if context.options.verbose else None,
    )


def check_one_host(context: Context) -> None:
    """Raise UsageError if both --socket and --sysroot are given: they are of different hosts."""
    if context.options.sysroot is not None and context.options.socket is not None:
        raise UsageError(
            "--socket and --sysroot cannot be combined",
            why="--socket is a control socket of this host, and --sysroot is another host",
            fix="omit one of them",
        )


def is_unbacked_hidden(context: Context) -> bool:
    """Return whether a list of all VMs hides sockets of other users with no VM behind them.

    A table does; every other format lists them all.
    """
    return context.format is Format.TABLE


def hide_unbacked_in_table(context: Context, session: Session, vms: VmList) -> VmList:
    """Return the VMs to list, by the rule of `is_unbacked_hidden`."""
    return hide_unbacked(vms, session) if is_unbacked_hidden(context) else vms


def note_missing(context: Context, vms: VmList) -> None:
    """Print notes on what this list lacks, so that nobody takes it for complete."""
    if vms.unreadable:
        what = (
            "process cannot be read: its"
            if vms.unreadable == 1
            else "processes cannot be read: their"
        )
        context.note(f"{vms.unreadable} {what} VMs are not listed")
    if vms.unscanned:
        context.note(f"{explain_unscanned(vms.unscanned)}; {WAIT_LONGER}")
    if vms.left_out:
        what = "socket of another user was" if vms.left_out == 1 else "sockets of other users were"
        context.note(
            f"{vms.left_out} control {what} not queried: the limit is {SOCKETS_MAX} per user"
        )
    for path in vms.unsearched:
        context.note(f"{path} is not searched: its file system may never answer (FUSE, network)")
    note_unbacked(context, vms)
    if vms.scratch:
        what = "1 scratch VM" if vms.scratch == 1 else f"{vms.scratch} scratch VMs"
        context.note(f"not listed: {what} of pmuctl's own probes")
    if vms.is_partial and context.options.sysroot is not None:
        context.note("not all processes of that host may be captured: it may have other VMs")
    elif vms.is_partial:
        context.note(
            "some processes are hidden (hidepid, or a container): their VMs are not listed"
        )


def count_missing(vms: VmList) -> dict[str, object]:
    """Return what this list lacks, as members of a JSON document."""
    return {
        "unreadable": vms.unreadable,
        "partial": vms.is_partial,
        "left_out": vms.left_out,
        "scratch": vms.scratch,
        "unscanned": sum(vms.unscanned.values()),
        "unsearched": [*map(str, vms.unsearched)],
    }


def warn_of_dead_vcpus(context: Context, alignments: Sequence[VmAlignment]) -> None:
    """Warn of vCPUs that have run and whose threads have ended."""
    for alignment in alignments:
        if dead := alignment.vm.dead_vcpus:
            # imported here, because no VM of a good host needs it
            from pmuctl.manage.affinity.vcpu_threads import make_dead_error

            context.warn(make_dead_error(alignment.vm, CpuSet.of(dead)))


def note_unbacked(context: Context, vms: VmList) -> None:
    """Print a note of how many sockets of each other user are hidden."""
    for uid, count in sorted(vms.unbacked.items()):
        context.note(
            f"{count} control sockets of uid {uid} are hidden, as they have no VM behind them: "
            "pmuctl vm list -J lists them"
        )
