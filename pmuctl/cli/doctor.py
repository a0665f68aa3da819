# SPDX-License-Identifier: Apache-2.0
"""pmuctl doctor: problems of this host and its VMs, and commands that fix them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pmuctl.cli.app import VERBS, command, make_app
from pmuctl.cli.context import Context
from pmuctl.cli.options import CONNECTION, OUTPUT, SYSROOT
from pmuctl.cli.session import (
    VMS_HELP,
    check_one_host,
    hide_unbacked_in_table,
    note_unbacked,
    open_session,
)
from pmuctl.errors import ExitStatus, NotFoundError, UsageError
from pmuctl.errors import command as make_line
from pmuctl.model.vm_ref import parse_refs
from pmuctl.render.formats import Format
from pmuctl.render.reports import DOCTOR_COLUMNS, SYMPTOM_COLUMNS
from pmuctl.render.table import write_records

if TYPE_CHECKING:
    from pmuctl.model.check_result import Finding

app = make_app(VERBS["doctor"])


@command(app, "doctor", OUTPUT, CONNECTION, SYSROOT)
def doctor(
    context: Context,
    vm: Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help=VMS_HELP)] = None,
    *,
    symptom: Annotated[
        str | None,
        typer.Option("--symptom", metavar="TEXT", help="Explain a message of a VMM or a guest."),
    ] = None,
) -> int:
    """Find problems of this host and its VMs, and print the fixes.

    If VMs are named, only they are checked. Exit with status 1 if a check fails.
    """
    if symptom is not None and not symptom.strip():
        fix = "give a message, such as --symptom 'kvm_init_vcpu failed'"
        raise UsageError("--symptom: the message is empty", fix=fix)
    if symptom is not None:
        if vm:
            line = _make_symptom_line([symptom, *vm])
            raise UsageError(
                "--symptom takes one TEXT, and no VM",
                why="a text with spaces has to be quoted",
                fix=line or "omit the VM",
            )
        _explain_message(context, symptom)
        return ExitStatus.OK
    # imported here, because --symptom needs none of it
    from pmuctl.manage.affinity.host_state import read_host_state
    from pmuctl.manage.diagnosis.doctor import diagnose
    from pmuctl.manage.inventory.lookup import list_vms
    from pmuctl.model.check_result import Result

    context.check_columns(DOCTOR_COLUMNS)
    check_one_host(context)
    session = open_session(context)
    with context.waiting_for("KVM and VMs"):
        host_state = read_host_state(context.host)
        try:
            vms = list_vms(session, parse_refs(vm or ()))
        except NotFoundError as error:  # it may be a message without its option
            error.fix = _make_symptom_line(vm or ()) or error.fix
            raise
        vms = vms if vm else hide_unbacked_in_table(context, session, vms)
        findings, unchecked = diagnose(host_state, vms, is_whole=not vm)
    are_fixes_below = context.format is Format.TABLE and context.layout.width is not None
    is_default = context.options.columns is None and not context.options.every_column
    columns = DOCTOR_COLUMNS[:-1] if are_fixes_below and is_default else DOCTOR_COLUMNS
    context.write_rows("findings", columns, findings, empty="nothing to check")
    note_unbacked(context, vms)
    for reason in unchecked:
        context.note(reason)
    if (
        context.options.sysroot is not None
        and context.format is Format.TABLE
        and any(finding.fix for finding in findings)
    ):
        context.note("fixes are for the host that was captured")
    if are_fixes_below:
        _write_fixes(context, findings)
    failed = any(finding.result is Result.FAIL for finding in findings)
    return ExitStatus.NO if failed else ExitStatus.OK


def _write_fixes(context: Context, findings: "Sequence[Finding]") -> None:
    """Write reasons and fixes in full, because a table on a terminal may have cut them off."""
    for finding in findings:
        if finding.fix is not None:
            head = f"{finding.result} {finding.id} {finding.subject}"
            context.write_lines(["", head])
            context.write_prose("  why: ", finding.why)
            context.write_prose("  fix: ", finding.fix)


def _make_symptom_line(words: "Sequence[str]") -> str | None:
    """Return the command that explains these words as a message; None if they are no message."""
    from pmuctl.model.symptoms.explain import explain

    text = " ".join(words)
    return make_line("doctor", "--symptom", text) if len(words) > 1 and explain(text) else None


def _explain_message(context: Context, text: str) -> None:
    """Write what `text` means; as a table each answer in full, because they are sentences.

    Raise NotFoundError if no symptom matches.
    """
    # imported here, because the checks need none of it
    from pmuctl.manage.diagnosis.symptom_host import read_symptom_host
    from pmuctl.model.symptoms.explain import explain

    context.check_columns(SYMPTOM_COLUMNS)
    found = explain(text, read_symptom_host(context.host))
    if not found:
        flat = " ".join(text.split())
        raise NotFoundError(
            "no known symptom matches",
            subject=flat if len(flat) <= 60 else f"{flat[:57]}...",
            why="pmuctl knows messages about PMUs and the CPUs of VMs: pmuctl-doctor(1), SYMPTOMS",
            fix="pmuctl doctor",
        )
    if context.format is not Format.TABLE or context.options.columns is not None:
        context.write_rows("symptoms", SYMPTOM_COLUMNS, found, empty="")
        return
    write_records(SYMPTOM_COLUMNS, found, context.stdout, width=context.layout.width)
    context.stdout.flush()
