# SPDX-License-Identifier: Apache-2.0
"""pmuctl host: this machine, the capabilities of its KVM, and captures of it."""

from pathlib import Path
from typing import Annotated

import typer

from pmuctl import errors
from pmuctl.cli.app import NOUNS, Noun, command
from pmuctl.cli.context import Context
from pmuctl.cli.options import OUTPUT, SYSROOT, VERBOSITY
from pmuctl.errors import DeniedError, ExitStatus, RefusedError, UsageError
from pmuctl.host.pmus import look_for_pmus, scan_pmus
from pmuctl.host.snapshot_files import write_capture
from pmuctl.manage.host_info import explain_unknown, read_host
from pmuctl.model.kvm_caps import ATTR_NAMES
from pmuctl.render.columns import UNKNOWN
from pmuctl.render.formats import Format
from pmuctl.render.host import CAPABILITY_COLUMNS, HOST_COLUMNS, Capability

app = Noun(NOUNS["host"])


@command(app, "info", OUTPUT, SYSROOT)
def host_info(context: Context) -> None:
    """Show this host: its kernel, KVM, CPUs and PMUs.

    The behaviour of KVM is probed with scratch VMs, once per boot.
    """
    columns = context.check_columns(HOST_COLUMNS)
    with context.waiting_for("probes of KVM"):
        host = read_host(context.host, look_for_pmus(context.host.sysfs))
    context.write_one("host", HOST_COLUMNS, host)
    has_unknown = any(column.value(host) is UNKNOWN for column in columns)
    if context.format is Format.TABLE and has_unknown:
        why = explain_unknown(host, is_live=context.host.sysfs.is_live)
        if why is not None:
            context.note(why)


@command(app, "capabilities", OUTPUT)
def host_capabilities(
    context: Context,
    attr: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ATTR]...", help="SET_PMU, FILTER, SET_NR_COUNTERS, ..."),
    ] = None,
) -> int:
    """Show which PMU attributes the KVM of this kernel has.

    Exit with status 1 if a named attribute is missing.
    """
    names = {name: number for number, name in ATTR_NAMES.items()}
    asked = [name.upper().removeprefix("KVM_ARM_VCPU_PMU_V3_") for name in attr or names]
    for name in asked:
        if name not in names:
            raise UsageError(
                f"{name}: no such attribute", why=f"the attributes are {', '.join(names)}"
            )
    # imported here, because only this command needs KVM
    from pmuctl.manage.start.preflight import ask_kvm, check_has_vpmu

    with context.waiting_for("probes of KVM"):
        probed = ask_kvm(context.host, scan_pmus(context.host.sysfs))
    check_has_vpmu(probed)
    present = probed.attributes
    rows = [
        Capability(name=name, number=names[name], present=names[name] in present) for name in asked
    ]
    context.write_rows("attributes", CAPABILITY_COLUMNS, rows, empty="")
    missing = attr and not all(row.present for row in rows)
    return ExitStatus.NO if missing else ExitStatus.OK


@command(app, "snapshot", SYSROOT, VERBOSITY)
def host_snapshot(
    context: Context,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", readable=False, help="New or empty directory.")
    ],
) -> None:
    """Capture the PMUs, CPUs and VMs of this host in a directory for --sysroot.

    Use it for bug reports, or to examine this host on another one. The capture contains the
    command lines of VMMs and the replies of their control sockets.
    """
    # imported here, because only this command queries VMs
    from pmuctl.cli.session import open_session
    from pmuctl.manage.snapshot import scan_snapshot

    try:
        with context.waiting_for("KVM and VMs"):
            count = write_capture(scan_snapshot(open_session(context)), directory)
    except OSError as error:
        cls = DeniedError if isinstance(error, PermissionError) else RefusedError
        raise cls(
            f"{directory}: the capture could not be written",
            why=error.strerror or str(error),
            fix="name a new or empty directory of your own",
        ) from error
    listing = errors.command("pmu", "list", "--sysroot", directory)
    context.note(f"{count} files written; to view them: {listing}")
