# SPDX-License-Identifier: Apache-2.0
"""pmuctl pmu: the host's CPU PMUs."""

from collections.abc import Sequence
from typing import Annotated

import typer

from pmuctl.cli.app import NOUNS, Command, make_app
from pmuctl.cli.env import Env
from pmuctl.cli.options import Json, Sysroot, Verbose
from pmuctl.host.pmus import scan_event_sources, scan_other, scan_pmus
from pmuctl.model.event import format_code
from pmuctl.model.pmu import Pmu
from pmuctl.model.selector import match_pmus, select_pmu
from pmuctl.render.columns import PMU_COLUMNS, Column, known, plain
from pmuctl.render.document import rows_as_json, write_document
from pmuctl.render.table import write_record, write_table

app = make_app(NOUNS["pmu"])

EVENT_COLUMNS: Sequence[Column[tuple[str, int]]] = (
    Column(name="NAME", help="its name in sysfs", value=lambda event: event[0]),
    Column(name="CODE", help="its number", value=lambda event: format_code(event[1])),
)


@app.command("list", cls=Command)
def pmu_list(
    ctx: typer.Context,
    pmu: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PMU]...", help="A name, a glob, core/MODEL or cpus/LIST."),
    ] = None,
    *,
    json: Json = False,
    sysroot: Sysroot = None,
    verbose: Verbose = 0,
) -> None:
    """List the CPU PMUs of this host, or those that are named."""
    base: Env = ctx.obj
    env = base.asked("pmu list", as_json=json, sysroot=sysroot, verbose=verbose)
    names = _scan_names(env)
    pmus = scan_pmus(env.sysfs, names)
    if pmu:
        others = scan_other(env.sysfs, names)
        chosen = [match_pmus(text, pmus) or [select_pmu(text, pmus, others)] for text in pmu]
        pmus = [its for its in pmus if any(its in some for some in chosen)]
    empty = "no CPU PMU: the kernel has registered no arm_pmu device here"
    env.write_rows("pmus", PMU_COLUMNS, pmus, empty=empty)


@app.command("show", cls=Command)
def pmu_show(
    ctx: typer.Context,
    pmu: Annotated[
        str, typer.Argument(metavar="PMU", help="A name, a glob, core/MODEL or cpus/LIST.")
    ],
    *,
    json: Json = False,
    sysroot: Sysroot = None,
    verbose: Verbose = 0,
) -> None:
    """Show one PMU in full.

    Its CPUs and their core models, what its format/ and caps/ say, and its named events.
    """
    base: Env = ctx.obj
    env = base.asked("pmu show", as_json=json, sysroot=sysroot, verbose=verbose)
    names = _scan_names(env)
    its = select_pmu(pmu, scan_pmus(env.sysfs, names), scan_other(env.sysfs, names))
    with env.output() as out:
        if env.as_json:
            write_document(env.command, {"pmu": _as_json(its)}, out)
            return
        write_record(
            [
                ("Name", its.name),
                ("Perf type", known(its.type)),
                ("Path", its.path),
                ("Cores", [str(core) for core in its.cores] or known(None)),
                ("CPUs", known(its.cpus)),
                ("Online", known(its.online)),
                *((f"format/{name}", text) for name, text in its.formats.items()),
                *((f"caps/{name}", text) for name, text in its.caps.items()),
                ("Events", len(its.events)),
            ],
            out,
        )
        if its.events:
            write_table(EVENT_COLUMNS, list(its.events.items()), out, indent="  ")


def _scan_names(env: Env) -> tuple[str, ...]:
    sources = scan_event_sources(env.sysfs)
    if env.verbose:
        env.say(f"{len(sources.names)} event sources, named by {sources.source}")
    return sources.names


def _as_json(pmu: Pmu) -> dict[str, object]:
    return rows_as_json(PMU_COLUMNS, [pmu])[0] | {
        "path": pmu.path,
        "cores": [
            {"name": core.name, "implementer": core.implementer, "part": core.part}
            for core in pmu.cores
        ],
        "formats": plain(dict(pmu.formats)),
        "caps": plain(dict(pmu.caps)),
        "events": [
            {"name": name, "code": code, "code_hex": format_code(code)}
            for name, code in pmu.events.items()
        ],
    }
