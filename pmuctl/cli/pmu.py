# SPDX-License-Identifier: Apache-2.0
"""pmuctl pmu: the host's CPU PMUs."""

from typing import Annotated

import typer

from pmuctl.cli.app import command, make_noun
from pmuctl.cli.context import Context
from pmuctl.cli.options import OUTPUT, SYSROOT
from pmuctl.host.pmus import scan_event_sources, scan_other, scan_pmus
from pmuctl.manage.pmus import scan_probed_pmus
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.pmu_selector import check_present, match_pmus, parse_cpus, select_pmu
from pmuctl.render.pmu import CPU_COLUMNS, PMU_COLUMNS

app = make_noun("pmu")

PMU_HELP = "A name, a quoted glob, core/MODEL or cpus/LIST."


@command(app, "list", OUTPUT, SYSROOT)
def pmu_list(
    context: Context,
    pmu: Annotated[list[str] | None, typer.Argument(metavar="[PMU]...", help=PMU_HELP)] = None,
) -> None:
    """List the CPU PMUs of this host, or those that are named."""
    names = _scan_names(context)
    pmus = scan_probed_pmus(context.host, names)
    if pmu:
        others = scan_other(context.host.sysfs, names)
        chosen = [match_pmus(text, pmus) or [select_pmu(text, pmus, others)] for text in pmu]
        pmus = [its for its in pmus if any(its in some for some in chosen)]
    empty = "no CPU PMU: the kernel has registered no arm_pmu device here"
    context.write_rows("pmus", PMU_COLUMNS, pmus, empty=empty)


@command(app, "show", OUTPUT, SYSROOT)
def pmu_show(
    context: Context, pmu: Annotated[str, typer.Argument(metavar="PMU", help=PMU_HELP)]
) -> None:
    """Show one PMU in full.

    Its CPUs and their core models, what its format/ and caps/ say, and its named events.
    """
    names = _scan_names(context)
    pmus = scan_probed_pmus(context.host, names)
    its = select_pmu(pmu, pmus, scan_other(context.host.sysfs, names))
    context.write_one("pmu", PMU_COLUMNS, its)


@command(app, "cpus", OUTPUT, SYSROOT)
def pmu_cpus(
    context: Context,
    cpus: Annotated[
        str | None,
        typer.Argument(metavar="[CPUSET]", help="A list of 0-3, ^5 (not 5), all, pmu/NAME."),
    ] = None,
) -> None:
    """List the CPUs: the PMU, the core model and the capacity of each."""
    from pmuctl.manage.cpus import scan_cpus

    pmus = scan_pmus(context.host.sysfs, _scan_names(context))
    rows = scan_cpus(context.host.sysfs, pmus)
    if cpus is not None:
        present = CpuSet.of(row.number for row in rows)
        wanted = parse_cpus(cpus, pmus, present)
        check_present(wanted, present)
        rows = [row for row in rows if row.number in wanted]
    context.write_rows("cpus", CPU_COLUMNS, rows, empty="no CPU is left of the list")


def _scan_names(context: Context) -> tuple[str, ...]:
    sources = scan_event_sources(context.host.sysfs)
    context.trace(f"{len(sources.names)} event sources, named by {sources.source}")
    return sources.names
