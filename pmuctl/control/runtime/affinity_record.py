# SPDX-License-Identifier: Apache-2.0
"""The record of the affinities that pmuctl has set, kept as long as the VM's process lives.

It is a file `.placed-PID.json` in the runtime directory of the user who set them. With it
`affinity align` distinguishes pmuctl's pins from those of others, and skips VMs with affinity
none.
"""

import errno
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from operator import attrgetter, itemgetter
from pathlib import Path

from pmuctl.control.runtime.sockets import own_dir, runtime_dirs
from pmuctl.errors import RefusedError, UsageError
from pmuctl.host import json_store
from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError, find_exhaustion
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm_ref import ProcessId, VmId
from pmuctl.schema import Constant, Int, List, Obj, Str, Struct
from pmuctl.value import field, value

FORMAT = 2
ANY = -1
"""Stands for a VM file descriptor that is not known."""
SIZE_LIMIT = 1 << 20
"""Bytes of a record: 4096 vCPUs with CPU lists of 200 characters each take less."""
MASKS_MAX = 1 << 23
"""Bits of the masks of all threads: 4096 threads on 2048 CPUs have them."""

_FILE = re.compile(r"\.placed-([1-9][0-9]{0,9})\.json")


@value(kw_only=True)
class AffinityRecord:
    """The affinities that were set in one process: the `cpus` of each thread, by thread id.

    Thread ids are the key because each of two VMs of a process has a vCPU 0. `left_alone` holds
    the VMs whose affinities are left to their admin (affinity none), by their file descriptors;
    ANY stands for a VM whose descriptor was not known.
    """

    cpus: Mapping[int, CpuSet] = field(default_factory=dict)
    left_alone: frozenset[int] = frozenset()

    def leaves(self, vm: VmId) -> bool:
        """Return whether the affinities of this VM are left to its admin."""
        if vm.fd is None:
            return bool(self.left_alone)
        return bool(self.left_alone & {vm.fd, ANY})


@value(kw_only=True)
class _File:
    """A record as its file has it.

    `start` is the start time of the process (clock ticks since boot), `when` the time at which
    the file was written (nanoseconds since boot).
    """

    start: int
    when: int
    left_alone: frozenset[int]
    cpus: Mapping[int, CpuSet]


def _map_threads(threads: Sequence[tuple[int, CpuSet]]) -> dict[int, CpuSet]:
    """Return the CPUs by thread id; raise ValueError for more than any machine has."""
    if sum(cpus.mask.bit_length() for _, cpus in threads) > MASKS_MAX:
        raise ValueError("too many CPUs")
    return dict(threads)


_FORM = Struct(
    {
        "format": Constant(FORMAT),
        "start": Int(),
        "when": Int(),
        "left-alone": List(Int(least=ANY), make=frozenset, unmake=sorted),
        "threads": List(
            Obj(
                {
                    "tid": Int(most=1 << 22),
                    "cpus": Str(most=1 << 18, make=CpuSet.parse, unmake=str),
                },
                make=itemgetter("tid", "cpus"),
                unmake=lambda thread: {"tid": thread[0], "cpus": thread[1]},
            ),
            make=_map_threads,
            unmake=lambda cpus: sorted(cpus.items(), key=itemgetter(0)),
        ),
    },
    is_open=True,
    cls=_File,
    fields={"threads": "cpus"},
)


def read_affinity_record(
    environ: Mapping[str, str], uid: int, process: ProcessId, *, owner: int | None
) -> AffinityRecord:
    """Return the newest record of a process by root, this user or the process's `owner`.

    Return an empty record if there is none.
    """
    return last_affinity_record(runtime_dirs(environ, uid), uid, process, owner=owner)


def last_affinity_record(
    directories: Iterable[tuple[Path, int | None]],
    uid: int,
    process: ProcessId,
    *,
    owner: int | None,
) -> AffinityRecord:
    """Return the same from these directories, each with its user (None is root)."""
    files: list[_File] = []
    for directory, whose in directories:
        if whose in (None, uid, owner):
            owners = {0, uid if whose is None else whose}
            file: _File | None = json_store.load(
                directory, _make_name(process.pid), _FORM, owners=owners, limit=SIZE_LIMIT
            )
            if file and file.start == process.started and file.when <= _read_clock():
                files.append(file)
    # the newest is complete, because a writer first reads the others; one of the future is forged
    newest = max(files, key=attrgetter("when"), default=None)
    if newest is None:
        return AffinityRecord()
    return AffinityRecord(cpus=newest.cpus, left_alone=newest.left_alone)


def write_affinity_record(
    environ: Mapping[str, str],
    uid: int,
    vm: VmId,
    affinities: Mapping[int, CpuSet],
    procs: Procfs,
    *,
    owner: int | None,
) -> None:
    """Add the affinities that were set of a VM's threads; the VM is not left alone any more.

    `affinities` maps thread ids to CPUs. Raise RefusedError if the record cannot be written: the
    next `affinity align` would take the pins for those of others.
    """
    with _explain_failure(
        "where its vCPU threads were put could not be recorded",
        "later on affinity align takes that for a pin of somebody else's",
    ):
        before = read_affinity_record(environ, uid, vm.process, owner=owner)
        left = frozenset() if vm.fd is None else before.left_alone - {vm.fd, ANY}
        after = AffinityRecord(cpus={**before.cpus, **affinities}, left_alone=left)
        if after != before and procs.is_there(vm.process):
            _save_record(environ, uid, vm.process, after, procs)


def write_unmanaged(
    environ: Mapping[str, str],
    uid: int,
    vm: VmId,
    tids: Collection[int],
    procs: Procfs,
    *,
    owner: int | None,
) -> None:
    """Record that the affinities of a VM's threads are left to its admin from now on.

    Raise RefusedError if the record cannot be written: `affinity align` would change them.
    """
    with _explain_failure(
        "that its vCPU threads are to be left alone could not be recorded",
        "affinity align --all and monitor --repair will not know",
    ):
        before = read_affinity_record(environ, uid, vm.process, owner=owner)
        after = AffinityRecord(
            cpus={tid: cpus for tid, cpus in before.cpus.items() if tid not in tids},
            left_alone=before.left_alone | {ANY if vm.fd is None else vm.fd},
        )
        if after == before:
            return
        if not procs.is_there(vm.process):
            raise ProcessLookupError(
                errno.ESRCH, os.strerror(errno.ESRCH), f"process {vm.process.pid}"
            )
        _save_record(environ, uid, vm.process, after, procs)


def _save_record(
    environ: Mapping[str, str], uid: int, process: ProcessId, record: AffinityRecord, procs: Procfs
) -> None:
    """Write the record, after removing those of processes that have ended."""
    file = _File(
        start=process.started,
        when=_read_clock(),
        left_alone=record.left_alone,
        cpus=record.cpus,
    )
    directory = own_dir(environ, uid)
    _remove_stale_records(directory, procs)
    name, document = _make_name(process.pid), _FORM.format(file)
    json_store.save(directory, name, document, owners={0, uid}, limit=SIZE_LIMIT)


@contextmanager
def _explain_failure(message: str, then: str) -> Iterator[None]:
    """Raise RefusedError with this message if the body fails; `then` is what that leads to."""
    fix = "make the runtime directory writable for its owner only, or set PMUCTL_RUNTIME_DIR"
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        if error.filename:
            why = f"{os.fsdecode(error.filename)}: {why}"
        if (shortage := find_exhaustion(error)) is not None:
            fix = shortage.fix or fix
        raise RefusedError(message, why=f"{why}; {then}", fix=fix) from error
    except UsageError as error:
        raise RefusedError(message, why=f"{error.message}; {then}", fix=fix) from error
    except ResourceExhaustedError as error:
        raise RefusedError(message, why=f"{error.why}; {then}", fix=error.fix) from error


def _read_clock() -> int:
    """Return the nanoseconds since boot: nobody sets this clock, and no record outlives a boot."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _make_name(pid: int) -> str:
    return f".placed-{pid}.json"


def _remove_stale_records(directory: Path, procs: Procfs) -> None:
    for name in os.listdir(directory) if directory.is_dir() else ():
        match = _FILE.fullmatch(name)
        if match and procs.start_time(int(match[1])) is None:
            with suppress(OSError):
                json_store.remove(directory, name)
