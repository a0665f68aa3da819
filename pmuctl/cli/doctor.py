# SPDX-License-Identifier: Apache-2.0
"""pmuctl doctor: what is wrong with this host and its VMs, and what mends it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pmuctl.cli.app import VERBS, command, make_app
from pmuctl.cli.context import Context
from pmuctl.cli.options import CONNECTION, OUTPUT, SYSROOT
from pmuctl.cli.session import (
    VM_HELP,
    check_one_host,
    hide_unbacked_in_table,
    note_unbacked,
    open_session,
)
from pmuctl.errors import ExitStatus, NotFoundError, UsageError
from pmuctl.model.symptoms import SYMPTOMS, match_symptoms
from pmuctl.model.vm_ref import parse_ref
from pmuctl.render.formats import Format
from pmuctl.render.reports import DOCTOR_COLUMNS, SYMPTOM_COLUMNS
from pmuctl.render.table import write_record

if TYPE_CHECKING:
    from pmuctl.model.check_result import Finding

app = make_app(VERBS["doctor"])


@command(app, "doctor", OUTPUT, CONNECTION, SYSROOT)
def doctor(
    context: Context,
    vm: Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help=VM_HELP)] = None,
    *,
    symptom: Annotated[
        str | None,
        typer.Option(
            "--symptom", metavar="TEXT", help="Tell what a message of a VMM or a guest means."
        ),
    ] = None,
) -> int:
    """Find what is wrong with this host and its VMs, and what mends it.

    With VMs named, only those are looked at. Exit status 1 if a check fails.
    """
    if symptom is not None:
        if vm:
            raise UsageError("--symptom is about no VM of this host", fix="leave the VM out")
        _tell_symptoms(context, symptom)
        return ExitStatus.OK
    # here, because a symptom needs nothing of it
    from pmuctl.manage.affinity.host_state import read_host_state
    from pmuctl.manage.diagnosis.doctor import diagnose
    from pmuctl.manage.inventory.lookup import list_vms
    from pmuctl.model.check_result import Result

    context.check_columns(DOCTOR_COLUMNS)
    check_one_host(context)
    session = open_session(context)
    with context.waiting_for("KVM and VMs"):
        host_state = read_host_state(context.host)
        vms = list_vms(session, [parse_ref(name) for name in vm or ()])
        vms = vms if vm else hide_unbacked_in_table(context, session, vms)
        findings, unchecked = diagnose(host_state, vms, is_whole=not vm)
    context.write_rows("findings", DOCTOR_COLUMNS, findings, empty="nothing to look at")
    note_unbacked(context, vms)
    for words in unchecked:
        context.note(words)
    if (
        context.options.sysroot is not None
        and context.format is Format.TABLE
        and any(its.fix for its in findings)
    ):
        context.note("a fix is for the host that was captured")
    if context.format is Format.TABLE and context.layout.width is not None:
        _tell_in_full(context, findings)
    failed = any(its.result is Result.FAIL for its in findings)
    return ExitStatus.NO if failed else ExitStatus.OK


def _tell_in_full(context: Context, findings: "Sequence[Finding]") -> None:
    """What a terminal's table has cut off: half a command cannot be typed."""
    for its in findings:
        if its.fix is not None:
            head = f"{its.result} {its.id} {its.subject}"
            context.write_lines(["", head, f"  why: {its.why}", f"  fix: {its.fix}"])


def _tell_symptoms(context: Context, text: str) -> None:
    """What a text can mean; in a table, each in full: these are sentences."""
    context.check_columns(SYMPTOM_COLUMNS)
    found = match_symptoms(text)
    if not found:
        raise NotFoundError(
            "no symptom that is known",
            subject=text,
            why=f"known are {', '.join(its.id for its in SYMPTOMS)}",
            fix="give fewer words of the message, such as --symptom busy",
        )
    if context.format is not Format.TABLE or context.options.columns is not None:
        context.write_rows("symptoms", SYMPTOM_COLUMNS, found, empty="")
        return
    for number, its in enumerate(found):
        if number:
            context.stdout.write("\n")
        write_record(SYMPTOM_COLUMNS, its, context.stdout)
    context.stdout.flush()
