# SPDX-License-Identifier: Apache-2.0
"""pmuctl vm: VMs with a control socket, and their PMU settings."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer

from pmuctl.cli.app import command, make_noun
from pmuctl.cli.env import Env
from pmuctl.cli.options import CHANGE, OUTPUT, REACH, TALK, checked_seconds
from pmuctl.cli.reach import VM_HELP, reach_of
from pmuctl.cli.words import FORM, parse_settings
from pmuctl.errors import ExitStatus, OutputError
from pmuctl.host.pmus import scan_pmus
from pmuctl.manage.settings import Change, Machine, release_vm, set_vm
from pmuctl.manage.vcpus import is_aligned, scan_vcpus
from pmuctl.manage.vms import connected, list_vms
from pmuctl.manage.wait import Awaited, wait_for
from pmuctl.model.vm import Vm
from pmuctl.render.formats import Format
from pmuctl.render.vm import CHANGE_COLUMNS, PLACED_COLUMNS, VM_COLUMNS

app = make_noun("vm")

VmName = Annotated[str, typer.Argument(metavar="VM", help=VM_HELP)]


@command(app, "list", OUTPUT, REACH)
def vm_list(
    env: Env,
    vm: Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help=VM_HELP)] = None,
) -> None:
    """List the VMs that have a control socket, or those that are named."""
    with env.waiting_for("control sockets"):
        vms = list_vms(reach_of(env), vm or ())
    env.write_rows("vms", VM_COLUMNS, vms, empty="no VM with a control socket")
    _warn_of(env, vms)


@command(app, "show", OUTPUT, REACH)
def vm_show(env: Env, vm: VmName) -> None:
    """Show one VM in full.

    Its window, its settings with the origin of each, and its vCPUs.
    """
    with env.waiting_for(vm), connected(reach_of(env), vm) as (_, its):
        pass
    if its.filter is not None and its.pmu is not None:
        pmus = scan_pmus(env.sysfs, [its.pmu.name])
        its = replace(its, event_names=pmus[0].events if pmus else {})
    env.write_one("vm", VM_COLUMNS, its)


@command(app, "vcpus", OUTPUT, REACH)
def vm_vcpus(
    env: Env,
    vm: Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help=VM_HELP)] = None,
) -> None:
    """List vCPUs: where their threads may be, and whether they can leave their PMU."""
    with env.waiting_for("control sockets"):
        vms = list_vms(reach_of(env), vm or ())
    for its in vms if vm else ():
        # of one that is named, no answer is no list
        if its.problem is not None:
            raise its.problem
    rows = list(scan_vcpus(vms, scan_pmus(env.sysfs), env.procs, env.threads))
    env.write_rows("vcpus", PLACED_COLUMNS, rows, empty="no vCPU of a VM with a control socket")
    _warn_of(env, vms)


@command(app, "wait", TALK, REACH)
def vm_wait(
    env: Env,
    vm: VmName,
    *,
    awaited: Annotated[
        Awaited, typer.Option("--for", metavar="STATE", help=f"One of {', '.join(Awaited)}.")
    ],
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SEC",
            callback=checked_seconds,
            help="Give up then; by default never.",
        ),
    ] = None,
) -> int:
    """Wait until a VM is in a state; it need not be there yet.

    Exit status 0 once it is, 1 if --timeout has passed before.
    """

    def aligned(its: Vm) -> bool | None:
        placed = scan_vcpus([its], scan_pmus(env.sysfs), env.procs, env.threads)
        return is_aligned(its, list(placed))

    with env.waiting_for(f"{vm} to be {awaited}"):
        seen = wait_for(reach_of(env), vm, awaited, timeout=timeout, is_aligned=aligned)
    if seen is None:
        return ExitStatus.OK
    env.say(f"{vm}: not {awaited} after {timeout:g} s: {seen}")
    return ExitStatus.NO


@command(app, "set", OUTPUT, REACH, CHANGE)
def vm_set(
    env: Env,
    vm: VmName,
    settings: Annotated[
        list[str], typer.Argument(metavar="KEY VALUE...", help=FORM, show_default=False)
    ],
) -> None:
    """Set a VM's PMU, counters and event filter.

    All is done in one transaction, or nothing is. EVENTS is a comma list of names of the PMU's
    events, codes and ranges (0x10-0x1f) and quoted globs. vCPU threads are kept on the CPUs of
    the PMU.
    """
    env.check_columns(CHANGE_COLUMNS)
    request = parse_settings(settings)
    dry_run = env.options.dry_run
    machine = Machine(sysfs=env.sysfs, threads=env.threads)
    with env.waiting_for(vm), connected(reach_of(env), vm, strictly=True) as (client, its):
        done = set_vm(client, its, request, machine, dry_run=dry_run)
    if dry_run and env.format is Format.TABLE:
        steps = done.steps or ("nothing to do: all of it holds already",)
        env.write_lines([f"{done.vm}: {step}" for step in steps])
        return
    for step in done.steps:
        env.trace(f"{done.vm}: {step}")
    _write_changes(env, done.changes, done.steps)


@command(app, "release", OUTPUT, REACH, CHANGE)
def vm_release(env: Env, vm: VmName) -> None:
    """Let a VM that waits go on.

    Its window closes: from then on KVM takes no settings.
    """
    env.check_columns(CHANGE_COLUMNS)
    with env.waiting_for(vm), connected(reach_of(env), vm, strictly=True) as (client, its):
        change = release_vm(client, its, dry_run=env.options.dry_run)
    _write_changes(env, [change], ())


def _warn_of(env: Env, vms: Sequence[Vm]) -> None:
    for vm in vms:
        if vm.problem is not None:
            env.warn(vm.problem)


def _write_changes(env: Env, changes: Sequence[Change], steps: Sequence[str]) -> None:
    """What became of each key, a row each; nothing with `--quiet`.

    Where that cannot be written, the error says that the changes hold all the same.
    """
    try:
        _write(env, changes, steps)
    except OutputError as error:
        words = [f"{its.key} {its.outcome}" for its in changes]
        error.subject, error.now = changes[0].vm, ", ".join(words)
        raise


def _write(env: Env, changes: Sequence[Change], steps: Sequence[str]) -> None:
    if env.format is Format.TABLE and env.options.quiet:
        return
    more = {"steps": list(steps)}
    env.write_rows("results", CHANGE_COLUMNS, changes, empty="", headings=False, more=more)
