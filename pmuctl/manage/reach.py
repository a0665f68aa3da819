# SPDX-License-Identifier: Apache-2.0
"""Asking one VM over its control socket, as far as its peer can be believed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pmuctl.control.client import Client, socket_at
from pmuctl.control.door import filter_from
from pmuctl.control.registry import Entry, Sockets, scan_sockets
from pmuctl.control.trust import Peer
from pmuctl.errors import DeniedError, PmuctlError, RefusedError, UnreachableError
from pmuctl.host.procs import Procfs
from pmuctl.host.sysfs import Sysfs
from pmuctl.manage.found import Answers, Scene
from pmuctl.manage.supervised import orphan, recorded_process, with_record
from pmuctl.model.event import WIDEST_BITS, EventSet
from pmuctl.model.ref import ProcessId, VmId
from pmuctl.model.vm import Evidence, Vm, VmPmu, VmState, VmVcpu, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How this user's VMs are reached: where to look, and how long to wait (seconds).

    `sysfs` is the machine that `procs` are of; where that is not this one (`is_live`), VMs are
    only found by their processes, and none is asked. `trace` is told every request as it is sent.
    `answers` are what QEMUs' own monitors have said: whoever looks again does not ask again.
    """

    environ: Mapping[str, str]
    uid: int
    deadline: float
    socket: Path | None = None
    procs: Procfs = field(default_factory=Procfs)
    sysfs: Sysfs = field(default_factory=Sysfs)
    is_live: bool = True
    trace: Callable[[str], None] = field(default=lambda _: None)
    answers: Answers = field(default_factory=dict)

    def sockets(self) -> Sockets:
        """The sockets to look at: the one that was named, or all there are."""
        if self.socket is not None:
            return Sockets([socket_at(self.socket)])
        return scan_sockets(self.environ, self.uid) if self.is_live else Sockets()

    @property
    def scene(self) -> Scene:
        """Where VMs are found by their processes."""
        return Scene(
            procs=self.procs,
            sysfs=self.sysfs,
            is_live=self.is_live,
            uid=self.uid,
            answers=self.answers,
        )

    def is_own(self, entry: Entry) -> bool:
        """Whether nobody but root and this user can have made this socket, by its directory."""
        return self.socket is None and entry.owner in (None, self.uid)

    def client(self, entry: Entry) -> Client:
        """A connection, not yet made, to a VM's control socket."""
        return Client(entry, deadline=self.deadline, procs=self.procs, trace=self.trace)


def read_vm(client: Client, *, strictly: bool = False, is_own: bool = False) -> Vm:
    """What a VM says of itself, as far as its peer can be believed.

    With `strictly` a peer that cannot be checked is refused. `is_own` as in Vm. Raises what Client
    raises, and RefusedError for a VM that answers to another name than its socket has.
    """
    answer: Any = client.execute("query-pmu")
    vmm = client.believe(answer["pid"], strictly=strictly)
    entry = client.entry
    if entry.name not in (None, answer["name"]):
        raise RefusedError(
            "its control socket answers for another VM",
            subject=entry.name,
            why=f"it calls itself {answer['name']}",
            fix=f"look at who made {entry.path}",
        )
    threads = client.threads(vmm)
    # of a supervised process that has no VM yet nothing is true of one
    is_made = vmm.has_vm is not False
    window = Window(answer["window"])
    vcpus = tuple(
        VmVcpu(
            index=its["index"],
            tid=its["tid"] if its["tid"] in threads else None,
            initialised=its["initialised"],
            has_run=its["has-run"],
            evidence=Evidence.SOCKET if its["tid"] in threads else None,
        )
        for its in (answer["vcpus"] if is_made else ())
    )
    if answer["filter"] and filter_from(answer["filter"]).exceptions - EventSet.space(WIDEST_BITS):
        raise RefusedError(
            "its answer to query-pmu is wrong",
            subject=client.subject,
            why="its filter names events past 0xffff",
            fix=f"look at what listens at {entry.path}",
        )
    pmu, counters, its_filter = answer["pmu"], answer["counters"], answer["filter"]
    return Vm(
        name=answer["name"],
        socket=str(entry.path),
        state=_state(answer, vcpus) if is_made else VmState.STARTING,
        uuid=answer["uuid"],
        vmm=answer["vmm"],
        id=VmId(vmm.process) if vmm.process else None,
        owner=vmm.uid,
        window=None if window is Window.OPEN and not vcpus else window,
        since=answer["since"],
        by=answer["by"],
        attributes=tuple(answer["attributes"]),
        event_bits=answer.get("event-bits"),
        pmu=pmu and VmPmu(name=pmu["name"], type=pmu["type"], origin=pmu["origin"]),
        counters=counters and counters["value"],
        counters_origin=counters and counters["origin"],
        filter=its_filter and filter_from(its_filter),
        filter_origin=its_filter and its_filter["origin"],
        vcpus=vcpus,
        supervised=vmm.is_supervised,
        is_own=is_own,
    )


def _state(answer: Any, vcpus: Sequence[VmVcpu]) -> VmState:
    if any(vcpu.has_run for vcpu in vcpus):
        return VmState.RUNNING
    # a peer that does not say whether it waits has still its window to say so
    waits = answer.get("waiting", answer["window"] == Window.OPEN)
    return VmState.WAITING if waits else VmState.STARTING


def try_read(reach: Reach, entry: Entry, *, strictly: bool = False) -> Vm:
    """What a VM says of itself, or its record of it, or why neither does."""
    client, is_own = reach.client(entry), reach.is_own(entry)
    try:
        with client:
            vm = read_vm(client, strictly=strictly, is_own=is_own)
            return with_record(vm, entry, reach.procs)
    except PmuctlError as error:
        if is_dead(error) and (its := orphan(entry, reach.procs)):
            return replace(its, is_own=is_own)
        state = VmState.SILENT
        if isinstance(error, DeniedError):
            state = VmState.DENIED
        elif is_dead(error):
            state = VmState.DEAD
        peer = client.peer
        owner = peer.uid if peer and entry.owner is None else entry.owner
        process = _claimed(reach, entry, peer)
        return silent_vm(reach, entry, error, state=state, process=process, owner=owner)


def silent_vm(
    reach: Reach,
    entry: Entry,
    problem: PmuctlError,
    *,
    state: VmState = VmState.SILENT,
    process: ProcessId | None = None,
    owner: int | None = None,
) -> Vm:
    """All there is to tell of a VM whose socket has told nothing, and why it has not."""
    if problem.subject is None:
        problem.subject = entry.name or str(entry.path)
    process = recorded_process(entry, reach.procs) or process
    return Vm(
        name=entry.name or str(entry.path),
        socket=str(entry.path),
        state=state,
        id=VmId(process) if process else None,
        owner=entry.owner if owner is None else owner,
        problem=problem,
        is_own=reach.is_own(entry),
    )


def _claimed(reach: Reach, entry: Entry, peer: Peer | None) -> ProcessId | None:
    """The process of a VM that does not answer, where that is surely who began to listen.

    Whatever else has that pid is a VM of its own, and keeps its place.
    """
    if peer is None or peer.pid <= 0 or entry.owner not in (None, peer.uid):
        return None
    try:
        since = entry.path.lstat().st_mtime  # that of bind(2): nothing is written to a socket
    except OSError:
        return None
    return peer.process(reach.procs, since)


def is_dead(error: PmuctlError) -> bool:
    """Whether nobody listens at the control socket."""
    return isinstance(error, UnreachableError) and error.errno == "ECONNREFUSED"
