# SPDX-License-Identifier: Apache-2.0
"""The VMs of this host that have a control socket: finding them, asking them."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pmuctl.control.client import Client, socket_at
from pmuctl.control.door import filter_from
from pmuctl.control.registry import Entry, scan_sockets
from pmuctl.errors import NotFoundError, PmuctlError, RefusedError, UnreachableError, UsageError
from pmuctl.host.procs import Procfs
from pmuctl.model.vm import Vm, VmPmu, VmState, VmVcpu, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How this user's VMs are reached: where to look, and how long to wait (seconds)."""

    environ: Mapping[str, str]
    uid: int
    deadline: float
    socket: Path | None = None
    procs: Procfs = field(default_factory=Procfs)

    def entries(self) -> list[Entry]:
        """The sockets to look at: the one that was named, or all there are."""
        if self.socket is not None:
            return [socket_at(self.socket)]
        return scan_sockets(self.environ, self.uid)

    def client(self, entry: Entry) -> Client:
        """A connection, not yet made, to a VM's control socket."""
        return Client(entry, deadline=self.deadline, procs=self.procs)


def list_vms(reach: Reach, names: Sequence[str] = ()) -> list[Vm]:
    """The VMs that the names stand for, by default all, each with its problem if it has one.

    All are asked side by side: one that is silent costs one deadline, not one each. Raises
    NotFoundError for a name that stands for none.
    """
    entries = reach.entries()
    vms: dict[int, Vm] = {}
    threads = [
        threading.Thread(target=lambda n=n, e=e: vms.update({n: _try_read(reach, e)}), daemon=True)
        for n, e in enumerate(entries)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [vms[n] for n in sorted(vms)]
    if not names:
        return found
    matched = [[vm for vm in found if _is_called(vm, name)] for name in names]
    for name, its in zip(names, matched, strict=True):
        if not its:
            raise _not_found(name, [vm.name for vm in found])
    return [vm for vm in found if any(vm in its for its in matched)]


def find_vm(reach: Reach, name: str) -> Entry:
    """The socket of the one VM of that name, `uuid/…` or `pid/N`.

    With a socket named by its path, the name must be that VM's. Raises NotFoundError where there
    is none, UsageError where two VMs hold it.
    """
    entries = reach.entries()
    if reach.socket is None and "/" not in name:
        found = [entry for entry in entries if entry.name == name]
    else:
        vms = list_vms(reach)
        for vm in vms:
            if vm.problem is not None and reach.socket is not None:
                raise vm.problem
        paths = {vm.socket for vm in vms if _is_called(vm, name)}
        found = [entry for entry in entries if str(entry.path) in paths]
    if not found:
        raise _not_found(name, [entry.name for entry in entries if entry.name])
    if len(found) > 1:
        raise UsageError(
            "two VMs hold this name",
            subject=name,
            why=", ".join(str(entry.path) for entry in found),
            fix=f"pmuctl … {name} --socket {found[0].path}",
        )
    return found[0]


def read_vm(client: Client, *, strictly: bool = False) -> Vm:
    """What a VM says of itself, as far as its peer can be believed.

    With `strictly`, where something is to be changed, a peer that cannot be checked is refused.
    Raises what Client raises, and RefusedError for a VM that answers to another name.
    """
    client.check_holds_kvm(strictly=strictly)
    answer: Any = client.execute("query-pmu")
    entry = client.entry
    if entry.name not in (None, answer["name"]):
        raise RefusedError(
            "its control socket answers for another VM",
            subject=entry.name,
            why=f"it calls itself {answer['name']}",
            fix=f"look at who made {entry.path}",
        )
    threads = client.threads()
    vcpus = tuple(
        VmVcpu(
            index=its["index"],
            tid=its["tid"] if its["tid"] in threads else None,
            initialised=its["initialised"],
            has_run=its["has-run"],
        )
        for its in answer["vcpus"]
    )
    pmu, counters, its_filter = answer["pmu"], answer["counters"], answer["filter"]
    return Vm(
        name=answer["name"],
        socket=str(entry.path),
        state=_state(answer, vcpus),
        uuid=answer["uuid"],
        vmm=answer["vmm"],
        pid=client.peer.pid,
        window=Window(answer["window"]),
        since=answer["since"],
        by=answer["by"],
        attributes=tuple(answer["attributes"]),
        event_bits=answer["event-bits"],
        pmu=pmu and VmPmu(name=pmu["name"], type=pmu["type"], origin=pmu["origin"]),
        counters=counters and counters["value"],
        counters_origin=counters and counters["origin"],
        filter=its_filter and filter_from(its_filter),
        filter_origin=its_filter and its_filter["origin"],
        vcpus=vcpus,
    )


def _state(answer: Any, vcpus: Sequence[VmVcpu]) -> VmState:
    if any(vcpu.has_run for vcpu in vcpus):
        return VmState.RUNNING
    return VmState.WAITING if answer["waiting"] else VmState.STARTING


def _try_read(reach: Reach, entry: Entry) -> Vm:
    try:
        with reach.client(entry) as client:
            return read_vm(client)
    except PmuctlError as error:
        is_dead = isinstance(error, UnreachableError) and error.errno == "ECONNREFUSED"
        return Vm(
            name=entry.name or str(entry.path),
            socket=str(entry.path),
            state=VmState.DEAD if is_dead else VmState.SILENT,
            problem=error,
        )


def _is_called(vm: Vm, name: str) -> bool:
    kind, slash, rest = name.partition("/")
    if slash and kind == "uuid":
        return vm.uuid is not None and vm.uuid.lower() == rest.lower()
    if slash and kind == "pid":
        return vm.pid is not None and str(vm.pid) == rest
    return vm.name == name


def _not_found(name: str, names: Sequence[str]) -> NotFoundError:
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    return NotFoundError(
        "there is no such VM with a control socket",
        subject=name,
        why=f"near: {', '.join(near)}" if near else f"found: {', '.join(names) or 'none'}",
        fix="pmuctl vm list",
    )
