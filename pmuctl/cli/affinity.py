# SPDX-License-Identifier: Apache-2.0
"""pmuctl affinity: set, align and check the CPU affinity of vCPU threads."""

from collections.abc import Sequence
from typing import Annotated

import typer

from pmuctl.cli.app import NOUNS, Noun, command
from pmuctl.cli.context import Context
from pmuctl.cli.near_misses.affinity import correct_order, make_pairs_error, pair_commands
from pmuctl.cli.options import CONNECTION, CPUSET_HELP, DRY_RUN, OUTPUT, SYSROOT
from pmuctl.cli.session import (
    NOTHING_TO_DO,
    VM_HELP,
    VMS_HELP,
    check_one_host,
    count_missing,
    hide_unbacked_in_table,
    note_missing,
    open_session,
    warn_of_dead_vcpus,
)
from pmuctl.errors import (
    ExitStatus,
    NotFoundError,
    OutputError,
    PmuctlError,
    UsageError,
    WrongWordError,
)
from pmuctl.errors import command as shell_command
from pmuctl.manage.affinity.align_many import align_all, align_named
from pmuctl.manage.affinity.assess import VcpuRow, assess, check_rows, has_settings
from pmuctl.manage.affinity.host_state import read_host_state
from pmuctl.manage.affinity.pin import VmAffinityResult
from pmuctl.manage.affinity.set_and_align import set_affinity
from pmuctl.manage.affinity.vcpu_threads import has_unknown_threads, no_threads
from pmuctl.manage.batch import BatchResult, run_each
from pmuctl.manage.inventory.inventory import Inventory, VmList
from pmuctl.manage.inventory.lookup import lookup_vm, select_vms
from pmuctl.manage.inventory.processes import make_unscanned_error
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.inventory.unbacked_sockets import failure_of
from pmuctl.manage.resolve import AUTO, NONE
from pmuctl.model.alignment import VmAlignment
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm import Vm
from pmuctl.model.vm_ref import VmRef, parse_ref, parse_refs
from pmuctl.render.affinity import AFFINITY_COLUMNS, CHECK_COLUMNS
from pmuctl.render.formats import Format
from pmuctl.value import replace

app = Noun(NOUNS["affinity"])

VmNames = Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help=VMS_HELP)]
KEEP_GOING = ("keep_going",)


@command(app, "set", OUTPUT, CONNECTION, DRY_RUN)
def affinity_set(
    context: Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help=VM_HELP)],
    cpuset: Annotated[str, typer.Argument(metavar="CPUSET", help=CPUSET_HELP)],
    *,
    vcpu: Annotated[
        str | None,
        typer.Option("--vcpu", metavar="LIST", help="Change only these vCPUs, such as 0-1,3."),
    ] = None,
) -> None:
    """Pin the vCPU threads of a VM.

    Other threads of the VMM are not changed. If the PMU of the VM was set, CPUs outside that PMU
    are refused: KVM does not run the VM there.
    """
    context.check_columns(AFFINITY_COLUMNS)
    if cpuset.lower() in (AUTO, NONE):
        raise UsageError(
            f"{cpuset}: not a list of CPUs",
            why=f"{cpuset.lower()} is a setting, which also holds when its PMU is set",
            fix=shell_command("vm", "set", vm, "affinity", cpuset.lower()),
        )
    if (fix := pair_commands(vm, [cpuset])) is not None:
        raise make_pairs_error(cpuset, fix)
    only = None if vcpu is None else _parse_vcpus(vcpu)
    host_state = read_host_state(context.host)
    try:
        with context.waiting_for(vm):
            found = lookup_vm(Inventory(open_session(context)), parse_ref(vm), strictly=True)
    except (NotFoundError, WrongWordError):
        if (right := correct_order(vm, cpuset)) is None:
            raise
        raise UsageError(
            f"{vm}: a list of CPUs, where the VM comes first",
            fix=shell_command("affinity", "set", *right, *(("--vcpu", vcpu) if vcpu else ())),
        ) from None
    result = set_affinity(found, cpuset, host_state, vcpus=only, dry_run=context.options.dry_run)
    _write_results(context, [result])
    for warning in result.warnings:
        context.warn(warning)


@command(app, "align", OUTPUT, CONNECTION, DRY_RUN, KEEP_GOING)
def affinity_align(
    context: Context,
    vm: VmNames = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Align all VMs that have a PMU.")] = False,
) -> int:
    """Restrict vCPU threads to the CPUs of their PMU again.

    The CPUs outside the PMU are removed from a mask. If no CPU is left, the mask that pmuctl set
    last is restored; a mask that pmuctl did not set is refused.
    """
    context.check_columns(AFFINITY_COLUMNS)
    if every and vm:
        raise UsageError("VMs and --all cannot be combined", fix="pmuctl affinity align --all")
    if not every and not vm:
        raise UsageError("a VM or --all is missing", fix="pmuctl affinity align VM")
    dry_run, keep_going = context.options.dry_run, context.options.keep_going
    session = open_session(context)
    refs = parse_refs(vm or ())
    with context.waiting_for("control sockets"):
        host_state, inventory = read_host_state(context.host), Inventory(session)
        if every:
            vms = hide_unbacked_in_table(context, session, select_vms(inventory))
            note_missing(context, vms)
            aligned = align_all(vms.vms, session, host_state, dry_run=dry_run)
        else:
            aligned = align_named(
                refs, inventory, host_state, keep_going=keep_going, dry_run=dry_run
            )
    results = aligned.vms
    if not results.done:
        results.raise_first()
    for note in aligned.left_alone:
        context.note(note)
    for warning in aligned.warnings:
        context.warn(warning)
    for failure in results.failed:
        context.fail(failure)
    is_none = not aligned.left_alone and not results.failed
    none = "nothing to align: no VM has a known PMU" if is_none else "nothing was aligned"
    _write_results(context, results.done, empty=none)
    return results.status()


@command(app, "check", OUTPUT, CONNECTION, SYSROOT, KEEP_GOING)
def affinity_check(
    context: Context,
    vm: VmNames = None,
    *,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit with status 1 also if it is not known of a VM."),
    ] = False,
    managed: Annotated[
        bool, typer.Option("--managed", help="Leave out VMs without settings of pmuctl.")
    ] = False,
) -> int:
    """Check whether vCPUs can leave the CPUs of their PMU.

    Print what happens then, and what prevents aligning it. Exit with status 1 if a vCPU can, or
    if its thread has ended.
    """
    if managed and vm:
        raise UsageError("VMs and --managed cannot be combined", fix="omit --managed")
    context.check_columns(CHECK_COLUMNS)
    check_one_host(context)
    session = open_session(context)
    with context.waiting_for("control sockets"):
        host_state, inventory = read_host_state(context.host), Inventory(session)
        vm_list: VmList | None = None
        if vm:
            found = _select_named(context, inventory, parse_refs(vm))
        else:
            vm_list = hide_unbacked_in_table(context, session, select_vms(inventory))
            found = _collect_vms(vm_list, session)
    for failure in found.failed:
        context.fail(failure)
    vms = _drop_duplicates(found.done)
    if managed:
        vms = [vm for vm in vms if has_settings(vm, host_state)]
    alignments = [assess(vm, host_state) for vm in vms]
    rows = [row for alignment in alignments for row in check_rows(alignment, host_state)]
    unknown_vms = [alignment for alignment in alignments if alignment.is_unknown]
    more: dict[str, object] = {"unknown": [alignment.vm.name for alignment in unknown_vms]}
    if vm_list:
        more |= count_missing(vm_list)
    empty = "no VM has settings" if managed and not vms else "no vCPU is known"
    context.write_rows("vcpus", CHECK_COLUMNS, rows, empty=empty, more=more)
    _note_unseen(context, alignments, vm_list)
    _note_unknown(context, rows)
    if not vm_list:
        _note_without_pmu(context, vms)
    warn_of_dead_vcpus(context, alignments)
    misplaced = [alignment for alignment in alignments if alignment.is_misplaced]
    _note_misplaced(context, misplaced)
    has_dead = any(alignment.vm.dead_vcpus for alignment in alignments)
    are_some_unknown = bool(unknown_vms) or (vm_list is not None and vm_list.may_lack_vms)
    is_no = bool(misplaced) or has_dead or (strict and are_some_unknown)
    return found.status(ExitStatus.NO if is_no else ExitStatus.OK)


def _note_unseen(
    context: Context, alignments: Sequence[VmAlignment], vm_list: VmList | None
) -> None:
    """Tell what the rows lack: VMs that could not be seen, and vCPUs whose thread is not known."""
    for alignment in alignments:
        if alignment.vm.problem is not None:
            context.warn(alignment.vm.problem)
    if vm_list:
        # that not all processes were looked at is a failure here, which has been told
        note_missing(context, replace(vm_list, unscanned={}))
    for alignment in alignments:
        is_listed = bool(alignment.vcpus) or not alignment.effective_pmu.names
        if not is_listed and has_unknown_threads(alignment.vm):
            context.note(f"{alignment.vm.name}: {no_threads(alignment.vm).message}")


def _note_unknown(context: Context, rows: Sequence[VcpuRow]) -> None:
    """Tell of how many vCPUs it is not known whether they can leave their PMU."""
    if unknown := sum(row.is_unknown for row in rows if not row.alignment.is_split):
        which = "1 vCPU can leave its" if unknown == 1 else f"{unknown} vCPUs can leave their"
        context.note(f"it is not known whether {which} PMU")


def _note_without_pmu(context: Context, vms: Sequence[Vm]) -> None:
    """Tell why VMs that were named have no PMU."""
    for vm in vms:
        if vm.is_without_pmu:
            context.note(f"{vm.name}: {vm.identity.explain_no_vpmu()}")


def _note_misplaced(context: Context, misplaced: Sequence[VmAlignment]) -> None:
    """Tell what happens to vCPUs that can leave their PMU, each consequence once."""
    consequences = (
        alignment.effective_pmu.consequence for alignment in misplaced if alignment.misplaced
    )
    for consequence in dict.fromkeys(consequences):
        context.note(f"{consequence}: {consequence.explain()}")
    for alignment in misplaced:
        if alignment.is_split:
            context.note(f"{alignment.vm.name}: {alignment.explanation}")


def _parse_vcpus(text: str) -> CpuSet:
    try:
        vcpus = CpuSet.parse(text)
    except ValueError:
        vcpus = CpuSet()
    if not vcpus:
        raise UsageError(f"{text or repr(text)}: not a list of vCPUs", fix="write --vcpu 0-1,3")
    return vcpus


def _select_named(
    context: Context, inventory: Inventory, refs: Sequence[VmRef]
) -> BatchResult[list[Vm]]:
    """Return the VMs of each reference.

    Raise the error of the first VM that does not answer, or of the first one of all if
    --keep-going was given and none answers.
    """
    keep_going = context.options.keep_going

    def find(group: Sequence[VmRef]) -> list[Vm]:
        vms = select_vms(inventory, group).vms
        for vm in vms:
            if vm.query_error is not None:
                raise vm.query_error
        return vms

    groups: list[Sequence[VmRef]] = [[ref] for ref in refs] if keep_going else [refs]
    found = run_each(groups, find, keep_going=keep_going)
    found.raise_first()
    return found


def _collect_vms(vm_list: VmList, session: Session) -> BatchResult[list[Vm]]:
    """Return all VMs that answer, the errors of those that do not, and of an unfinished scan."""
    done: list[list[Vm]] = []
    failed: list[PmuctlError] = []
    if vm_list.unscanned:
        failed.append(make_unscanned_error(vm_list.unscanned))
    for vm in vm_list.vms:
        if (failure := failure_of(vm, session)) is not None:
            failed.append(failure)
        else:
            done.append([vm])
    return BatchResult(done=tuple(done), failed=tuple(failed), keeps_going=True)


def _drop_duplicates(groups: Sequence[Sequence[Vm]]) -> list[Vm]:
    found: list[Vm] = []
    for vms in groups:
        found += [vm for vm in vms if vm not in found]
    return found


def _write_results(context: Context, done: Sequence[VmAffinityResult], *, empty: str = "") -> None:
    """Write the result of each vCPU, one row each; a table is not written with `--quiet`.

    Raise OutputError, which lists the steps that were taken: they are not undone.
    """
    steps = [f"{result.vm.name}: {step}" for result in done for step in result.steps]
    if context.options.dry_run and context.format is Format.TABLE:
        context.write_lines(steps or [NOTHING_TO_DO])
        return
    for step in () if context.options.dry_run else steps:
        context.trace(step)
    if context.format is Format.TABLE and context.options.quiet:
        return
    try:
        context.write_rows(
            "results",
            AFFINITY_COLUMNS,
            [row for result in done for row in result.results],
            empty=empty,
            headings=False,
            more={"steps": [step for result in done for step in result.steps]},
        )
    except OutputError as error:
        error.now = "; ".join(steps) or "nothing was changed"
        raise
