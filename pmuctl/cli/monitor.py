# SPDX-License-Identifier: Apache-2.0
"""pmuctl monitor: changes on this host as they happen."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import Annotated

import typer

from pmuctl.cli.app import VERBS, command, make_app
from pmuctl.cli.context import Context
from pmuctl.cli.options import CONNECTION, OUTPUT, Timeout
from pmuctl.cli.session import VMS_HELP, note_missing, open_session
from pmuctl.errors import UsageError
from pmuctl.manage.diagnosis.monitor import Event, HostMonitor, describe_scope, find_absent
from pmuctl.model.host_diff import ChangeKind
from pmuctl.model.vm_ref import parse_refs
from pmuctl.render.columns import Column, choose
from pmuctl.render.events import EVENT_COLUMNS, write_event, write_head
from pmuctl.render.formats import Format

app = make_app(VERBS["monitor"])

MIN_INTERVAL, MAX_INTERVAL = 0.1, 3600.0


def checked_interval(value: float) -> float:
    """Return the seconds between two scans, for typer; raise BadParameter if out of range."""
    if not MIN_INTERVAL <= value <= MAX_INTERVAL:
        raise typer.BadParameter(f"{value:g}: must be {MIN_INTERVAL:g}-{MAX_INTERVAL:g} seconds")
    return value


@command(
    app,
    "monitor",
    OUTPUT,
    CONNECTION,
    helps={"format": f"Output format: {', '.join(f for f in Format if f is not Format.JSON)}."},
)
def monitor(
    context: Context,
    vm: Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help=VMS_HELP)] = None,
    *,
    kinds: Annotated[
        list[ChangeKind] | None,
        typer.Option(
            "--event",
            metavar="TYPE",
            help="Print only events of this type; may be given several times.",
        ),
    ] = None,
    timeout: Timeout = None,
    interval: Annotated[
        float,
        typer.Option(
            "--interval",
            metavar="SEC",
            callback=checked_interval,
            show_default=False,
            help="Seconds between two scans (default 1).",
        ),
    ] = 1.0,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Realign vCPUs that leave their PMU, as affinity align does."
        ),
    ] = False,
) -> None:
    """Print changes on this host as they happen.

    Until it is interrupted, it watches all VMs, or those that are named, which need not exist yet.

    Event types are vm-started, vm-ended, vcpu-left, vcpu-returned, window, settings, released,
    cpu-offline, cpu-online, pmu-offline, repaired, repair-failed and lost.

    Formats are table, jsonl, csv, tsv, raw and name; json would need an end.
    """
    refs = tuple(parse_refs(vm or ()))
    columns = _choose_columns(context)
    context.enable_gc()
    wanted = set(kinds or ChangeKind)
    until = None if timeout is None else time.monotonic() + timeout
    watch = HostMonitor(
        session=open_session(context),
        refs=refs,
        uevents=context.open_uevents(),
        interval=interval,
        repairs=repair,
    )
    with closing(watch):
        for event in chain(_begin_watch(context, watch, columns), watch.watch(until)):
            if event.change.kind in wanted:
                width = context.layout.width
                write_event(columns, event, context.stdout, format=context.format, width=width)


def _choose_columns(context: Context) -> Sequence[Column[Event]]:
    """Return the columns to print; raise UsageError for a column or a format that is not one."""
    if context.format is Format.JSON:
        raise UsageError(
            "monitor has no end and so cannot print one JSON object",
            fix="use --format jsonl: one object per line",
        )
    return choose(
        EVENT_COLUMNS,
        context.options.columns,
        every=context.options.every_column,
        as_json=context.format.is_json,
    )


def _begin_watch(
    context: Context, watch: HostMonitor, columns: Sequence[Column[Event]]
) -> Iterator[Event]:
    """Return the events of the first scan; note what is watched, and write the header line."""
    with context.waiting_for("VMs"):
        first = watch.look()
    context.note(describe_scope(watch))
    for name in find_absent(watch):
        context.note(f"{name}: no such VM yet")
    for name, why in watch.unassessed():
        context.note(f"{name}: cannot tell whether a vCPU leaves its PMU: {why}")
    note_missing(context, watch.vm_list)
    for problem in watch.problems():
        context.warn(problem)
    if not context.options.no_headings:
        write_head(columns, context.stdout, format=context.format, width=context.layout.width)
        context.stdout.flush()
    return first
