# SPDX-License-Identifier: Apache-2.0
"""pmuctl run: an unmodified VMM, started in place of this process with its PMU settings."""

import os
from typing import Annotated

import typer

from pmuctl.cli.app import VERBS, command, make_app
from pmuctl.cli.context import Context
from pmuctl.cli.options import DRY_RUN, VERBOSITY, Timeout
from pmuctl.cli.settings_parser import parse_filter
from pmuctl.manage.resolve import AUTO
from pmuctl.manage.start.exec import read_own_environ, start
from pmuctl.manage.start.prepare import PreparedStart, StartRequest, check_words, prepare

app = make_app(VERBS["run"])


@command(app, "run", ("json",), VERBOSITY, DRY_RUN, parsing={"allow_interspersed_args": False})
def run(
    context: Context,
    vmm: Annotated[
        list[str],
        typer.Argument(
            metavar="VMM [ARG]...", help="The VMM's command; all words after it are its own."
        ),
    ],
    *,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What the VM is called; by default VMM-PID."),
    ] = None,
    pmu: Annotated[
        str | None, typer.Option("--pmu", metavar="PMU", help="The PMU that the VM counts with.")
    ] = None,
    filter: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="FILTER",
            help="What it may count, in one word: 'default deny allow cpu_cycles'.",
        ),
    ] = None,
    affinity: Annotated[
        str,
        typer.Option(
            "--affinity",
            metavar="WHERE",
            help="The CPUs of its vCPUs: auto (the PMU's), none or a CPUSET.",
        ),
    ] = AUTO,
    hold: Annotated[
        bool,
        typer.Option("--hold", help="Hold the VMM with its window open until pmuctl vm release."),
    ] = False,
    timeout: Timeout = None,
    best_effort: Annotated[
        bool,
        typer.Option("--best-effort", help="Start the VMM also where settings cannot be applied."),
    ] = False,
) -> None:
    """Start an unmodified VMM with its PMU and its event filter.

    The VMM takes the place of pmuctl: its process, its terminal, its exit status. A supervisor
    beside it applies the settings to every VM that it makes.
    """
    request = StartRequest(
        command=tuple(vmm),
        name=name,
        pmu=pmu,
        filter=None if filter is None else parse_filter(filter.split(), is_option=True),
        affinity=affinity,
        hold=hold,
        timeout=timeout,
        best_effort=best_effort,
    )
    check_words(request)
    with context.waiting_for("probes of KVM"):
        prepared = prepare(request, context.host, os.getpid())
    if context.options.dry_run:
        _show(context, prepared)
        return
    _warn(context, prepared)
    for step in prepared.steps:
        context.trace(f"{prepared.spec.name}: {step}")
    context.stdout.flush()
    context.stderr.flush()
    start(
        context.get_executor(),
        prepared.spec,
        prepared.executable,
        read_own_environ(),
        gated=prepared.obstacle is None,
        warn=context.warn,
    )


def _warn(context: Context, prepared: PreparedStart) -> None:
    for problem in (*prepared.warnings, *([prepared.obstacle] if prepared.obstacle else [])):
        context.warn(problem)


def _show(context: Context, prepared: PreparedStart) -> None:
    _warn(context, prepared)
    if context.options.json:
        context.write_document({"steps": list(prepared.steps)})
    else:
        context.write_lines([f"{prepared.spec.name}: {step}" for step in prepared.steps])
