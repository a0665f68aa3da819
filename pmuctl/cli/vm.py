# SPDX-License-Identifier: Apache-2.0
"""pmuctl vm: the VMs of a host, and their PMU settings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pmuctl.cli.app import command, make_noun
from pmuctl.cli.context import Context
from pmuctl.cli.options import CONNECTION, DRY_RUN, OUTPUT, SETTINGS, SYSROOT, VERBOSITY, Timeout
from pmuctl.cli.session import (
    VM_HELP,
    check_one_host,
    hide_unbacked_in_table,
    note_missing,
    open_session,
)
from pmuctl.errors import ExitStatus, OutputError
from pmuctl.manage.affinity.assess import assess, vcpu_rows
from pmuctl.manage.affinity.host_state import HostState, read_host_state
from pmuctl.manage.inventory.inventory import Inventory, VmList
from pmuctl.manage.inventory.lookup import list_vms, lookup_vm
from pmuctl.manage.inventory.wait import Awaited, wait_for
from pmuctl.model.alignment import VmAlignment
from pmuctl.model.vm import Vm
from pmuctl.model.vm_ref import parse_ref
from pmuctl.render.formats import Format
from pmuctl.render.vcpu import PLACED_COLUMNS
from pmuctl.render.vm import VM_COLUMNS
from pmuctl.value import replace

if TYPE_CHECKING:
    from pmuctl.manage.settings.result import KeyResult

app = make_noun("vm")

VmName = Annotated[str, typer.Argument(metavar="VM", help=VM_HELP)]


@command(app, "list", OUTPUT, CONNECTION, SYSROOT)
def vm_list(
    context: Context,
    vm: Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help=VM_HELP)] = None,
) -> None:
    """List the VMs of this host, or those that are named.

    Those that have a control socket are asked, the others are found by their processes.
    """
    context.check_columns(VM_COLUMNS)
    host_state, vm_list = _read_vms(context, vm)
    vms = [assess(vm, host_state) for vm in vm_list.vms]
    context.write_rows("vms", VM_COLUMNS, vms, empty="no VM", more=_count_missing(vm_list))
    _warn_of_problems(context, vm_list.vms)
    if not vm:
        note_missing(context, vm_list)


@command(app, "show", OUTPUT, CONNECTION, SYSROOT)
def vm_show(context: Context, vm: VmName) -> None:
    """Show one VM in full.

    Its window, its settings with the origin of each, and its vCPUs.
    """
    check_one_host(context)
    host_state = read_host_state(context.host)
    with context.waiting_for(vm):
        found = lookup_vm(Inventory(open_session(context)), parse_ref(vm))
    if found.filter is not None and found.pmu is not None:
        names = [pmu.events for pmu in host_state.pmus if pmu.name == found.pmu.name]
        found = replace(found, event_names=names[0] if names else {})
    context.write_one("vm", VM_COLUMNS, assess(found, host_state))


@command(app, "vcpus", OUTPUT, CONNECTION, SYSROOT)
def vm_vcpus(
    context: Context,
    vm: Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help=VM_HELP)] = None,
) -> None:
    """List vCPUs: where their threads may be, and whether they can leave their PMU."""
    context.check_columns(PLACED_COLUMNS)
    host_state, vm_list = _read_vms(context, vm)
    for found in vm_list.vms if vm else ():
        # of one that is named, no answer is no list
        if found.query_error is not None:
            raise found.query_error
    rows = [
        row for found in vm_list.vms for row in vcpu_rows(assess(found, host_state), host_state)
    ]
    context.write_rows(
        "vcpus", PLACED_COLUMNS, rows, empty="no vCPU", more=_count_missing(vm_list)
    )
    _warn_of_problems(context, vm_list.vms)
    if not vm:
        note_missing(context, vm_list)


@command(app, "wait", VERBOSITY, CONNECTION)
def vm_wait(
    context: Context,
    vm: VmName,
    *,
    awaited: Annotated[
        Awaited, typer.Option("--for", metavar="STATE", help=f"One of {', '.join(Awaited)}.")
    ],
    timeout: Timeout = None,
) -> int:
    """Wait until a VM is in a state; it need not be there yet.

    Exit status 0 once it is, 1 if --timeout has passed before.
    """

    def assess_now(vm: Vm) -> VmAlignment:
        return assess(vm, read_host_state(context.host))

    context.enable_gc()
    with context.waiting_for(f"{vm} to be {awaited}"):
        last_seen = wait_for(
            open_session(context), parse_ref(vm), awaited, timeout=timeout, assess=assess_now
        )
    if last_seen is None:
        return ExitStatus.OK
    context.note(f"{vm}: not {awaited} after {timeout:g} s: {last_seen}")
    return ExitStatus.NO


@command(app, "set", OUTPUT, CONNECTION, DRY_RUN)
def vm_set(
    context: Context,
    vm: VmName,
    settings: Annotated[
        list[str], typer.Argument(metavar="KEY VALUE...", help=SETTINGS, show_default=False)
    ],
) -> None:
    """Set a VM's PMU, counters, affinity and event filter.

    All is done in one transaction, or nothing is. EVENTS is a comma list of names of the PMU's
    events, codes and ranges (0x10-0x1f) and quoted globs. vCPU threads are kept on the CPUs of
    the PMU, unless affinity says otherwise.
    """
    # here, because to look at VMs needs none of it
    from pmuctl.cli.settings_parser import parse_settings
    from pmuctl.manage.settings.transaction import change_settings
    from pmuctl.render.reports import CHANGE_COLUMNS

    context.check_columns(CHANGE_COLUMNS)
    request, dry_run = parse_settings(settings), context.options.dry_run
    host_state = read_host_state(context.host)
    with context.waiting_for(vm):
        result = change_settings(
            open_session(context), parse_ref(vm), request, host_state, dry_run=dry_run
        )
    for warning in result.warnings:
        context.warn(warning)
    if dry_run and context.format is Format.TABLE:
        steps = result.steps or ("nothing to do: all of it holds already",)
        context.write_lines([f"{result.vm}: {step}" for step in steps])
        return
    for step in result.steps:
        context.trace(f"{result.vm}: {step}")
    _write_changes(context, result.changes, result.steps)


@command(app, "release", OUTPUT, CONNECTION, DRY_RUN)
def vm_release(context: Context, vm: VmName) -> None:
    """Let a VM that waits go on.

    Its window closes: from then on KVM takes no settings.
    """
    from pmuctl.manage.settings.transaction import release_vm
    from pmuctl.render.reports import CHANGE_COLUMNS

    context.check_columns(CHANGE_COLUMNS)
    with context.waiting_for(vm):
        change = release_vm(open_session(context), parse_ref(vm), dry_run=context.options.dry_run)
    _write_changes(context, [change], ())


def _read_vms(context: Context, names: Sequence[str] | None) -> tuple[HostState, VmList]:
    """Read the host, then its VMs: those that are named, or all there are to list."""
    check_one_host(context)
    session = open_session(context)
    with context.waiting_for("VMs"):
        host_state = read_host_state(context.host)
        vms = list_vms(session, [parse_ref(name) for name in names or ()])
    return host_state, vms if names else hide_unbacked_in_table(context, session, vms)


def _count_missing(vms: VmList) -> dict[str, object]:
    return {
        "unreadable": vms.unreadable,
        "partial": vms.is_partial,
        "left_out": vms.left_out,
        "scratch": vms.scratch,
    }


def _warn_of_problems(context: Context, vms: Sequence[Vm]) -> None:
    for vm in vms:
        if vm.problem is not None:
            context.warn(vm.problem)


def _write_changes(context: Context, changes: "Sequence[KeyResult]", steps: Sequence[str]) -> None:
    """Write what became of each key, a row each; nothing with `--quiet`.

    If that cannot be written, the error says that the changes hold all the same.
    """
    from pmuctl.render.reports import CHANGE_COLUMNS

    if context.format is Format.TABLE and context.options.quiet:
        return
    more = {"steps": list(steps)}
    try:
        context.write_rows("results", CHANGE_COLUMNS, changes, empty="", headings=False, more=more)
    except OutputError as error:
        error.subject = changes[0].vm
        error.now = ", ".join(f"{change.key} {change.outcome}" for change in changes)
        raise
