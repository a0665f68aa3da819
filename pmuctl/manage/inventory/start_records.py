# SPDX-License-Identifier: Apache-2.0
"""VMs that pmuctl run started, as their records tell of them: also without their supervisor."""

import time
from collections.abc import Mapping
from pathlib import Path

from pmuctl.control.runtime.sockets import ControlSocket, file_name, record_path, runtime_dirs
from pmuctl.control.runtime.start_record import Record, read_record
from pmuctl.errors import NotFoundError, UsageError
from pmuctl.host.procfs import Procfs
from pmuctl.manage.inventory.replies import RecordedVm
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm import Vm
from pmuctl.model.vm_ref import ProcessId


class RefusedStartError(NotFoundError):
    """There is no such VM, for its start was refused."""


def record_of(entry: ControlSocket, name: str, process: ProcessId) -> Record | None:
    """The record of a supervised VM's start; None where it is not of that VM and that process."""
    record = _read(entry, _owner(entry))
    is_its = record is not None and (record.name, record.process) == (name, process)
    return record if is_its else None


def recorded_cpus(vm: Vm) -> CpuSet | None:
    """What a supervisor has narrowed the threads of its vCPUs to; None where that is not known."""
    if not vm.supervised or not vm.socket:
        return None
    entry = ControlSocket(name=vm.name, path=Path(vm.socket))
    record = _read(entry, _owner(entry))
    return record.cpus if record and record.process == vm.process else None


def orphan(entry: ControlSocket, procs: Procfs) -> RecordedVm | None:
    """The VM of a socket at which nobody listens, if its process goes on without its supervisor.

    That is so if the process that the record names still lives, by its start time, and runs as
    the owner of the directory, unless that is root's.
    """
    found = _living(entry, procs)
    return RecordedVm(record=found[0], uid=found[1]) if found else None


def recorded_process(entry: ControlSocket, procs: Procfs) -> ProcessId | None:
    """The process of the VM with this socket, as its record names it, if it still lives."""
    found = _living(entry, procs)
    return found[0].process if found else None


def _living(entry: ControlSocket, procs: Procfs) -> tuple[Record, int] | None:
    """The record of a socket's VM, and the user of its process, if that still lives."""
    owner = _owner(entry)
    record = _read(entry, owner)
    if record is None or entry.name not in (None, record.name):
        return None
    # the user first: that the process is the same afterwards tells that it was its user
    uid = procs.uid(record.pid)
    if uid is None or owner not in (0, uid) or not procs.is_there(record.process):
        return None
    return record, uid


def refused_start(name: str, environ: Mapping[str, str], uid: int) -> RefusedStartError | None:
    """Why there is no VM of this name, where a record tells that its last start was refused.

    Only records of root and of this user count: the words are passed on to be followed.
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
            why=f"its last start, {when}, was refused: {problem.message}{why}",
            fix=problem.fix or "start it anew with pmuctl run",
        )
    return None


def _owner(entry: ControlSocket) -> int | None:
    """The user whose directory it is in; None where that cannot be told."""
    if entry.owner is not None:
        return entry.owner
    try:
        return entry.path.parent.lstat().st_uid
    except OSError:
        return None


def _read(entry: ControlSocket, owner: int | None) -> Record | None:
    owners = {0} if owner is None else {0, owner}
    return read_record(record_path(entry.path), owners)
