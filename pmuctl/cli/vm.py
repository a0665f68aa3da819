# SPDX-License-Identifier: Apache-2.0
"""pmuctl vm: the VMs of a host and their PMU settings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pmuctl.cli.app import NOUNS, Noun, command
from pmuctl.cli.context import Context
from pmuctl.cli.options import CONNECTION, DRY_RUN, OUTPUT, SETTINGS, SYSROOT, VERBOSITY, Timeout
from pmuctl.cli.session import (
    NOTHING_TO_DO,
    VM_HELP,
    VMS_HELP,
    check_one_host,
    count_missing,
    is_unbacked_hidden,
    note_missing,
    open_session,
    warn_of_dead_vcpus,
)
from pmuctl.errors import ExitStatus, OutputError, PmuctlError, UsageError, WrongWordError
from pmuctl.manage.affinity.assess import (
    AssessedVms,
    assess,
    assess_named_vm,
    assess_vms,
    vcpu_rows,
    with_affinity_record,
)
from pmuctl.manage.affinity.host_state import read_host_state
from pmuctl.manage.hints import describe_count
from pmuctl.manage.inventory.wait import Awaited, wait_for
from pmuctl.model.alignment import VmAlignment
from pmuctl.model.vm import Vm
from pmuctl.model.vm_ref import parse_ref, parse_refs
from pmuctl.render.formats import Format
from pmuctl.render.vcpu import VCPU_COLUMNS
from pmuctl.render.vm import AFFINITY_COLUMN, VM_COLUMNS

if TYPE_CHECKING:
    from pmuctl.manage.resolve import SettingsRequest
    from pmuctl.manage.settings.result import KeyResult

app = Noun(NOUNS["vm"])

EXPLAINED_MAX = 3
"""How many VMs `vm list` explains on a terminal."""

VmName = Annotated[str, typer.Argument(metavar="VM", help=VM_HELP)]


@command(app, "list", OUTPUT, CONNECTION, SYSROOT)
def vm_list(
    context: Context,
    vm: Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help=VMS_HELP)] = None,
) -> None:
    """List the VMs of this host, or only the named ones.

    VMs with a control socket are queried; all others are found by their processes.
    """
    columns = context.check_columns(VM_COLUMNS)
    assessed = _assess_vms(context, vm)
    vm_list, alignments = assessed.vm_list, assessed.alignments
    if AFFINITY_COLUMN in columns:  # else the file that this takes for each VM is not read
        alignments = tuple(
            with_affinity_record(alignment, assessed.host_state) for alignment in alignments
        )
    context.write_rows(
        "vms",
        VM_COLUMNS,
        alignments,
        empty="no VM found",
        more=count_missing(vm_list),
    )
    _warn_of_problems(context, vm_list.vms)
    has_means = any(column.name == "MEANS" for column in columns)
    is_on_terminal = context.format is Format.TABLE and context.layout.width is not None
    if is_on_terminal and not has_means:
        _explain_misplaced(context, assessed.alignments)
    warn_of_dead_vcpus(context, assessed.alignments)
    if not vm:
        note_missing(context, vm_list)


@command(app, "show", OUTPUT, CONNECTION, SYSROOT)
def vm_show(context: Context, vm: VmName) -> None:
    """Show one VM in full.

    This includes its window, its settings with the origin of each, and its vCPUs.
    """
    check_one_host(context)
    with context.waiting_for(vm):
        alignment = assess_named_vm(open_session(context), parse_ref(vm))
    context.write_one("vm", VM_COLUMNS, alignment)


@command(app, "vcpus", OUTPUT, CONNECTION, SYSROOT)
def vm_vcpus(
    context: Context,
    vm: Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help=VMS_HELP)] = None,
) -> None:
    """List vCPUs, the CPU affinity of their threads, and whether they can leave their PMU."""
    context.check_columns(VCPU_COLUMNS)
    assessed = _assess_vms(context, vm)
    vm_list = assessed.vm_list
    for found in vm_list.vms if vm else ():
        # a named VM that does not answer is an error, not an empty list
        if found.query_error is not None:
            raise found.query_error
    rows = [
        row
        for alignment in assessed.alignments
        for row in vcpu_rows(alignment, assessed.host_state)
    ]
    context.write_rows(
        "vcpus", VCPU_COLUMNS, rows, empty="no vCPU found", more=count_missing(vm_list)
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
        Awaited,
        typer.Option("--for", metavar="STATE", help=f"State to wait for: {', '.join(Awaited)}."),
    ],
    timeout: Timeout = None,
) -> int:
    """Wait until a VM reaches a state.

    The VM need not exist yet. Exit with status 0 when it has reached the state, with status 1 if
    --timeout expires first.
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

    Everything is checked before anything is changed. EVENTS is a comma-separated list of event
    names, event numbers (0x11), ranges (0x10-0x1f) and quoted globs. The vCPU threads are
    restricted to the CPUs of the PMU, unless affinity says otherwise.
    """
    # imported here, because commands that only show VMs need none of it
    from pmuctl.manage.settings.transaction import change_settings
    from pmuctl.render.reports import CHANGE_COLUMNS

    context.check_columns(CHANGE_COLUMNS)
    request, dry_run = _parse_settings(context, vm, settings), context.options.dry_run
    with context.waiting_for(vm):
        result = change_settings(open_session(context), parse_ref(vm), request, dry_run=dry_run)
    for warning in result.warnings:
        context.warn(warning)
    if dry_run and context.format is Format.TABLE:
        steps = result.steps or (NOTHING_TO_DO,)
        context.write_lines([f"{result.vm}: {step}" for step in steps])
        return
    for step in result.steps:
        context.trace(f"{result.vm}: {step}")
    _write_changes(context, result.changes, result.steps)


@command(app, "release", OUTPUT, CONNECTION, DRY_RUN)
def vm_release(context: Context, vm: VmName) -> None:
    """Release a waiting VM.

    Its window closes: KVM accepts no more PMU settings from then on.
    """
    from pmuctl.manage.settings.transaction import release_vm
    from pmuctl.render.reports import CHANGE_COLUMNS

    context.check_columns(CHANGE_COLUMNS)
    with context.waiting_for(vm):
        change = release_vm(open_session(context), parse_ref(vm), dry_run=context.options.dry_run)
    _write_changes(context, [change], ())


def _parse_settings(context: Context, vm: str, words: Sequence[str]) -> "SettingsRequest":
    """Parse the settings for a VM; raise what `parse_settings` raises.

    The right words may still lack a PMU: then the line to type has it.
    """
    from pmuctl.cli.settings_parser import CountersRangeError, parse_settings
    from pmuctl.manage.pmus import explain_counters
    from pmuctl.manage.settings.transaction import change_settings

    try:
        return parse_settings(words)
    except CountersRangeError as error:
        error.why = explain_counters(context.host) or error.why
        raise
    except WrongWordError as error:
        request = parse_settings(error.right)
        try:
            change_settings(open_session(context), parse_ref(vm), request, dry_run=True)
        except UsageError as lacking:
            if (lacking.fix or "").startswith("pmuctl vm set "):
                raise UsageError(error.message, why=error.why, fix=lacking.fix) from None
        except PmuctlError:  # whoever types the right words is told so
            pass
        raise


def _assess_vms(context: Context, names: Sequence[str] | None) -> AssessedVms:
    """Read and assess the named VMs, or all there are to list."""
    check_one_host(context)
    refs = parse_refs(names or ())
    is_hidden = not refs and is_unbacked_hidden(context)
    with context.waiting_for("VMs"):
        return assess_vms(open_session(context), refs, are_unbacked_hidden=is_hidden)


def _explain_misplaced(context: Context, alignments: Sequence[VmAlignment]) -> None:
    """Note what `no` means for the first few VMs, because a terminal has no room for MEANS."""
    misplaced = [alignment for alignment in alignments if alignment.is_misplaced]
    for alignment in misplaced[:EXPLAINED_MAX]:
        context.note(f"{alignment.vm.name}: {alignment.explanation}")
    if others := misplaced[EXPLAINED_MAX:]:
        context.note(f"and {describe_count(len(others), 'other VM')}: pmuctl affinity check")


def _warn_of_problems(context: Context, vms: Sequence[Vm]) -> None:
    for vm in vms:
        if vm.problem is not None:
            context.warn(vm.problem)


def _write_changes(context: Context, changes: "Sequence[KeyResult]", steps: Sequence[str]) -> None:
    """Write the result of each key, one row each; a table is not written with `--quiet`.

    Raise OutputError, which lists the changes: they are not undone.
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
