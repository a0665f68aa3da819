# SPDX-License-Identifier: Apache-2.0
"""What pmuctl has put the vCPU threads of a VM on: kept as long as the VM's process lives.

A file `.placed-PID.json` in the runtime directory of the user who placed them. It lets `affinity
align` tell a pin of pmuctl's from somebody else's.
"""

import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pmuctl.control.registry import own_dir, runtime_dirs
from pmuctl.control.schema import Int, List, Obj, Str
from pmuctl.errors import UsageError
from pmuctl.host import kept
from pmuctl.host.procs import Procfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.ref import ProcessId

FORMAT = 2
SIZE_LIMIT = 1 << 20
"""Bytes: 4096 threads with a list of 200 characters each are less."""

_FILE = re.compile(r"\.placed-([1-9][0-9]{0,9})\.json")
_FORM = Obj(
    {
        "format": Int(least=FORMAT, most=FORMAT),
        "start": Int(),
        "threads": List(Obj({"tid": Int(most=1 << 22), "cpus": Str(most=1 << 18)})),
    },
    is_open=True,
)


def read_placings(environ: Mapping[str, str], uid: int, process: ProcessId) -> dict[int, CpuSet]:
    """The CPUs that threads of a process were put on, as root and this user recorded it.

    By their thread ids: of two VMs of a process each has a vCPU 0.
    """
    found: dict[int, CpuSet] = {}
    owners = {0, uid}
    for directory, owner in runtime_dirs(environ, uid):
        if owner in (None, uid):
            document = kept.load(directory, _name(process.pid), owners=owners, limit=SIZE_LIMIT)
            with suppress(ValueError):
                found |= _from_json(document, process.started)
    return found


def write_placings(
    environ: Mapping[str, str],
    uid: int,
    process: ProcessId,
    placed: Mapping[int, CpuSet],
    procs: Procfs,
) -> None:
    """Add where threads of a process were put; the records of processes that ended are removed.

    Where nothing can be written, nothing is: then the next `align` knows of no such pin.
    """
    if not placed or not procs.is_there(process):
        return
    with suppress(OSError, UsageError):
        directory = own_dir(environ, uid)
        _remove_old(directory, procs)
        placed = read_placings(environ, uid, process) | dict(placed)
        _store(directory, uid, process, placed)


def forget_placings(
    environ: Mapping[str, str], uid: int, process: ProcessId, tids: Collection[int]
) -> None:
    """Drop what is recorded of these threads: their masks are the admin's own from now on."""
    placed = read_placings(environ, uid, process)
    left = {tid: cpus for tid, cpus in placed.items() if tid not in tids}
    with suppress(OSError, UsageError):
        directory = own_dir(environ, uid)
        if left:
            _store(directory, uid, process, left)
        else:
            kept.remove(directory, _name(process.pid))


def _store(directory: Path, uid: int, process: ProcessId, placed: Mapping[int, CpuSet]) -> None:
    document = {
        "format": FORMAT,
        "start": process.started,
        "threads": [{"tid": tid, "cpus": str(cpus)} for tid, cpus in sorted(placed.items())],
    }
    kept.store(directory, _name(process.pid), document, owners={0, uid}, limit=SIZE_LIMIT)


def _name(pid: int) -> str:
    return f".placed-{pid}.json"


def _remove_old(directory: Path, procs: Procfs) -> None:
    for name in os.listdir(directory) if directory.is_dir() else ():
        match = _FILE.fullmatch(name)
        if match and procs.start_time(int(match[1])) is None:
            with suppress(OSError):
                kept.remove(directory, name)


def _from_json(document: object, start: int) -> dict[int, CpuSet]:
    _FORM.check(document, "placed")
    its: Any = document
    if its["start"] != start:
        return {}
    return {one["tid"]: CpuSet.parse(one["cpus"]) for one in its["threads"]}
