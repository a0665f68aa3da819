# SPDX-License-Identifier: Apache-2.0
"""What pmuctl has put the vCPU threads of a VM on: kept as long as the VM's process lives.

A file `.placed-PID.json` in the runtime directory of the user who placed them. It lets `affinity
align` tell a pin of pmuctl's from somebody else's.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pmuctl.control.registry import own_dir, runtime_dirs
from pmuctl.control.schema import Int, List, Obj, Str
from pmuctl.errors import UsageError
from pmuctl.host import kept
from pmuctl.host.procs import Procfs
from pmuctl.model.cpuset import CpuSet

FORMAT = 1
SIZE_LIMIT = 1 << 20
"""Bytes: 4096 vCPUs with a list of 200 characters each are less."""

_FILE = re.compile(r"\.placed-([1-9][0-9]{0,9})\.json")
_FORM = Obj(
    {
        "format": Int(least=FORMAT, most=FORMAT),
        "start": Int(),
        "vcpus": List(Obj({"vcpu": Int(most=1 << 16), "cpus": Str(most=1 << 18)})),
    },
    is_open=True,
)


def read_placings(
    environ: Mapping[str, str], uid: int, pid: int, start: int | None
) -> dict[int, CpuSet]:
    """The CPUs that the vCPUs of a process were put on, as root and this user recorded it.

    `start` is when the process began (Procfs.start_time): a record of another one is none.
    """
    found: dict[int, CpuSet] = {}
    if start is None:
        return found
    owners = {0, uid}
    for directory, owner in runtime_dirs(environ, uid):
        if owner in (None, uid):
            document = kept.load(directory, _name(pid), owners=owners, limit=SIZE_LIMIT)
            with suppress(ValueError):
                found |= _from_json(document, start)
    return found


def write_placings(
    environ: Mapping[str, str], uid: int, pid: int, placed: Mapping[int, CpuSet], procs: Procfs
) -> None:
    """Add where vCPUs of a process were put; the records of processes that ended are removed.

    Where nothing can be written, nothing is: then the next `align` knows of no such pin.
    """
    start = procs.start_time(pid)
    if start is None or not placed:
        return
    placed = read_placings(environ, uid, pid, start) | dict(placed)
    document = {
        "format": FORMAT,
        "start": start,
        "vcpus": [{"vcpu": vcpu, "cpus": str(cpus)} for vcpu, cpus in sorted(placed.items())],
    }
    with suppress(OSError, UsageError):
        directory = own_dir(environ, uid)
        _remove_old(directory, procs)
        kept.store(directory, _name(pid), document, owners={0, uid}, limit=SIZE_LIMIT)


def forget_placings(environ: Mapping[str, str], uid: int, pid: int) -> None:
    """Drop the record of a process: its masks are the admin's own from now on."""
    with suppress(OSError, UsageError):
        kept.remove(own_dir(environ, uid), _name(pid))


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
    return {one["vcpu"]: CpuSet.parse(one["cpus"]) for one in its["vcpus"]}
