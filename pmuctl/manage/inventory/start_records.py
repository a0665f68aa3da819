# SPDX-License-Identifier: Apache-2.0
"""Start records of VMs that pmuctl run started, read also after their supervisor has ended."""

import time
from collections.abc import Mapping

from pmuctl.control.protocol.stream import DECODING, ByteBudget
from pmuctl.control.runtime.sockets import (
    ControlSocket,
    file_name,
    record_path,
    runtime_dirs,
    scan_records,
)
from pmuctl.control.runtime.start_record import Record, read_record
from pmuctl.errors import NotFoundError, UsageError
from pmuctl.host.procfs import Procfs
from pmuctl.manage.inventory.replies import RecordedVm
from pmuctl.model.vm_ref import ProcessId


class RefusedStartError(NotFoundError):
    """There is no such VM, because its start failed."""


def record_of(
    socket: ControlSocket, name: str, process: ProcessId, budget: ByteBudget | None = None
) -> Record | None:
    """Return the start record of a supervised VM; None unless it is of that VM and process.

    `budget` bounds what is read. Raise OverBudgetError.
    """
    record = _read_record(socket, _find_owner(socket), budget)
    is_same = record is not None and (record.name, record.process) == (name, process)
    return record if is_same else None


def find_orphan(
    socket: ControlSocket, procs: Procfs, budget: ByteBudget | None = None
) -> RecordedVm | None:
    """Return the VM of a socket at which nobody listens, if its process runs on unsupervised.

    That is so if the process of the record still lives, by its start time, and runs as the owner
    of the directory; in root's directory it may run as any user. `budget` bounds what is read.
    Raise OverBudgetError.
    """
    owner = _find_owner(socket)
    record = _read_record(socket, owner, budget)
    if record is None or socket.name not in (None, record.name):
        return None
    # the user is read first: if the process is still the same afterwards, it was its user
    uid = procs.uid(record.pid)
    if uid is None or owner not in (0, uid) or not procs.is_there(record.process):
        return None
    return RecordedVm(record=record, uid=uid)


def refused_start(name: str, environ: Mapping[str, str], uid: int) -> RefusedStartError | None:
    """Return why there is no VM of this name, if a record shows that its last start failed.

    Only records of root and of this user count, because the user will follow their words.
    """
    try:
        file = file_name(name)
    except UsageError:
        return None
    for directory, owner in runtime_dirs(environ, uid):
        if owner not in (None, uid):
            continue
        record = read_record(record_path(directory / file), {0, uid})
        if record is None or record.problem is None or record.name != name:
            continue
        problem = record.problem
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.began))
        why = f": {problem.why}" if problem.why else ""
        return RefusedStartError(
            "there is no such VM",
            subject=name,
            why=f"its last start, {when}: {problem.message}{why}",
            now=problem.now,
            fix=problem.fix or "start it anew with pmuctl run",
        )
    return None


def starts_without_vm(environ: Mapping[str, str], uid: int, procs: Procfs) -> list[Record]:
    """Return the records of commands that have ended and had made no VM for their settings.

    As with `refused_start`, only records of root and of this user count.
    """
    found: list[Record] = []
    for directory, owner in runtime_dirs(environ, uid):
        if owner not in (None, uid):
            continue
        for path in scan_records(directory):
            record = read_record(path, {0, uid})
            if record is None or record.problem is None or record.problem.status:
                continue
            if record_path(directory / file_name(record.name)) == path and not procs.is_there(
                record.process
            ):
                found.append(record)
    return found


def _find_owner(socket: ControlSocket) -> int | None:
    """Return the owner of the socket's directory; None if it cannot be read."""
    if socket.speaks_for is not None:
        return socket.speaks_for
    try:
        return socket.path.parent.lstat().st_uid
    except OSError:
        return None


def _read_record(
    socket: ControlSocket, owner: int | None, budget: ByteBudget | None
) -> Record | None:
    owners = {0} if owner is None else {0, owner}
    with DECODING:
        return read_record(record_path(socket.path), owners, budget.spend if budget else None)
