# SPDX-License-Identifier: Apache-2.0
"""pmuctl affinity: which CPUs the vCPU threads of VMs may be on, held against their PMU."""

from collections.abc import Sequence
from typing import Annotated

import typer

from pmuctl.cli.app import command, make_noun
from pmuctl.cli.context import Context
from pmuctl.cli.options import CONNECTION, DRY_RUN, OUTPUT, SYSROOT
from pmuctl.cli.session import (
    VM_HELP,
    check_one_host,
    hide_unbacked_in_table,
    note_missing,
    open_session,
)
from pmuctl.errors import ExitStatus, OutputError, PmuctlError, UsageError
from pmuctl.manage.affinity.align_many import align_all, align_named
from pmuctl.manage.affinity.assess import assess, check_rows
from pmuctl.manage.affinity.host_state import read_host_state
from pmuctl.manage.affinity.pin import VmAffinityResult
from pmuctl.manage.affinity.set_and_align import set_affinity
from pmuctl.manage.batch import BatchResult, run_each
from pmuctl.manage.hints import describe_count
from pmuctl.manage.inventory.inventory import Inventory
from pmuctl.manage.inventory.lookup import lookup_vm, select_vms
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.inventory.unbacked_sockets import failure_of
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm import Vm
from pmuctl.model.vm_ref import VmRef, parse_ref
from pmuctl.render.affinity import CHECK_COLUMNS, PLACING_COLUMNS
from pmuctl.render.formats import Format

app = make_noun("affinity")

VmNames = Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help=VM_HELP)]
MANY = ("keep_going",)


@command(app, "set", OUTPUT, CONNECTION, DRY_RUN)
def affinity_set(
    context: Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help=VM_HELP)],
    cpuset: Annotated[
        str, typer.Argument(metavar="CPUSET", help="A list of 0-3, ^5 (not 5), all, pmu/NAME.")
    ],
    *,
    vcpu: Annotated[
        str | None,
        typer.Option("--vcpu", metavar="LIST", help="Only these vCPUs, as 0-1,3."),
    ] = None,
) -> None:
    """Pin the vCPU threads of a VM, and no other threads of its VMM.

    A PMU that was set is not left: its CPUs are the only ones that KVM runs the VM on.
    """
    context.check_columns(PLACING_COLUMNS)
    only = None if vcpu is None else _parse_vcpus(vcpu)
    host_state = read_host_state(context.host)
    with context.waiting_for(vm):
        found = lookup_vm(Inventory(open_session(context)), parse_ref(vm), strictly=True)
    result = set_affinity(found, cpuset, host_state, vcpus=only, dry_run=context.options.dry_run)
    _write_results(context, [result])
    for warning in result.warnings:
        context.warn(warning)


@command(app, "align", OUTPUT, CONNECTION, DRY_RUN, MANY)
def affinity_align(
    context: Context,
    vm: VmNames = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All VMs that have a PMU.")] = False,
) -> int:
    """Bring vCPU threads back onto the CPUs of their PMU.

    A pin is never widened: the new mask is what a thread may be on, less what is not of its PMU.
    Where that leaves nothing it is what pmuctl had put it on, and a pin of somebody else's is
    refused.
    """
    context.check_columns(PLACING_COLUMNS)
    if every and vm:
        raise UsageError("either VMs or --all, not both", fix="pmuctl affinity align --all")
    if not every and not vm:
        raise UsageError("VMs are to be named, or --all is", fix="pmuctl affinity align VM")
    dry_run, keep_going = context.options.dry_run, context.options.keep_going
    session = open_session(context)
    refs = [parse_ref(name) for name in vm or ()]
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
    none = "nothing to align: no VM has a PMU that is known" if is_none else "nothing was aligned"
    _write_results(context, results.done, empty=none)
    return results.status()


@command(app, "check", OUTPUT, CONNECTION, SYSROOT, MANY)
def affinity_check(context: Context, vm: VmNames = None) -> int:
    """Tell whether vCPUs can leave their PMU, what happens then, and what is in the way.

    Exit status 1 if one can.
    """
    context.check_columns(CHECK_COLUMNS)
    check_one_host(context)
    session = open_session(context)
    with context.waiting_for("control sockets"):
        host_state, inventory = read_host_state(context.host), Inventory(session)
        vm_list = None
        if not vm:
            vm_list = hide_unbacked_in_table(context, session, select_vms(inventory))
        refs = [parse_ref(name) for name in vm or ()]
        found = _pick_all(vm_list.vms, session) if vm_list else _pick(context, inventory, refs)
    for failure in found.failed:
        context.fail(failure)
    vms = _drop_duplicates(found.done)
    alignments = [assess(vm, host_state) for vm in vms]
    rows = [row for alignment in alignments for row in check_rows(alignment, host_state)]
    context.write_rows("vcpus", CHECK_COLUMNS, rows, empty="no vCPU of a VM is known")
    for named in vms:
        if named.problem is not None:
            context.warn(named.problem)
    if vm_list:
        note_missing(context, vm_list)
    if unknown := sum(row.is_unknown for row in rows if not row.alignment.is_split):
        context.note(
            f"not known of {describe_count(unknown, 'vCPU')}: whether it can leave its PMU"
        )
    misplaced = [alignment for alignment in alignments if alignment.is_misplaced]
    consequences = (
        alignment.effective_pmu.consequence for alignment in misplaced if alignment.misplaced
    )
    for consequence in dict.fromkeys(consequences):
        context.note(f"{consequence}: {consequence.explain()}")
    for alignment in misplaced:
        if alignment.is_split:
            context.note(f"{alignment.vm.name}: {alignment.explanation}")
    return found.status(ExitStatus.NO if misplaced else ExitStatus.OK)


def _parse_vcpus(text: str) -> CpuSet:
    try:
        vcpus = CpuSet.parse(text)
    except ValueError:
        vcpus = CpuSet()
    if not vcpus:
        raise UsageError(f"{text or repr(text)}: not a list of vCPUs", fix="write --vcpu 0-1,3")
    return vcpus


def _pick(context: Context, inventory: Inventory, refs: Sequence[VmRef]) -> BatchResult[list[Vm]]:
    """The VMs that are named, by name; of one that is, no answer is an error."""
    goes_on = context.options.keep_going

    def find(group: Sequence[VmRef]) -> list[Vm]:
        vms = select_vms(inventory, group).vms
        for its in vms:
            if its.query_error is not None:
                raise its.query_error
        return vms

    groups: list[Sequence[VmRef]] = [[ref] for ref in refs] if goes_on else [refs] * bool(refs)
    found = run_each(groups, find, keep_going=goes_on)
    found.raise_first()
    return found


def _pick_all(vms: Sequence[Vm], session: Session) -> BatchResult[list[Vm]]:
    """All VMs there are; it goes on after one that fails."""
    done: list[list[Vm]] = []
    failed: list[PmuctlError] = []
    for its in vms:
        if (failure := failure_of(its, session)) is not None:
            failed.append(failure)
        else:
            done.append([its])
    return BatchResult(done=tuple(done), failed=tuple(failed), keeps_going=True)


def _drop_duplicates(groups: Sequence[Sequence[Vm]]) -> list[Vm]:
    found: list[Vm] = []
    for vms in groups:
        found += [its for its in vms if its not in found]
    return found


def _write_results(context: Context, done: Sequence[VmAffinityResult], *, empty: str = "") -> None:
    """What became of each vCPU, a row each; nothing with `--quiet`.

    Where that cannot be written, the error says that the threads stay where they are.
    """
    steps = [f"{its.vm.name}: {step}" for its in done for step in its.steps]
    if context.options.dry_run and context.format is Format.TABLE:
        context.write_lines(steps or ["nothing to do: all of it holds already"])
        return
    for step in () if context.options.dry_run else steps:
        context.trace(step)
    if context.format is Format.TABLE and context.options.quiet:
        return
    try:
        context.write_rows(
            "results",
            PLACING_COLUMNS,
            [row for its in done for row in its.results],
            empty=empty,
            headings=False,
            more={"steps": [step for its in done for step in its.steps]},
        )
    except OutputError as error:
        error.now = "; ".join(steps) or "nothing was changed"
        raise
