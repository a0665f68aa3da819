# SPDX-License-Identifier: Apache-2.0
"""pmuctl pmu: the CPU PMUs of the host."""

from typing import Annotated

import typer

from pmuctl.cli.app import NOUNS, Noun, command
from pmuctl.cli.context import Context
from pmuctl.cli.options import CPUSET_HELP, OUTPUT, SYSROOT
from pmuctl.host.pmus import look_for_pmus, scan_event_sources, scan_other, scan_pmus
from pmuctl.host.sysfs import PATH_CPU, PATH_EVENT_SOURCE
from pmuctl.manage.pmus import add_probed
from pmuctl.model.cpu_list import check_present, parse_cpus
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.pmu_selector import match_pmus, select_pmu
from pmuctl.render.pmu import CPU_COLUMNS, PMU_COLUMNS

app = Noun(NOUNS["pmu"])

PMU_HELP = "PMU name, quoted glob, core/MODEL or cpus/LIST."


@command(app, "list", OUTPUT, SYSROOT)
def pmu_list(
    context: Context,
    pmu: Annotated[list[str] | None, typer.Argument(metavar="[PMU]...", help=PMU_HELP)] = None,
) -> None:
    """List the CPU PMUs of this host, or only the named ones."""
    names = _scan_names(context)
    scan = look_for_pmus(context.host.sysfs, names)
    pmus = add_probed(context.host, scan.pmus)
    if pmu:
        others = scan_other(context.host.sysfs, names)
        chosen = [match_pmus(text, pmus) or [select_pmu(text, pmus, others)] for text in pmu]
        pmus = [pmu for pmu in pmus if any(pmu in matches for matches in chosen)]
    empty = "no CPU PMU: the kernel has no arm_pmu device"
    if not scan.is_complete:
        empty = f"no CPU PMU is known: /{PATH_EVENT_SOURCE} cannot be read, or was not captured"
    more = {"partial": not scan.is_complete}
    context.write_rows("pmus", PMU_COLUMNS, pmus, empty=empty, more=more)
    if pmus and not scan.is_complete:
        context.note("not all event sources can be read: there may be other CPU PMUs")


@command(app, "show", OUTPUT, SYSROOT)
def pmu_show(
    context: Context, pmu: Annotated[str, typer.Argument(metavar="PMU", help=PMU_HELP)]
) -> None:
    """Show one PMU in full.

    This includes its CPUs and core models, its format/ and caps/ files, and its named events.
    """
    names = _scan_names(context)
    pmus = add_probed(context.host, scan_pmus(context.host.sysfs, names))
    chosen = select_pmu(pmu, pmus, scan_other(context.host.sysfs, names))
    context.write_one("pmu", PMU_COLUMNS, chosen)


@command(app, "cpus", OUTPUT, SYSROOT)
def pmu_cpus(
    context: Context,
    cpus: Annotated[
        str | None,
        typer.Argument(metavar="[CPUSET]", help=CPUSET_HELP),
    ] = None,
) -> None:
    """List CPUs with their PMU, core model and capacity."""
    from pmuctl.manage.cpus import scan_cpus

    scan = look_for_pmus(context.host.sysfs, _scan_names(context))
    rows = scan_cpus(context.host.sysfs, scan)
    empty = "no CPU in this list"
    if not rows:
        empty = f"no CPU is known: /{PATH_CPU} cannot be read, or was not captured"
    if cpus is not None:
        present = CpuSet.of(row.number for row in rows)
        wanted = parse_cpus(cpus, scan.pmus, present)
        check_present(wanted, present)
        rows = [row for row in rows if row.number in wanted]
    context.write_rows("cpus", CPU_COLUMNS, rows, empty=empty)


def _scan_names(context: Context) -> tuple[str, ...]:
    sources = scan_event_sources(context.host.sysfs)
    context.trace(f"{len(sources.names)} event sources, listed by {sources.source}")
    return sources.names
