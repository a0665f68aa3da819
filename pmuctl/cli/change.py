# SPDX-License-Identifier: Apache-2.0
"""Changes to a VM: what `vm set` and `vm release` do, apart from commands that only look."""

from collections.abc import Sequence

from pmuctl.cli.context import Context
from pmuctl.cli.session import reach_of, site_of
from pmuctl.cli.settings_parser import parse_settings
from pmuctl.errors import OutputError, RefusedError
from pmuctl.manage.inventory.inventory import Inventory
from pmuctl.manage.inventory.lookup import lookup_vm, open_vm
from pmuctl.manage.resolve import NONE
from pmuctl.manage.settings.affinity_key import (
    change_affinity,
    record_affinity,
    record_unmanaged,
    unkept,
)
from pmuctl.manage.settings.transaction import KeyResult, release_vm, set_vm
from pmuctl.model.vm_ref import parse_ref
from pmuctl.render.formats import Format
from pmuctl.render.reports import CHANGE_COLUMNS


def change_settings(context: Context, vm: str, settings: Sequence[str]) -> None:
    """All settings in one transaction, or none; and where its threads are kept."""
    context.check_columns(CHANGE_COLUMNS)
    request = parse_settings(settings)
    dry_run = context.options.dry_run
    site = site_of(context)
    with context.waiting_for(vm):
        if request.affinity is not None and request.is_affinity_only:
            its = lookup_vm(Inventory(reach_of(context)), parse_ref(vm), strictly=True)
            done = change_affinity(its, request.affinity, site, dry_run=dry_run)
        else:
            with open_vm(Inventory(reach_of(context)), parse_ref(vm), strictly=True) as (
                client,
                its,
            ):
                done = set_vm(client, its, request, site, dry_run=dry_run)
            try:
                if done.is_placed and not dry_run:
                    record_affinity(its, site)
                elif request.affinity == NONE and not dry_run:
                    record_unmanaged(its, site)
            except RefusedError as error:  # all else is done
                context.warn(error)
    for problem in done.warnings:
        context.warn(problem)
    if request.affinity == NONE and not request.is_affinity_only:
        context.warn(unkept(its))
    if dry_run and context.format is Format.TABLE:
        steps = done.steps or ("nothing to do: all of it holds already",)
        context.write_lines([f"{done.vm}: {step}" for step in steps])
        return
    for step in done.steps:
        context.trace(f"{done.vm}: {step}")
    _write_changes(context, done.changes, done.steps)


def release(context: Context, vm: str) -> None:
    """Let a VM that waits go on."""
    context.check_columns(CHANGE_COLUMNS)
    with (
        context.waiting_for(vm),
        open_vm(Inventory(reach_of(context)), parse_ref(vm), strictly=True) as (client, its),
    ):
        change = release_vm(client, its, dry_run=context.options.dry_run)
    _write_changes(context, [change], ())


def _write_changes(context: Context, changes: Sequence[KeyResult], steps: Sequence[str]) -> None:
    """What became of each key, a row each; nothing with `--quiet`.

    Where that cannot be written, the error says that the changes hold all the same.
    """
    try:
        _write(context, changes, steps)
    except OutputError as error:
        words = [f"{its.key} {its.outcome}" for its in changes]
        error.subject, error.now = changes[0].vm, ", ".join(words)
        raise


def _write(context: Context, changes: Sequence[KeyResult], steps: Sequence[str]) -> None:
    if context.format is Format.TABLE and context.options.quiet:
        return
    more = {"steps": list(steps)}
    context.write_rows("results", CHANGE_COLUMNS, changes, empty="", headings=False, more=more)
