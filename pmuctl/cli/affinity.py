# SPDX-License-Identifier: Apache-2.0
"""pmuctl affinity: which CPUs the vCPU threads of VMs may be on, held against their PMU."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import typer

from pmuctl.cli.app import command, make_noun
from pmuctl.cli.env import Env
from pmuctl.cli.options import CHANGE, MACHINE, OUTPUT, REACH
from pmuctl.cli.reach import VM_HELP, check_place, reach_of, site_of, tell_missing
from pmuctl.errors import ExitStatus, OutputError, PmuctlError, UsageError
from pmuctl.manage.affinity import align_vm, set_affinity
from pmuctl.manage.held import check_rows, hold
from pmuctl.manage.naming import look, pick
from pmuctl.manage.placing import Placed, reductions
from pmuctl.manage.site import Site
from pmuctl.manage.stock import Stock
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.ref import parse_ref
from pmuctl.model.truth import chosen_pmu
from pmuctl.model.vm import Vm
from pmuctl.render.affinity import CHECK_COLUMNS, PLACING_COLUMNS
from pmuctl.render.formats import Format

app = make_noun("affinity")

VmNames = Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help=VM_HELP)]
MANY = ("keep_going",)


@command(app, "set", OUTPUT, REACH, CHANGE)
def affinity_set(
    env: Env,
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
    env.check_columns(PLACING_COLUMNS)
    only = None if vcpu is None else _parse_vcpus(vcpu)
    site = site_of(env)
    with env.waiting_for(vm):
        its = look(Stock(reach_of(env)), parse_ref(vm), strictly=True)
    placed = set_affinity(its, cpuset, site, vcpus=only, dry_run=env.options.dry_run)
    _write(env, placed)
    _warn(env, its, placed, site)


@command(app, "align", OUTPUT, REACH, CHANGE, MANY)
def affinity_align(
    env: Env,
    vm: VmNames = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All VMs that have a PMU.")] = False,
) -> int:
    """Bring vCPU threads back onto the CPUs of their PMU.

    A pin is never widened: the new mask is what a thread may be on, less what is not of its PMU.
    Where that leaves nothing it is what pmuctl had put it on, and a pin of somebody else's is
    refused.
    """
    env.check_columns(PLACING_COLUMNS)
    if every == bool(vm):
        raise UsageError("VMs are to be named, or --all is", fix="pmuctl affinity align VM")
    stock, site = Stock(reach_of(env)), site_of(env)
    refs = [parse_ref(name) for name in vm or ()]
    with env.waiting_for("control sockets"):
        targets: list[Callable[[], Vm]] = [
            partial(look, stock, ref, strictly=True) for ref in refs
        ]
        if every:
            seen = pick(stock)
            tell_missing(env, seen)
            targets = [partial(_same, its) for its in _alignable(env, seen.vms, site)]
    placed: list[Placed] = []
    failed: list[PmuctlError] = []
    for target in targets:
        try:
            its = target()
            done = align_vm(its, site, dry_run=env.options.dry_run)
        except PmuctlError as error:
            if not env.options.keep_going:
                if placed:
                    _write(env, placed)
                raise
            env.fail(error)
            failed.append(error)
            continue
        placed += done
        _warn(env, its, done, site)
    _write(env, placed)
    return _status(failed, len(targets), ExitStatus.OK)


@command(app, "check", OUTPUT, REACH, MACHINE, MANY)
def affinity_check(env: Env, vm: VmNames = None) -> int:
    """Tell whether vCPUs can leave their PMU, what happens then, and what is in the way.

    Exit status 1 if one can.
    """
    env.check_columns(CHECK_COLUMNS)
    check_place(env)
    failed: list[PmuctlError] = []
    with env.waiting_for("control sockets"):
        stock = Stock(reach_of(env))
        seen = None if vm else pick(stock)
        vms = seen.vms if seen else _named(env, stock, vm or (), failed)
    site = site_of(env)
    held = [hold(its, site) for its in vms]
    rows = [row for its in held for row in check_rows(its, site)]
    env.write_rows("vcpus", CHECK_COLUMNS, rows, empty="no vCPU of a VM is known")
    for its in vms:
        if its.problem is not None:
            env.warn(its.problem)
    if seen:
        tell_missing(env, seen)
    if unknown := sum(row.is_unknown for row in rows if not row.vm.is_torn):
        env.say(f"not known of {_counted(unknown, 'vCPU')}: whether it can leave its PMU")
    strays = [one for one in held if one.is_stray]
    for consequence in dict.fromkeys(one.chosen.consequence for one in strays if one.strays):
        env.say(f"{consequence}: {consequence.words()}")
    for one in strays:
        if one.is_torn:
            env.say(f"{one.vm.name}: {one.means}")
    return _status(failed, len(vms) + len(failed), ExitStatus.NO if strays else ExitStatus.OK)


def _same(vm: Vm) -> Vm:
    return vm


def _parse_vcpus(text: str) -> CpuSet:
    try:
        vcpus = CpuSet.parse(text)
    except ValueError:
        vcpus = CpuSet()
    if not vcpus:
        raise UsageError(f"{text or repr(text)}: not a list of vCPUs", fix="write --vcpu 0-1,3")
    return vcpus


def _alignable(env: Env, vms: Sequence[Vm], site: Site) -> list[Vm]:
    """Those that have a PMU; which cannot be asked, or have one of several, is said."""
    found: list[Vm] = []
    for vm in vms:
        chosen = chosen_pmu(vm, site.ground)
        if not vm.vcpus:
            if vm.problem is not None:
                env.warn(vm.problem)
        elif chosen.only_cpus is not None:
            found.append(vm)
        elif chosen.names:
            env.say(f"{vm.name}: left alone, for it is not known which PMU it has")
    return found


def _named(env: Env, stock: Stock, names: Sequence[str], failed: list[PmuctlError]) -> list[Vm]:
    """The VMs that are named; of one that is, no answer is an error."""
    refs = [parse_ref(name) for name in names]
    groups = [[ref] for ref in refs] if env.options.keep_going else [refs]
    found: list[Vm] = []
    for group in groups:
        try:
            vms = pick(stock, group).vms
            for its in vms:
                if its.problem is not None and not its.vcpus:
                    raise its.problem
        except PmuctlError as error:
            if not env.options.keep_going:
                raise
            env.fail(error)
            failed.append(error)
            continue
        found += [its for its in vms if its not in found]
    return found


def _status(failed: Sequence[PmuctlError], count: int, otherwise: ExitStatus) -> ExitStatus:
    """With --keep-going: 64 where some targets failed, that of the first error where all did."""
    if not failed:
        return otherwise
    return ExitStatus.PARTIAL if len(failed) < count else failed[0].status


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _warn(env: Env, vm: Vm, placed: Sequence[Placed], site: Site) -> None:
    for problem in reductions(placed, vm.pid or 0, site):
        env.warn(problem)


def _write(env: Env, placed: Sequence[Placed]) -> None:
    """What became of each vCPU, a row each; nothing with `--quiet`.

    Where that cannot be written, the error says that the threads stay where they are.
    """
    steps = [f"{its.vm}: {its.words()}" for its in placed if its.outcome != "unchanged"]
    if env.options.dry_run and env.format is Format.TABLE:
        env.write_lines(steps or ["nothing to do: all of it holds already"])
        return
    for step in () if env.options.dry_run else steps:
        env.trace(step)
    if env.format is Format.TABLE and env.options.quiet:
        return
    try:
        env.write_rows(
            "results",
            PLACING_COLUMNS,
            placed,
            empty="nothing to align: no VM has a PMU that is known",
            headings=False,
            more={"steps": [its.words() for its in placed if its.outcome != "unchanged"]},
        )
    except OutputError as error:
        error.now = "; ".join(steps) or "nothing was changed"
        raise
