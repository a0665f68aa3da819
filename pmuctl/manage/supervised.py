# SPDX-License-Identifier: Apache-2.0
"""VMs that pmuctl run started, as their records tell of them: also without their supervisor."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pmuctl.control.record import Record, read_record
from pmuctl.control.registry import Entry, file_name, record_path, runtime_dirs
from pmuctl.errors import NotFoundError, UnreachableError, UsageError
from pmuctl.host.procs import Procfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kernel import DERIVED
from pmuctl.model.ref import ProcessId, VmId
from pmuctl.model.vm import Vm, VmPmu, VmState, Window
from pmuctl.model.vmm import identify

ORIGIN = "recorded"
"""Who says so: the record, while there is nobody to ask."""
SUPERVISOR_IS_GONE = "its supervisor is gone"


class RefusedStartError(NotFoundError):
    """There is no such VM, for its start was refused."""


def with_record(vm: Vm, entry: Entry, procs: Procfs) -> Vm:
    """A supervised VM with what its command line tells, and its record, if of the same process."""
    if not vm.supervised or vm.pid is None:
        return vm
    # what a VMM sets by itself its supervisor does not see
    identity = identify(procs.command_line(vm.pid), procs.comm(vm.pid, vm.pid))
    its = replace(vm, identity=identity)
    record = _record_of(entry, _owner(entry))
    if record is None or (record.name, _process(record)) != (vm.name, vm.process):
        return its
    return replace(its, command=record.command, applied=record.applied)


def recorded_cpus(vm: Vm) -> CpuSet | None:
    """What a supervisor has narrowed the threads of its vCPUs to; None where that is not known."""
    if not vm.supervised or not vm.socket:
        return None
    entry = Entry(name=vm.name, path=Path(vm.socket))
    record = _record_of(entry, _owner(entry))
    return record.cpus if record and _process(record) == vm.process else None


def orphan(entry: Entry, procs: Procfs) -> Vm | None:
    """The VM of a socket at which nobody listens, if its process goes on without its supervisor.

    That is so if the process that the record names still lives, by its start time, and runs as
    the owner of the directory, unless that is root's.
    """
    found = _living(entry, procs)
    if found is None:
        return None
    record, uid = found
    pmu, origin = (record.pmu, ORIGIN) if record.pmu else (record.derived, DERIVED)
    return Vm(
        name=record.name,
        socket=str(entry.path),
        state=VmState.ORPHANED,
        id=VmId(_process(record)),
        owner=uid,
        window=Window.SEALED,
        by=SUPERVISOR_IS_GONE,
        pmu=pmu and VmPmu(name=pmu[1], type=pmu[0], origin=origin),
        filter=record.filter,
        filter_origin=ORIGIN if record.filter else None,
        supervised=True,
        command=record.command,
        applied=record.applied,
        problem=UnreachableError(
            "its supervisor has ended, the VM goes on without it",
            subject=record.name,
            why=f"process {record.pid} can make no further vCPU (KVM_CREATE_VCPU gives ENOSYS); "
            "nothing else of the VM is touched",
            fix=f"end {record.name} and start it anew to have it supervised again",
        ),
    )


def recorded_process(entry: Entry, procs: Procfs) -> ProcessId | None:
    """The process of the VM with this socket, as its record names it, if it still lives."""
    found = _living(entry, procs)
    return _process(found[0]) if found else None


def _living(entry: Entry, procs: Procfs) -> tuple[Record, int] | None:
    """The record of a socket's VM, and the user of its process, if that still lives."""
    owner = _owner(entry)
    record = _record_of(entry, owner)
    if record is None or entry.name not in (None, record.name):
        return None
    # the user first: that the process is the same afterwards tells that it was its user
    uid = procs.uid(record.pid)
    if uid is None or owner not in (0, uid) or not procs.is_there(_process(record)):
        return None
    return record, uid


def _process(record: Record) -> ProcessId:
    return ProcessId(record.pid, record.start)


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


def _owner(entry: Entry) -> int | None:
    """The user whose directory it is in; None where that cannot be told."""
    if entry.owner is not None:
        return entry.owner
    try:
        return entry.path.parent.lstat().st_uid
    except OSError:
        return None


def _record_of(entry: Entry, owner: int | None) -> Record | None:
    owners = {0} if owner is None else {0, owner}
    return read_record(record_path(entry.path), owners)
