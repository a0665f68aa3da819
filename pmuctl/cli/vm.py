# SPDX-License-Identifier: Apache-2.0
"""pmuctl vm: VMs with a control socket, and their PMU settings."""

from collections.abc import Mapping
from typing import Annotated

import typer

from pmuctl.cli.app import NOUNS, Command, make_app
from pmuctl.cli.env import Env
from pmuctl.cli.options import DEADLINE, Deadline, DryRun, Json, Quiet, Socket, Sysroot, Verbose
from pmuctl.cli.words import FORM, parse_settings
from pmuctl.control.client import Client
from pmuctl.host.pmus import scan_pmus
from pmuctl.manage.settings import Done, release_vm, set_vm
from pmuctl.manage.vms import find_vm, list_vms, read_vm
from pmuctl.model.vm import Vm, Window
from pmuctl.render.columns import CHANGE_COLUMNS, VCPU_COLUMNS, VM_COLUMNS, known, plain
from pmuctl.render.document import rows_as_json, write_document
from pmuctl.render.table import write_record, write_table
from pmuctl.render.text import ago

app = make_app(NOUNS["vm"])

VmName = Annotated[str, typer.Argument(metavar="VM", help="A name, uuid/UUID or pid/PID.")]


@app.command("list", cls=Command)
def vm_list(
    ctx: typer.Context,
    vm: Annotated[
        list[str] | None, typer.Argument(metavar="[VM]...", help="A name, uuid/UUID or pid/PID.")
    ] = None,
    *,
    json: Json = False,
    socket: Socket = None,
    deadline: Deadline = DEADLINE,
    verbose: Verbose = 0,
) -> None:
    """List the VMs that have a control socket, or those that are named."""
    base: Env = ctx.obj
    env = base.asked("vm list", as_json=json, verbose=verbose)
    with env.waiting_for("control sockets"):
        vms = list_vms(env.reach(deadline=deadline, socket=socket), vm or ())
    env.write_rows("vms", VM_COLUMNS, vms, empty="no VM with a control socket")
    for its in vms:
        if its.problem is not None and not env.as_json:
            env.warn(its.problem)


@app.command("show", cls=Command)
def vm_show(
    ctx: typer.Context,
    vm: VmName,
    *,
    json: Json = False,
    socket: Socket = None,
    deadline: Deadline = DEADLINE,
    verbose: Verbose = 0,
) -> None:
    """Show one VM in full.

    Its window, its settings with the origin of each, and its vCPUs.
    """
    base: Env = ctx.obj
    env = base.asked("vm show", as_json=json, verbose=verbose)
    reach = env.reach(deadline=deadline, socket=socket)
    with env.waiting_for(vm), reach.client(find_vm(reach, vm)) as client:
        its = read_vm(client)
        _tell_requests(env, client)
    with env.output() as out:
        if env.as_json:
            write_document(env.command, {"vm": _as_json(its)}, out)
            return
        write_record(_fields(its, _event_names(its, env)), out)
        write_table(VCPU_COLUMNS, its.vcpus or (), out, indent="  ")


@app.command("set", cls=Command)
def vm_set(
    ctx: typer.Context,
    vm: VmName,
    settings: Annotated[
        list[str], typer.Argument(metavar="KEY VALUE...", help=FORM, show_default=False)
    ],
    *,
    dry_run: DryRun = False,
    json: Json = False,
    socket: Socket = None,
    sysroot: Sysroot = None,
    deadline: Deadline = DEADLINE,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Set a VM's PMU, counters and event filter.

    All is done in one transaction, or nothing is.

    EVENTS is a comma list of names of the PMU's events, codes and ranges (0x10-0x1f) and quoted
    globs. vCPU threads are kept on the CPUs of the PMU.
    """
    base: Env = ctx.obj
    env = base.asked("vm set", as_json=json, sysroot=sysroot, is_quiet=quiet, verbose=verbose)
    request = parse_settings(settings)
    reach = env.reach(deadline=deadline, socket=socket)
    with env.waiting_for(vm), reach.client(find_vm(reach, vm)) as client:
        try:
            done = set_vm(client, request, env.sysfs, dry_run=dry_run)
        finally:
            _tell_requests(env, client)
    _write_done(done, env, dry_run=dry_run)


@app.command("release", cls=Command)
def vm_release(
    ctx: typer.Context,
    vm: VmName,
    *,
    json: Json = False,
    socket: Socket = None,
    deadline: Deadline = DEADLINE,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Let a VM that waits go on.

    Its window closes: from then on KVM takes no settings.
    """
    base: Env = ctx.obj
    env = base.asked("vm release", as_json=json, is_quiet=quiet, verbose=verbose)
    reach = env.reach(deadline=deadline, socket=socket)
    with env.waiting_for(vm), reach.client(find_vm(reach, vm)) as client:
        outcome = "released" if release_vm(client) else "unchanged"
        _tell_requests(env, client)
    with env.output() as out:
        if env.as_json:
            write_document(env.command, {"vm": client.subject, "outcome": outcome}, out)
        elif not env.is_quiet:
            out.write(f"{client.subject}  {outcome}\n")


def _tell_requests(env: Env, client: Client) -> None:
    if env.verbose:
        for request in client.trace:
            env.say(f"{client.subject} <- {request}")


def _write_done(done: Done, env: Env, *, dry_run: bool) -> None:
    if env.verbose and not dry_run:
        for step in done.steps:
            env.say(f"{done.vm}: {step}")
    with env.output() as out:
        if env.as_json:
            results = rows_as_json(CHANGE_COLUMNS, done.changes)
            write_document(env.command, {"results": results, "steps": list(done.steps)}, out)
        elif env.is_quiet:
            pass
        elif dry_run:
            for step in done.steps or ("nothing to do: all of it holds already",):
                out.write(f"{done.vm}: {step}\n")
        else:
            for change in done.changes:
                out.write(f"{change.vm}  {change.key:8}  {change.outcome:9}  {change.value}\n")


def _event_names(vm: Vm, env: Env) -> Mapping[str, int]:
    """The names of the events of the VM's PMU; needed only where a filter names events."""
    if vm.filter is None or vm.pmu is None:
        return {}
    pmus = scan_pmus(env.sysfs, [vm.pmu.name])
    return pmus[0].events if pmus else {}


def _fields(vm: Vm, names: Mapping[str, int]) -> list[tuple[str, object]]:
    window = str(vm.window)
    if vm.window is Window.SEALED and vm.by:
        window += f": {vm.by}" + (f", {ago(vm.since)} ago" if vm.since is not None else "")
    return [
        ("Name", vm.name),
        ("UUID", vm.uuid),
        ("State", vm.state),
        ("VMM", vm.vmm),
        ("PID", known(vm.pid)),
        ("Socket", vm.socket),
        ("Window", window),
        ("Attributes", list(vm.attributes)),
        ("Event space", f"{vm.event_bits} bits" if vm.event_bits else known(None)),
        ("PMU", vm.pmu and f"{vm.pmu.name} ({vm.pmu.origin})"),
        (
            "Counters",
            None if vm.counters is None else f"{vm.counters} ({vm.counters_origin})",
        ),
        ("Filter", vm.filter and f"{vm.filter.words(names)} ({vm.filter_origin})"),
        ("vCPUs", len(vm.vcpus or ())),
    ]


def _as_json(vm: Vm) -> dict[str, object]:
    return rows_as_json(VM_COLUMNS, [vm])[0] | {
        "uuid": vm.uuid,
        "vmm": vm.vmm,
        "socket": vm.socket,
        "since": vm.since,
        "by": vm.by,
        "attributes": list(vm.attributes),
        "event_bits": vm.event_bits,
        "pmu": vm.pmu and {"name": vm.pmu.name, "type": vm.pmu.type, "origin": vm.pmu.origin},
        "counters": None
        if vm.counters is None
        else {"value": vm.counters, "origin": vm.counters_origin},
        "filter": vm.filter and {**plain(vm.filter), "origin": vm.filter_origin},
        "vcpus": [
            {
                "index": vcpu.index,
                "tid": vcpu.tid,
                "initialised": vcpu.initialised,
                "has_run": vcpu.has_run,
            }
            for vcpu in vm.vcpus or ()
        ],
    }
