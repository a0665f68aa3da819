# SPDX-License-Identifier: Apache-2.0
"""pmuctl conformance: a VMM's control socket held against the protocol."""

from pathlib import Path
from typing import Annotated

import typer

from pmuctl.cli.app import VERBS, command, make_app
from pmuctl.cli.context import Context
from pmuctl.cli.options import OUTPUT
from pmuctl.conformance.peer import ServerUnderTest
from pmuctl.conformance.pmu_checks import examine
from pmuctl.conformance.runner import Verdict
from pmuctl.errors import ExitStatus
from pmuctl.host.pmus import scan_other, scan_pmus
from pmuctl.model.pmu_selector import select_pmu
from pmuctl.render.reports import CONFORMANCE_COLUMNS

app = make_app(VERBS["conformance"])


@command(app, "conformance", OUTPUT, ("deadline",))
def conformance(
    context: Context,
    socket: Annotated[
        Path, typer.Argument(metavar="SOCKET", readable=False, help="A VMM's control socket.")
    ],
    *,
    apply: Annotated[
        str | None,
        typer.Option(
            "--apply",
            metavar="PMU",
            help="Also apply this PMU and a filter, and release the VM: for a throw-away VM.",
        ),
    ] = None,
) -> int:
    """Check whether a VMM's control socket keeps to the protocol.

    Exit status 1 if something fails. Nothing is changed, unless --apply names a PMU: then
    its settings are made and it goes on, so use it on a throw-away VM.
    """
    context.check_columns(CONFORMANCE_COLUMNS)
    pmus = scan_pmus(context.host.sysfs)
    pmu = select_pmu(apply, pmus, scan_other(context.host.sysfs)) if apply is not None else None
    peer = ServerUnderTest(socket, deadline=context.options.deadline, trace=context.trace)
    with context.waiting_for("the checks"):
        findings = examine(peer, pmus, apply=pmu)
    context.write_rows("checks", CONFORMANCE_COLUMNS, findings, empty="")
    failed = any(its.outcome is Verdict.FAIL for its in findings)
    return ExitStatus.NO if failed else ExitStatus.OK
