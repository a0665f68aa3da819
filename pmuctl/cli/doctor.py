# SPDX-License-Identifier: Apache-2.0
"""pmuctl doctor: what is wrong with this host and its VMs, and what mends it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pmuctl.cli.app import VERBS, command, make_app
from pmuctl.cli.context import Env
from pmuctl.cli.options import MACHINE, OUTPUT, REACH
from pmuctl.cli.session import VM_HELP, check_place, reach_of, sifted, tell_hollow
from pmuctl.errors import ExitStatus, NotFoundError, UsageError
from pmuctl.model.symptoms import SYMPTOMS, match_symptoms
from pmuctl.model.vm_ref import parse_ref
from pmuctl.render.formats import Format
from pmuctl.render.reports import DOCTOR_COLUMNS, SYMPTOM_COLUMNS
from pmuctl.render.table import write_record

if TYPE_CHECKING:
    from pmuctl.model.check_result import Finding

app = make_app(VERBS["doctor"])


@command(app, "doctor", OUTPUT, REACH, MACHINE)
def doctor(
    env: Env,
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
        _tell_symptoms(env, symptom)
        return ExitStatus.OK
    # here, because a symptom needs nothing of it
    from pmuctl.manage.diagnosis.doctor import diagnose
    from pmuctl.manage.inventory.lookup import take_stock
    from pmuctl.model.check_result import Result

    env.check_columns(DOCTOR_COLUMNS)
    check_place(env)
    with env.waiting_for("KVM and VMs"):
        reach = reach_of(env)
        seen = take_stock(reach, [parse_ref(name) for name in vm or ()])
        seen = seen if vm else sifted(env, seen)
        findings, unchecked = diagnose(
            reach,
            seen,
            is_whole=not vm,
            kvm=env.hypervisor or (env.kvm if env.sysfs.is_live else None),
            threads=env.threads,
        )
    env.write_rows("findings", DOCTOR_COLUMNS, findings, empty="nothing to look at")
    tell_hollow(env, seen)
    for words in unchecked:
        env.say(words)
    if (
        env.options.sysroot is not None
        and env.format is Format.TABLE
        and any(its.fix for its in findings)
    ):
        env.say("a fix is for the host that was captured")
    if env.format is Format.TABLE and env.layout.width is not None:
        _tell_in_full(env, findings)
    failed = any(its.result is Result.FAIL for its in findings)
    return ExitStatus.NO if failed else ExitStatus.OK


def _tell_in_full(env: Env, findings: "Sequence[Finding]") -> None:
    """What a terminal's table has cut off: half a command cannot be typed."""
    for its in findings:
        if its.fix is not None:
            head = f"{its.result} {its.id} {its.subject}"
            env.write_lines(["", head, f"  why: {its.why}", f"  fix: {its.fix}"])


def _tell_symptoms(env: Env, text: str) -> None:
    """What a text can mean; in a table, each in full: these are sentences."""
    env.check_columns(SYMPTOM_COLUMNS)
    found = match_symptoms(text)
    if not found:
        raise NotFoundError(
            "no symptom that is known",
            subject=text,
            why=f"known are {', '.join(its.id for its in SYMPTOMS)}",
            fix="give fewer words of the message, such as --symptom busy",
        )
    if env.format is not Format.TABLE or env.options.columns is not None:
        env.write_rows("symptoms", SYMPTOM_COLUMNS, found, empty="")
        return
    for number, its in enumerate(found):
        if number:
            env.stdout.write("\n")
        write_record(SYMPTOM_COLUMNS, its, env.stdout)
    env.stdout.flush()
