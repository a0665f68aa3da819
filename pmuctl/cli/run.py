# SPDX-License-Identifier: Apache-2.0
"""pmuctl run: start an unmodified VMM in place of this process, with PMU settings."""

import os
from typing import Annotated, NoReturn

import typer

from pmuctl.cli.app import VERBS, command, make_app
from pmuctl.cli.context import Context
from pmuctl.cli.options import DRY_RUN, VERBOSITY, timeout_option
from pmuctl.cli.settings_parser import parse_filter_option
from pmuctl.manage.resolve import AUTO
from pmuctl.manage.start.exec import read_own_environ, start
from pmuctl.manage.start.prepare import (
    PreparedStart,
    StartRequest,
    check_words,
    hold_commands,
    prepare,
)

app = make_app(VERBS["run"])


@command(
    app,
    "run",
    ("json",),
    VERBOSITY,
    DRY_RUN,
    parsing={"allow_interspersed_args": False},
    helps={"json": "Print errors, warnings and dry-run steps as JSON."},
)
def run(
    context: Context,
    vmm: Annotated[
        list[str],
        typer.Argument(
            metavar="VMM [ARG]...",
            help="Command line of the VMM, up to its end.",
        ),
    ],
    *,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name of the VM (default: VMM-PID)."),
    ] = None,
    pmu: Annotated[str | None, typer.Option("--pmu", metavar="PMU", help="PMU of the VM.")] = None,
    filter: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="FILTER",
            help="Event filter, quoted: 'default deny allow cpu_cycles'.",
        ),
    ] = None,
    affinity: Annotated[
        str,
        typer.Option(
            "--affinity",
            metavar="WHERE",
            help="CPUs of vCPUs: auto (the PMU's; default), none, CPUSET.",
            show_default=False,
        ),
    ] = AUTO,
    hold: Annotated[
        bool,
        typer.Option("--hold", help="Hold the VMM, window open, until pmuctl vm release."),
    ] = False,
    timeout: Annotated[
        float | None,
        timeout_option("End the VMM if still held after SEC s; needs --hold."),
    ] = None,
    best_effort: Annotated[
        bool,
        typer.Option("--best-effort", help="Start the VMM even if settings cannot be applied."),
    ] = False,
) -> None:
    """Start an unmodified VMM with a PMU and an event filter.

    The VMM replaces pmuctl: its exit status is that of the command. A supervisor process applies
    the settings to every VM that it makes.
    """
    request = StartRequest(
        command=tuple(vmm),
        name=name,
        pmu=pmu,
        filter=None if filter is None else parse_filter_option(filter, vmm),
        affinity=affinity,
        hold=hold,
        timeout=timeout,
        best_effort=best_effort,
    )
    check_words(request)
    with context.waiting_for("probes of KVM"):
        prepared = prepare(request, context.host, os.getpid())
    if context.options.dry_run:
        _write_steps(context, prepared)
    else:
        _become_vmm(context, prepared)


def _become_vmm(context: Context, prepared: PreparedStart) -> NoReturn:
    """Print what is to be known before, and execute the VMM in place of this process."""
    spec, gated = prepared.spec, prepared.obstacle is None
    _write_warnings(context, prepared)
    if spec.hold and gated and context.stderr.isatty():
        context.note(f"{spec.name} will be held; in another terminal:")
        for line in hold_commands(spec):
            context.note(f"  {line}")
    for step in prepared.steps:
        context.trace(f"{spec.name}: {step}")
    context.stdout.flush()
    context.stderr.flush()
    executor, environ = context.get_executor(), read_own_environ()
    start(executor, spec, prepared.executable, environ, gated=gated, warn=context.warn)


def _write_warnings(context: Context, prepared: PreparedStart) -> None:
    for problem in (*prepared.warnings, *([prepared.obstacle] if prepared.obstacle else [])):
        context.warn(problem)


def _write_steps(context: Context, prepared: PreparedStart) -> None:
    _write_warnings(context, prepared)
    if context.options.json:
        context.write_document({"steps": list(prepared.steps)})
    else:
        context.write_lines([f"{prepared.spec.name}: {step}" for step in prepared.steps])
