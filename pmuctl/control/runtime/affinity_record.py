# SPDX-License-Identifier: Apache-2.0
"""What pmuctl has done with the vCPU threads of a VM: kept as long as the VM's process lives.

A file `.placed-PID.json` in the runtime directory of the user who did it. It lets `affinity align`
tell a pin of pmuctl's from somebody else's, and leave alone what is to be left alone.
"""

import errno
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pmuctl.control.protocol.schema import Int, List, Obj, Str
from pmuctl.control.runtime.sockets import own_dir, runtime_dirs
from pmuctl.errors import PmuctlError, RefusedError, UsageError
from pmuctl.host import json_store
from pmuctl.host.procfs import Procfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm_ref import ProcessId, VmId
from pmuctl.value import field, value

FORMAT = 2
ANY = -1
"""The place of a descriptor that is not known."""
SIZE_LIMIT = 1 << 20
"""Bytes: 4096 vCPUs with a list of 200 characters each are less."""

_FILE = re.compile(r"\.placed-([1-9][0-9]{0,9})\.json")
_FORM = Obj(
    {
        "format": Int(least=FORMAT, most=FORMAT),
        "start": Int(),
        "when": Int(),
        "left-alone": List(Int(least=ANY)),
        "threads": List(Obj({"tid": Int(most=1 << 22), "cpus": Str(most=1 << 18)})),
    },
    is_open=True,
)


@value(kw_only=True)
class AffinityRecord:
    """What was done with the threads of a process: the `cpus` that each was put on, by its id.

    Of two VMs of a process each has a vCPU 0. `left_alone` are the VMs whose threads are left to
    their admin (affinity none), by their descriptors; ANY of one whose was not known.
    """

    cpus: Mapping[int, CpuSet] = field(default_factory=dict)
    left_alone: frozenset[int] = frozenset()

    def leaves(self, vm: VmId) -> bool:
        """Whether this VM's are left alone."""
        if vm.fd is None:
            return bool(self.left_alone)
        return bool(self.left_alone & {vm.fd, ANY})


def read_affinity_record(
    environ: Mapping[str, str], uid: int, process: ProcessId, *, owner: int | None
) -> AffinityRecord:
    """What was done last with a process, by root, this user or the process's `owner`."""
    return last_affinity_record(runtime_dirs(environ, uid), uid, process, owner=owner)


def last_affinity_record(
    directories: Iterable[tuple[Path, int | None]],
    uid: int,
    process: ProcessId,
    *,
    owner: int | None,
) -> AffinityRecord:
    """The same, from these directories, each with the user whose it is; None is root's."""
    found: list[tuple[int, AffinityRecord]] = []
    for directory, whose in directories:
        if whose in (None, uid, owner):
            owners = {0, uid if whose is None else whose}
            document = json_store.load(
                directory, _name(process.pid), owners=owners, limit=SIZE_LIMIT
            )
            with suppress(ValueError):
                found.append(_from_json(document, process.started))
    # each is written with what was to be read then; what claims to be of the future is a lie
    past = (its for its in found if its[0] <= _now())
    return max(past, key=lambda its: its[0], default=(0, AffinityRecord()))[1]


def write_affinity_record(
    environ: Mapping[str, str],
    uid: int,
    vm: VmId,
    placed: Mapping[int, CpuSet],
    procs: Procfs,
    *,
    owner: int | None,
) -> None:
    """Add where threads of a VM were put: they are not left alone any more.

    Raises RefusedError where that cannot be recorded: the next `align` knows of no such pin.
    """
    before = read_affinity_record(environ, uid, vm.process, owner=owner)
    left = frozenset() if vm.fd is None else before.left_alone - {vm.fd, ANY}
    after = AffinityRecord(cpus={**before.cpus, **placed}, left_alone=left)
    if after == before or not procs.is_there(vm.process):
        return
    try:
        _write(environ, uid, vm.process, after, procs)
    except (OSError, UsageError) as error:
        raise _unrecorded(
            "where its vCPU threads were put could not be recorded",
            error,
            "later on affinity align takes that for a pin of somebody else's",
        ) from error


def write_unmanaged(
    environ: Mapping[str, str],
    uid: int,
    vm: VmId,
    tids: Collection[int],
    procs: Procfs,
    *,
    owner: int | None,
) -> None:
    """Record that the masks of a VM's threads are its admin's own from now on.

    Raises RefusedError where that cannot be recorded: they would not be left alone.
    """
    before = read_affinity_record(environ, uid, vm.process, owner=owner)
    after = AffinityRecord(
        cpus={tid: cpus for tid, cpus in before.cpus.items() if tid not in tids},
        left_alone=before.left_alone | {ANY if vm.fd is None else vm.fd},
    )
    if after == before:
        return
    try:
        if not procs.is_there(vm.process):
            raise ProcessLookupError(
                errno.ESRCH, os.strerror(errno.ESRCH), f"process {vm.process.pid}"
            )
        _write(environ, uid, vm.process, after, procs)
    except (OSError, UsageError) as error:
        raise _unrecorded(
            "that its vCPU threads are to be left alone could not be recorded",
            error,
            "affinity align --all and monitor --repair will not know",
        ) from error


def _write(
    environ: Mapping[str, str], uid: int, process: ProcessId, its: AffinityRecord, procs: Procfs
) -> None:
    document = {
        "format": FORMAT,
        "start": process.started,
        "when": _now(),
        "left-alone": sorted(its.left_alone),
        "threads": [{"tid": tid, "cpus": str(cpus)} for tid, cpus in sorted(its.cpus.items())],
    }
    directory = own_dir(environ, uid)
    _remove_old(directory, procs)
    json_store.save(directory, _name(process.pid), document, owners={0, uid}, limit=SIZE_LIMIT)


def _unrecorded(message: str, error: OSError | UsageError, then: str) -> PmuctlError:
    why = error.message if isinstance(error, UsageError) else error.strerror or str(error)
    if isinstance(error, OSError) and error.filename:
        why = f"{os.fsdecode(error.filename)}: {why}"
    return RefusedError(
        message,
        why=f"{why}; {then}",
        fix="make the runtime directory writable for its owner only, or set PMUCTL_RUNTIME_DIR",
    )


def _now() -> int:
    """Nanoseconds since boot: a clock that nobody sets, and a record does not outlive a boot."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _name(pid: int) -> str:
    return f".placed-{pid}.json"


def _remove_old(directory: Path, procs: Procfs) -> None:
    for name in os.listdir(directory) if directory.is_dir() else ():
        match = _FILE.fullmatch(name)
        if match and procs.start_time(int(match[1])) is None:
            with suppress(OSError):
                json_store.remove(directory, name)


def _from_json(document: object, start: int) -> tuple[int, AffinityRecord]:
    """When it was written, and what it says; raises ValueError for what is not of that process."""
    _FORM.check(document, "placed")
    its: Any = document
    if its["start"] != start:
        raise ValueError("of another process")
    cpus = {one["tid"]: CpuSet.parse(one["cpus"]) for one in its["threads"]}
    return its["when"], AffinityRecord(cpus=cpus, left_alone=frozenset(its["left-alone"]))
