# SPDX-License-Identifier: Apache-2.0
"""pmuctl vm: the VMs of a host, and their PMU settings."""

from collections.abc import Sequence
from typing import Annotated

import typer

from pmuctl.cli.app import command, make_noun
from pmuctl.cli.context import Context
from pmuctl.cli.options import CONNECTION, DRY_RUN, OUTPUT, SETTINGS, SYSROOT, VERBOSITY, Timeout
from pmuctl.cli.session import VM_HELP, check_place, reach_of, sifted, site_of, tell_missing
from pmuctl.errors import ExitStatus
from pmuctl.manage.affinity.assess import assess, vcpu_rows
from pmuctl.manage.inventory.inventory import Inventory, VmList
from pmuctl.manage.inventory.lookup import list_vms, lookup_vm
from pmuctl.manage.inventory.wait import Awaited, wait_for
from pmuctl.model.alignment import VmAlignment
from pmuctl.model.vm import Vm
from pmuctl.model.vm_ref import parse_ref
from pmuctl.render.vcpu import PLACED_COLUMNS
from pmuctl.render.vm import VM_COLUMNS
from pmuctl.value import replace

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
    seen = _take_stock(context, vm)
    site = site_of(context)
    vms = [assess(its, site) for its in seen.vms]
    context.write_rows("vms", VM_COLUMNS, vms, empty="no VM", more=_missing(seen))
    _warn_of(context, seen.vms)
    if not vm:
        tell_missing(context, seen)


@command(app, "show", OUTPUT, CONNECTION, SYSROOT)
def vm_show(context: Context, vm: VmName) -> None:
    """Show one VM in full.

    Its window, its settings with the origin of each, and its vCPUs.
    """
    check_place(context)
    with context.waiting_for(vm):
        its = lookup_vm(Inventory(reach_of(context)), parse_ref(vm))
    site = site_of(context)
    if its.filter is not None and its.pmu is not None:
        names = [pmu.events for pmu in site.pmus if pmu.name == its.pmu.name]
        its = replace(its, event_names=names[0] if names else {})
    context.write_one("vm", VM_COLUMNS, assess(its, site))


@command(app, "vcpus", OUTPUT, CONNECTION, SYSROOT)
def vm_vcpus(
    context: Context,
    vm: Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help=VM_HELP)] = None,
) -> None:
    """List vCPUs: where their threads may be, and whether they can leave their PMU."""
    context.check_columns(PLACED_COLUMNS)
    seen = _take_stock(context, vm)
    for its in seen.vms if vm else ():
        # of one that is named, no answer is no list
        if its.query_error is not None:
            raise its.query_error
    site = site_of(context)
    rows = [row for its in seen.vms for row in vcpu_rows(assess(its, site), site)]
    context.write_rows("vcpus", PLACED_COLUMNS, rows, empty="no vCPU", more=_missing(seen))
    _warn_of(context, seen.vms)
    if not vm:
        tell_missing(context, seen)


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

    def held(its: Vm) -> VmAlignment:
        return assess(its, site_of(context))

    context.enable_gc()
    with context.waiting_for(f"{vm} to be {awaited}"):
        seen = wait_for(reach_of(context), parse_ref(vm), awaited, timeout=timeout, hold=held)
    if seen is None:
        return ExitStatus.OK
    context.note(f"{vm}: not {awaited} after {timeout:g} s: {seen}")
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
    from pmuctl.cli.change import change_settings

    change_settings(context, vm, settings)


@command(app, "release", OUTPUT, CONNECTION, DRY_RUN)
def vm_release(context: Context, vm: VmName) -> None:
    """Let a VM that waits go on.

    Its window closes: from then on KVM takes no settings.
    """
    from pmuctl.cli.change import release

    release(context, vm)


def _take_stock(context: Context, vms: Sequence[str] | None) -> VmList:
    check_place(context)
    with context.waiting_for("VMs"):
        seen = list_vms(reach_of(context), [parse_ref(vm) for vm in vms or ()])
    return seen if vms else sifted(context, seen)


def _missing(seen: VmList) -> dict[str, object]:
    return {
        "unreadable": seen.unreadable,
        "partial": seen.is_partial,
        "left_out": seen.left_out,
        "scratch": seen.scratch,
    }


def _warn_of(context: Context, vms: Sequence[Vm]) -> None:
    for vm in vms:
        if vm.problem is not None:
            context.warn(vm.problem)
