# SPDX-License-Identifier: Apache-2.0
"""pmuctl conformance: test a VMM's control socket against the protocol."""

import os
from pathlib import Path
from typing import Annotated

import typer

from pmuctl.cli.app import VERBS, command, make_app
from pmuctl.cli.context import Context
from pmuctl.cli.options import OUTPUT
from pmuctl.conformance.peer import ServerUnderTest
from pmuctl.conformance.pmu_checks import examine
from pmuctl.conformance.runner import Verdict
from pmuctl.control.runtime.sockets import scan_sockets
from pmuctl.errors import ExitStatus, WrongWordError
from pmuctl.host.pmus import scan_other, scan_pmus
from pmuctl.model.pmu_selector import select_pmu
from pmuctl.render.reports import CONFORMANCE_COLUMNS

app = make_app(VERBS["conformance"])


@command(app, "conformance", OUTPUT, ("deadline",))
def conformance(
    context: Context,
    socket: Annotated[
        Path,
        typer.Argument(metavar="SOCKET", readable=False, help="Path of the VMM's control socket."),
    ],
    *,
    apply: Annotated[
        str | None,
        typer.Option(
            "--apply",
            metavar="PMU",
            help="Also apply this PMU and a filter and release the VM; use a throw-away VM.",
        ),
    ] = None,
) -> int:
    """Test whether a VMM's control socket follows the protocol.

    Exit with status 1 if a check fails. Without --apply nothing is changed.
    """
    context.check_columns(CONFORMANCE_COLUMNS)
    pmus = scan_pmus(context.host.sysfs)
    pmu = select_pmu(apply, pmus, scan_other(context.host.sysfs)) if apply is not None else None
    _check_path(context, socket)
    peer = ServerUnderTest(socket, deadline=context.options.deadline, trace=context.trace)
    with context.waiting_for("the checks"):
        findings = examine(peer, pmus, apply=pmu)
    context.write_rows("checks", CONFORMANCE_COLUMNS, findings, empty="")
    failed = any(finding.verdict is Verdict.FAIL for finding in findings)
    return ExitStatus.NO if failed else ExitStatus.OK


def _check_path(context: Context, socket: Path) -> None:
    """Raise WrongWordError for the name of a VM, if that has a socket; a name is no path."""
    if len(socket.parts) != 1 or os.path.lexists(socket):
        return
    host = context.host
    scan = scan_sockets(host.environ, host.uid)
    named = [found for found in scan.sockets if found.name == str(socket)]
    if len(named) == 1:
        raise WrongWordError(
            f"{socket}: not the path of a socket",
            words=(str(socket),),
            right=(str(named[0].path),),
            why="the server need not be one that pmuctl lists",
        )
