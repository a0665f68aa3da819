# SPDX-License-Identifier: Apache-2.0
"""Changes to a VM: what `vm set` and `vm release` do, apart from commands that only look."""

from collections.abc import Sequence

from pmuctl.cli.context import Env
from pmuctl.cli.session import reach_of, site_of
from pmuctl.cli.settings_parser import parse_settings
from pmuctl.errors import OutputError, RefusedError
from pmuctl.manage.inventory.inventory import Stock
from pmuctl.manage.inventory.lookup import connected, look
from pmuctl.manage.resolve import NONE
from pmuctl.manage.settings.affinity_key import change_affinity, leave_to_admin, remember, unkept
from pmuctl.manage.settings.transaction import Change, release_vm, set_vm
from pmuctl.model.vm_ref import parse_ref
from pmuctl.render.formats import Format
from pmuctl.render.reports import CHANGE_COLUMNS


def change_settings(env: Env, vm: str, settings: Sequence[str]) -> None:
    """All settings in one transaction, or none; and where its threads are kept."""
    env.check_columns(CHANGE_COLUMNS)
    request = parse_settings(settings)
    dry_run = env.options.dry_run
    site = site_of(env)
    with env.waiting_for(vm):
        if request.affinity is not None and request.is_affinity_only:
            its = look(Stock(reach_of(env)), parse_ref(vm), strictly=True)
            done = change_affinity(its, request.affinity, site, dry_run=dry_run)
        else:
            with connected(Stock(reach_of(env)), parse_ref(vm), strictly=True) as (client, its):
                done = set_vm(client, its, request, site, dry_run=dry_run)
            try:
                if done.is_placed and not dry_run:
                    remember(its, site)
                elif request.affinity == NONE and not dry_run:
                    leave_to_admin(its, site)
            except RefusedError as error:  # all else is done
                env.warn(error)
    for problem in done.warnings:
        env.warn(problem)
    if request.affinity == NONE and not request.is_affinity_only:
        env.warn(unkept(its))
    if dry_run and env.format is Format.TABLE:
        steps = done.steps or ("nothing to do: all of it holds already",)
        env.write_lines([f"{done.vm}: {step}" for step in steps])
        return
    for step in done.steps:
        env.trace(f"{done.vm}: {step}")
    _write_changes(env, done.changes, done.steps)


def release(env: Env, vm: str) -> None:
    """Let a VM that waits go on."""
    env.check_columns(CHANGE_COLUMNS)
    with (
        env.waiting_for(vm),
        connected(Stock(reach_of(env)), parse_ref(vm), strictly=True) as (client, its),
    ):
        change = release_vm(client, its, dry_run=env.options.dry_run)
    _write_changes(env, [change], ())


def _write_changes(env: Env, changes: Sequence[Change], steps: Sequence[str]) -> None:
    """What became of each key, a row each; nothing with `--quiet`.

    Where that cannot be written, the error says that the changes hold all the same.
    """
    try:
        _write(env, changes, steps)
    except OutputError as error:
        words = [f"{its.key} {its.outcome}" for its in changes]
        error.subject, error.now = changes[0].vm, ", ".join(words)
        raise


def _write(env: Env, changes: Sequence[Change], steps: Sequence[str]) -> None:
    if env.format is Format.TABLE and env.options.quiet:
        return
    more = {"steps": list(steps)}
    env.write_rows("results", CHANGE_COLUMNS, changes, empty="", headings=False, more=more)
